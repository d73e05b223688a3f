"""Networks as users write them, named in recipes as user_networks:function: good ones, and one for each thing that is refused."""

from collections.abc import Callable
from typing import Any

import keras
from keras import layers

Shape = tuple[int, ...]
not_a_function = 3


def logits(feature_shape: Shape, n_classes: int, seed: int) -> keras.Model:
    """Ends in logits, and says no shape: it takes the one it gets."""
    initializer = keras.initializers.GlorotUniform(seed=seed)
    return keras.Sequential([layers.Flatten(), layers.Dense(n_classes, kernel_initializer=initializer, name="scores")])


def dense_softmax(
    feature_shape: Shape, n_classes: int, seed: int, *, units: int = 8, dropout: float = 0.0
) -> keras.Model:
    """Has options, draws its weights without a seed, and ends in a layer with softmax, named as Firn names its own; in lists."""
    inputs = keras.Input(feature_shape)
    hidden = layers.Dropout(dropout)(layers.Dense(units, activation="relu")(layers.Flatten()(inputs)))
    return keras.Model([inputs], [layers.Dense(n_classes, activation="softmax", name="probabilities")(hidden)])


def softmax_layer(feature_shape: Shape, n_classes: int, seed: int) -> keras.Model:
    inner = keras.Sequential([layers.Dense(6, "relu", name="dense"), layers.Dropout(0.25)], name="inner")
    return keras.Sequential([layers.Flatten(), inner, layers.Dense(n_classes, name="dense"), layers.Softmax()])


def activation_layer(feature_shape: Shape, n_classes: int, seed: int) -> keras.Model:
    return keras.Sequential([layers.Flatten(), layers.Dense(n_classes), layers.Activation("softmax")])


def branches(feature_shape: Shape, n_classes: int, seed: int) -> keras.Model:
    """A graph with a shared layer, operations, a model in a model, and layers that look at each row alone."""
    tail_inputs = keras.Input((8,))
    tail = keras.Model(tail_inputs, layers.LayerNormalization()(layers.Dense(8)(tail_inputs) + tail_inputs))
    inputs = keras.Input(feature_shape)
    shared = layers.Dense(8, activation="tanh")
    x = layers.Conv2D(4, 3, padding="same")(inputs)
    x = layers.SpatialDropout2D(0.2)(layers.GroupNormalization(2)(x))
    ways = [layers.GlobalAveragePooling2D()(x), keras.ops.max(x, axis=(1, 2))]
    return keras.Model(inputs, layers.Dense(n_classes)(layers.Add()([tail(shared(way)) for way in ways])))


def of_layer(make: Callable[[], layers.Layer]) -> Callable[..., keras.Model]:
    """A function whose network has one layer, that `make` makes, before the last."""

    def network(feature_shape: Shape, n_classes: int, seed: int) -> keras.Model:
        return keras.Sequential([layers.Flatten(), layers.Dense(5), make(), layers.Dense(n_classes)])

    return network


@keras.saving.register_keras_serializable(package="user")
class Doubled(layers.Layer):  # type: ignore[misc]
    """Registered with Keras, and so loadable in this process, but in no other."""

    def call(self, inputs: Any) -> Any:
        return 2 * inputs


@keras.saving.register_keras_serializable(package="user")
def doubled(values: Any) -> Any:
    return 2 * values


def _patched() -> layers.Layer:
    layer = layers.Dense(5)
    call = layer.call
    layer.call = lambda inputs: 2 * call(inputs)
    return layer


def _frozen() -> layers.Layer:
    layer = layers.BatchNormalization()
    layer.trainable = False
    return layer


batch_normalization = of_layer(layers.BatchNormalization)
frozen_batch_normalization = of_layer(_frozen)
wrapped_batch_normalization = of_layer(
    lambda: keras.Sequential([_in_time(layers.BatchNormalization()), layers.Flatten()])
)
spectral_normalization = of_layer(lambda: layers.SpectralNormalization(layers.Dense(5)))
noise = of_layer(lambda: layers.GaussianNoise(0.1))
wrapped_dropout = of_layer(lambda: keras.Sequential([_in_time(layers.Dropout(0.1)), layers.Flatten()]))
same_mask_for_all = of_layer(lambda: layers.Dropout(0.5, noise_shape=(1, 5)))
own_layer = of_layer(Doubled)
own_activation = of_layer(lambda: layers.Dense(5, activation=doubled))
code = of_layer(lambda: layers.Lambda(lambda x: 2 * x))
patched = of_layer(_patched)
regularized = of_layer(lambda: layers.Dense(5, kernel_regularizer="l2"))
activity_regularized = of_layer(lambda: layers.ActivityRegularization(l2=0.1))
across_rows = of_layer(lambda: layers.UnitNormalization(axis=0))
does_not_fit = of_layer(lambda: layers.Conv2D(3, 3))


