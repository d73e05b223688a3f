"""Probable label errors, by confident learning: rows that a head which has not seen them puts confidently in another class.

Source: Northcutt, Jiang, Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", Journal of Artificial
Intelligence Research 70, 2021. Pure NumPy, for probabilities of any model; `finetune.evaluation.out_of_fold` makes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from finetune.scores.metrics import FloatArray, IntArray

Pruning = Literal["noise_rate", "class"]
Score = Literal["normalized_margin", "self_confidence"]


@dataclass(frozen=True, eq=False)
class LabelErrors:
    """Rows whose labels are probably wrong, the most suspicious first; each array is ``(n_errors,)``.

    Attributes:
        rows: int64, positions in the input rows.
        given: int64, the given class index.
        suggested: int64, the most probable class index; never the given one.
        given_probability: float64 in [0, 1].
        suggested_probability: float64 in [0, 1], above the given one.
        score: float64 in [0, 1], 0 being the most suspicious.
        confident_joint: int64 ``(n_classes, n_classes)`` for all rows, see `confident_joint`.
        estimated_share: Share of all rows that is mislabelled, as the calibrated joint estimates it, in [0, 1].
    """

    rows: NDArray[np.int64]
    given: NDArray[np.int64]
    suggested: NDArray[np.int64]
    given_probability: NDArray[np.float64]
    suggested_probability: NDArray[np.float64]
    score: NDArray[np.float64]
    confident_joint: NDArray[np.int64]
    estimated_share: float


def find_label_errors(
    probabilities: FloatArray,
    label_index: IntArray,
    *,
    pruning: Pruning = "class",
    score: Score = "self_confidence",
) -> LabelErrors:
    """Finds the rows whose given label is probably wrong.

    The calibrated joint gives their number for each given class i and true class j. `pruning` decides which rows they are:

    - "noise_rate": for each i and j, the rows of class i with the largest margin of j over i (the paper's PBNR);
    - "class": for each i, the rows with the lowest probability of i, as many as for all j together (the paper's PBC).

    The defaults found most on the 102 classes of `configs/objects_mobilenet.toml` with 5 % of the labels changed at random:
    recall 0.82 and precision 0.53 with "class", 0.76 and 0.51 with "noise_rate"; among the first rows, half as many as were
    changed, precision 0.97 with self-confidence and 0.94 with margin. With no label changed, 66 of 2,246 rows are named.

    A row whose most probable class is the given one is never named. The only row of a class is not judged: no model has
    learnt the class without it.

    Args:
        probabilities: float ``(n_rows, n_classes)``, each row predicted by a model that was not trained on it.
        label_index: int ``(n_rows,)`` in [0, n_classes), the given labels.
        pruning: How the rows are chosen, see above.
        score: How the rows are ordered: "self_confidence", the probability of the given class; or "normalized_margin", that
            minus the largest other probability, mapped from [-1, 1] to [0, 1]. Source: section 3.2 of the paper.

    Raises:
        ValueError: The shapes differ, there are no rows, a probability is outside [0, 1] or an index is out of range.
    """
    _check(probabilities, label_index)
    joint = confident_joint(probabilities, label_index)
    counts = calibrated_joint(joint, label_index)
    choose = _prune_by_noise_rate if pruning == "noise_rate" else _prune_by_class
    suspects = choose(probabilities, label_index, _errors_only(counts))
    suspects &= probabilities.argmax(axis=1) != label_index
    suspects &= np.bincount(label_index, minlength=probabilities.shape[1])[label_index] > 1
    scores = score_labels(probabilities, label_index, score=score)
    rows = np.flatnonzero(suspects)
    rows = rows[np.argsort(scores[rows], kind="stable")]
    given, suggested = label_index[rows].astype(np.int64), probabilities[rows].argmax(axis=1)
    return LabelErrors(
        rows=rows,
        given=given,
        suggested=suggested,
        given_probability=probabilities[rows, given].astype(np.float64),
        suggested_probability=probabilities[rows, suggested].astype(np.float64),
        score=scores[rows],
        confident_joint=joint,
        estimated_share=float(1 - np.trace(counts) / counts.sum()),
    )


def class_thresholds(probabilities: FloatArray, label_index: IntArray) -> NDArray[np.float64]:
    """The thresholds above which a row counts as a class's: the mean probability of the class over the rows with its label.

    Source: section 3.1 of the paper, t_j.

    Args:
        probabilities: float ``(n_rows, n_classes)``.
        label_index: int ``(n_rows,)`` in [0, n_classes).

    Returns:
        float64 ``(n_classes,)``; infinite for a class without rows, so that no row counts as that class.
    """
    n_rows, n_classes = probabilities.shape
    of_label = probabilities[np.arange(n_rows), label_index].astype(np.float64)
    rows = np.bincount(label_index, minlength=n_classes)
    sums = np.bincount(label_index, weights=of_label, minlength=n_classes)
    thresholds = np.full(n_classes, np.inf)
    np.divide(sums, rows, out=thresholds, where=rows != 0)
    return thresholds


def confident_joint(probabilities: FloatArray, label_index: IntArray) -> NDArray[np.int64]:
    """Counts rows by their given class and by their confident class.

    A row's confident class is the most probable of the classes whose thresholds it reaches; a row that reaches none is not
    counted.
    Source: section 3.1 of the paper, C.

    Args:
        probabilities: float ``(n_rows, n_classes)``.
        label_index: int ``(n_rows,)`` in [0, n_classes).

    Returns:
        int64 ``(n_classes, n_classes)``, rows = given class, columns = confident class.
    """
    n_classes = probabilities.shape[1]
    reached = probabilities >= class_thresholds(probabilities, label_index)
    counted = reached.any(axis=1)
    confident = np.where(reached, probabilities, -1.0).argmax(axis=1)
    cells = label_index.astype(np.int64)[counted] * n_classes + confident[counted]
    return np.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes).astype(np.int64)


def calibrated_joint(joint: IntArray, label_index: IntArray) -> NDArray[np.float64]:
    """The confident joint scaled to the true number of rows of each given class: an estimate of how many rows are of each kind.

    Source: section 3.1 of the paper, Q, times n_rows. A class without any counted row is assumed to have no errors.

    Args:
        joint: int ``(n_classes, n_classes)``, from `confident_joint`.
        label_index: int ``(n_rows,)`` in [0, n_classes).

    Returns:
        float64 ``(n_classes, n_classes)``, rows = given class, columns = true class; the sum is n_rows.
    """
    rows = np.bincount(label_index, minlength=len(joint))
    counted = joint.sum(axis=1)
    factor = np.divide(rows, counted, out=np.zeros(len(joint)), where=counted != 0)
    scaled: NDArray[np.float64] = joint * factor[:, None]
    scaled[np.diag_indices(len(joint))] += np.where(counted == 0, rows, 0)
    return scaled


def score_labels(probabilities: FloatArray, label_index: IntArray, *, score: Score) -> NDArray[np.float64]:
    """How well each label fits: float64 ``(n_rows,)`` in [0, 1], 0 being the worst; see `find_label_errors`."""
    own: NDArray[np.float64] = probabilities[np.arange(len(label_index)), label_index].astype(np.float64)
    if score == "self_confidence":
        return own
    margin: NDArray[np.float64] = np.clip((own - _largest_other(probabilities, label_index) + 1) / 2, 0, 1)
    return margin


def _largest_other(probabilities: FloatArray, label_index: IntArray) -> NDArray[np.float64]:
    others = probabilities.astype(np.float64)
    others[np.arange(len(label_index)), label_index] = -np.inf
    largest: NDArray[np.float64] = np.maximum(others.max(axis=1), 0.0)
    return largest


def _errors_only(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """The calibrated joint with a zero diagonal."""
    return counts - np.diag(np.diag(counts))


def _prune_by_noise_rate(probabilities: FloatArray, label_index: IntArray, errors: FloatArray) -> NDArray[np.bool_]:
    chosen = np.zeros(len(label_index), bool)
    whole = np.rint(errors).astype(int)
    for given, true in np.argwhere(whole):
        rows = np.flatnonzero(label_index == given)
        margin = probabilities[rows, true] - probabilities[rows, given]
        chosen[rows[np.argsort(-margin, kind="stable")[: whole[given, true]]]] = True
    return chosen


def _prune_by_class(probabilities: FloatArray, label_index: IntArray, errors: FloatArray) -> NDArray[np.bool_]:
    chosen = np.zeros(len(label_index), bool)
    whole = np.rint(errors.sum(axis=1)).astype(int)
    for given in np.flatnonzero(whole):
        rows = np.flatnonzero(label_index == given)
        confidence = probabilities[rows, given]
        chosen[rows[np.argsort(confidence, kind="stable")[: whole[given]]]] = True
    return chosen


def _check(probabilities: FloatArray, label_index: IntArray) -> None:
    if probabilities.ndim != 2 or probabilities.dtype.kind != "f" or not probabilities.size:
        shape = f"{probabilities.dtype} {probabilities.shape}"
        raise ValueError(f"`probabilities` must be floats shaped (n_rows, n_classes), with one of each. Got {shape}.")
    if label_index.shape != (len(probabilities),) or label_index.dtype.kind not in "iu":
        shape = f"{label_index.dtype} {label_index.shape}"
        raise ValueError(f"`label_index` must be integers shaped ({len(probabilities)},). Got {shape}.")
    if label_index.min() < 0 or label_index.max() >= probabilities.shape[1]:
        span = f"{label_index.min()} to {label_index.max()}"
        raise ValueError(f"`label_index` must be in [0, {probabilities.shape[1]}). Got {span}.")
    if not ((probabilities >= 0) & (probabilities <= 1 + 1e-3)).all():  # NaN fails too
        raise ValueError("`probabilities` must be in [0, 1].")
