"""Whether features in int8 are as good as those in float32, judged by what they are for: heads trained on both.

Each image is labelled by heads that have not seen it, once for each seed, from its features in float32 and in int8. The loss of
accuracy is a mean of paired differences, so its interval is narrow even where the accuracy itself is uncertain.
"""

from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurize.engines.precision import mean_cosine

MOST_LOSS = 0.02
"""The largest loss of accuracy, as a fraction of the images, that the upper end of the interval may show."""
LEAST_IMAGES, MOST_IMAGES = 150, 1000
"""Fewer images cannot show a loss that small: of 150 without a fault the true rate may be 0.02 (the rule of three). More
than 1,000 take more time than they tell."""
FOLDS = 5
"""Parts of the images; each is labelled by heads trained on the others."""
SEEDS = (42, 43, 44)
_STEPS = 20  # 40 change the accuracy by less than half a point
_PENALTY = 4e-5  # for each feature; with a quarter of it heads on 1,500 objects were as good, more was not tried
_NORMAL = 1.96  # standard errors on either side of the mean in a 95 % interval

Features = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Verdict:
    """What int8 costs.

    Attributes:
        images: how many were labelled.
        classes: of these images.
        cosine: mean cosine between their features in float32 and in int8.
        accuracy: of heads on features in float32, mean over the seeds.
        accuracy_int8: the same in int8.
        losses: the loss of accuracy with each seed.
        interval: 95 % interval of the mean loss, over images and seeds.
        bound: what its upper end may be.
    """

    images: int
    classes: int
    cosine: float
    accuracy: float
    accuracy_int8: float
    losses: tuple[float, ...]
    interval: tuple[float, float]
    bound: float = MOST_LOSS

    @property
    def loss(self) -> float:
        """The mean loss of accuracy; less than 0 where int8 is better."""
        return self.accuracy - self.accuracy_int8

    @property
    def is_accepted(self) -> bool:
        """Whether the loss is within the bound, with the certainty that the images allow."""
        return self.interval[1] <= self.bound

    def as_dict(self) -> dict[str, Any]:
        """The verdict as a JSON-ready dict."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def __str__(self) -> str:
        low, high = (100 * end for end in self.interval)
        return (
            f"heads on {self.images} images of {self.classes} classes have an accuracy of {self.accuracy_int8:.3f} in int8 and "
            f"{self.accuracy:.3f} in float32: a loss of {100 * self.loss:.2f} points (95 % interval {low:.2f} to {high:.2f}; "
            f"allowed {100 * self.bound:g}), mean cosine {self.cosine:.4f}"
        )


def judge(reference: Features, rounded: Features, labels: Labels, *, bound: float = MOST_LOSS) -> Verdict:
    """Compares heads on two kinds of features of the same images.

    Args:
        reference: in float32, ``(n_images, feature_dim)``.
        rounded: in int8, of the same shape.
        labels: the class of each image, ``(n_images,)``; each class should have `FOLDS` images at least.
        bound: what the upper end of the interval of the loss may be.
    """
    classes, labels = np.unique(labels, return_inverse=True)
    right = _right_by_seed(reference, labels, len(classes))
    right_int8 = _right_by_seed(rounded, labels, len(classes))
    losses = (right - right_int8).mean(axis=1)
    return Verdict(
        images=len(labels),
        classes=len(classes),
        cosine=round(mean_cosine(reference, rounded), 6),
        accuracy=round(float(right.mean()), 6),
        accuracy_int8=round(float(right_int8.mean()), 6),
        losses=tuple(round(float(loss), 6) for loss in losses),
        interval=_interval((right - right_int8).mean(axis=0)),
        bound=bound,
    )


def _interval(differences: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % interval of the mean of paired differences in [-1, 1], ``(n_images,)``.

    As Agresti and Min (2005) do it: with half an image more in each of the four cells of right and wrong, so that a few images
    without any difference are no proof that there is none.
    """
    images = len(differences) + 2
    mean = differences.sum() / images
    error = sqrt(((differences**2).sum() + 1) / images - mean**2) / sqrt(images)
    return round(float(mean - _NORMAL * error), 6), round(float(mean + _NORMAL * error), 6)


def _right_by_seed(features: Features, labels: Labels, classes: int) -> NDArray[np.float64]:
    """Whether each image is labelled rightly by heads that have not seen it: 0 or 1, ``(n_seeds, n_images)``."""
    inputs, sizes = _rotated(features)
    targets = np.eye(classes, dtype=np.float32)[labels]
    right = np.empty((len(SEEDS), len(labels)))
    for row, seed in enumerate(SEEDS):
        fold = _folds(labels, seed)
        for number in range(FOLDS):
            test = fold == number
            weights = _fit(inputs[~test], targets[~test], sizes, penalty=_PENALTY * features.shape[1])
            right[row, test] = (inputs[test] @ weights).argmax(axis=1) == labels[test]
    return right


def _folds(labels: Labels, seed: int) -> Labels:
    """The part of each image, with a share of every class in each part."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), np.int64)
    fold[order] = np.arange(len(labels)) % FOLDS
    return fold


def _rotated(features: Features) -> tuple[Features, NDArray[np.float64]]:
    """Standardised features in the basis of their principal components, with a constant, and the squared size of each column.

    Softmax regression with an L2 penalty is the same in any basis; this one has at most as many columns as images, and its
    columns are orthogonal, which tells how far a step may go in each.
    """
    scale = features.std(axis=0)
    standard = (features - features.mean(axis=0)) / np.where(scale > 1e-6 * scale.max(initial=0), scale, np.inf)
    if standard.shape[1] <= len(standard):
        _, basis = np.linalg.eigh(standard.T @ standard)
        rotated = standard @ basis
    else:
        values, vectors = np.linalg.eigh(standard @ standard.T)
        rotated = vectors * np.sqrt(values.clip(0))
    columns = np.column_stack([rotated, np.ones(len(rotated))]).astype(np.float32)
    return columns, np.square(columns.astype(np.float64)).sum(axis=0)


def _fit(inputs: Features, targets: Features, sizes: NDArray[np.float64], *, penalty: float) -> Features:
    """Softmax regression with an L2 penalty: weights ``(n_columns, n_classes)``.

    Accelerated descent. The curvature of the cross-entropy is at most half of that of the squares (Böhning, 1992), and a part of
    the images has no more of it than all: so no step is too long, and none needs to be searched for.
    """
    step = (1 / (0.5 * sizes / len(inputs) + penalty)).astype(np.float32)[:, None]
    weights = ahead = np.zeros((inputs.shape[1], targets.shape[1]), np.float32)
    for number in range(_STEPS):
        logits = inputs @ ahead
        logits -= logits.max(axis=1, keepdims=True)
        np.exp(logits, out=logits)
        logits /= logits.sum(axis=1, keepdims=True)
        gradient = inputs.T @ (logits - targets) / np.float32(len(inputs)) + np.float32(penalty) * ahead
        last, weights = weights, ahead - step * gradient
        ahead = weights + np.float32(number / (number + 3)) * (weights - last)
    return weights
