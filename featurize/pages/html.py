"""HTML files that open without a network: a template, filled, with style sheets and scripts included."""

from functools import cache, partial
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

STYLE = "page.css"
"""The style sheet with which every page of Firn begins; among the templates of this room."""


def page_environment(package: str) -> Environment:
    """The environment of the templates of `package`: everything but `Markup` is escaped, and missing values are errors."""
    return Environment(
        autoescape=True,
        loader=FunctionLoader(partial(_read, package)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def page_part(package: str, name: str) -> Markup:
    """A style sheet or script among the templates of `package`, to be included in a page unchanged."""
    return Markup(_read(package, name))


def render_page(template: str, context: dict[str, Any]) -> str:
    """The HTML of a template of this room; all of `context` but `Markup` is escaped."""
    return _environment().get_template(template).render(context, style=page_part("featurize.pages", STYLE))


@cache
def _environment() -> Environment:
    return page_environment("featurize.pages")


def _read(package: str, name: str) -> str:
    """A file in the folder `templates`, also from within a zip."""
    return (resources.files(package) / "templates" / name).read_text(encoding="utf-8")
