"""Predictions: a trained model's labels for images nobody has labelled, or for ready features, as a table.

    <output>/model_id=<model_id>/data/*.parquet     one row per image, see `predict_task.PREDICTIONS_SCHEMA`
    <output>/model_id=<model_id>/manifest.json, rejects/, index/

Each model has a table of its own there, which grows, is resumed and is published as a feature set is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from featurize import storage
from featurize.defaults import DECODE_TIMEOUT_S, MAX_REJECT_FRACTION
from featurize.errors import UsageError
from featurize.image_source import ImageSource
from featurize.manifests import NAMES, PredictionsManifest, read_features_manifest, read_manifest
from featurize.sources import open_features, open_source
from featurize.tables import BuildResult, build_table
from finetune.answers import Threshold
from finetune.model_folder import ModelCard, check_preparation
from finetune.predict_task import PredictTask
from finetune.registry_models import read_folder, resolve_model
from finetune.shipped_model import ShippedModel, ship_model

PARTITION = "model_id="


@dataclass(frozen=True)
class PredictionPlan:
    """What is to be labelled, by which model, and where the labels go.

    Attributes:
        name: of the model, as it was asked for.
        folder: URL of the model.
        source: what is to be labelled: images, or features where `takes_images` is false.
        output: URL of the predictions of all models.
    """

    name: str
    folder: str
    card: ModelCard
    source: ImageSource
    takes_images: bool
    output: str
    threshold: Threshold | None = None

    @property
    def url(self) -> str:
        """Of the table of this model."""
        return storage.join_url(self.output, f"{PARTITION}{self.card.model_id}")


def plan_prediction(
    model: str,
    output: str,
    *,
    images: str | None = None,
    features: str | None = None,
    card_folders: Sequence[Path] = (Path("datasets"),),
) -> PredictionPlan:
    """Finds the model and lists what it is to label. Needs neither Spark nor TensorFlow.

    Args:
        model: a folder, the id of a run, or ``name@alias``.
        images: a folder, at whatever depth its images lie, an images table, or a card.
        features: a feature set, in place of images.

    Raises:
        UsageError: no such model, no images, or features that were made otherwise than those it was trained on.
    """
    if (images is None) == (features is None):
        raise UsageError("give either `--images` or `--features`: what is to be labelled.")
    folder = resolve_model(model)
    card = read_folder(folder)
    output = storage.absolute_url(output)
    check_output(output)
    if features is None:
        source = open_source(str(images), None, card_folders=card_folders, is_sorted=False)
    else:
        source = _open_features(card, storage.absolute_url(features))
    return PredictionPlan(model, folder, card, source, images is not None, output)


def predict(
    spark: SparkSession,
    plan: PredictionPlan,
    *,
    max_reject_fraction: float = MAX_REJECT_FRACTION,
    decode_timeout_s: float = DECODE_TIMEOUT_S,
) -> BuildResult:
    """Labels what `plan` lists, and adds what is missing to the model's part of the predictions.

    Args:
        max_reject_fraction: of the images that this model has been given; if more cannot be read, nothing is published.
        decode_timeout_s: seconds; an image that takes longer to decode is rejected.

    Raises:
        UsageError: the model's backbone cannot be had as it was, or other predictions are there.
        JobError: the job failed, or another one is writing to the same place.
    """
    shipped = ship_model(spark, plan.folder, plan.card, takes_images=plan.takes_images, threshold=plan.threshold)
    with storage.no_empty_folder(plan.output):
        return build_table(
            spark,
            plan.source,
            plan.url,
            manifest_type=PredictionsManifest,
            settings=_identity_settings(plan),
            details=_manifest_details(plan, shipped),
            task=PredictTask(shipped),
            max_reject_fraction=max_reject_fraction,
            decode_timeout_s=decode_timeout_s,
        )


def check_output(url: str) -> None:
    """Predictions do not go into a table of another kind.

    Raises:
        UsageError: there is one.
    """
    manifest = read_manifest(url)
    if manifest is not None:
        raise UsageError(f"{url} is {NAMES[manifest.kind]}; predictions go to a folder of their own.")


def _open_features(card: ModelCard, url: str) -> ImageSource:
    manifest = read_features_manifest(url)
    check_preparation(card, url, manifest)
    return open_features(url, manifest)


def _identity_settings(plan: PredictionPlan) -> dict[str, Any]:
    """All that determines the answer to an image. Where images lie does not: they come from many places, day by day."""
    card = plan.card
    return {
        "table": "predictions",
        "model_id": card.model_id,
        "network_sha256": card.network_sha256,
        "preparation_id": card.features.preparation_id,
        "classes": card.classes,
        "threshold": None if plan.threshold is None else plan.threshold.as_dict(),
    }


def _manifest_details(plan: PredictionPlan, shipped: ShippedModel) -> dict[str, Any]:
    """The fields of the manifest that only predictions have."""
    card = plan.card
    return {
        "model_id": card.model_id,
        "preparation_id": card.features.preparation_id,
        "model": {
            "model_id": card.model_id,
            "url": storage.absolute_url(plan.folder),
            "name": plan.name,
            "network_sha256": card.network_sha256,
            "backbone": shipped.backbone.spec.as_dict(),
        },
        "threshold": None if plan.threshold is None else plan.threshold.as_dict(),
        "source": {"kind": "images" if plan.takes_images else "features", **plan.source.settings},
    }
