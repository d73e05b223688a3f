"""The last layers of a backbone, trained together with a head that was trained on its features.

The model is trained on pixels, a feature set of the backbone `pixels`, so that it behaves like every other model: images are
decoded once, batches are those of one rank on any number of ranks, a training resumes from its checkpoints.
"""

import difflib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurize import storage
from featurize.backbones.rebuild import backbone_settings, prepare_again
from featurize.backbones.spec import Preprocessing
from featurize.errors import JobError, UsageError
from featurize.recipes.backbone_section import BackboneSettings
from featurize.recipes.model_section import ModelSettings
from featurize.shortening import MOST_NAMED, name_some
from featurize.tables.manifests import FeaturesManifest
from featurize.tables.readable import read_features_manifest
from finetune.models.folder import ModelCard, check_features, load_model, read_model_card
from finetune.networks.build import PROBABILITIES, logits_of
from finetune.networks.keyed_dropout import with_keyed_dropout

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class TrainedHead:
    """A head, and the backbone whose features it was trained on: the starting point of unfreezing.

    Attributes:
        url: URL of the head's folder.
        card: The head's description.
        backbone: The settings that made its features, in the same precision; files by absolute URLs.
        spec: The backbone's description in the manifest of these features.
        preparation_id: Digest of the parts of that description that determine features.
    """

    url: str
    card: ModelCard
    backbone: BackboneSettings
    spec: dict[str, Any]
    preparation_id: str


def find_head(settings: ModelSettings, manifest: FeaturesManifest) -> TrainedHead:
    """The head that `settings` name, if it can be trained with its backbone on the pixels of `manifest`.

    Needs no TensorFlow, and so does not look into the backbone.

    Raises:
        UsageError: There is no such head; or it was not trained on features of a network; or the pixels are not of the size, the
            classes and the splits that its backbone and training need. The message names every fault.
        JobError: Its description or the manifest of its features is damaged.
    """
    url = storage.absolute_url(str(settings.head))
    card = read_model_card(url)
    if card is None:
        raise UsageError(f"`model.head`: there is no model at {url}. Train a head with `finetune fit` first.")
    if card.features.feature_dtype != "float32":
        raise UsageError(
            f"`model.head` must have been trained on the features of a network. {url} was trained on "
            f"{card.features.feature_dtype} {tuple(card.features.feature_shape)}, which no backbone made."
        )
    if card.features.backbone.get("precision") == "int8":
        raise UsageError(
            f"`model.head` must have been trained on features in float32 or bfloat16. {url} was trained on features in int8, and "
            "a network in int8 cannot be trained further."
        )
    features_url = card.features.url
    features = read_features_manifest(features_url).made_by(card.features.preparation_id)
    check_features(card, features_url, features)
    if faults := _faults_of_pixels(manifest, card, features):
        lines = "\n".join(f"  - {fault}." for fault in faults)
        raise UsageError(f"the pixels do not match `model.head` {url}:\n{lines}")
    return TrainedHead(
        url=url,
        card=card,
        backbone=backbone_settings(features_url, features),
        spec=features.backbone,
        preparation_id=features.preparation_id,
    )


def build_unfrozen(head: TrainedHead, *, unfreeze_from: str) -> "keras.Model":
    """The backbone and the head in one model, with their weights; layers before `unfreeze_from` will not be trained.

    Input shape: ``uint8 (n_images, height, width, 3)``, RGB.
    Output shape: probabilities, ``float32 (n_images, n_classes)``; before training, those that the head gives for the features.

    All weights of the layers from `unfreeze_from` on, in the backbone's order of layers, and all of the head are trained, with
    two exceptions. BatchNormalization is frozen, including scale and offset, and always uses the statistics that it came with:
    statistics of a batch would be those of the share that one rank holds. And frozen layers drop nothing, since the head was
    trained on features from which nothing was dropped; dropout after them works as in other models. The network computes in the
    precision of its layers, usually float32; features in bfloat16 differ by that much.

    Raises:
        UsageError: The backbone is not available, has other weights now, no such layer, or nothing to train after it; or it draws
            random numbers in training that would differ with the number of ranks.
        JobError: The weights of the backbone, or the head, cannot be read.
    """
    import keras

    trained, card = load_model(head.url)
    if card.model_id != head.card.model_id:
        raise JobError(f"{head.url} was replaced by another model while this one was being prepared.")
    frozen = _load_backbone(head)
    height, width = int(head.spec["height"]), int(head.spec["width"])
    backbone = _unfreeze(frozen, unfreeze_from, height=height, width=width, name=head.backbone.name)
    pixels = keras.Input((height, width, 3), dtype="uint8", name="pixels")
    features = backbone(_prepare(pixels, head.spec["preprocessing"]))
    if len(features.shape) > 2:
        features = keras.layers.Flatten(name="flatten")(features)
    to_logits = keras.Model(trained.input, trained.get_layer(PROBABILITIES).input, name="head")
    model = keras.Model(pixels, keras.layers.Softmax(name=PROBABILITIES)(to_logits(features)), name="unfrozen")
    try:
        with_keyed_dropout(logits_of(model))
    except UsageError as error:
        raise UsageError(f"the backbone {head.backbone.name} cannot be trained: {error}") from error
    return model


