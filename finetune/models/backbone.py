"""The step before a model that is given images: the backbone whose features it was trained on, or the size of its pixels."""

from math import prod
from pathlib import Path

from featurize.backbones.rebuild import backbone_settings, prepare_again
from featurize.backbones.spec import BackboneSpec, PreparedBackbone
from featurize.errors import UsageError
from featurize.tables.readable import read_features_manifest
from finetune.models.folder import FeaturesReference, ModelCard

_LEAST_ROWS, _MOST_ROWS, _BATCH_BYTES = 32, 512, 4 << 20


def prepare_model_backbone(card: ModelCard, folder: str | Path) -> PreparedBackbone:
    """The backbone of the model of `card`, as it was when the model was trained; its file is written to `folder`.

    Raises:
        UsageError: It is no longer available, or has changed.
        JobError: Its weights cannot be read.
    """
    reference = card.features
    if reference.feature_dtype == "uint8":
        return PreparedBackbone(
            BackboneSpec.read(reference.backbone, origin=f"the model {card.model_id[:16]}"),
            batch_size=rows_at_a_time(reference),
        )
    manifest = read_features_manifest(reference.url).made_by(reference.preparation_id)
    if manifest.preparation_id != reference.preparation_id:
        raise UsageError(f"{reference.url} now holds features of another backbone.")
    settings = backbone_settings(reference.url, manifest)
    return prepare_again(
        settings,
        folder,
        spec=manifest.backbone,
        preparation_id=reference.preparation_id,
        whose=f"the model {card.model_id[:16]}",
    )


def rows_at_a_time(reference: FeaturesReference) -> int:
    """The number of rows of features, or of small images, that a model is given at a time."""
    row_bytes = prod(reference.feature_shape) * (1 if reference.feature_dtype == "uint8" else 4)
    return max(_LEAST_ROWS, min(_MOST_ROWS, _BATCH_BYTES // row_bytes))
