"""Labels that are wrong on purpose."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def flip(
    labels: NDArray[Any], share: float, n_classes: int, *, seed: int = 0
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """`labels` with some changed to another class at random, and which."""
    random = np.random.default_rng(seed)
    flipped = np.zeros(len(labels), bool)
    flipped[random.permutation(len(labels))[: round(share * len(labels))]] = True
    moved = (labels + random.integers(1, n_classes, len(labels))) % n_classes
    return np.where(flipped, moved, labels).astype(labels.dtype), flipped
