"""What ranks exchange besides gradients: weights at the start, errors, and whether they still agree."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from featurize.errors import FirnError, SharedError
from finetune.ranks.communicator import Communicator

if TYPE_CHECKING:
    import keras

_TOLERANCE = 1e-5
_MESSAGE_BYTES = 4096


def share_variables(variables: Sequence[Any], ranks: Communicator) -> None:
    """Gives every rank the values of rank 0."""
    for variable in variables:
        value = variable.value
        (shared,) = ranks.sum([value if ranks.rank == 0 else value * 0])
        variable.assign(shared)


def raise_together(error: FirnError | None, ranks: Communicator) -> None:
    """Raises on every rank when one of them failed, so that none waits in a collective for a rank that is gone.

    Raises:
        SharedError: with the message of the first rank that failed.
    """
    import tensorflow as tf

    (failed,) = ranks.sum([tf.one_hot(ranks.rank, ranks.size) * (0.0 if error is None else 1.0)])
    if not failed.numpy().any():
        return
    message = str(error).encode()[:_MESSAGE_BYTES] if ranks.rank == int(np.argmax(failed)) else b""
    padded = np.frombuffer(message.ljust(_MESSAGE_BYTES, b"\0"), np.uint8).astype(np.int32)
    (shared,) = ranks.sum([tf.constant(padded)])
    raise SharedError(shared.numpy().astype(np.uint8).tobytes().rstrip(b"\0").decode(errors="replace")) from error


def any_rank(flag: bool, ranks: Communicator) -> bool:
    """Whether `flag` is true on one rank at least."""
    import tensorflow as tf

    (flags,) = ranks.sum([tf.constant(1.0 if flag else 0.0)])
    return bool(flags.numpy() > 0)


def gather_rows(row: Sequence[float], ranks: Communicator) -> list[list[float]]:
    """The `row` of every rank, by rank."""
    import tensorflow as tf

    own = np.zeros((ranks.size, len(row)))
    own[ranks.rank] = row
    (rows,) = ranks.sum([tf.constant(own)])
    return cast(list[list[float]], np.asarray(rows).tolist())


def check_agreement(model: "keras.Model", ranks: Communicator) -> None:
    """Checks that all ranks hold the same weights: the law that synchronous averaging keeps.

    Raises:
        SharedError: they do not.
    """
    import tensorflow as tf

    flat = tf.concat([tf.reshape(variable.value, [-1]) for variable in model.weights], 0)
    mean = ranks.sum([flat])[0] / ranks.size
    (apart,) = ranks.sum([tf.reduce_max(tf.abs(flat - mean))])
    if not float(apart) <= _TOLERANCE * max(1.0, float(tf.reduce_max(tf.abs(mean)))):
        raise SharedError(
            f"the ranks hold different weights (up to {float(apart):g} apart): gradients were not averaged."
        )
