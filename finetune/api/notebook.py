"""Progress in a notebook: a chart that is redrawn in place. Outside a kernel nothing is shown."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from finetune.scores.figures import plot_history, render_png
from finetune.training.loop import EpochReport
from finetune.training.state import Entry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEAST_S = 1.0  # between two drawings
_DPI = 80


def in_kernel() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


def displayable(figure: "Figure") -> "Figure":
    """`figure`, which a notebook shows as an image also where nothing has loaded pyplot."""
    if in_kernel():
        formatter = sys.modules["IPython"].get_ipython().display_formatter.formatters["image/png"]
        try:
            formatter.lookup_by_type(type(figure))
        except KeyError:  # no formatter for figures is set
            formatter.for_type(type(figure), lambda each: render_png(each, dpi=_DPI))
    return figure


class LiveOutput:
    """One output of a cell, which is replaced at most once a second, and always by the last thing to show."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._shown_at = float("-inf")
        self._waiting: Callable[[], Any] | None = None

    def show(self, make: Callable[[], Any]) -> None:
        """Shows what `make` returns, now or, if something was shown a moment ago, with the next call or at the end."""
        self._waiting = make
        if time.monotonic() - self._shown_at >= _LEAST_S:
            self.finish()

    def finish(self) -> None:
        """Shows what is still waiting to be shown."""
        if self._waiting is None:
            return
        from IPython.display import display

        shown, self._waiting = self._waiting(), None
        if self._handle is None:
            self._handle = display(shown, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(shown)
        self._shown_at = time.monotonic()


@contextmanager
def live_chart(title: str = "training") -> Iterator[EpochReport | None]:
    """In a notebook, a function that adds an epoch to a chart of loss and accuracy; None elsewhere."""
    if not in_kernel():
        yield None
        return
    output, history = LiveOutput(), list[Entry]()

    def report(entry: Entry) -> None:
        history.append(entry)
        output.show(lambda: _chart(history, title))

    try:
        yield report
    finally:
        output.finish()


@contextmanager
def live_count(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """In a notebook, a function that draws a progress bar from the number done and the total; None elsewhere."""
    if not in_kernel():
        yield None
        return
    from IPython.display import HTML

    output = LiveOutput()

    def report(done: int, total: int) -> None:
        bar = f'<progress value="{done}" max="{total}"></progress> {done} of {total} {what}'
        output.show(lambda: HTML(bar))  # type: ignore[no-untyped-call]

    try:
        yield report
    finally:
        output.finish()


def _chart(history: list[Entry], title: str) -> Any:
    from IPython.display import Image

    png = render_png(plot_history(history, title=title), dpi=_DPI)
    return Image(data=png, format="png")  # type: ignore[no-untyped-call]
