"""Scores on the validation split, after every epoch."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from finetune.ranks.communicator import Communicator
from finetune.rows.loader import Data
from finetune.scores.metrics import macro_of_counts
from finetune.training.steps import make_evaluation

if TYPE_CHECKING:
    import keras


def make_validation(model: "keras.Model", data: Data, ranks: Communicator) -> Callable[[], dict[str, float]]:
    """A function that returns the scores on all of `data`; each rank computes sums over its share, so that results are exact."""
    import tensorflow as tf

    if data.rows == 0:
        return dict
    evaluate_slice, n_classes = make_evaluation(model), int(model.output.shape[-1])

    def evaluate() -> dict[str, float]:
        own = np.zeros(1 + 3 * n_classes)
        for number, (features, label_index) in enumerate(data.slices(rank=ranks.rank, size=ranks.size), 1):
            ranks.report(f"slice {number} of its validation rows")
            loss, predicted = (np.asarray(value) for value in evaluate_slice(features, label_index))
            own += np.concatenate([[loss], count_rows(label_index, predicted, n_classes=n_classes)])
        (sums,) = ranks.sum([tf.constant(own)])
        return scores_of(np.asarray(sums))

    return evaluate


def count_rows(label_index: NDArray[np.int32], predicted: NDArray[np.int32], *, n_classes: int) -> NDArray[np.float64]:
    """For each class the number of right, existing and predicted rows, ``float64 (3 n_classes,)``."""
    counted = (label_index[predicted == label_index], label_index, predicted)
    return np.concatenate([np.bincount(part, minlength=n_classes) for part in counted]).astype(np.float64)


def scores_of(sums: NDArray[np.float64]) -> dict[str, float]:
    """The scores of a split.

    Args:
        sums: The cross-entropy summed over all rows, followed by the result of `count_rows` for them.
    """
    correct, true, predicted = sums[1:].reshape(3, -1).astype(np.int64)
    precision, recall, f1 = macro_of_counts(correct, true, predicted)
    rows = int(true.sum())
    return {
        "validation_loss": float(sums[0]) / rows,
        "validation_accuracy": float(correct.sum()) / rows,
        "validation_precision": precision,
        "validation_recall": recall,
        "validation_f1": f1,
    }
