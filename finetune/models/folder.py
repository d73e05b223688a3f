"""The model folder: `model.keras` and `model.json`, everything needed to use the model and to train it again."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from zipfile import BadZipFile

from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict

from featurize import storage
from featurize.digests import sha256_file
from featurize.engines.keras_memory import check_keras_memory
from featurize.errors import JobError, UsageError, first_line
from featurize.storage.inner_path import InnerName, NamedUrl, named_url
from featurize.tables.documents import read_document
from featurize.tables.manifests import FeaturesManifest

if TYPE_CHECKING:
    import keras

SCHEMA_VERSION = 1
CARD_NAME = "model.json"
NETWORK_NAME = "model.keras"  # the network after the best epoch
LAST_NETWORK_NAME = "last.keras"  # the network after the last epoch
_ONLY_DESCRIBE = (
    "weights",
    "weights_file_sha256",
    "bfloat16_cosine",
    "quantization",
)  # the weights' origin, which does not change features


class FeaturesReference(BaseModel):
    """The feature set that a model was trained on."""

    url: NamedUrl
    identity: str
    content_digest: str
    preparation_id: str
    backbone: dict[str, Any]
    feature_shape: list[int]
    feature_dtype: str


class _Network(BaseModel):
    name: str


class _Training(BaseModel):
    epochs: int


class _Sections(BaseModel):
    """What every recipe in a document has."""

    features: dict[str, Any]
    model: _Network
    training: _Training


def check_sections(recipe: dict[str, Any]) -> dict[str, Any]:
    """`recipe`, as a document holds it, if it has the sections of a training. Raises ValidationError if it has not."""
    _Sections.model_validate(recipe)
    return recipe


TrainingRecipe = Annotated[dict[str, Any], AfterValidator(check_sections)]
"""The recipe of a training in a document."""


class ModelCard(BaseModel):
    """The content of `model.json`. `model_id` is the digest of every setting that could change the result.

    Attributes:
        read_as: The query, and the digests of the rows that it selected and of corrected labels.
        memory_of_ranks: For each rank `feature_bytes`, about the most that features take in it, and `peak_bytes`, the most memory
            that its process has used, TensorFlow included.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    schema_version: int = SCHEMA_VERSION
    model_id: InnerName
    features: FeaturesReference
    classes: list[str]
    recipe: TrainingRecipe
    seed: int
    ranks: int
    global_batch_size: int
    rows: dict[str, int]
    read_as: dict[str, str] = {}
    metrics: dict[str, float]
    best_epoch: int
    history: list[dict[str, float]]
    rows_per_second: float
    seconds_of_ranks: list[dict[str, float]] = []
    memory_of_ranks: list[dict[str, int]] = []
    is_stopped_early: bool = False
    cache: str = "memory"
    network_sha256: str
    last_network_sha256: str | None = None
    created_at: str
    versions: dict[str, str]

    @property
    def document(self) -> str:
        """URL of the `model.json` that it was read from; "" if it was made here."""
        return str(getattr(self.features.url, "named_by", ""))

    def named(self, url: str) -> str:
        """`url`, which the recipe names, if the model may name it, see `storage.checked_url`.

        Raises:
            UsageError: It may not.
        """
        document = self.document
        return named_url(storage.absolute_url(url), document=document) if document else url


def refer_to_features(url: str, manifest: FeaturesManifest) -> FeaturesReference:
    """The facts about the feature set at `url` that a model keeps."""
    return FeaturesReference(
        url=storage.absolute_url(url),
        identity=manifest.identity,
        content_digest=manifest.content_digest,
        preparation_id=manifest.preparation_id,
        backbone=manifest.backbone,
        feature_shape=manifest.feature_shape,
        feature_dtype=manifest.feature_dtype,
    )


def read_model_card(url: str) -> ModelCard | None:
    """The description of the model at `url`, or None where there is none.

    Raises:
        JobError: It is damaged, or has another schema version.
    """
    return read_document(storage.join_url(url, CARD_NAME), ModelCard, version=SCHEMA_VERSION)


def save_model(url: str, network: "keras.Model", *, last_weights: Sequence[NDArray[Any]], **fields: Any) -> ModelCard:
    """Writes the model folder at `url`; `model.json` comes last and makes the model visible.

    Until then the network of a model that was there keeps its place, or one beside it, where `copy_network` finds it.

    Args:
        url: URL of the folder.
        network: The model after the best epoch.
        last_weights: Its trainable variables after the last epoch.
        fields: The fields of `ModelCard`, without the digests of the networks.
    """
    replaced = _set_aside(url)
    best_weights = network.get_weights()
    best = _save_network(url, NETWORK_NAME, network)
    for variable, weights in zip(network.trainable_variables, last_weights, strict=True):
        variable.assign(weights)
    last = _save_network(url, LAST_NETWORK_NAME, network)
    network.set_weights(best_weights)
    card = ModelCard(**fields, network_sha256=best, last_network_sha256=last)
    storage.write_json(storage.join_url(url, CARD_NAME), card.model_dump())
    if replaced is not None:
        storage.remove(replaced)
    return card


