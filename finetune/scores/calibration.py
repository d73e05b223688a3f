"""Statistics for reports beyond `finetune.scores.metrics`: intervals, baseline, calibration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.scores.metrics import CONFIDENCE, FloatArray, IntArray

CALIBRATION_BINS = 15
"""Source: C. Guo et al., "On Calibration of Modern Neural Networks", 2017, which reports 15 bins."""


@dataclass(frozen=True)
class CalibrationBin:
    """The rows whose highest probability is in (low, high].

    Attributes:
        rows: Number of rows, at least 1.
        confidence: Mean of the highest probabilities, in [0, 1].
        accuracy: Share of rows that are right, in [0, 1].
        interval: 95 % interval of the accuracy; see `wilson_interval`.
    """

    low: float
    high: float
    rows: int
    confidence: float
    accuracy: float
    interval: tuple[float, float]


def wilson_interval(right: int, rows: int, *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The score interval of a share, which stays in [0, 1] and is valid for few rows and for shares near 0 and 1.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927.

    Raises:
        ValueError: There are no rows, or more right rows than rows.
    """
    if rows < 1 or not 0 <= right <= rows:
        raise ValueError(f"`right` must be in [0, `rows`] and `rows` at least 1. Got {right} and {rows}.")
    from scipy.stats import binomtest

    interval = binomtest(right, rows).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def most_frequent_class(rows: Mapping[str, int], classes: Sequence[str]) -> int:
    """The index of the class with the most of `rows`; the lower index where classes tie."""
    return int(np.argmax([rows.get(label, 0) for label in classes]))


def calibration_bins(
    probabilities: FloatArray, label_index: IntArray, bins: int = CALIBRATION_BINS
) -> list[CalibrationBin]:
    """Accuracy by confidence: bins of equal width by the highest probability, without the empty ones.

    Source: A. Niculescu-Mizil, R. Caruana, "Predicting Good Probabilities with Supervised Learning", 2005.

    Args:
        probabilities: float ``(n_rows, n_classes)`` in [0, 1].
        label_index: int ``(n_rows,)``, the true classes.
        bins: Number of bins, at least 1.
    """
    confidence = np.clip(probabilities.max(axis=1).astype(np.float64), 0, 1)
    is_right = probabilities.argmax(axis=1) == label_index
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    found = []
    for index in np.unique(place).tolist():
        inside = place == index
        rows, right = int(inside.sum()), int(is_right[inside].sum())
        found.append(
            CalibrationBin(
                low=index / bins,
                high=(index + 1) / bins,
                rows=rows,
                confidence=float(confidence[inside].mean()),
                accuracy=right / rows,
                interval=wilson_interval(right, rows),
            )
        )
    return found


def expected_calibration_error(bins: Sequence[CalibrationBin]) -> float:
    """Mean distance between confidence and accuracy over the bins, weighted by their rows, in [0, 1].

    Source: M. P. Naeini, G. F. Cooper, M. Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", 2015.
    """
    rows = sum(part.rows for part in bins)
    return sum(part.rows * abs(part.confidence - part.accuracy) for part in bins) / rows


def most_confident_mistakes(probabilities: FloatArray, label_index: IntArray, n: int) -> NDArray[np.int64]:
    """The wrong rows, the most confident first, at most `n` of them: int64 ``(n_mistakes,)``."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != label_index)
    order = np.argsort(-probabilities[wrong].max(axis=1), kind="stable")
    return wrong[order][:n].astype(np.int64)


def order_by_confusion(matrix: IntArray) -> list[int]:
    """The classes in an order that puts classes which are confused with each other side by side.

    A greedy chain: it begins with the class that has the most errors, and continues with the class that is most confused with the
    last one, in either direction; where there is none, with the remaining class that has the most errors.

    Args:
        matrix: int ``(n_classes, n_classes)``, rows = true, columns = predicted.
    """
    both = (matrix + matrix.T).astype(np.int64)
    np.fill_diagonal(both, 0)
    errors = both.sum(axis=1)
    left = np.ones(len(matrix), bool)
    order = [int(errors.argmax())]
    left[order[0]] = False
    while left.any():
        near = np.where(left, both[order[-1]], -1)
        following = int((near if near.max() > 0 else np.where(left, errors, -1)).argmax())
        order.append(following)
        left[following] = False
    return order
