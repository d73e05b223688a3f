"""Networks in Keras: built with their weights, cut where asked, and computed by TensorFlow.

TensorFlow is imported by the functions that need it, so that a wrong recipe is refused at once.
"""

import difflib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featurize import storage
from featurize.backbones import efficientnet_lite
from featurize.backbones.hub_network import load_hub_network
from featurize.backbones.preparation import asked_size, check_size
from featurize.backbones.spec import BackboneSpec, Preprocessing
from featurize.backbones.weights import WeightsReport, give_weights
from featurize.decoding.decode import Fit, Interpolation
from featurize.digests import sha256_file
from featurize.engines.keras_graph import find_output, layers_by_name, own_output
from featurize.engines.keras_memory import check_keras_memory
from featurize.engines.parts import Part, count_prefix_tokens, parse_layer
from featurize.engines.precision import Forward, has_bfloat16
from featurize.engines.tensorflow_log import without_notes
from featurize.errors import UsageError, first_line
from featurize.recipes.backbone_section import BackboneSettings

if TYPE_CHECKING:
    import keras

_logger = logging.getLogger(__name__)

# How the networks of each keras.applications module were trained to see RGB in [0, 255].
# Source: the `mode` that each module's own `preprocess_input` uses, or none where it returns its input.
PREPROCESSING_OF_MODULE: dict[str, Preprocessing] = {
    "convnext": "none",
    "densenet": "torch",
    "efficientnet": "none",
    "efficientnet_v2": "none",
    "inception_resnet_v2": "tf",
    "inception_v3": "tf",
    "mobilenet": "tf",
    "mobilenet_v2": "tf",
    "mobilenet_v3": "none",
    "nasnet": "tf",
    "resnet": "caffe",
    "resnet_v2": "tf",
    "vgg16": "caffe",
    "vgg19": "caffe",
    "xception": "tf",
}
_FRACTION = 0.875  # of the shorter side that is seen: 224 of 256 pixels
_SEE_ALL = ("EfficientNetV2S", "EfficientNetV2M", "EfficientNetV2L")
_BORDER = 32  # pixels of the resized picture that EfficientNets do not see, at any size
_SEEN_BICUBIC = ("ConvNeXt", "EfficientNet")
_SIZE_WHERE_ANY = {
    "mobilenet_v3": 224
}  # pixels; the size used in the training of the weights, where the network itself sets none
_IN_BFLOAT16 = "auto_mixed_precision_onednn_bfloat16"  # an option of TensorFlow's graph optimizer


def application_names() -> dict[str, str]:
    """Every network of keras.applications, by name, with its module."""
    from keras import applications

    constructors = {name: make for name, make in vars(applications).items() if name[0].isupper() and callable(make)}
    return {name: make.__module__.rsplit(".", 1)[-1] for name, make in sorted(constructors.items())}


def trained_fit(settings: BackboneSettings, *, height: int, width: int) -> Fit | None:
    """How the weights of a network that a recipe can name were measured to see pictures; None for a file.

    Source: Krizhevsky et al. (2012) and Simonyan and Zisserman (2015), after whom others do it too: the central 224 pixels of a
    picture whose shorter side has 256, and the same fraction at other sizes. EfficientNets (Tan and Le, 2019): the shorter side
    is 32 pixels longer than the input, bicubic; EfficientNetV2 S to L see all of it.
    """
    if settings.is_file or settings.is_folder:
        return None
    interpolation: Interpolation = "bicubic" if settings.name.startswith(_SEEN_BICUBIC) else "bilinear"
    if height != width or settings.name.startswith(_SEE_ALL):
        return Fit("crop", interpolation, draft=True)
    shorter = height + _BORDER if settings.name.startswith("EfficientNet") else round(height / _FRACTION)
    return Fit(shorter, interpolation, "round", draft=True)


def load_forward(path: str | Path, spec: BackboneSpec) -> Forward:
    """The compiled forward pass of a cut network in a .keras file."""
    from keras import saving

    return make_forward(saving.load_model(path, compile=False, safe_mode=True), spec)


