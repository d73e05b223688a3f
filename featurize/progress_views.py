"""Views of progress: a bar on a terminal, lines in a log, a bar in a notebook."""

from collections import deque
from collections.abc import Mapping, Sequence
from html import escape
from threading import Lock
from time import monotonic
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from featurize.console import console, say
from featurize.foreign_text import shown
from featurize.image_progress import ImageProgress, clock

FIRST_LINE_S, LINE_PERIOD_S = 15.0, 30.0
_ROWS = 12  # the last rows of a growing table, which are shown
_REDRAWN_PER_S = 5
_NOTEBOOK_PERIOD_S = 0.5


class LogView:
    """Lines on standard error: each stage, each row of a table, and from time to time how far a job has come.

    Args:
        first_s: Seconds from the start of a job until its first line.
        period_s: Seconds between its lines from then on.
    """

    wants_images = True

    def __init__(self, *, first_s: float = FIRST_LINE_S, period_s: float = LINE_PERIOD_S) -> None:
        self._first_s, self._period_s = first_s, period_s
        self._next_line_at: float | None = None

    def stage(self, text: str) -> None:
        """Prints the stage."""
        self._next_line_at = None
        if text:
            say(text)

    def show_images(self, progress: ImageProgress) -> None:
        """Prints how far the job has come, if the last such line is `period_s` ago."""
        now = monotonic()
        if self._next_line_at is None:
            self._next_line_at = now + self._first_s
        if now >= self._next_line_at:
            say(progress.describe())
            self._next_line_at = now + self._period_s

    def show_row(self, columns: Mapping[str, str], line: str) -> None:
        """Prints the line."""
        say(line)

    def close(self) -> None:
        """There is nothing to remove."""


class TerminalView:
    """One line that moves, below all other lines: the stage, or a bar of the images; and the last rows of a table."""

    wants_images = True

    def __init__(self) -> None:
        self._live: Live | None = None
        self._lock = Lock()
        self._stage: Spinner | None = None
        self._images: ImageProgress | None = None
        self._rows = deque[Mapping[str, str]](maxlen=_ROWS)

    def stage(self, text: str) -> None:
        """Shows the stage in place of the one before."""
        self._stage = Spinner("dots", text=Text(shown(text))) if text else None
        self._images = None
        self._redraw()

    def show_images(self, progress: ImageProgress) -> None:
        """Moves the bar; the full bar is drawn at once, before the next stage takes its place."""
        self._images = progress
        self._redraw()
        live = self._live
        if live is not None and progress.done == progress.total:
            live.refresh()

    def show_row(self, columns: Mapping[str, str], line: str) -> None:
        """Adds a row to the table."""
        self._stage = self._images = None
        self._rows.append(columns)
        self._redraw()

    def close(self) -> None:
        """Removes the line that moves; the rows of a table stay."""
        rows = tuple(self._rows)
        self._stage = self._images = None
        self._rows.clear()
        self._redraw()
        if rows:
            console.print(_table(rows))

    def _redraw(self) -> None:
        """Starts or stops the thread of Rich that redraws the view."""
        is_wanted = self._stage is not None or self._images is not None or bool(self._rows)
        with self._lock:
            if is_wanted and self._live is None:
                self._live = Live(
                    get_renderable=self._draw,
                    console=console,
                    refresh_per_second=_REDRAWN_PER_S,
                    transient=True,
                    redirect_stdout=False,
                )
                self._live.start()
            elif not is_wanted and self._live is not None:
                self._live.stop()
                self._live = None

    def _draw(self) -> RenderableType:
        stage, images = self._stage, self._images
        moving: RenderableType = stage or Text()
        if images is not None:
            moving = _bar(images, stage)
        return Group(_table(tuple(self._rows)), moving) if self._rows else moving


def _bar(images: ImageProgress, stage: Spinner | None) -> Table:
    """The bar, on one line of the terminal; until the first image is there, the stage stands at its left."""
    left: RenderableType = stage if stage is not None and not images.done else Text(images.what)
    parts = [f"{images.done:,}/{images.total:,}"]
    parts += [f"{images.rate:,.1f}/s"] if images.rate else []
    parts += [f"{clock(images.left_s)} left"] if images.left_s is not None else []
    grid = Table.grid(expand=True, padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True)
    figures = Text("  ".join(parts), style="progress.data.speed")
    figures.append(f"  {images.rejected:,} rejected", style="yellow" if images.rejected else "dim")
    if images.bound:
        figures.append(f"  bound by {images.bound}", style="cyan")
    grid.add_row(left, ProgressBar(total=max(images.total, 1), completed=images.done), figures)
    return grid


def _table(rows: Sequence[Mapping[str, str]]) -> Table:
    """The last rows, with the columns of the last one."""
    table = Table(*rows[-1], box=None)
    for column in table.columns:
        column.justify = "right"
    for row in rows:
        table.add_row(*(row.get(name, "") for name in rows[-1]))
    return table


class NotebookView:
    """One output of the cell, which is replaced as the job proceeds; it needs no widgets."""

    wants_images = True

    def __init__(self) -> None:
        self._handle: Any = None
        self._shown_at = 0.0
        self._lock = Lock()
        self._stage = ""
        self._images: ImageProgress | None = None
        self._rows = deque[Mapping[str, str]](maxlen=_ROWS)

    def stage(self, text: str) -> None:
        """Shows the stage in place of the one before."""
        self._stage, self._images = shown(text), None
        self._display()

    def show_images(self, progress: ImageProgress) -> None:
        """Moves the bar, at most twice a second."""
        self._images = progress
        if monotonic() - self._shown_at >= _NOTEBOOK_PERIOD_S:
            self._display()

    def show_row(self, columns: Mapping[str, str], line: str) -> None:
        """Adds a row to the table."""
        self._stage, self._images = "", None
        self._rows.append(columns)
        self._display()

    def close(self) -> None:
        """Leaves an empty output, or the rows of the table."""
        self._stage, self._images = "", None
        if self._handle is not None:
            self._display()

    def _display(self) -> None:
        from IPython.display import display

        with self._lock:
            self._shown_at = monotonic()
            bundle = {"text/html": self._html(), "text/plain": self._text()}
            if self._handle is None:
                self._handle = display(bundle, raw=True, display_id=True)  # type: ignore[no-untyped-call]
            else:
                self._handle.update(bundle, raw=True)

    def _text(self) -> str:
        return self._images.describe() if self._images is not None else self._stage

    def _html(self) -> str:
        parts = [_html_table(tuple(self._rows))] if self._rows else []
        images = self._images
        if images is not None:
            parts.append(
                f'<progress value="{images.done}" max="{max(images.total, 1)}" style="width:20em"></progress> '
                + escape(images.describe() if images.done else self._stage or images.describe())
            )
        elif self._stage:
            parts.append(f"<em>{escape(self._stage)}…</em>")
        return "<div>" + "".join(parts) + "</div>"


def _html_table(rows: Sequence[Mapping[str, str]]) -> str:
    names = list(rows[-1])
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(row.get(name, ''))}</td>" for name in names) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
