"""Networks that keras-hub reads: a folder from Hugging Face with weights in safetensors, or one that keras-hub saved itself."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurize import storage
from featurize.digests import settings_digest, sha256_file
from featurize.errors import UsageError, first_line

if TYPE_CHECKING:
    import keras

_CONFIG = "config.json"
_SUFFIXES = (".json", ".safetensors", ".weights.h5")
_FAMILIES = ("vit", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit")
"""The vision transformers of Hugging Face, by `model_type`, that keras-hub has a converter for."""


def files_of_hub(url: str) -> list[str]:
    """The files in a folder that make a network of keras-hub; empty where it has other weights, or none."""
    files = [file for file in storage.list_source(url) if file.endswith(_SUFFIXES)]
    has_weights = any(not file.endswith(".json") for file in files)
    return files if has_weights and storage.exists(storage.source_url(url, _CONFIG)) else []


def load_hub_network(url: str) -> "tuple[keras.Model, str]":
    """The network in a folder, without a classifier, and the digest of its files.

    Nothing is unpickled, and no code of the folder is run.

    Raises:
        UsageError: keras-hub is not installed, or it cannot read the network.
    """
    try:
        import keras_hub
        from safetensors import SafetensorError
    except ImportError as error:
        raise UsageError(
            f"`backbone.name`: the weights of {url} are in safetensors, which keras-hub reads. Install keras-hub, sentencepiece "
            f"and safetensors, without their dependencies ({first_line(error)})."
        ) from error
    with tempfile.TemporaryDirectory(prefix="firn-") as temporary:
        digest = _download(url, Path(temporary))
        _check_family(url, Path(temporary))
        try:
            network = keras_hub.models.Backbone.from_preset(temporary)
        except (SafetensorError, ValueError, KeyError, TypeError, OSError, IndexError, AttributeError) as error:
            raise UsageError(f"`backbone.name`: keras-hub cannot read {url}: {first_line(error)}") from error
    return network, digest


def _download(url: str, folder: Path) -> str:
    """Copies the files of a network, and returns their digest."""
    digests = {}
    for file in files_of_hub(url):
        name = file.rpartition("/")[2]
        storage.download(file, folder / name)
        digests[name] = sha256_file(folder / name)
    return settings_digest(digests)


def _check_family(url: str, folder: Path) -> None:
    try:
        config: Any = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"`backbone.name`: {url}/{_CONFIG} is damaged: {first_line(error)}.") from error
    is_own = isinstance(config, dict) and "registered_name" in config
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not is_own and kind not in _FAMILIES:
        raise UsageError(
            f"`backbone.name`: {url} has a network of type {kind!r} in safetensors; keras-hub reads {', '.join(_FAMILIES)}. "
            "Export others, for instance with Optimum, to model.onnx in this folder."
        )
