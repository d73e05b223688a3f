"""The quality of a classifier: accuracy, macro scores, log loss and the confusion matrix.

Pure NumPy, no TensorFlow, no Spark: the numbers in a report come from here, whichever engine made the probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.integer[Any]]

CONFIDENCE = 0.95  # confidence level of every interval that Firn reports

LOG_LOSS_EPSILON = 1e-15
"""Smallest probability that enters a logarithm. Source: scikit-learn's ``log_loss`` before 1.3 (``eps=1e-15``)."""

ROW_SUM_TOLERANCE = 1e-3
"""Largest distance from 1 of a row's sum of probabilities: a float16 softmax over 1,000 classes is off by up to 5e-4."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The scores of one classifier on one split. To compare two of them, compare their `as_dict()`.

    Attributes:
        accuracy: Share of rows whose most probable class is the true one, in [0, 1].
        top5_accuracy: Share of rows with the true class among the five most probable, in [0, 1]; see `top_k_accuracy`.
        precision: Macro precision in [0, 1]; see `macro_average`.
        recall: Macro recall in [0, 1].
        f1: Macro F1 (the mean of the classes' F1, not the F1 of the means) in [0, 1].
        log_loss: Mean negative log likelihood in nats, at least 0.
        rows: Number of rows evaluated.
        confusion_matrix: int64 (n_classes, n_classes), rows = true, columns = predicted.
        classes: The class labels, in the order of `label_index`.
    """

    accuracy: float
    top5_accuracy: float
    precision: float
    recall: float
    f1: float
    log_loss: float
    rows: int
    confusion_matrix: NDArray[np.int64]
    classes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The scores as plain Python numbers, lists and strings, ready for `json.dumps`."""
        scores = {field.name: getattr(self, field.name) for field in fields(self)}
        return scores | {"confusion_matrix": self.confusion_matrix.tolist(), "classes": list(self.classes)}


@dataclass(frozen=True, eq=False)
class ClassScores:
    """Per-class scores, each (n_classes,).

    Attributes:
        precision: float64 in [0, 1], correct / predicted; 0 for a class never predicted.
        recall: float64 in [0, 1], correct / true; 0 for a class without rows.
        f1: float64 in [0, 1], the harmonic mean of the two; 0 where both are 0.
        support: int64, rows of the true class.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    support: NDArray[np.int64]


@dataclass(frozen=True)
class ConfusedPair:
    """A kind of error: `count` rows of `true_label`, a `fraction` in (0, 1] of them, were predicted as `predicted_label`."""

    true_label: str
    predicted_label: str
    count: int
    fraction: float


def evaluate_probabilities(probabilities: FloatArray, label_index: IntArray, classes: Sequence[str]) -> Evaluation:
    """Scores predicted probabilities against the true classes.

    Args:
        probabilities: float (n_rows, n_classes), finite, at least 0, every row summing to 1.
        label_index: int (n_rows,) in [0, n_classes).
        classes: The class labels, in the order of `label_index`.

    Returns:
        All scores. Where two classes tie for most probable, the lower index is the prediction.

    Raises:
        ValueError: The shapes differ, there are no rows, or a value is out of range.
    """
    _check_probabilities(probabilities, label_index)
    n_rows, n_classes = probabilities.shape
    if len(classes) != n_classes:
        raise ValueError(f"`classes` must have one label per column, {n_classes}. Got {len(classes)}.")
    matrix = confusion_matrix(label_index, probabilities.argmax(axis=1), n_classes)
    precision, recall, f1 = macro_average(matrix)
    return Evaluation(
        accuracy=float(np.trace(matrix) / n_rows),
        top5_accuracy=top_k_accuracy(probabilities, label_index, 5),
        precision=precision,
        recall=recall,
        f1=f1,
        log_loss=log_loss(probabilities, label_index),
        rows=n_rows,
        confusion_matrix=matrix,
        classes=tuple(classes),
    )


def confusion_matrix(label_index: IntArray, predicted_index: IntArray, n_classes: int) -> NDArray[np.int64]:
    """Counts how often each true class was predicted as each class.

    Args:
        label_index: int (n_rows,) in [0, n_classes), the true classes.
        predicted_index: int (n_rows,) in [0, n_classes).
        n_classes: Number of classes, at least 1.

    Returns:
        int64 (n_classes, n_classes), rows = true, columns = predicted; it sums to n_rows.

    Raises:
        ValueError: The shapes differ, there are no rows, or an index is out of range.
    """
    if n_classes < 1:
        raise ValueError(f"`n_classes` must be at least 1. Got {n_classes}.")
    _check_index("label_index", label_index, n_classes)
    _check_index("predicted_index", predicted_index, n_classes)
    if label_index.shape != predicted_index.shape:
        raise ValueError(f"`predicted_index` must have the shape {label_index.shape}. Got {predicted_index.shape}.")
    # int64 first: an index column may be uint8, in which the product would wrap around.
    cell = label_index.astype(np.int64) * n_classes + predicted_index.astype(np.int64)
    counts = np.bincount(cell, minlength=n_classes * n_classes).astype(np.int64, copy=False)
    return counts.reshape(n_classes, n_classes)


