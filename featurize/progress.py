"""How library code reports progress, and the choice of the view that shows it.

Libraries call `stage`, `show_images` and `show_row`; they go to the view that is chosen at that moment. Commands choose one with
`shown_progress`, functions for notebooks with `shown_in_notebook`. Where nobody has chosen, a job is silent, and the logger
`featurize.progress` gets it at the level DEBUG.
"""

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from featurize.console import console, say
from featurize.image_progress import ImageProgress, View

_logger = logging.getLogger(__name__)


class QuietView:
    """The view for ``--json``: no bar and no stages; the rows of a table are lines."""

    wants_images = False

    def stage(self, text: str) -> None:
        """Shows nothing."""

    def show_images(self, progress: ImageProgress) -> None:
        """Shows nothing."""

    def show_row(self, columns: Mapping[str, str], line: str) -> None:
        """Prints the line."""
        say(line)

    def close(self) -> None:
        """There is nothing to remove."""


class _LoggedView:
    """The view where none was chosen: messages for the logger `featurize.progress`, at DEBUG."""

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
    """Shows how far a job has come."""
    current_view().show_images(progress)


def show_row(columns: Mapping[str, str], line: str) -> None:
    """Shows a row of a table that grows, such as an epoch: its columns by name, or `line` where there are no tables."""
    current_view().show_row(columns, line)


@contextmanager
def shown_progress(*, as_json: bool = False, view: View | None = None) -> Iterator[None]:
    """Shows the progress of what runs within, as a command does: on standard error.

    Args:
        as_json: Whether to show no bar and no stages.
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


def _view_for(*, as_json: bool) -> View:
    if as_json:
        return QuietView()
    from featurize.progress_views import LogView, NotebookView, TerminalView

    if is_notebook():
        return NotebookView()
    return TerminalView() if console.is_terminal and not console.is_dumb_terminal else LogView()