def _in_time(layer: layers.Layer) -> keras.Model:
    return keras.Sequential([layers.Reshape((5, 1)), layers.TimeDistributed(layer)])


def augmented(feature_shape: Shape, n_classes: int, seed: int) -> keras.Model:
    return keras.Sequential([layers.RandomFlip(), layers.Flatten(), layers.Dense(n_classes)])


def no_seed(feature_shape: Shape, n_classes: int) -> keras.Model:
    return logits(feature_shape, n_classes, 0)


def asks_for_more(feature_shape: Shape, n_classes: int, seed: int, units: int) -> keras.Model:
    return logits(feature_shape, n_classes, seed)


def nothing(feature_shape: Shape, n_classes: int, seed: int) -> None:
    logits(feature_shape, n_classes, seed)


class Subclassed(keras.Model):  # type: ignore[misc]
    """A model with code of its own."""

    def __init__(self, feature_shape: Shape, n_classes: int, seed: int) -> None:
        super().__init__()
        self.dense = layers.Dense(n_classes)

    def call(self, inputs: Any) -> Any:
        return self.dense(inputs)


def subclassed_inside(feature_shape: Shape, n_classes: int, seed: int) -> keras.Model:
    return keras.Sequential([layers.Flatten(), Subclassed(feature_shape, n_classes, seed)])


def one_class_too_many(feature_shape: Shape, n_classes: int, seed: int) -> keras.Model:
    return logits(feature_shape, n_classes + 1, seed)


def half_precision(feature_shape: Shape, n_classes: int, seed: int) -> keras.Model:
    return keras.Sequential([layers.Flatten(), layers.Dense(n_classes, dtype="mixed_bfloat16")])


def other_shape(feature_shape: Shape, n_classes: int, seed: int) -> keras.Model:
    return keras.Sequential([keras.Input((7,)), layers.Dense(n_classes)])


def whole_numbers(feature_shape: Shape, n_classes: int, seed: int) -> keras.Model:
    return keras.Sequential([keras.Input(feature_shape, dtype="uint8"), layers.Flatten(), layers.Dense(n_classes)])


def two_inputs(feature_shape: Shape, n_classes: int, seed: int) -> keras.Model:
    inputs = [keras.Input(feature_shape), keras.Input(feature_shape)]
    return keras.Model(inputs, layers.Dense(n_classes)(layers.Flatten()(layers.Add()(inputs))))


def two_outputs(feature_shape: Shape, n_classes: int, seed: int) -> keras.Model:
    inputs = keras.Input(feature_shape)
    flat = layers.Flatten()(inputs)
    return keras.Model(inputs, [layers.Dense(n_classes)(flat), layers.Dense(n_classes)(flat)])


def sigmoid(feature_shape: Shape, n_classes: int, seed: int) -> keras.Model:
    return keras.Sequential([layers.Flatten(), layers.Dense(n_classes, activation="sigmoid")])


def softmax_operation(feature_shape: Shape, n_classes: int, seed: int) -> keras.Model:
    inputs = keras.Input(feature_shape)
    return keras.Model(inputs, keras.ops.softmax(layers.Dense(n_classes)(layers.Flatten()(inputs))))


def frozen(feature_shape: Shape, n_classes: int, seed: int) -> keras.Model:
    network = logits(feature_shape, n_classes, seed)
    network.trainable = False
    return network


def inner_mode(feature_shape: Shape, n_classes: int, seed: int) -> keras.Model:
    inner = keras.Sequential([layers.Flatten(), layers.Dense(4)], name="inner")
    inputs = keras.Input(feature_shape)
    return keras.Model(inputs, layers.Dense(n_classes)(inner(inputs, training=False)))
