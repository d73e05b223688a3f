"""What was measured of an engine, and which of several is chosen."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from featurize.engines.engine import Engine
from featurize.engines.precision import MIN_COSINE, Precision

_SAME = 0.99999
"""Mean cosine from which two computations in float32 count as the same."""


@dataclass(frozen=True)
class Measurement:
    """An engine that was tried on a worker's processor.

    Attributes:
        engine: what computed.
        precision: of its products.
        batch_size: images that are computed together, the fastest of those tried.
        images_per_s: with this batch size; 0 if it could not be measured.
        cosine: mean over 16 drawn images of the cosine between its features and the reference in float32.
        error: why it cannot be used; None if it can.
        per_core: images in a pass that one core computes alone, if that was faster; None: all cores compute one pass together.
    """

    engine: Engine
    precision: Precision
    batch_size: int
    images_per_s: float
    cosine: float
    error: str | None = None
    per_core: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The measurement as a JSON-ready dict."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @property
    def is_faithful(self) -> bool:
        """Whether its features may stand for the reference; those in int8 are judged otherwise, by heads."""
        if self.precision == "int8":
            return self.error is None
        return self.error is None and self.cosine >= (MIN_COSINE if self.precision == "bfloat16" else _SAME)

    def is_usable(self, asked: str = "auto") -> bool:
        """Whether it may compute: it is faithful, or it is in bfloat16, which the recipe asks for."""
        return self.is_faithful or (self.error is None and self.precision == asked == "bfloat16")


def fastest_first(measured: Sequence[Measurement], *, asked: str = "auto") -> tuple[Measurement, ...]:
    """Usable ones first, by speed; then the others. `asked` is the precision of the recipe."""
    return tuple(sorted(measured, key=lambda one: (not one.is_usable(asked), -one.images_per_s)))
