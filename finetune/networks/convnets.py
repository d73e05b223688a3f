"""The ConvNets that are trained from pixels. They use no padding, and ReLU after each convolution."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune.networks.inputs import flatten

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Convolution:
    """A square convolution, followed by 2 x 2 max-pooling."""

    maps: int
    size: int
    stride: int = 1


@dataclass(frozen=True)
class ConvNet:
    """Convolutions, one hidden dense layer, and dropout after it."""

    convolutions: Sequence[Convolution]
    hidden: int
    dropout: float = 0.0

    @property
    def least_size(self) -> int:
        """The smallest height and width, in pixels, for which the last pooling has an output."""
        size = 1
        for convolution in reversed(self.convolutions):
            size = (2 * size - 1) * convolution.stride + convolution.size
        return size


CONVNETS = {
    "mnist_convnet": ConvNet((Convolution(20, 5), Convolution(50, 5)), hidden=500),
    "landscapes_convnet": ConvNet(
        (Convolution(20, 4, stride=2), Convolution(40, 5), Convolution(70, 5)), hidden=200, dropout=0.5
    ),
}


def size_faults(name: str, feature_shape: Sequence[int]) -> list[str]:
    """The faults of images of the shape ``(height, width, channels)`` for the ConvNet `name`; empty if nothing."""
    least = CONVNETS[name].least_size
    if min(feature_shape[:2]) >= least:
        return []
    found = " x ".join(str(size) for size in feature_shape[:2])
    return [f"`model.name` {name} takes images of {least} x {least} pixels or more. Got {found}"]


def apply_convnet(name: str, images: "keras.KerasTensor", seeds: Iterator[int]) -> "keras.KerasTensor":
    """The output of the last hidden layer of the ConvNet `name`.

    Args:
        images: ``float32 (n_images, height, width, channels)``.
        seeds: A seed for each layer that draws random numbers.
    """
    import keras

    net, tensor = CONVNETS[name], images
    for number, convolution in enumerate(net.convolutions, 1):
        tensor = keras.layers.Conv2D(
            convolution.maps,
            convolution.size,
            strides=convolution.stride,
            activation="relu",
            kernel_initializer=keras.initializers.GlorotUniform(seed=next(seeds)),
            name=f"convolution_{number}",
        )(tensor)
        tensor = keras.layers.MaxPooling2D(2, name=f"pool_{number}")(tensor)
    return apply_hidden(flatten(tensor), [net.hidden], net.dropout, seeds)


def apply_hidden(
    tensor: "keras.KerasTensor", hidden: Sequence[int], dropout: float, seeds: Iterator[int]
) -> "keras.KerasTensor":
    """Dense layers with ReLU, each followed by dropout.

    Args:
        tensor: ``float32 (n_images, feature_dim)``.
        hidden: Units of each layer.
        dropout: Share of the units that is dropped, in [0, 1); 0: no dropout layers.
        seeds: A seed for each layer that draws random numbers.
    """
    import keras

    for number, units in enumerate(hidden, 1):
        initializer = keras.initializers.GlorotUniform(seed=next(seeds))
        tensor = keras.layers.Dense(units, activation="relu", kernel_initializer=initializer, name=f"hidden_{number}")(
            tensor
        )
        if dropout:
            tensor = keras.layers.Dropout(dropout, seed=next(seeds), name=f"dropout_{number}")(tensor)
    return tensor