def _set_aside(url: str) -> str | None:
    """Renames the network of the model at `url`, unless a killed job has; returns its URL, or None where there is no model."""
    try:
        card = read_model_card(url)
    except JobError:  # a damaged model
        return None
    if card is None:
        return None
    network, aside = storage.join_url(url, NETWORK_NAME), _aside_url(url, card)
    if storage.exists(network) and not storage.exists(aside):
        storage.move(network, aside)
    return aside


def _aside_url(url: str, card: ModelCard) -> str:
    """Where the network of `card` is while another one takes its place."""
    return storage.join_url(url, f"replaced-{card.network_sha256[:16]}.keras")


def _save_network(url: str, name: str, network: "keras.Model") -> str:
    """Writes a network into the model folder at `url`, and returns its digest."""
    with tempfile.TemporaryDirectory(prefix="firn-") as folder:
        local = Path(folder) / name
        network.save(local)
        storage.upload(local, storage.join_url(url, name))
        return sha256_file(local)


def load_model(url: str) -> tuple["keras.Model", ModelCard]:
    """The model at `url`, loaded without running any code that it might contain, and its description.

    Raises:
        UsageError: There is no model.
        JobError: The files are damaged or do not belong together.
    """
    card = read_model_card(url)
    if card is None:
        raise UsageError(f"{url} is not a model: it has no {CARD_NAME}. Train one with `finetune fit`.")
    with tempfile.TemporaryDirectory(prefix="firn-") as folder:
        return load_network(copy_network(url, card, folder), origin=storage.join_url(url, NETWORK_NAME)), card


def copy_network(url: str, card: ModelCard, folder: str | Path) -> Path:
    """Copies the network of the model at `url` into the local `folder`, under a unique name.

    Raises:
        JobError: It is missing, or not the one that `card` describes.
    """
    network_url = storage.join_url(url, NETWORK_NAME)
    local, is_there = Path(folder) / f"network-{card.network_sha256[:16]}.keras", False
    for source in (network_url, _aside_url(url, card)):
        try:
            storage.download(source, local)
        except FileNotFoundError:
            continue
        is_there = True
        if sha256_file(local) == card.network_sha256:
            return local
    if not is_there:
        raise JobError(f"{network_url} is missing.")
    raise JobError(f"{network_url} is not the network that {CARD_NAME} beside it describes: its SHA-256 differs.")


def load_network(path: str | Path, *, origin: str) -> "keras.Model":
    """Loads the network in a local file without running any code that it might contain.

    Args:
        path: Local path of the file.
        origin: The file's origin, for the message.

    Raises:
        JobError: It is damaged, or asks for more memory than this machine has.
    """
    from keras import saving

    try:
        check_keras_memory(path)
        return saving.load_model(path, compile=False, safe_mode=True)
    except (ValueError, TypeError, KeyError, OSError, BadZipFile) as error:
        raise JobError(f"{origin} cannot be loaded: {first_line(error)}") from error


def check_preparation(card: ModelCard, url: str, manifest: FeaturesManifest) -> None:
    """Checks that the features at `url` were made in the same way as the model's training features, from any images.

    Raises:
        UsageError: They were not; the message names the differences.
    """
    if manifest.preparation_id != card.features.preparation_id:
        differing = (key for key in manifest.backbone if manifest.backbone[key] != card.features.backbone.get(key))
        keys = sorted(key for key in differing if key not in _ONLY_DESCRIBE)
        lines = [
            f"  - {key}: model {card.features.backbone.get(key)!r}, features {manifest.backbone[key]!r}" for key in keys
        ]
        raise UsageError(f"{url} was made by another backbone than the model was trained on:\n" + "\n".join(lines))


def check_features(card: ModelCard, url: str, manifest: FeaturesManifest) -> None:
    """Checks that the feature set at `url` was made in the same way as the model's, and has the model's classes.

    Raises:
        UsageError: It was not; the message names the differences.
    """
    check_preparation(card, url, manifest)
    if manifest.classes != card.classes and sorted(manifest.classes) == sorted(card.classes):
        raise UsageError(f"{url} has the classes of the model in another order: {manifest.classes} not {card.classes}.")
    if manifest.classes != card.classes:
        only_model = sorted(set(card.classes) - set(manifest.classes))
        only_features = sorted(set(manifest.classes) - set(card.classes))
        raise UsageError(
            f"{url} has other classes than the model: only the model has {only_model}, only the features {only_features}."
        )
