"""The progress of a training, epoch by epoch: rows of a table on a terminal, lines elsewhere."""

from typing import TYPE_CHECKING

from featurize.progress import show_row

if TYPE_CHECKING:
    from finetune.training.loop import EpochReport
    from finetune.training.state import Entry

_NAMES = ("loss", "accuracy", "validation_loss", "validation_accuracy")


def epoch_progress(epochs: int) -> "EpochReport":
    """A function to be called after each epoch with its entry in the history.

    Args:
        epochs: the greatest number of epochs.
    """
    return lambda entry: show_row(_columns(entry, epochs), f"epoch {entry['epoch']:.0f}/{epochs}  {_describe(entry)}")


def _columns(entry: "Entry", epochs: int) -> dict[str, str]:
    figures = {name.replace("_", " "): f"{entry[name]:.4f}" for name in _NAMES if name in entry}
    return {
        f"epoch of {epochs}": f"{entry['epoch']:.0f}",
        **figures,
        "rows/s": f"{entry['rows_per_second']:,.0f}",
        "all-reduce": f"{_reducing(entry):.0%}",
    }


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
