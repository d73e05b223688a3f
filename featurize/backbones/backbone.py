"""Frozen backbones: built and cut on the driver, saved to one file, and loaded from it once per worker process.

The driver builds the named network, gives it its weights and saves the part before the cut: workers never see the rest, and never
download anything. TensorFlow is imported by the functions that need it, so that a wrong recipe is refused at once.
"""

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from featurize import storage
from featurize.backbones import efficientnet_lite
from featurize.backbones.precision import Forward, Precision, choose_precision, has_bfloat16
from featurize.backbones.tensorflow_log import without_notes
from featurize.backbones.weights import WeightsReport, give_weights
from featurize.digests import settings_digest, sha256_file
from featurize.errors import JobError, UsageError, first_line
from featurize.progress import stage
from featurize.recipes.recipe import BackboneSettings

if TYPE_CHECKING:
    import keras

_logger = logging.getLogger(__name__)
Preprocessing = Literal["none", "caffe", "tf", "torch"]

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
_SIZE_WHERE_ANY = {
    "mobilenet_v3": 224
}  # pixels; the size used in the training of the weights, where the network itself sets none
RESIZING = "stretched, Pillow bilinear"
_IN_BFLOAT16 = "auto_mixed_precision_onednn_bfloat16"  # an option of TensorFlow's graph optimizer


@dataclass(frozen=True)
class BackboneSpec:
    """Everything that determines the features of an image; stored in the manifest. A worker needs only this and the file.

    `weights_digest` covers the values of the weights before the cut, so it does not depend on the file that they came in.
    `network_sha256` is the digest of the .keras file where the network came in one, as nothing else identifies its layers.
    """

    name: str
    network_sha256: str | None
    layer: str | None
    weights: str | None
    weights_digest: str | None
    preprocessing: Preprocessing
    resizing: str
    height: int
    width: int
    channels: int
    precision: Precision
    feature_shape: tuple[int, ...]
    feature_dtype: Literal["float32", "uint8"]

    @property
    def is_pixels(self) -> bool:
        """Whether the features are the pixels themselves."""
        return self.name == "pixels"

    def as_dict(self) -> dict[str, Any]:
        """The description as a JSON-ready dict, for the manifest."""
        return {**asdict(self), "feature_shape": list(self.feature_shape)}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """The backbone described in a manifest or a saved model; unknown keys are ignored."""
        known = {key: document[key] for key in cls.__dataclass_fields__}
        return cls(**{**known, "feature_shape": tuple(document["feature_shape"])})

    @property
    def preparation_id(self) -> str:
        """Digest of all that determines the features of an image; the origin of the weights does not."""
        return settings_digest({key: value for key, value in self.as_dict().items() if key not in ("name", "weights")})


@dataclass(frozen=True)
class PreparedBackbone:
    """A backbone on the driver: the cut network as a .keras file (None for `pixels`) with its digest.

    `bfloat16_cosine` is the value that `choose_precision` measured, if it did.
    """

    spec: BackboneSpec
    path: Path | None = None
    sha256: str | None = None
    report: WeightsReport | None = None
    bfloat16_cosine: float | None = None


def prepare_backbone(settings: BackboneSettings, folder: str | Path) -> PreparedBackbone:
    """Builds the backbone that `settings` describe and saves the part before the cut into `folder`.

    Raises:
        UsageError: The network or layer is unknown, or the weights do not fit or have another digest.
        JobError: ImageNet weights are not available.
    """
    if settings.name == "pixels":
        return PreparedBackbone(_pixels_spec(settings))
    stage(f"cutting {Path(settings.name).name}" + (f" at {settings.layer}" if settings.layer else ""))
    network, preprocessing, report = _build_network(settings)
    cut = _cut_network(network, settings)
    height, width = _input_size(cut, settings)
    spec = BackboneSpec(
        name=Path(settings.name).name if settings.is_keras_file else settings.name,
        network_sha256=report.file_sha256 if settings.is_keras_file else None,
        layer=cut.output._keras_history.operation.name,
        weights=report.description,
        weights_digest=digest_of_weights(cut),
        preprocessing=preprocessing,
        resizing=RESIZING,
        height=height,
        width=width,
        channels=3,
        precision="bfloat16" if settings.precision == "bfloat16" else "float32",
        feature_shape=tuple(cut.compute_output_shape((1, height, width, 3))[1:]),
        feature_dtype="float32",
    )
    cosine = None
    if settings.precision == "auto":
        stage(f"comparing bfloat16 with float32 for {spec.name}")
        precision, cosine = choose_precision(
            lambda precision: make_forward(cut, replace(spec, precision=precision)), height=height, width=width
        )
        spec = replace(spec, precision=precision)
    saved = Path(folder) / "backbone.keras"
    cut.save(saved)
    digest = sha256_file(saved)
    path = saved.rename(saved.with_name(f"backbone-{digest[:16]}.keras"))  # Spark assumes one content for a name
    return PreparedBackbone(spec=spec, path=path, sha256=digest, report=report, bfloat16_cosine=cosine)


def application_names() -> dict[str, str]:
    """Every network of keras.applications, by name, with its module."""
    from keras import applications

    constructors = {name: make for name, make in vars(applications).items() if name[0].isupper() and callable(make)}
    return {name: make.__module__.rsplit(".", 1)[-1] for name, make in sorted(constructors.items())}


