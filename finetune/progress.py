"""The live line of a training: redrawn on a terminal, a line an epoch elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from featurize.cli import console, say
from finetune.fit import EpochReport


@contextmanager
def epoch_progress(epochs: int) -> Iterator[EpochReport]:
    """A function to be called after each epoch with its entry in the history."""
    if not console.is_terminal:
        yield lambda entry: say(f"epoch {entry['epoch']:.0f}/{epochs}  {_describe(entry)}")
        return
    columns = (
        TextColumn("epoch"),
        MofNCompleteColumn(),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=epochs)
        yield lambda entry: progress.update(task, advance=1, description=_describe(entry))


def _describe(entry: dict[str, float]) -> str:
    text = f"loss {entry['loss']:.4f}  accuracy {entry['accuracy']:.4f}"
    if "validation_loss" in entry:
        text += f"  validation loss {entry['validation_loss']:.4f}  accuracy {entry['validation_accuracy']:.4f}"
    return text