def class_scores(matrix: IntArray) -> ClassScores:
    """Derives precision, recall and F1 of every class, with 0 / 0 = 0.

    F1 is 2 * correct / (true + predicted), which is the harmonic mean of precision and recall without their 0 / 0.
    Source: Sasaki, "The truth of the F-measure", 2007; 0 / 0 as scikit-learn's ``zero_division=0``.

    Args:
        matrix: int (n_classes, n_classes), rows = true, columns = predicted, at least 0.

    Returns:
        The scores of all classes, in index order.
    """
    check_confusion_matrix(matrix)
    return scores_of_counts(*_counts(matrix))


def f1_of_means(precision: float, recall: float) -> float:
    """The F1 of macro precision and macro recall, which older tools print as F1; 0 where both are 0.

    It is at least the mean of the classes' F1, `macro_average`'s. Source: Opitz and Burst, "Macro F1 and Macro F1", 2019.
    """
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def scores_of_counts(correct: IntArray, true: IntArray, predicted: IntArray) -> ClassScores:
    """The scores of `class_scores`, from the diagonal, the row sums and the column sums of a confusion matrix.

    Args:
        correct: int (n_classes,), rows of each class that were predicted as it.
        true: int (n_classes,), rows of each class.
        predicted: int (n_classes,), rows that were predicted as each class.
    """
    return ClassScores(
        precision=_divide(correct, predicted),
        recall=_divide(correct, true),
        f1=_divide(2 * correct, true + predicted),
        support=true.astype(np.int64),
    )


def macro_average(matrix: IntArray) -> tuple[float, float, float]:
    """Averages precision, recall and F1 over the classes that occur, with equal weights.

    A class that is neither true nor predicted in any row is left out: a split without it says nothing about it. A class that is
    only predicted counts as 0. Source: scikit-learn's ``precision_recall_fscore_support(average="macro",
    zero_division=0)``, whose default labels are the same set.

    Args:
        matrix: int (n_classes, n_classes), rows = true, columns = predicted, with at least one row counted.

    Returns:
        Macro precision, macro recall and macro F1, each in [0, 1].
    """
    check_confusion_matrix(matrix)
    return macro_of_counts(*_counts(matrix))


def macro_of_counts(correct: IntArray, true: IntArray, predicted: IntArray) -> tuple[float, float, float]:
    """The averages of `macro_average`, from the counts that `scores_of_counts` takes."""
    scores = scores_of_counts(correct, true, predicted)
    occurs = (true + predicted) > 0
    precision, recall, f1 = (values[occurs].mean() for values in (scores.precision, scores.recall, scores.f1))
    return float(precision), float(recall), float(f1)


def top_k_accuracy(probabilities: FloatArray, label_index: IntArray, k: int) -> float:
    """Share of rows whose true class is among the `k` most probable.

    The predicted class (the lowest index among the most probable) ranks first, so that k = 1 is the accuracy. Any other true
    class ranks behind all classes that it ties with: a saturated softmax, with 0 for many classes, gains nothing by it.

    Args:
        probabilities: float (n_rows, n_classes), as for `evaluate_probabilities`.
        label_index: int (n_rows,) in [0, n_classes).
        k: At least 1; n_classes or more makes every row a hit.

    Returns:
        A share in [0, 1], never falling as `k` grows.
    """
    if k < 1:
        raise ValueError(f"`k` must be at least 1. Got {k}.")
    _check_probabilities(probabilities, label_index)
    # Counting the classes that are not below the true one needs no sort and puts ties first (the 1 is the true class).
    classes_before = (probabilities >= _probability_of_label(probabilities, label_index)[:, None]).sum(axis=1) - 1
    hit = (classes_before < k) | (probabilities.argmax(axis=1) == label_index)
    return float(hit.mean())