def load_backbone(spec: BackboneSpec, path: str | Path | None, *, sha256: str | None) -> Forward:
    """Loads a prepared backbone: a function from ``uint8 (n_images, height, width, channels)`` to the features.

    The features are ``float32 (n_images, feature_dim)``, flattened in row-major order; for `pixels` the images themselves.

    Raises:
        JobError: The file is not the prepared one, or this machine cannot compute in the required precision.
    """
    if spec.is_pixels:
        return lambda images: images
    if path is None or sha256_file(path) != sha256:
        raise JobError(
            f"the backbone file {path} is not the one that this job prepared: its SHA-256 differs from {sha256}."
        )
    if spec.precision == "bfloat16" and not has_bfloat16():
        raise JobError(
            'the backbone must run in bfloat16, which this machine does not support. Set `backbone.precision = "float32"`.'
        )
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
        prepared = preprocess(tf.cast(images, tf.float32), spec.preprocessing)
        features = network(prepared, training=False)
        return tf.cast(tf.reshape(features, (tf.shape(features)[0], -1)), tf.float32)

    is_first = True

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        nonlocal is_first
        with _products_in_bfloat16(in_bfloat16, first=is_first):
            is_first = False
            return np.asarray(forward(images).numpy())

    return run


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


def _pixels_spec(settings: BackboneSettings) -> BackboneSpec:
    if settings.height is None or settings.width is None:
        raise UsageError("`backbone.height` and `backbone.width` are required with `pixels`.")
    shape = (settings.height, settings.width, settings.channels or 3)
    return BackboneSpec(
        name="pixels",
        network_sha256=None,
        layer=None,
        weights=None,
        weights_digest=None,
        preprocessing="none",
        resizing=RESIZING,
        height=shape[0],
        width=shape[1],
        channels=shape[2],
        precision="float32",
        feature_shape=shape,
        feature_dtype="uint8",
    )


def _build_network(settings: BackboneSettings) -> tuple["keras.Model", Preprocessing, WeightsReport]:
    """The whole network with its weights, before the cut."""
    if settings.is_keras_file:
        return _load_keras_file(settings)
    if settings.name == efficientnet_lite.NAME:
        network, report = give_weights(efficientnet_lite.make_efficientnet_lite0, settings)
        return network, "none", report
    modules = application_names()
    if settings.name not in modules:
        import difflib

        known = sorted([*modules, efficientnet_lite.NAME])
        close = difflib.get_close_matches(settings.name, known, n=1)
        hint = f"Did you mean {close[0]}?" if close else f"Known models: {', '.join(known)}."
        raise UsageError(
            f"`backbone.name`: {settings.name!r} is not {efficientnet_lite.NAME}, a keras.applications model, a .keras file or "
            f"pixels. {hint}"
        )
    from keras import applications

    network, report = give_weights(getattr(applications, settings.name), settings)
    return network, PREPROCESSING_OF_MODULE[modules[settings.name]], report


def _load_keras_file(settings: BackboneSettings) -> tuple["keras.Model", Preprocessing, WeightsReport]:
    if settings.preprocessing is None:
        raise UsageError("`backbone.preprocessing` is required with a .keras file.")
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
            network = saving.load_model(local, compile=False, safe_mode=True)
        except (ValueError, OSError, TypeError, KeyError) as error:
            raise UsageError(
                f"`backbone.name`: {settings.name} cannot be loaded as a Keras model: {first_line(error)}"
            ) from error
    return (
        network,
        settings.preprocessing,
        WeightsReport(f"{Path(settings.name).name}, SHA-256 {digest}", file_sha256=digest),
    )


def _cut_network(network: "keras.Model", settings: BackboneSettings) -> "keras.Model":
    """The part of `network` from its one input to the requested layer."""
    import keras

    if getattr(network, "inputs", None) is None:
        raise UsageError(
            f"`backbone.name`: {settings.name} must be a functional or sequential model with a fixed input."
        )
    if len(network.inputs) != 1 or len(network.inputs[0].shape) != 4 or network.inputs[0].shape[-1] != 3:
        shapes = ", ".join(str(tensor.shape) for tensor in network.inputs)
        raise UsageError(
            f"`backbone.name`: {settings.name} must have one RGB image, (n, height, width, 3), as input. It has {shapes}."
        )
    names = [layer.name for layer in network.layers]
    name = settings.layer or network.outputs[0]._keras_history.operation.name
    if name not in names:
        import difflib

        close = difflib.get_close_matches(name, names, n=3)
        hint = f"Did you mean {' or '.join(close)}?" if close else f"Its last layers are {', '.join(names[-8:])}."
        raise UsageError(f"`backbone.layer`: {settings.name} has no layer {name!r}. {hint}")
    return keras.Model(network.inputs[0], network.get_layer(name).output)


def _input_size(network: "keras.Model", settings: BackboneSettings) -> tuple[int, int]:
    """Height and width of the input in pixels: the network's own, or the recipe's where the network has none."""
    usual = None if settings.is_keras_file else _SIZE_WHERE_ANY.get(application_names().get(settings.name, ""))
    size = []
    for key, own in zip(("height", "width"), network.inputs[0].shape[1:3], strict=True):
        asked = getattr(settings, key)
        if own is not None and asked not in (None, own):
            raise UsageError(f"`backbone.{key}` must be {own}, the input of {settings.name}. Got {asked}.")
        found = own or asked or usual
        if found is None:
            raise UsageError(f"`backbone.{key}` is required: {settings.name} takes images of any size.")
        size.append(int(found))
    return size[0], size[1]