def make_forward(network: "keras.Model", spec: BackboneSpec) -> Forward:
    """The compiled forward pass of `network`: preprocessing, the network, flattening."""
    import tensorflow as tf

    in_bfloat16 = spec.precision == "bfloat16" and has_bfloat16()

    @tf.function(
        input_signature=[tf.TensorSpec((None, spec.height, spec.width, spec.channels), tf.uint8)], autograph=False
    )
    def forward(images: Any) -> Any:
        return features_of(images, lambda prepared: network(prepared, training=False), spec)

    is_first = True

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        nonlocal is_first
        with _products_in_bfloat16(in_bfloat16, first=is_first):
            is_first = False
            return np.asarray(forward(images).numpy())

    return run


def features_of(images: Any, apply: Callable[[Any], Any], spec: BackboneSpec) -> Any:
    """The features of ``uint8 (n, height, width, 3)`` as a tensor ``float32 (n, feature_dim)``; `apply` is the cut network."""
    import tensorflow as tf

    values = tf.cast(images, tf.float32)
    stated = spec.normalization
    features = apply(preprocess(values, spec.preprocessing) if stated is None else stated.apply(values))
    return tf.cast(tf.reshape(features, (tf.shape(features)[0], -1)), tf.float32)


@contextmanager
def _products_in_bfloat16(wanted: bool, *, first: bool) -> Iterator[None]:
    """Graphs that run inside the block compute matrix products in bfloat16 if `wanted`, otherwise in float32.

    The option, which rewrites graphs, applies to the whole process. So it is set only during each call: a head that runs after
    the backbone must stay in float32. TensorFlow rewrites the graph in the `first` call, with a note, and keeps it from then on.
    """
    import tensorflow as tf

    if not wanted:
        yield
        return
    tf.config.optimizer.set_experimental_options({_IN_BFLOAT16: True})
    try:
        with without_notes() if first else nullcontext():
            yield
    finally:
        tf.config.optimizer.set_experimental_options({_IN_BFLOAT16: False})


def preprocess(images: Any, mode: Preprocessing) -> Any:
    """RGB in [0, 255] in the form that the network was trained on; `images` is ``float32 (..., 3)``, an array or a tensor.

    Source: keras.applications.imagenet_utils.preprocess_input, which defines these modes.
    """
    if mode == "none":
        return images
    if mode == "tf":
        return images / 127.5 - 1.0
    if mode == "torch":
        mean, deviation = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
        return (images / 255.0 - mean) / deviation
    return images[..., ::-1] - np.array([103.939, 116.779, 123.68], np.float32)


def digest_of_weights(network: "keras.Model") -> str:
    """Digest of the values of all weights, in the order of the network, with their shapes."""
    import hashlib

    digest = hashlib.sha256()
    for variable in network.weights:
        values = np.ascontiguousarray(variable.numpy())
        digest.update(f"{values.dtype}{values.shape}".encode())
        digest.update(values.data)
    return digest.hexdigest()


