"""What a model does on the validation split, after every epoch."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from finetune.communicator import Communicator
from finetune.loader import Data
from finetune.metrics import macro_of_counts
from finetune.steps import make_evaluation

if TYPE_CHECKING:
    import keras


def make_validation(model: "keras.Model", data: Data, ranks: Communicator) -> Callable[[], dict[str, float]]:
    """A function that gives the scores of all of `data`, each rank computing its share: sums, never means of means."""
    import tensorflow as tf

    if data.rows == 0:
        return dict
    evaluate_slice, n_classes = make_evaluation(model), int(model.output.shape[-1])

    def evaluate() -> dict[str, float]:
        own = np.zeros(1 + 3 * n_classes)
        for number, (features, label_index) in enumerate(data.slices(rank=ranks.rank, size=ranks.size), 1):
            ranks.report(f"slice {number} of its validation rows")
            loss, predicted = (np.asarray(value) for value in evaluate_slice(features, label_index))
            counted = (label_index[predicted == label_index], label_index, predicted)
            own += np.concatenate([[loss], *(np.bincount(part, minlength=n_classes) for part in counted)])
        sums = np.asarray(ranks.sum(tf.constant(own)))
        correct, true, predicted_rows = sums[1:].reshape(3, n_classes).astype(np.int64)
        precision, recall, f1 = macro_of_counts(correct, true, predicted_rows)
        return {
            "validation_loss": float(sums[0]) / data.rows,
            "validation_accuracy": float(correct.sum()) / data.rows,
            "validation_precision": precision,
            "validation_recall": recall,
            "validation_f1": f1,
        }

    return evaluate
