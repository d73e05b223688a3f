"""The answer for an image, from its class probabilities: a label or the reason why there is none, and the top five classes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOP = 5
ANSWERS = ("label", "probability", "top_labels", "top_probabilities", "reason")


@dataclass(frozen=True)
class Threshold:
    """The probability below which a model abstains, and how it was found.

    Attributes:
        precision: The target precision: the required share of right labels among the labels that are given, in (0, 1].
        threshold: In [0, 1]; an image whose highest probability is below it gets no label.
        features: URL of the feature set on which the threshold was chosen.
        features_identity: Identity of that feature set.
        split: The split of that feature set that was used.
        rows: Number of images in the split.
        kept: Number of these images that get a label.
        right: Number of these images that get the right label.
        precision_low: Lower end of the 95 % interval of the precision that these counts give.
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
        """The threshold as a JSON-ready dict."""
        return asdict(self)


def answers_of(
    probabilities: NDArray[np.float32], classes: Sequence[str], threshold: Threshold | None = None
) -> dict[str, list[Any]]:
    """The answers for ``float32 (n_images, n_classes)`` probabilities, all of them finite, as columns.

    Returns:
        For each image: `label`, None below the threshold; `probability` of the most probable class; `top_labels` and
        `top_probabilities`, the five most probable classes (all of them where there are fewer; ties are in the order of
        `classes`); `reason`, why there is no label, or None.
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
