"""A network's probabilities for rows of features."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import keras


def predict_probabilities(model: "keras.Model", features: NDArray[Any]) -> NDArray[np.float32]:
    """The probabilities of each row, ``float32 (n_images, n_classes)``, computed in slices of 4,096 rows."""
    slices = (features[start : start + 4096] for start in range(0, len(features), 4096))
    parts = [np.asarray(model(part, training=False)) for part in slices]
    return np.concatenate(parts) if parts else np.empty((0, int(model.output.shape[-1])), np.float32)


FEATURES_NOT_FINITE = "the features are NaN or infinite"
NOT_FINITE = "the network gave NaN or infinite probabilities"
"""Why there is no answer for an image."""


def is_finite(rows: NDArray[Any]) -> NDArray[np.bool_]:
    """Which rows are numbers throughout: bool ``(n_rows,)``.

    Args:
        rows: features, images or probabilities, ``(n_rows, ...)``.
    """
    finite: NDArray[np.bool_] = np.isfinite(rows).all(axis=tuple(range(1, rows.ndim)))
    return finite
