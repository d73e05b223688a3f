"""A report as one HTML file: the template filled, its style sheet and script put in."""

from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from finetune.report_sections import duration, legend
from finetune.report_svg import percent

_TEMPLATE = "report.html"


def render_report(context: dict[str, Any]) -> str:
    """The HTML of a report; all of `context` is escaped but what is `Markup`."""
    return _environment().get_template(_TEMPLATE).render(context, style=_part("report.css"), script=_part("report.js"))


@cache
def _environment() -> Environment:
    environment = Environment(
        autoescape=True,
        loader=FunctionLoader(_read),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.filters["duration"] = duration
    environment.globals["legend"] = legend
    return environment


def _read(name: str) -> str:
    """A file of the folder `templates`, out of a zip too."""
    return (resources.files("finetune") / "templates" / name).read_text(encoding="utf-8")


def _part(name: str) -> Markup:
    return Markup(_read(name))
