"""Batches as the graph of a training takes them: out of an iterator, or gathered from rows in memory step by step.

What is in memory needs no pipeline. To begin one takes 20 ms an epoch, as long as a small head needs for half of its steps.
"""

from typing import TYPE_CHECKING, Any, NamedTuple, Union

if TYPE_CHECKING:
    import tensorflow as tf

PADDING = -1  # the label of a row that only fills a batch up


class RowBatches(NamedTuple):
    """The batches of an epoch as places in a split that is in memory; all are tensors.

    Attributes:
        places: int64 ``(n_steps, b)``, of the rows of each step; `PADDING` where there is none.
        global_rows: float32 ``(n_steps,)``, the rows of all ranks in each step.
        features: ``(n_rows, ...)``, of the whole split, like the others.
        label_index: int32 ``(n_rows,)``.
        row_ids: int64 ``(n_rows,)``.
    """

    places: Any
    global_rows: Any
    features: Any
    label_index: Any
    row_ids: Any


Batches = Union[RowBatches, "tf.data.Dataset"]


def begin_epoch(batches: Batches) -> Any:
    """What `take_batch` takes batches from."""
    return batches if isinstance(batches, RowBatches) else iter(batches.prefetch(2))


def take_batch(source: Any, step: Any) -> tuple[Any, Any, Any, Any]:
    """The batch of a step, counted from 0 and taken in turn: features, label_index, row_ids, global_rows; see `Data.batches`.

    For graphs. Memory is gathered from on the processor, where it is.
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
