"""Batches for the training graph: taken from an iterator, or gathered from rows in memory step by step.

Rows in memory need no pipeline. Starting one takes 20 ms an epoch, as long as a small head needs for half of its steps.
"""

from typing import TYPE_CHECKING, Any, NamedTuple, Union

if TYPE_CHECKING:
    import tensorflow as tf

PADDING = -1  # the label of a row that only fills a batch


class RowBatches(NamedTuple):
    """The batches of an epoch as positions in a split that is in memory; all attributes are tensors.

    Attributes:
        places: int64 ``(n_steps, b)``, positions of the rows of each step; `PADDING` where there is none.
        global_rows: float32 ``(n_steps,)``, rows of all ranks in each step.
        features: ``(n_rows, ...)``, features of the whole split.
        label_index: int32 ``(n_rows,)``, labels of the whole split.
        row_ids: int64 ``(n_rows,)``, row ids of the whole split.
    """

    places: Any
    global_rows: Any
    features: Any
    label_index: Any
    row_ids: Any


Batches = Union[RowBatches, "tf.data.Dataset"]


def begin_epoch(batches: Batches) -> Any:
    """The source from which `take_batch` takes the batches of an epoch."""
    return batches if isinstance(batches, RowBatches) else iter(batches.prefetch(2))


def take_batch(source: Any, step: Any) -> tuple[Any, Any, Any, Any]:
    """The batch of a step, counted from 0 and taken in order: features, label_index, row_ids, global_rows; see `Data.batches`.

    For use in graphs. Rows in memory are gathered on the CPU, where they are.
    """
    import tensorflow as tf

    if not isinstance(source, RowBatches):
        features, label_index, row_ids, global_rows = source.get_next()
        return features, label_index, row_ids, global_rows
    with tf.device("CPU:0"):
        places = source.places[step]
        known = tf.maximum(places, 0)
        labels = tf.where(places < 0, PADDING, tf.gather(source.label_index, known))
        return tf.gather(source.features, known), labels, tf.gather(source.row_ids, known), source.global_rows[step]
