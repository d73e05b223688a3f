"""Dropout whose masks follow from the seed, the epoch and the image, so that any number of ranks drops the same units.

The standard layers draw one mask for a batch: a row's mask then depends on its position in its batch. Training runs a copy of
the model, which shares its weights and has other dropout layers; the saved model has the standard ones.

Source of dropout: N. Srivastava and others: Dropout, JMLR 15, 2014; scaled in training, like keras.layers.Dropout. Source of its
spatial form, which drops whole maps: J. Tompson and others: Efficient Object Localization, CVPR 2015.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from itertools import count
from typing import TYPE_CHECKING, Any

from featurize.errors import UsageError
from finetune.networks.row_random import random_words

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

_FIRST_STREAM = 1  # augmentation uses stream 0


class KeyedDropout:
    """Hands the keys of a batch's rows to the dropout layers of a training model."""

    def __init__(self) -> None:
        self._keys: tf.Tensor | None = None
        self._streams = count(_FIRST_STREAM)

    @contextmanager
    def keyed(self, keys: "tf.Tensor") -> Iterator[None]:
        """A context in which the training model drops units by `keys`: ``uint64 (n_rows,)``, from `row_random.row_keys`.

        Call the model once within it: each call of a dropout layer takes the next stream, so that no two drop the same units. Use
        it where the model is called: inside the ``tf.function``, if there is one.
        """
        self._keys, self._streams = keys, count(_FIRST_STREAM)
        try:
            yield
        finally:
            self._keys = None

    def _drop(self, inputs: "tf.Tensor", layer: "keras.layers.Dropout") -> "tf.Tensor":
        """`inputs` with some units set to 0 and the others scaled, each row by its own mask."""
        import tensorflow as tf

        if self._keys is None:
            raise RuntimeError("the training model was called in training mode outside of KeyedDropout.keyed().")
        shape = _mask_shape(layer, inputs.shape)
        words = random_words(self._keys, stream=next(self._streams), count=math.prod(shape))
        dropped = tf.reshape(words < _threshold(layer.rate), [tf.shape(inputs)[0], *shape])
        scale = tf.cast(1 / (1 - layer.rate) if layer.rate < 1 else 0.0, inputs.dtype)
        return tf.where(dropped, tf.zeros_like(inputs), inputs * scale)


def with_keyed_dropout(model: "keras.Model") -> tuple["keras.Model", KeyedDropout]:
    """A copy of `model` for training, and the object that hands keys to its dropout layers.

    The training model shares all weights with `model`, and has other layers in place of Dropout and SpatialDropout, also in
    models within it. Without dropout layers it is `model` itself, and keys given to it cost nothing. In a step::

        with dropout.keyed(row_keys(seed, epoch, row_ids)):
            logits = training_model(features, training=True)

    Args:
        model: Functional or Sequential, and built.

    Raises:
        UsageError: A dropout layer's mask is not one for each row, or another layer draws random numbers.
    """
    import keras

    dropout = KeyedDropout()

    def replaced(layer: Any) -> Any:
        if not _drops(layer):
            return layer
        _mask_shape(layer, layer.input.shape)
        return _layer_class()(partial(dropout._drop, layer=layer), name=layer.name, dtype=layer.dtype_policy)

    layers = list(_layers_of(model))
    _check_others(layers)
    if not any(_drops(layer) for layer in layers):
        return model, dropout
    return keras.models.clone_model(model, clone_function=replaced, recursive=True), dropout


@cache
def _layer_class() -> Any:
    """The class of the layers that drop by keys; made here, as its base class is imported late."""
    import keras

    class KeyedDropoutLayer(keras.layers.Layer):  # type: ignore[misc, unused-ignore]
        """Replaces a dropout layer in a training model. It is never saved."""

        def __init__(self, drop: Callable[[Any], Any], **settings: Any) -> None:
            super().__init__(**settings)
            self.supports_masking = True
            self._drop = drop

        def call(self, inputs: Any, training: bool = False) -> Any:
            return self._drop(inputs) if training else inputs

        def compute_output_shape(self, input_shape: Any) -> Any:
            return input_shape

    return KeyedDropoutLayer


def _layers_of(model: "keras.Model") -> Iterator["keras.Layer"]:
    """All layers of a model and of the models within it, in the order in which they are called."""
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers_of(layer)
        else:
            yield layer


def _drops(layer: "keras.Layer") -> bool:
    """Whether a layer is replaced. Subclasses are not, as they may do anything."""
    return type(layer) in _layer_kinds() and layer.rate > 0


@cache
def _layer_kinds() -> tuple[type, ...]:
    from keras import layers

    return (layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D)


def _check_others(layers: Sequence["keras.Layer"]) -> None:
    for layer in layers:
        # Seeds are variables of a layer, but not weights.
        if not _drops(layer) and len(layer.variables) > len(layer.weights):
            raise UsageError(
                f"layer {layer.name!r} ({type(layer).__name__}) draws random numbers, which would differ with the number of "
                "ranks. Only Dropout and SpatialDropout layers are allowed, and not within another layer."
            )


def _mask_shape(layer: "keras.layers.Dropout", input_shape: Sequence[int | None]) -> tuple[int, ...]:
    """The shape of one row's mask, which is broadcast to the row."""
    import keras

    sizes = list(input_shape[1:])
    if hasattr(layer, "data_format"):
        sizes = _spatial(sizes, channels=0 if layer.data_format == "channels_first" else -1)
    elif isinstance(layer, keras.layers.SpatialDropout1D):
        sizes = _spatial(sizes, channels=-1)
    elif layer.noise_shape is not None:
        sizes = _as_told(layer, sizes)
    fixed = tuple(size for size in sizes if size is not None)
    if len(fixed) < len(sizes):
        raise UsageError(f"the input of layer {layer.name!r} must have a fixed shape. Got {tuple(input_shape)}.")
    return fixed


def _spatial(sizes: list[int | None], *, channels: int) -> list[int | None]:
    """The mask's shape with one draw for each map."""
    return [size if axis == channels % len(sizes) else 1 for axis, size in enumerate(sizes)]


def _as_told(layer: "keras.layers.Dropout", sizes: list[int | None]) -> list[int | None]:
    first, *others = layer.noise_shape
    if first is not None or len(others) != len(sizes):
        raise UsageError(
            f"`noise_shape` of layer {layer.name!r} must start with None, as each row has its own mask, followed by a number "
            f"or None for each of {len(sizes)} axes. Got {layer.noise_shape}."
        )
    return [size if drawn is None else drawn for size, drawn in zip(sizes, others, strict=True)]


def _threshold(rate: float) -> "tf.Tensor":
    """The limit below which the share `rate` of the 2^32 values of a word lies: ``uint32 ()``."""
    import tensorflow as tf

    return tf.constant(min(round(rate * 2**32), 2**32 - 1), tf.uint32)
