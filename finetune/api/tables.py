"""Results that show themselves as tables: as text in a shell, as HTML in a notebook. All text from data is escaped."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from rich.table import Table

from featurize.display import as_cell, html_facts, html_table, plain_text
from featurize.foreign_text import shown
from featurize.shortening import and_more

MOST_ROWS = 12


@dataclass(frozen=True)
class Summary:
    """The content that a result shows.

    Attributes:
        title: one line.
        facts: names and values.
        columns: the header of the table below; empty where there is no table.
        rows: the rows of the table, as text.
        numbers: the places of the columns that hold numbers.
        more: how many rows were left out.
    """

    title: str
    facts: Sequence[tuple[str, str]] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    numbers: Sequence[int] = ()
    more: int = 0

    def as_text(self) -> str:
        """Title, facts and table as plain text."""
        parts = [shown(self.title)]
        if self.facts:
            grid = Table.grid(padding=(0, 2))
            for name, value in self.facts:
                grid.add_row(as_cell(name), as_cell(value))
            parts.append(plain_text(grid))
        if self.columns:
            table = Table(*(as_cell(name) for name in self.columns), box=None, padding=(0, 2, 0, 0))
            for place in self.numbers:
                table.columns[place].justify = "right"
            for row in self.rows:
                table.add_row(*(as_cell(cell) for cell in row))
            parts.append(plain_text(table))
        parts += [and_more(self.more)] if self.more else []
        return "\n".join(parts)

    def as_html(self) -> str:
        """Title, facts and table as HTML."""
        parts = [f"<p><strong>{escape(self.title)}</strong></p>"]
        parts += [html_facts(self.facts)] if self.facts else []
        parts += [html_table(self.columns, self.rows, numbers=self.numbers)] if self.columns else []
        parts += [f"<p>{and_more(self.more)}</p>"] if self.more else []
        return "<div>" + "".join(parts) + "</div>"


class Summarised(ABC):
    """A result whose `repr` is a table, in a notebook too."""

    @abstractmethod
    def _summary(self) -> Summary:
        """The content to show."""

    def __repr__(self) -> str:
        return self._summary().as_text()

    def _repr_html_(self) -> str:
        return self._summary().as_html()
