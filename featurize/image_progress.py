"""The progress of a job on images, and the interface of the views that show it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

Bound = Literal["decode", "network", "storage"]


@dataclass(frozen=True, slots=True)
class ImageProgress:
    """How far a job has come.

    Attributes:
        what: The unit, as in ``images``.
        done: Images that are done, rejects included.
        total: Images that the job has to do.
        rejected: Images so far that could not be used.
        rate: Images per second over the last half minute; None until it is known.
        bound: What limits the rate; None until it is known.
    """

    what: str
    done: int
    total: int
    rejected: int = 0
    rate: float | None = None
    bound: Bound | None = None

    @property
    def left_s(self) -> float | None:
        """Seconds until the end at the present rate; None until the rate is known."""
        return (self.total - self.done) / self.rate if self.rate else None

    def describe(self) -> str:
        """The progress as one line, for a log."""
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
        """Shows how far a job has come; called several times a second."""
        ...

    def show_row(self, columns: Mapping[str, str], line: str) -> None:
        """Shows a row of a table that grows, by column name, or `line` where there are no tables."""
        ...

    def close(self) -> None:
        """Ends the view: the bar and the stage are removed."""
        ...


def clock(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