def log_loss(probabilities: FloatArray, label_index: IntArray) -> float:
    """Mean of -ln(probability of the true class), with the probability clipped to [`LOG_LOSS_EPSILON`, 1].

    Source: Bishop, "Pattern Recognition and Machine Learning", 2006, equation 4.108, divided by the number of rows.

    Args:
        probabilities: float (n_rows, n_classes), finite, at least 0, every row summing to 1.
        label_index: int (n_rows,) in [0, n_classes).

    Returns:
        Nats per row in [0, 34.54].
    """
    _check_probabilities(probabilities, label_index)
    of_label = _probability_of_label(probabilities, label_index).astype(np.float64)
    # Adding 0.0 turns the -0.0 of a perfect model into 0.0.
    return float(-np.log(np.clip(of_label, LOG_LOSS_EPSILON, 1.0)).mean() + 0.0)


def most_confused(matrix: IntArray, classes: Sequence[str], n: int = 10) -> list[ConfusedPair]:
    """Lists the most frequent errors.

    Args:
        matrix: int (n_classes, n_classes), rows = true, columns = predicted, at least 0.
        classes: The class labels, in the order of `label_index`.
        n: Most pairs to list, at least 1.

    Returns:
        Pairs of different classes that occurred, by falling count, then by true and predicted label.
    """
    check_confusion_matrix(matrix, classes)
    if n < 1:
        raise ValueError(f"`n` must be at least 1. Got {n}.")
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    pairs = [
        ConfusedPair(classes[true], classes[predicted], int(matrix[true, predicted]), float(share[true, predicted]))
        for true, predicted in zip(*np.nonzero(matrix), strict=True)
        if true != predicted
    ]
    return sorted(pairs, key=lambda pair: (-pair.count, pair.true_label, pair.predicted_label))[:n]


def check_confusion_matrix(matrix: IntArray, classes: Sequence[str] | None = None) -> None:
    """Raises ValueError unless `matrix` is int (n_classes, n_classes) counts, not all 0, with a label per class."""
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"`matrix` must be shaped (n_classes, n_classes). Got {matrix.shape}.")
    if matrix.dtype.kind not in "iu":
        raise ValueError(f"`matrix` must hold integers. Got {matrix.dtype}.")
    if not matrix.any():
        raise ValueError("`matrix` must count at least one row. Got 0.")
    if matrix.min() < 0:
        raise ValueError(f"`matrix` must hold counts of at least 0. Got {matrix.min()}.")
    if classes is not None and len(classes) != len(matrix):
        raise ValueError(f"`classes` must have one label per class, {len(matrix)}. Got {len(classes)}.")


def _check_probabilities(probabilities: FloatArray, label_index: IntArray) -> None:
    if probabilities.ndim != 2:
        raise ValueError(f"`probabilities` must be shaped (n_rows, n_classes). Got {probabilities.shape}.")
    if probabilities.dtype.kind != "f":
        raise ValueError(f"`probabilities` must be floats. Got {probabilities.dtype}.")
    _check_index("label_index", label_index, probabilities.shape[1])
    if len(label_index) != len(probabilities):
        raise ValueError(f"`label_index` must have the shape ({len(probabilities)},). Got {label_index.shape}.")
    _reject("must be finite", ~np.isfinite(probabilities), probabilities)
    _reject("must be at least 0", probabilities < 0, probabilities)
    row_sum = probabilities.sum(axis=1, dtype=np.float64)
    _reject(f"must sum to 1 within {ROW_SUM_TOLERANCE} in every row", abs(row_sum - 1) > ROW_SUM_TOLERANCE, row_sum)


def _reject(requirement: str, bad: NDArray[np.bool_], values: FloatArray) -> None:
    if bad.any():
        first = np.unravel_index(bad.argmax(), bad.shape)
        raise ValueError(f"`probabilities` {requirement}. Got {values[first]} in row {first[0]}.")


def _check_index(name: str, index: IntArray, n_classes: int) -> None:
    if index.ndim != 1:
        raise ValueError(f"`{name}` must be shaped (n_rows,). Got {index.shape}.")
    if index.dtype.kind not in "iu":
        raise ValueError(f"`{name}` must hold integers. Got {index.dtype}.")
    if len(index) == 0:
        raise ValueError(f"`{name}` must have at least one row. Got 0.")
    bad = (index < 0) | (index >= n_classes)
    if bad.any():
        raise ValueError(f"`{name}` must be in [0, {n_classes}). Got {index[bad.argmax()]}.")


def _probability_of_label(probabilities: FloatArray, label_index: IntArray) -> FloatArray:
    of_label: FloatArray = probabilities[np.arange(len(label_index)), label_index]
    return of_label


def _counts(matrix: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """For each class the number of right, true and predicted rows."""
    return np.diagonal(matrix).astype(np.int64), matrix.sum(axis=1), matrix.sum(axis=0)


def _divide(numerator: IntArray, denominator: IntArray) -> NDArray[np.float64]:
    return np.divide(numerator, denominator, out=np.zeros(len(numerator)), where=denominator != 0)
