"""A report as a single HTML file, with style sheet and script included."""

from functools import cache
from typing import Any

from jinja2 import Environment

from featurize.pages.html import STYLE, page_environment, page_part
from finetune.reports.sections import duration, legend
from finetune.reports.svg import percent

_TEMPLATE = "report.html"


def render_report(context: dict[str, Any]) -> str:
    """The HTML of a report; all of `context` except `Markup` is escaped."""
    style = page_part("featurize.pages", STYLE) + page_part("finetune.reports", "report.css")
    return (
        _environment()
        .get_template(_TEMPLATE)
        .render(context, style=style, script=page_part("finetune.reports", "report.js"))
    )


@cache
def _environment() -> Environment:
    environment = page_environment("finetune.reports")
    environment.filters["percent"] = percent
    environment.filters["duration"] = duration
    environment.globals["legend"] = legend
    return environment
