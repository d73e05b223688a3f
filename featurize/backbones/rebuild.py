"""The backbone that made the features of a set, made again as it was then: for a model trained on them, or one more image."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featurize import storage
from featurize.backbones.backbone import PreparedBackbone, prepare_backbone
from featurize.errors import UsageError
from featurize.recipes.recipe import BackboneSettings
from featurize.recipes.toml_settings import check_settings
from featurize.tables.manifests import FeaturesManifest


def backbone_settings(url: str, features: FeaturesManifest) -> BackboneSettings:
    """How the backbone of the feature set at `url` was made, so that it can be made again: files by absolute URLs.

    Raises:
        UsageError: its manifest does not say so.
    """
    origin = f"the recipe in the manifest of {url}"
    if "backbone" not in features.recipe:
        raise UsageError(
            f"{origin} does not say how the backbone was made. Make the features anew with `featurize run`."
        )
    settings = check_settings(BackboneSettings, features.recipe["backbone"], origin=origin)
    changes: dict[str, Any] = {"precision": features.backbone["precision"]}
    for key in ("name", "weights"):
        value = getattr(settings, key)
        if value is not None and value.endswith((".keras", ".h5")):
            changes[key] = storage.absolute_url(value)  # ranks on Spark have their own working directory
    return settings.model_copy(update=changes)


def prepare_again(
    settings: BackboneSettings, folder: str | Path, *, spec: Mapping[str, Any], preparation_id: str, whose: str
) -> PreparedBackbone:
    """The backbone up to the layer whose output are the features, saved into `folder`, if it is still what it was.

    Of `pixels` there is nothing to save.

    Args:
        spec: the backbone as the manifest of the features has it.
        preparation_id: the digest of what of it determines features.
        whose: the feature set, or what was trained on it, for the message.

    Raises:
        UsageError: it cannot be had any more, or has other weights now.
        JobError: its weights cannot be read.
    """
    try:
        prepared = prepare_backbone(settings, folder)
    except UsageError as error:
        raise UsageError(f"the backbone of {whose} cannot be had as it was: {error}") from error
    if prepared.spec.preparation_id != preparation_id:
        found = {key: value for key, value in prepared.spec.as_dict().items() if key not in ("name", "weights")}
        differing = ", ".join(key for key, value in found.items() if value != spec.get(key))
        raise UsageError(
            f"the backbone {settings.name} is not the one any more that made the features of {whose}: "
            f"its {differing} differ."
        )
    return prepared
