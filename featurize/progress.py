"""What library code says about a job while it runs, and which view of it people see.

Libraries call `stage`, `show_images` and `show_row`; they go to the view that is chosen at that moment. Commands choose one with
`shown_progress`, functions for notebooks with `shown_in_notebook`. Where nobody has chosen, a job is silent, and the logger
`featurize.progress` gets it at the level DEBUG.
"""

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from featurize.console import console, say

_logger = logging.getLogger(__name__)
Bound = Literal["decode", "network", "storage"]


@dataclass(frozen=True, slots=True)
class ImageProgress:
    """How far a job is.

    Attributes:
        what: The unit, as in ``images``.
        done: Images that are done, rejects included.
        total: Images that the job has to do.
        rejected: Images so far that could not be used.
        rate: Images a second of late; None before it is known.
        bound: What the workers wait for; None before it is known.
    """

    what: str
    done: int
    total: int
    rejected: int = 0
    rate: float | None = None
    bound: Bound | None = None

    @property
    def left_s(self) -> float | None:
        """Seconds until the end at the present rate; None before the rate is known."""
        return (self.total - self.done) / self.rate if self.rate else None

    def describe(self) -> str:
        """The line for a log."""
        parts = [f"{self.done:,} of {self.total:,} {self.what} ({self.done / max(self.total, 1):.0%})"]
        parts += [f"{self.rate:,.1f} a second"] if self.rate else []
        parts += [f"{clock(self.left_s)} left"] if self.left_s is not None else []
        parts += [f"{self.rejected:,} rejected"]
        parts += [f"bound by {self.bound}"] if self.bound else []
        return ", ".join(parts)


class View(Protocol):
    """How progress is shown. Methods may be called from several threads."""

    @property
    def wants_images(self) -> bool:
        """Whether `show_images` has an effect: if not, workers need not report how many images they have done."""
        ...

    def stage(self, text: str) -> None:
        """A stage of the job begins; ``""`` means that nothing is under way any more."""
        ...

    def show_images(self, progress: ImageProgress) -> None:
        """Shows how far a job is; called several times a second."""
        ...

    def show_row(self, columns: Mapping[str, str], line: str) -> None:
        """Shows a row of a table that grows, by column name, or `line` where there are no tables."""
        ...

    def close(self) -> None:
        """Removes what moves."""
        ...


class QuietView:
    """The view of ``--json``: neither bar nor stages; the rows of a table are lines."""

    wants_images = False

    def stage(self, text: str) -> None:
        """Shows nothing."""

    def show_images(self, progress: ImageProgress) -> None:
        """Shows nothing."""

    def show_row(self, columns: Mapping[str, str], line: str) -> None:
        """Says the line."""
        say(line)

    def close(self) -> None:
        """There is nothing to remove."""


class _LoggedView:
    """The view that nobody has chosen: messages for the logger `featurize.progress`, at DEBUG."""

    @property
    def wants_images(self) -> bool:
        return _logger.isEnabledFor(logging.DEBUG)

    def stage(self, text: str) -> None:
        if text:
            _logger.debug("%s", text)

    def show_images(self, progress: ImageProgress) -> None:
        _logger.debug("%s", progress.describe())

    def show_row(self, columns: Mapping[str, str], line: str) -> None:
        _logger.debug("%s", line)

    def close(self) -> None:
        pass


class _UnstagedView:
    """Another view without its stages."""

    def __init__(self, inner: View) -> None:
        self._inner = inner

    @property
    def wants_images(self) -> bool:
        return self._inner.wants_images

    def stage(self, text: str) -> None:
        self._inner.stage("")

    def show_images(self, progress: ImageProgress) -> None:
        self._inner.show_images(progress)

    def show_row(self, columns: Mapping[str, str], line: str) -> None:
        self._inner.show_row(columns, line)

    def close(self) -> None:
        pass


_views: list[View] = [_LoggedView()]  # not a context variable: Spark calls a stream's batches in a thread of its own


def current_view() -> View:
    """The view that is chosen at this moment."""
    return _views[-1]


def stage(text: str) -> None:
    """Shows that a stage of the job begins, as in ``starting Spark``; ``""``: nothing is under way any more."""
    current_view().stage(text)


def show_images(progress: ImageProgress) -> None:
    """Shows how far a job is."""
    current_view().show_images(progress)


def show_row(columns: Mapping[str, str], line: str) -> None:
    """Shows a row of a table that grows, such as an epoch: its columns by name, or `line` where there are no tables."""
    current_view().show_row(columns, line)


@contextmanager
def shown_progress(*, as_json: bool = False, view: View | None = None) -> Iterator[None]:
    """Shows the progress of what runs within, as a command does: on standard error.

    Args:
        as_json: Show neither bar nor stages.
        view: The view to choose; default: a bar on a terminal or in a notebook, elsewhere a line every half minute.
    """
    chosen = view or _view_for(as_json=as_json)
    _views.append(chosen)
    try:
        yield
    finally:
        _views.remove(chosen)
        chosen.close()


@contextmanager
def shown_in_notebook() -> Iterator[None]:
    """Shows the progress of what runs within if this is a notebook and no view is chosen; else the view stays what it is."""
    if is_notebook() and len(_views) == 1:
        with shown_progress():
            yield
    else:
        yield


@contextmanager
def without_stages() -> Iterator[None]:
    """Hides the stages of what runs within, as those of a stream's batch; images and rows are shown."""
    view = _UnstagedView(current_view())
    _views.append(view)
    try:
        yield
    finally:
        _views.remove(view)


def is_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def clock(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _view_for(*, as_json: bool) -> View:
    if as_json:
        return QuietView()
    from featurize.progress_views import LogView, NotebookView, TerminalView

    if is_notebook():
        return NotebookView()
    return TerminalView() if console.is_terminal and not console.is_dumb_terminal else LogView()
