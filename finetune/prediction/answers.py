"""What is said of an image from the probabilities of its classes: a label or why there is none, and the top five."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOP = 5
ANSWERS = ("label", "probability", "top_labels", "top_probabilities", "reason")


@dataclass(frozen=True)
class Threshold:
    """The probability below which a model abstains, and where it comes from.

    Attributes:
        precision: that was wanted: the share of right labels among those that are given.
        threshold: in [0, 1]; a label of a lower probability is not given.
        features: URL of the feature set by which the threshold was set.
        features_identity: of this feature set.
        split: of it.
        rows: in the split.
        kept: of these, how many get a label.
        right: of those, how many get the right one.
        precision_low: the lower end of the 95 % interval of the precision, by these numbers.
    """

    precision: float
    threshold: float
    features: str
    features_identity: str
    split: str
    rows: int
    kept: int
    right: int
    precision_low: float

    @property
    def reason(self) -> str:
        """Why an image below the threshold has no label."""
        return f"probability below {self.threshold:.6g}, the threshold for a precision of {self.precision:g}"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def answers_of(
    probabilities: NDArray[np.float32], classes: Sequence[str], threshold: Threshold | None = None
) -> dict[str, list[Any]]:
    """The answers to ``float32 (n_images, n_classes)`` probabilities, as columns.

    Returns:
        For each image: `label`, None below the threshold; `probability`, that of the most probable class; `top_labels` and
        `top_probabilities`, the five most probable classes, or all where there are fewer, the first in the order of the
        classes where probabilities are equal; `reason`, None or why there is no label.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP]
    top = np.take_along_axis(probabilities, order, axis=1)
    labels = [[classes[index] for index in row] for row in order.tolist()]
    abstains = top[:, 0].astype(np.float64) < (threshold.threshold if threshold is not None else 0.0)
    reason = threshold.reason if threshold is not None else None
    return {
        "label": [None if abstained else row[0] for row, abstained in zip(labels, abstains, strict=True)],
        "probability": top[:, 0].tolist(),
        "top_labels": labels,
        "top_probabilities": top.tolist(),
        "reason": [reason if abstained else None for abstained in abstains],
    }
