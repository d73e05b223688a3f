"""How much predictions depend on the seed: which images and classes change, and whether two models differ at all.

Pure NumPy except for one distribution function: no TensorFlow, no Spark.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.scores.metrics import IntArray


@dataclass(frozen=True, eq=False)
class RowStability:
    """The predictions of several models for the same rows, compared.

    Attributes:
        changing_share: Share of the rows on which not all models agree, in [0, 1].
        is_changing: bool ``(n_rows,)``, whether the models disagree.
        agreement: float64 ``(n_rows,)`` in (0, 1], share of the models that predict the majority's class.
        majority: int64 ``(n_rows,)``, the class that most models predict; of several, the lowest index.
    """

    changing_share: float
    is_changing: NDArray[np.bool_]
    agreement: NDArray[np.float64]
    majority: NDArray[np.int64]

    def most_unstable(self, n: int = 20) -> list[int]:
        """The rows that change, least agreement first, then by position; at most `n` of them."""
        order = np.argsort(self.agreement, kind="stable")[: np.count_nonzero(self.is_changing)]
        return [int(row) for row in order[:n]]


@dataclass(frozen=True, eq=False)
class ClassStability:
    """How the recall of each class varies over several models; NaN for a class without rows.

    Attributes:
        recall: float64 ``(n_models, n_classes)`` in [0, 1].
        mean: float64 ``(n_classes,)``, mean recall over the models.
        sd: float64 ``(n_classes,)``, sample standard deviation (n_models - 1) of the recall; NaN with one model.
        range: float64 ``(n_classes,)``, the largest recall minus the smallest.
        changing_share: float64 ``(n_classes,)``, share of the class's rows on which not all models agree.
        support: int64 ``(n_classes,)``, number of rows of the class.
    """

    recall: NDArray[np.float64]
    mean: NDArray[np.float64]
    sd: NDArray[np.float64]
    range: NDArray[np.float64]
    changing_share: NDArray[np.float64]
    support: NDArray[np.int64]

    def most_dependent(self, n: int = 10) -> list[int]:
        """The classes whose recall differs between models, largest range first, then by changing share and index."""
        keys = (-np.nan_to_num(self.changing_share), -np.nan_to_num(self.range))
        order = [int(index) for index in np.lexsort(keys) if self.range[index] > 0]
        return order[:n]


@dataclass(frozen=True)
class McNemar:
    """McNemar's test of two models on the same rows.

    Attributes:
        both_right: Number of rows that both models predict correctly.
        only_first: b, number of rows that only the first model predicts correctly.
        only_second: c, number of rows that only the second model predicts correctly.
        both_wrong: Number of rows that both predict wrongly, in the same way or not.
        differing: Number of rows on which they predict different classes, at least b + c.
        p_value: Chance of b and c as uneven as these, or more, if both models were equally often right; in [0, 1], 1 where b = c.
    """

    both_right: int
    only_first: int
    only_second: int
    both_wrong: int
    differing: int
    p_value: float


def row_stability(predictions: IntArray) -> RowStability:
    """Finds the rows whose prediction changes from model to model.

    Args:
        predictions: int (n_models, n_rows), the class indices that each model predicts, at least 0.

    Raises:
        ValueError: The array has another shape, there is no model or no row, or an index is negative.
    """
    _check_predictions(predictions)
    n_models, n_rows = predictions.shape
    most = np.zeros(n_rows, np.int64)
    majority = np.zeros(n_rows, np.int64)
    for candidate in predictions:  # every predicted class is a candidate: this needs no array of rows times classes
        votes = (predictions == candidate).sum(axis=0)
        wins = (votes > most) | ((votes == most) & (candidate < majority))
        most[wins], majority[wins] = votes[wins], candidate[wins]
    changing = most < n_models
    return RowStability(float(changing.mean()), changing, most / n_models, majority)


def class_stability(predictions: IntArray, label_index: IntArray, n_classes: int) -> ClassStability:
    """Finds the classes whose recall depends on the seed.

    Args:
        predictions: int (n_models, n_rows), the class indices that each model predicts, at least 0.
        label_index: int (n_rows,) in [0, n_classes), the true classes.
        n_classes: Number of classes.

    Raises:
        ValueError: The shapes differ, there is no model or no row, or an index is out of range.
    """
    _check_predictions(predictions)
    _check_labels(label_index, predictions.shape[1])
    if label_index.max() >= n_classes:
        raise ValueError(f"`label_index` must be in [0, {n_classes}). Got {label_index.max()}.")
    changing = row_stability(predictions).is_changing
    support = np.bincount(label_index, minlength=n_classes)
    right = np.stack([np.bincount(label_index[row == label_index], minlength=n_classes) for row in predictions])
    recall = _share(right, support)
    several = len(predictions) > 1
    return ClassStability(
        recall=recall,
        mean=recall.mean(axis=0),
        sd=recall.std(axis=0, ddof=1) if several else np.full(n_classes, np.nan),
        range=recall.max(axis=0) - recall.min(axis=0),
        changing_share=_share(np.bincount(label_index[changing], minlength=n_classes), support),
        support=support.astype(np.int64),
    )


def mcnemar_test(first: IntArray, second: IntArray, label_index: IntArray) -> McNemar:
    """Tests whether two models are right equally often, by the rows on which one is right and the other wrong.

    If they are, each such row is as likely to be the first model's as the second's: b is binomial with b + c trials and chance
    1/2. The p-value is the exact two-sided one, twice the smaller tail.
    Source: McNemar, "Note on the sampling error of the difference between correlated proportions or percentages", Psychometrika
    12, 1947; exact: Dietterich, "Approximate statistical tests for comparing supervised classification learning algorithms",
    Neural Computation 10, 1998, with the binomial in place of its approximation.

    It holds for these two trained models on these rows; it says nothing of what another seed would give.

    Args:
        first: int (n_rows,), the class indices that the first model predicts, at least 0.
        second: int (n_rows,), the class indices that the second model predicts, at least 0.
        label_index: int (n_rows,), the true classes, at least 0.

    Raises:
        ValueError: The shapes differ, there are no rows, or an index is negative.
    """
    for name, values in (("first", first), ("second", second)):
        if values.ndim != 1 or len(values) != len(label_index):
            raise ValueError(f"`{name}` must have the shape ({len(label_index)},). Got {values.shape}.")
    predictions = np.stack([first, second])
    _check_predictions(predictions)
    _check_labels(label_index, predictions.shape[1])
    is_first, is_second = first == label_index, second == label_index
    only_first, only_second = int((is_first & ~is_second).sum()), int((~is_first & is_second).sum())
    return McNemar(
        both_right=int((is_first & is_second).sum()),
        only_first=only_first,
        only_second=only_second,
        both_wrong=int((~is_first & ~is_second).sum()),
        differing=int((first != second).sum()),
        p_value=exact_p_value(only_first, only_second),
    )


def exact_p_value(only_first: int, only_second: int) -> float:
    """The two-sided p-value of McNemar's exact test, in [0, 1]; see `mcnemar_test`. 1 where no row distinguishes the models."""
    from scipy.special import bdtr

    trials, fewer = only_first + only_second, min(only_first, only_second)
    return min(1.0, 2.0 * float(bdtr(fewer, trials, 0.5))) if trials else 1.0


def _share(counts: IntArray, of: IntArray) -> NDArray[np.float64]:
    """`counts` / `of`, NaN where `of` is 0."""
    out = np.full(counts.shape, np.nan)
    return np.divide(counts, of, out=out, where=np.broadcast_to(of != 0, counts.shape))


def _check_predictions(predictions: IntArray) -> None:
    if predictions.ndim != 2 or not predictions.size:
        raise ValueError(f"`predictions` must be shaped (n_models, n_rows), with one of each. Got {predictions.shape}.")
    if predictions.dtype.kind not in "iu":
        raise ValueError(f"`predictions` must hold integers. Got {predictions.dtype}.")
    if predictions.min() < 0:
        raise ValueError(f"`predictions` must be at least 0. Got {predictions.min()}.")


def _check_labels(label_index: IntArray, n_rows: int) -> None:
    if label_index.shape != (n_rows,):
        raise ValueError(f"`label_index` must have the shape ({n_rows},). Got {label_index.shape}.")
    if label_index.dtype.kind not in "iu":
        raise ValueError(f"`label_index` must hold integers. Got {label_index.dtype}.")
    if label_index.min() < 0:
        raise ValueError(f"`label_index` must be at least 0. Got {label_index.min()}.")