def _faults_of_pixels(pixels: FeaturesManifest, card: ModelCard, features: FeaturesManifest) -> list[str]:
    """Why a head on `features` cannot be trained on `pixels`, a line for each fault."""
    wanted = tuple(int(features.backbone[key]) for key in ("height", "width", "channels"))
    if pixels.feature_dtype != "uint8":
        return ['`features.url` must be images, of the backbone "pixels". It holds features of a network']
    faults = []
    if tuple(pixels.feature_shape) != wanted:
        found = " x ".join(map(str, pixels.feature_shape))
        faults.append(
            f"the backbone needs images of {' x '.join(map(str, wanted))} (height, width, channels). Got {found}"
        )
    if pixels.classes != card.classes:
        faults.append(f"the classes of the head are {name_some(card.classes)}. Got {name_some(pixels.classes)}")
    splits = [manifest.settings.get("source", {}).get("split") for manifest in (features, pixels)]
    if splits[0] != splits[1]:
        faults.append(
            "images that count as unseen now must not have been in the head's training. "
            f"Its features are split by {splits[0]}, the pixels by {splits[1]}"
        )
    return faults


def _load_backbone(head: TrainedHead) -> "keras.Model":
    """The backbone up to the layer whose output is the features, as it was when they were made."""
    from keras import saving

    settings = head.backbone.model_copy(update={"engine": "tensorflow"})  # whatever made the features
    with tempfile.TemporaryDirectory(prefix="firn-") as folder:
        prepared = prepare_again(
            settings, folder, spec=head.spec, preparation_id=head.preparation_id, whose="`model.head`"
        )
        return saving.load_model(prepared.path, compile=False, safe_mode=True)


def _unfreeze(network: "keras.Model", first: str, *, height: int, width: int, name: str) -> "keras.Model":
    """`network` for images of one size, sharing its weights; only those of the layers from `first` on are trainable."""
    import keras

    places = [number for number, (names, _) in enumerate(_leaves(network)) if first in names]
    if not places:
        raise UsageError(_unknown_layer(network, first, name))
    frozen = {id(layer) for _, layer in list(_leaves(network))[: places[0]]}
    dropouts = _dropout_layers()

    def replaced(layer: Any) -> Any:
        if not any(isinstance(layer, kind) for kind in dropouts):
            return layer
        if id(layer) in frozen:
            return keras.layers.Identity(name=layer.name)
        return layer.from_config(
            layer.get_config()
        )  # its mask has the shape of its input, which may become fixed only here

    network.trainable = True
    for _, layer in _leaves(network):
        if id(layer) in frozen or isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    image = keras.Input((height, width, 3), name="image")
    inputs = keras.tree.map_structure(lambda _: image, network.input)
    copy = keras.models.clone_model(network, input_tensors=inputs, clone_function=replaced, recursive=True)
    backbone = keras.Model(copy.inputs[0], copy.outputs[0], name="backbone")
    if not backbone.trainable_variables:
        raise UsageError(
            f"`model.unfreeze_from`: {name} has nothing to train between layer {first!r} and its features. "
            f"Name an earlier layer: {_names_with_weights(network)}."
        )
    return backbone


def _leaves(model: "keras.Model") -> Iterator[tuple[tuple[str, ...], Any]]:
    """All layers of a model and of the models within it, in order, each with its name and those of its enclosing models."""
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from (((layer.name, *names), leaf) for names, leaf in _leaves(layer))
        else:
            yield (layer.name,), layer


def _dropout_layers() -> tuple[type, ...]:
    """The layers that change their input only in training."""
    from keras import layers

    dropouts = (layers.Dropout, layers.AlphaDropout, layers.GaussianDropout, layers.GaussianNoise)
    return (*dropouts, layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D)


def _unknown_layer(network: "keras.Model", first: str, name: str) -> str:
    """The message for a layer that does not exist."""
    known = dict.fromkeys(part for names, _ in _leaves(network) for part in names)
    close = difflib.get_close_matches(first, known, n=3)
    hint = f"Did you mean {' or '.join(close)}?" if close else f"There are {_names_with_weights(network)}."
    return f"`model.unfreeze_from`: {name} has no layer {first!r} before its features. {hint}"


def _names_with_weights(network: "keras.Model") -> str:
    """The names of the last layers that have weights."""
    from keras import layers

    leaves = [
        layer for _, layer in _leaves(network) if layer.weights and not isinstance(layer, layers.BatchNormalization)
    ]
    return ", ".join(layer.name for layer in leaves[-MOST_NAMED:]) or "none that have weights"


def _prepare(pixels: "keras.KerasTensor", mode: Preprocessing) -> "keras.KerasTensor":
    """Pixels in the form that the backbone was trained on, computed by standard layers that are saved with the model.

    It computes what `featurize.backbones.backbone.preprocess` does; the source is given there.
    """
    import keras

    if mode == "none":
        return keras.layers.Rescaling(1.0, name="to_float")(pixels)
    if mode == "tf":
        return keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="preprocess")(pixels)
    if mode == "torch":
        mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        statistics = {"mean": [255 * x for x in mean], "variance": [(255 * x) ** 2 for x in deviation]}
        return keras.layers.Normalization(**statistics, name="preprocess")(pixels)
    bgr = keras.ops.flip(keras.layers.Rescaling(1.0, name="to_float")(pixels), axis=-1)
    return keras.layers.Normalization(mean=[103.939, 116.779, 123.68], variance=[1.0] * 3, name="preprocess")(bgr)
