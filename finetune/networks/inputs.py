"""The preparation of features before the network: standard Keras layers in the saved model, and the same in NumPy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from featurize.recipes.model_section import PIXEL_MODELS, ModelSettings

if TYPE_CHECKING:
    import keras

INPUT_LAYERS = ("pixels", "features", "scale", "above_threshold", "binarize", "flatten", "l2_normalize", "standardize")
"""The names that the layers of `prepare_input` and `flatten` can have."""
_THRESHOLD = 30  # pixels above it become 1
_LEAST_LENGTH = 1e-12  # epsilon of keras.layers.UnitNormalization
PixelPreparation = Literal["scale", "standardize", "binarize"]


@dataclass(frozen=True)
class Statistics:
    """The mean and deviation by which features are standardised.

    Attributes:
        mean: float64 ``(n_channels,)`` for pixels in [0, 255], or ``(feature_dim,)``.
        deviation: The population's standard deviation, in the same shape; above 0, and 1 where the feature is constant.
    """

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]


def input_faults(settings: ModelSettings, feature_dtype: str) -> list[str]:
    """Settings that do not suit such features, a line for each fault. Needs no TensorFlow."""
    faults = []
    if feature_dtype == "uint8":
        given = [key for key in ("standardize", "l2_normalize") if getattr(settings, key)]
        faults += [f"`model.{key}` is for features from a network; for images use `model.pixels`" for key in given]
    if feature_dtype != "uint8" and settings.name in PIXEL_MODELS:
        faults.append(
            f'`model.name` {settings.name} needs images, from the backbone "pixels". Got {feature_dtype} features'
        )
    if feature_dtype != "uint8" and settings.pixels is not None:
        faults.append(f'`model.pixels` needs images, from the backbone "pixels". Got {feature_dtype} features')
    return faults


def pixel_preparation(settings: ModelSettings) -> PixelPreparation:
    """The preparation of pixels; by default the network's own."""
    return settings.pixels or ("standardize" if settings.name == "landscapes_convnet" else "scale")


def standardizes_pixels(settings: ModelSettings) -> bool:
    """Whether pixels are standardised by channel, if the features are pixels."""
    return pixel_preparation(settings) == "standardize"


def prepare_input(
    settings: ModelSettings,
    *,
    feature_shape: Sequence[int],
    feature_dtype: str,
    statistics: Statistics | None = None,
) -> tuple["keras.KerasTensor", "keras.KerasTensor"]:
    """The input tensor of a model, and the prepared tensor that its network gets.

    Pixels are scaled to [0, 1], or standardised by channel, or set to 1 above 30 and to 0 otherwise. Other features are scaled to
    length 1, row by row, and then standardised, each if `settings` say so.

    Args:
        settings: The recipe's `[model]` section.
        feature_shape: Shape of one image's features.
        feature_dtype: "float32" or "uint8".
        statistics: Statistics of the training split, where `input_statistics.needs_statistics`.

    Returns:
        ``uint8 (n_images, height, width, channels)`` or ``float32 (n_images, feature_dim)``; and float32 of the same shape.

    Raises:
        ValueError: Statistics are missing, or belong to other features.
    """
    import keras

    if feature_dtype == "uint8":
        pixels = keras.Input(tuple(feature_shape), dtype="uint8", name="pixels")
        return pixels, _prepare_pixels(pixels, pixel_preparation(settings), statistics)
    inputs = prepared = keras.Input((math.prod(feature_shape),), dtype="float32", name="features")
    if settings.l2_normalize:
        prepared = keras.layers.UnitNormalization(name="l2_normalize")(prepared)
    if settings.standardize:
        prepared = _standardize(prepared, statistics)
    return inputs, prepared


def flatten(tensor: "keras.KerasTensor") -> "keras.KerasTensor":
    """`tensor` as ``(n_images, feature_dim)``."""
    import keras

    return tensor if len(tensor.shape) == 2 else keras.layers.Flatten(name="flatten")(tensor)


def rows_to_standardize(features: NDArray[Any], settings: ModelSettings) -> NDArray[np.float64]:
    """The values of `features` to be standardised: pixels by channel, or features after the preparation that comes before.

    Args:
        features: uint8 ``(n_images, height, width, channels)`` or float32 ``(n_images, feature_dim)``.

    Returns:
        float64 ``(n_pixels, channels)`` or ``(n_images, feature_dim)``.
    """
    rows: NDArray[np.float64] = features.reshape(-1, features.shape[-1]).astype(np.float64)
    if settings.l2_normalize and features.dtype != np.uint8:
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _LEAST_LENGTH)
    return rows


def _prepare_pixels(
    pixels: "keras.KerasTensor", preparation: PixelPreparation, statistics: Statistics | None
) -> "keras.KerasTensor":
    import keras

    if preparation == "standardize":
        return _standardize(pixels, statistics)
    if preparation == "scale":
        return keras.layers.Rescaling(1 / 255, name="scale")(pixels)
    above = keras.layers.Rescaling(1.0, offset=-float(_THRESHOLD), name="above_threshold")(pixels)
    return keras.layers.ReLU(max_value=1.0, name="binarize")(above)  # pixels are integers: 31 gives 1 already


def _standardize(tensor: "keras.KerasTensor", statistics: Statistics | None) -> "keras.KerasTensor":
    """The standardisation layer. Its statistics are settings, not weights, so that no optimizer or all-reduce touches them."""
    import keras

    if statistics is None or statistics.mean.shape != (tensor.shape[-1],):
        raise ValueError(f"`statistics` must be of {tensor.shape[-1]} channels or features.")
    mean, variance = statistics.mean.tolist(), (statistics.deviation**2).tolist()
    return keras.layers.Normalization(mean=mean, variance=variance, name="standardize")(tensor)