def set_threads(threads: int, *, at_once: int = 1) -> None:
    """Gives every TensorFlow operation `threads` cores in this process; call it before anything is computed.

    Where TensorFlow has computed something before, as in a notebook, its threads stay as they are.

    Args:
        threads: Number of cores.
        at_once: Number of graphs that run at a time, in Python threads.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    import tensorflow as tf

    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(at_once)
    except RuntimeError as error:  # TensorFlow has started; nothing else raises it here
        _logger.debug("TensorFlow's threads stay as they are: %s", error)


def build_network(settings: BackboneSettings) -> tuple["keras.Model", Preprocessing, WeightsReport]:
    """The whole network with its weights, before the cut."""
    if settings.is_keras_file:
        return _load_keras_file(settings)
    if settings.is_folder:
        url = settings.name.rstrip("/")
        network, digest = load_hub_network(url)
        return network, "stated", WeightsReport(f"{Path(url).name}, SHA-256 {digest}", file_sha256=digest)
    if settings.name == efficientnet_lite.NAME:
        network, report = give_weights(efficientnet_lite.make_efficientnet_lite0, settings)
        return network, "none", report
    modules = application_names()
    if settings.name not in modules:
        known = sorted([*modules, efficientnet_lite.NAME])
        close = difflib.get_close_matches(settings.name, known, n=1)
        hint = f"Did you mean {close[0]}?" if close else f"Known models: {', '.join(known)}."
        raise UsageError(
            f"`backbone.name`: {settings.name!r} is not {efficientnet_lite.NAME}, a keras.applications model, pixels, or the "
            f"path of a .keras file, an .onnx file or a folder. {hint}"
        )
    from keras import applications

    network, report = give_weights(getattr(applications, settings.name), settings)
    return network, PREPROCESSING_OF_MODULE[modules[settings.name]], report


def _load_keras_file(settings: BackboneSettings) -> tuple["keras.Model", Preprocessing, WeightsReport]:
    if not storage.exists(settings.name):
        raise UsageError(f"`backbone.name`: there is no file {settings.name}.")
    from keras import saving

    with tempfile.TemporaryDirectory(prefix="firn-") as folder:
        local = Path(folder) / "backbone.keras"
        storage.download(settings.name, local)
        digest = sha256_file(local)
        if settings.weights_sha256 not in (None, digest):
            raise UsageError(f"`backbone.weights_sha256`: {settings.name} has SHA-256 {digest}.")
        try:
            check_keras_memory(local)
            network = saving.load_model(local, compile=False, safe_mode=True)
        except (ValueError, OSError, TypeError, KeyError) as error:
            raise UsageError(
                f"`backbone.name`: {settings.name} cannot be loaded as a Keras model: {first_line(error)}"
            ) from error
    return (
        network,
        settings.preprocessing or "stated",
        WeightsReport(f"{Path(settings.name).name}, SHA-256 {digest}", file_sha256=digest),
    )


def cut_network(network: "keras.Model", settings: BackboneSettings) -> "keras.Model":
    """The part of `network` from its one input to the requested layer."""
    import keras

    check_input(network, settings)
    parts = parse_layer(settings.layer)
    outputs = [_output_of(network, part, settings) for part in parts]
    if len(outputs) > 1:
        outputs = [keras.layers.Concatenate()([keras.layers.Flatten()(output) for output in outputs])]
    return keras.Model(network.inputs[0], outputs[0])


def check_input(network: "keras.Model", settings: BackboneSettings) -> None:
    """Checks that a network has a graph, and one RGB image as its input.

    Raises:
        UsageError: it does not.
    """
    if getattr(network, "inputs", None) is None:
        raise UsageError(
            f"`backbone.name`: {settings.name} must be a functional or sequential model with a fixed input."
        )
    if len(network.inputs) != 1 or len(network.inputs[0].shape) != 4 or network.inputs[0].shape[-1] != 3:
        shapes = ", ".join(str(tensor.shape) for tensor in network.inputs)
        raise UsageError(
            f"`backbone.name`: {settings.name} must have one RGB image, (n, height, width, 3), as input. It has {shapes}."
        )


def name_of_layer(cut: "keras.Model", settings: BackboneSettings) -> str:
    """The layer of a cut network in words: its name, or all of `backbone.layer` where it says more than a name."""
    parts = parse_layer(settings.layer)
    if len(parts) > 1 or parts[0].pooling is not None or {"/", "#", "["} & set(parts[0].name or ""):
        return str(settings.layer)
    operation = cut.output._keras_history.operation
    named = layers_by_name(cut, settings)
    return next((name for name, layer in named.items() if layer is operation), str(operation.name))


def _output_of(network: "keras.Model", part: Part, settings: BackboneSettings) -> Any:
    """The output of a layer, pooled."""
    import keras

    output = own_output(network, settings) if part.name is None else find_output(network, part.name, settings)
    name = part.name or "the output"
    if part.pooling is None:
        return output
    if part.pooling == "mean" and len(output.shape) == 4:
        return keras.layers.GlobalAveragePooling2D()(output)
    if len(output.shape) != 3:
        raise UsageError(f"`backbone.layer`: {name} gives {output.shape}, so `:{part.pooling}` cannot be used.")
    if part.pooling == "cls":
        return output[:, 0]
    height, width = input_size(network, settings)
    first = count_prefix_tokens(int(output.shape[1]), height=height, width=width, patch_size=None, name=name)
    return keras.layers.GlobalAveragePooling1D()(output[:, first:])


def input_size(network: "keras.Model", settings: BackboneSettings) -> tuple[int, int]:
    """Height and width of the input in pixels: the network's own, or the recipe's where the network has none."""
    usual = None if settings.is_keras_file else _SIZE_WHERE_ANY.get(application_names().get(settings.name, ""))
    size = []
    for key, own in zip(("height", "width"), network.inputs[0].shape[1:3], strict=True):
        asked = asked_size(settings, key)
        check_size(settings, key, own)
        found = own or asked or usual
        if found is None:
            raise UsageError(f"`backbone.{key}` is required: {settings.name} takes images of any size.")
        size.append(int(found))
    return size[0], size[1]
