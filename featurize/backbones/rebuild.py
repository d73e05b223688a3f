"""Rebuilds the backbone that made a feature set, identically: for a model trained on the set, or for one more image."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from featurize import storage
from featurize.backbones.backbone import prepare_backbone
from featurize.backbones.spec import BackboneSpec, PreparedBackbone
from featurize.errors import UsageError
from featurize.recipes.backbone_section import BackboneSettings
from featurize.recipes.toml_settings import check_settings
from featurize.storage.inner_path import named_url
from featurize.tables.layout import NETWORKS
from featurize.tables.manifests import FeaturesManifest


def backbone_settings(url: str, features: FeaturesManifest) -> BackboneSettings:
    """The settings that made the backbone of the feature set at `url`, so that it can be rebuilt; files by absolute URLs.

    Raises:
        UsageError: The set's manifest does not contain them, or names a file that it may not name, see `storage.checked_url`.
    """
    origin = f"the recipe in the manifest of {url}"
    if "backbone" not in features.recipe:
        raise UsageError(
            f"{origin} does not say how the backbone was made. Make the features again with `featurize run`."
        )
    settings = check_settings(BackboneSettings, features.recipe["backbone"], origin=origin)
    backbone = features.backbone
    BackboneSpec.read(backbone, origin=f"the manifest of {url}")
    changes: dict[str, Any] = {"precision": backbone["precision"], "engine": backbone.get("engine", "tensorflow")}
    changes |= decoding_of(backbone)
    changes["batch_size"] = settings.batch_size or backbone.get("batch_size")
    for key in ("name", "weights"):
        value = getattr(settings, key)
        if (value is not None and value.endswith((".keras", ".h5", ".onnx"))) or (key == "name" and settings.is_folder):
            changes[key] = named_url(storage.absolute_url(value), document=url)  # ranks have another working directory
    if backbone["precision"] == "int8":
        changes["quantized"] = kept_network(url, backbone["quantized_sha256"])
    return settings.model_copy(update=changes)


def decoding_of(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of decoding by which a backbone with this description was made; those of version 0.2 ignored profiles.

    A size that the recipe or the network's folder states is not among them.
    """
    said = {"color": backbone.get("color", "raw"), "white": backbone.get("white")}
    said |= {"interpolation": backbone.get("interpolation", "bilinear"), "antialias": backbone.get("antialias", True)}
    resize = backbone.get("resize")
    if isinstance(resize, str):
        return said | {"resize": resize}
    if resize is None or backbone.get("draft", False):
        return said | {"resize": "trained" if isinstance(resize, int) else "stretch"}
    return said


def kept_network(url: str, sha256: str) -> str:
    """URL of the file, in the folder of a feature set, of the network that made its features in int8."""
    return storage.join_url(url, NETWORKS, f"{sha256}.onnx")


def prepare_again(
    settings: BackboneSettings, folder: str | Path, *, spec: Mapping[str, Any], preparation_id: str, whose: str
) -> PreparedBackbone:
    """The backbone up to the layer whose output is the features, saved into `folder`, if it is unchanged.

    For `pixels` there is nothing to save.

    Args:
        settings: The settings that made the backbone.
        folder: Local folder.
        spec: The backbone's description in the manifest of the features.
        preparation_id: Digest of the parts of `spec` that determine features.
        whose: The feature set, or the model trained on it, for messages.

    Raises:
        UsageError: It is no longer available, or has other weights now.
        JobError: Its weights cannot be read.
    """
    try:
        prepared = prepare_backbone(settings, folder)
    except UsageError as error:
        raise UsageError(f"the backbone of {whose} cannot be rebuilt: {error}") from error
    if prepared.spec.preparation_id != preparation_id:
        found = prepared.spec.determining
        differing = ", ".join(key for key, value in found.items() if value != spec.get(key))
        raise UsageError(
            f"the backbone {settings.name} has changed since it made the features of {whose}: its {differing} differ."
        )
    return replace(prepared, per_core=spec.get("per_core"))
