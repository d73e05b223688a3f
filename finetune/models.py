"""The networks that are trained on features. Each ends in a layer `logits` and a softmax, `probabilities`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from featurize.recipe import ModelSettings

if TYPE_CHECKING:
    import keras

LOGITS = "logits"


def build_model(
    settings: ModelSettings, *, feature_shape: Sequence[int], feature_dtype: str, n_classes: int, seed: int
) -> "keras.Model":
    """The untrained model that `settings` name.

    Input shape: features as the feature set stores them: ``float32 (n_images, feature_dim)``, or
    ``uint8 (n_images, height, width, channels)`` of `pixels`.
    Output shape: probabilities, ``float32 (n_images, n_classes)``.
    """
    builders = {"softmax_head": _softmax_head}
    return builders[settings.name](feature_shape, feature_dtype, n_classes, seed)


def logits_of(model: "keras.Model") -> "keras.Model":
    """`model` without its softmax, sharing its weights: what is trained, as the loss on logits is exact."""
    import keras

    return keras.Model(model.input, model.get_layer(LOGITS).output)


def _softmax_head(feature_shape: Sequence[int], feature_dtype: str, n_classes: int, seed: int) -> "keras.Model":
    """Multinomial logistic regression: one dense layer, Glorot-uniform initialised, and a softmax. Pixels become [0, 1]."""
    import keras

    if feature_dtype == "uint8":
        inputs = keras.Input(tuple(feature_shape), dtype="uint8", name="pixels")
        features = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    else:
        features = inputs = keras.Input((_product(feature_shape),), name="features")
    initializer = keras.initializers.GlorotUniform(seed=seed)
    logits = keras.layers.Dense(n_classes, kernel_initializer=initializer, name=LOGITS)(features)
    return keras.Model(inputs, keras.layers.Softmax(name="probabilities")(logits), name="softmax_head")


def _product(shape: Sequence[int]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result
