"""The live table of a training: redrawn on a terminal, a line an epoch elsewhere."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.live import Live
from rich.table import Table

from featurize.console import console, say

if TYPE_CHECKING:
    from finetune.training.loop import EpochReport
    from finetune.training.state import Entry

_ROWS = 12


@contextmanager
def epoch_progress(epochs: int) -> "Iterator[EpochReport]":
    """A function to be called after each epoch with its entry in the history."""
    if not console.is_terminal:
        yield lambda entry: say(f"epoch {entry['epoch']:.0f}/{epochs}  {_describe(entry)}")
        return
    shown: deque[Entry] = deque(maxlen=_ROWS)
    with Live(console=console, auto_refresh=False) as live:

        def report(entry: "Entry") -> None:
            shown.append(entry)
            live.update(_table(shown, epochs), refresh=True)

        yield report


def _table(entries: "deque[Entry]", epochs: int) -> Table:
    """The last epochs, a row each."""
    names = ["loss", "accuracy", *(name for name in ("validation_loss", "validation_accuracy") if name in entries[-1])]
    table = Table(f"epoch of {epochs}", *(name.replace("_", " ") for name in names), "rows/s", "all-reduce", box=None)
    for column in table.columns:
        column.justify = "right"
    for entry in entries:
        values = [f"{entry[name]:.4f}" for name in names]
        table.add_row(f"{entry['epoch']:.0f}", *values, f"{entry['rows_per_second']:,.0f}", f"{_reducing(entry):.0%}")
    return table


def _describe(entry: "Entry") -> str:
    text = f"loss {entry['loss']:.4f}  accuracy {entry['accuracy']:.4f}"
    if "validation_loss" in entry:
        text += f"  validation loss {entry['validation_loss']:.4f}  accuracy {entry['validation_accuracy']:.4f}"
    text += f"  {entry['rows_per_second']:,.0f} rows/s"
    return f"{text}  all-reduce {_reducing(entry):.0%}" if _reducing(entry) else text


def _reducing(entry: "Entry") -> float:
    """The share of its time that this rank spent in the all-reduce, waiting for other ranks included."""
    from finetune.training.loop import TIMES

    total = sum(entry[name] for name in TIMES)
    return (entry["all_reduce_seconds"] + entry["idle_seconds"]) / total if total else 0.0
