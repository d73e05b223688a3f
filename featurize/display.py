"""Small tables of facts, as text for a terminal and as HTML for a notebook."""

import io
from collections.abc import Iterable, Sequence
from html import escape

from rich.console import RenderableType
from rich.markup import escape as escape_markup

from featurize.console import make_console
from featurize.foreign_text import printable, printable_lines

_WIDTH = 120  # characters
_CELL = "padding: 2px 12px 2px 0; vertical-align: top; text-align: "


def as_cell(text: str) -> str:
    """Text of any origin as one line of a cell of a Rich table."""
    return escape_markup(printable(text))


def as_lines(text: str) -> str:
    """Text of any origin in several lines, for Rich."""
    return escape_markup(printable_lines(text))


def plain_text(part: RenderableType) -> str:
    """What `rich` would print to a terminal without colours, at most 120 characters wide."""
    file = io.StringIO()
    # In a notebook rich would otherwise display the part itself, too.
    make_console(file=file, width=_WIDTH, color_system=None, highlight=False, force_jupyter=False).print(part)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def html_facts(facts: Iterable[tuple[str, str]]) -> str:
    """Names and values, a line each, as an HTML table; everything is escaped."""
    return html_table(None, [[name, value] for name, value in facts], first_is_name=True)


def html_table(
    columns: Sequence[str] | None,
    rows: Iterable[Sequence[str]],
    *,
    numbers: Sequence[int] = (),
    first_is_name: bool = False,
) -> str:
    """Rows of text as an HTML table; everything is escaped.

    Args:
        columns: the header; None: no header.
        numbers: the positions of the columns of numbers, which are aligned to the right.
        first_is_name: whether the first column names the row.
    """
    sides = dict.fromkeys(numbers, "right")
    head = "" if columns is None else f"<thead>{_row(columns, sides, names=range(len(columns)))}</thead>"
    names = (0,) if first_is_name else ()
    body = "".join(_row(row, sides, names=names) for row in rows)
    return f'<table style="border-collapse: collapse">{head}<tbody>{body}</tbody></table>'


def _row(cells: Sequence[str], sides: dict[int, str], *, names: Sequence[int]) -> str:
    parts = []
    for place, text in enumerate(cells):
        tag = "th" if place in names else "td"
        parts.append(f'<{tag} style="{_CELL}{sides.get(place, "left")}">{escape(text)}</{tag}>')
    return f"<tr>{''.join(parts)}</tr>"
