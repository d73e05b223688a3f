"""Random numbers that depend only on a seed, an epoch, an image and a position.

They are computed, not drawn: no state is kept, so that neither a row's batch, nor the rank, nor the number of threads can change
them. All operations are exact in TensorFlow: the bits are the same in a graph, outside of one, and compiled by XLA.

Source: SplitMix64 of G. L. Steele, D. Lea, C. H. Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014: number i
of the generator that starts at s is mix(s + i x gamma). The constants of the mixing function are variant 13 of D. Stafford:
Better Bit Mixing, 2011.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorflow as tf

_GAMMA = 0x9E3779B97F4A7C15  # 2^64 / the golden ratio, made odd
_FIRST_FACTOR = 0xBF58476D1CE4E5B9
_SECOND_FACTOR = 0x94D049BB133111EB


def row_keys(seed: int, epoch: "int | tf.Tensor", row_ids: "tf.Tensor") -> "tf.Tensor":
    """The key of each row, from which all its random numbers in this epoch follow.

    Two rows of one epoch have the same key only if their ids are equal.

    Args:
        seed: 0 or more, below 2^63.
        epoch: an integer, or an integer tensor of shape ``()``, so that one graph serves all epochs.
        row_ids: ``int64 (n_rows,)``.

    Returns:
        ``uint64 (n_rows,)``.
    """
    return _mixed(_words(row_ids) + _mixed(_words(epoch) + _mixed(_words(seed))))


def random_words(keys: "tf.Tensor", *, stream: int, count: int) -> "tf.Tensor":
    """`count` random integers for each row: ``uint32 (n_rows, count)``, all of the 2^32 values equally likely.

    A row's numbers do not depend on the other rows, nor the first of them on `count`.

    Args:
        keys: Keys of the rows from `row_keys`: ``uint64 (n_rows,)``.
        stream: The purpose of the numbers, 0 or more: numbers of different streams are unrelated.
        count: 0 or more.
    """
    import tensorflow as tf

    starts = _mixed(keys + _constant(stream * _GAMMA))
    pairs = (count + 1) // 2
    steps = tf.bitcast(tf.range(pairs, dtype=tf.int64), tf.uint64) * _constant(_GAMMA)
    halves = tf.bitcast(_mixed(starts[:, tf.newaxis] + steps), tf.uint32)  # cuts each number in two
    return tf.reshape(halves, [tf.shape(keys)[0], 2 * pairs])[:, :count]


def uniforms(keys: "tf.Tensor", *, stream: int, count: int) -> "tf.Tensor":
    """`count` random numbers for each row: ``float32 (n_rows, count)`` in [0, 1), multiples of 2^-24.

    The arguments are those of `random_words`.
    """
    import tensorflow as tf

    words = random_words(keys, stream=stream, count=count)
    # The upper 24 bits, as many as float32 holds, so that no number is rounded up to 1.
    return tf.cast(tf.bitwise.right_shift(words, tf.constant(8, tf.uint32)), tf.float32) * 2.0**-24


def _mixed(states: "tf.Tensor") -> "tf.Tensor":
    """The number that follows each state of SplitMix64. A one-to-one map on ``uint64``."""
    states = states + _constant(_GAMMA)
    states = _folded(states, 30) * _constant(_FIRST_FACTOR)
    states = _folded(states, 27) * _constant(_SECOND_FACTOR)
    return _folded(states, 31)


def _folded(words: "tf.Tensor", bits: int) -> "tf.Tensor":
    import tensorflow as tf

    return tf.bitwise.bitwise_xor(words, tf.bitwise.right_shift(words, _constant(bits)))


def _words(integers: Any) -> "tf.Tensor":
    """Signed integers as ``uint64`` with the same bits."""
    import tensorflow as tf

    return tf.bitcast(tf.cast(integers, tf.int64), tf.uint64)


def _constant(value: int) -> "tf.Tensor":
    import tensorflow as tf

    return tf.constant(value % 2**64, tf.uint64)
