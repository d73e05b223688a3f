"""Predictions: a trained model's labels for unlabelled images, or for ready-made features.

Each model has its own table at the output (`tables.predictions`), which grows, resumes and is published like a feature set.
Besides the command there are a SQL function (`register`), a Spark ML stage (`ImageClassifier`), and views for Spark
(`register_views`).
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from featurize import storage
from featurize.building.build import BuildResult, build_table, settings_in_place
from featurize.building.known_shards import IndexFiles
from featurize.building.starting_session import StartingSession, ready_session
from featurize.building.targets import check_target
from featurize.defaults import DECODE_TIMEOUT_S, MAX_REJECT_FRACTION
from featurize.errors import FirnError, UsageError
from featurize.sources.listing import ImageSource
from featurize.sources.opening import open_features, open_source
from featurize.sql.query import register_views as register_tables
from featurize.sql.tables import find_tables
from featurize.storage.claims import Claim
from featurize.tables.manifests import NAMES, PredictionsManifest
from featurize.tables.predictions import PublishedViews, partition_url
from featurize.tables.publication import read_manifest
from featurize.tables.readable import read_features_manifest
from finetune.drift.reference import Reference, reference_of_run
from finetune.models.folder import ModelCard, check_preparation
from finetune.prediction.answers import Threshold
from finetune.prediction.shipped_model import ShippedModel, ship_model
from finetune.prediction.task import PredictTask
from finetune.prediction.threshold import choose_threshold
from finetune.prediction.transformer import ImageClassifier
from finetune.prediction.udf import register
from finetune.prediction.views import publish_views
from finetune.registry.resolve import is_folder, read_folder, resolve_model

__all__ = ["ImageClassifier", "plan_prediction", "predict", "register", "register_views"]


@dataclass(frozen=True)
class PredictionPlan:
    """A planned prediction: the images or features, the model, and the output.

    Attributes:
        name: The model as the caller named it.
        folder: URL of the model.
        source: What to label: images, or features where `takes_images` is false.
        output: URL of the predictions of all models.
        target_precision: The target precision of the labels; None: every image gets a label.
    """

    name: str
    folder: str
    card: ModelCard
    source: ImageSource
    takes_images: bool
    output: str
    target_precision: float | None = None

    @property
    def url(self) -> str:
        """URL of this model's table of predictions."""
        return partition_url(self.output, self.card.model_id)

    @property
    def registered_model(self) -> str | None:
        """The registered model through whose alias the model was named; None where it was named otherwise, as by a node."""
        is_alias = "@" in self.name and "/" not in self.name and not is_folder(self.name)
        return None if not is_alias else self.name.rpartition("@")[0]


@dataclass(frozen=True)
class Predicted:
    """The result of `predict`.

    Attributes:
        views: The views on the predictions, as they are now; None where they could not be updated.
        views_fault: Why the views could not be updated.
        reference_fault: Why the predictions keep no projections, which are needed to see drift of the features.
    """

    result: BuildResult
    threshold: Threshold | None
    views: PublishedViews | None
    views_fault: str | None = None
    reference_fault: str | None = None


def plan_prediction(
    model: str,
    output: str,
    *,
    images: str | None = None,
    features: str | None = None,
    target_precision: float | None = None,
    follow_links: bool = False,
    card_folders: Sequence[Path] = (Path("datasets"),),
) -> PredictionPlan:
    """Finds the model and lists what it should label. Needs neither Spark nor TensorFlow.

    Args:
        model: A folder, the id of a run, ``name@alias``, or a node of ZooKeeper, ``zk://host:port/path``.
        images: A folder with images at any depth, an images table, or a data set card.
        features: A feature set, in place of images.
        target_precision: The required share of right labels among those given, as measured on the validation split, in (0, 1].
            None: every image gets a label.
        follow_links: Whether links that lead out of the folder of images are followed; otherwise they are rejects.

    Raises:
        UsageError: There is no such model, there are no images, or the features were made differently from the training features.
    """
    if (images is None) == (features is None):
        raise UsageError("either `images` or `features` is required, and not both.")
    storage.give(images, features, output)
    folder = resolve_model(model)
    card = read_folder(folder)
    output = storage.absolute_url(output)
    check_output(output)
    if features is None:
        source = open_source(str(images), None, card_folders=card_folders, is_sorted=False, follow_links=follow_links)
    else:
        source = _open_features(card, storage.absolute_url(features))
    return PredictionPlan(model, folder, card, source, images is not None, output, target_precision)


def predict(
    spark: SparkSession | StartingSession,
    plan: PredictionPlan,
    *,
    max_reject_fraction: float = MAX_REJECT_FRACTION,
    decode_timeout_s: float = DECODE_TIMEOUT_S,
) -> Predicted:
    """Labels what `plan` lists, and adds the missing rows to the model's predictions.

    Args:
        spark: A session, or one that is still starting: it is waited for when the networks are ready.
        max_reject_fraction: Largest share, in [0, 1], of the images given to this model that may be unreadable; else nothing is
            published.
        decode_timeout_s: Seconds; an image that takes longer to decode is rejected.

    Raises:
        UsageError: The model's backbone cannot be rebuilt identically, or the output holds other predictions.
        JobError: The job failed, or another job is writing to the same place.
    """
    with storage.no_empty_folder(plan.output), planned_reference(plan) as reference:
        shipped = ship_planned(spark, plan, reference=reference)
        predicted = label_planned(
            ready_session(spark),
            plan,
            shipped,
            max_reject_fraction=max_reject_fraction,
            decode_timeout_s=decode_timeout_s,
        )
    return replace(predicted, reference_fault=reference if isinstance(reference, str) else None)


def ship_planned(
    spark: SparkSession | StartingSession, plan: PredictionPlan, *, reference: Reference | str
) -> ShippedModel:
    """Hands the model of `plan` to every executor, after checking that the output can take its predictions.

    Args:
        reference: The result of `planned_reference`.

    Raises:
        UsageError: The model's backbone cannot be rebuilt identically, or the output holds other predictions.
        JobError: The network is missing or damaged.
    """
    threshold = _threshold(plan)
    check_target(plan.url, PredictionsManifest, settings=_identity_settings(plan.card, threshold))
    return ship_model(
        spark,
        plan.folder,
        plan.card,
        takes_images=plan.takes_images,
        threshold=threshold,
        projection=None if isinstance(reference, str) else reference.projection,
    )


def label_planned(
    spark: SparkSession,
    plan: PredictionPlan,
    shipped: ShippedModel,
    *,
    max_reject_fraction: float | None,
    decode_timeout_s: float,
    held: Claim | None = None,
    files_read: IndexFiles | None = None,
    is_partial: bool = False,
) -> Predicted:
    """Does the work of `predict` with a model that was already shipped; `build_table` explains the other arguments and errors."""
    with storage.no_empty_folder(plan.output):
        result = build_table(
            spark,
            plan.source,
            plan.url,
            manifest_type=PredictionsManifest,
            settings=_identity_settings(plan.card, shipped.threshold),
            details=_manifest_details(plan, shipped),
            task=PredictTask(shipped),
            max_reject_fraction=max_reject_fraction,
            decode_timeout_s=decode_timeout_s,
            held=held,
            files_read=files_read,
            is_partial=is_partial,
        )
    try:
        views = publish_views(plan.output, first_registered_model=plan.registered_model)
    except (FirnError, OSError) as error:  # the registry may be down; the predictions are published and the job is done
        return Predicted(result, shipped.threshold, None, str(error))
    return Predicted(result, shipped.threshold, views)


def register_views(spark: SparkSession, output: str) -> list[str]:
    """Registers temporary views on the predictions at `output`: `predictions` of all models, `latest`, and one for each alias.

    They show what is published now; call the function again to see later rows. The view `rejects` lists unreadable images.

    Returns:
        Names of the views. Aliases that are not plain words must be quoted with backticks in SQL.

    Raises:
        UsageError: There are no predictions at `output`.
    """
    tables = find_tables(predictions=output)
    register_tables(spark, tables)
    return [table.name for table in tables]


def check_output(url: str) -> None:
    """Checks that `url` does not hold a table of another kind.

    Raises:
        UsageError: It holds one.
    """
    manifest = read_manifest(url)
    if manifest is not None:
        raise UsageError(f"{url} is {NAMES[manifest.kind]}; predictions need a folder of their own.")


def _open_features(card: ModelCard, url: str) -> ImageSource:
    manifest = read_features_manifest(url).made_by(card.features.preparation_id)
    check_preparation(card, url, manifest)
    return open_features(url, manifest)


def _threshold(plan: PredictionPlan) -> Threshold | None:
    """The threshold for the target precision. A rerun takes it from the existing predictions, so that it never changes."""
    if plan.target_precision is None:
        return None
    there = settings_in_place(plan.url)
    if there is not None and there.get("network_sha256") == plan.card.network_sha256:
        known = there.get("threshold")
        if known is not None and known["precision"] == plan.target_precision:
            return Threshold(**known)
    return choose_threshold(plan.folder, plan.card, target_precision=plan.target_precision)


def planned_reference(plan: PredictionPlan) -> AbstractContextManager[Reference | str]:
    """The reference for `finetune drift`, or why there is none. The first run keeps it, so that projections stay comparable."""
    return reference_of_run(
        plan.output, plan.folder, plan.card, has_begun=lambda: settings_in_place(plan.url) is not None
    )


def _identity_settings(card: ModelCard, threshold: Threshold | None) -> dict[str, Any]:
    """All that determines the answer for an image; the image's location does not, as images come from many places."""
    return {
        "table": "predictions",
        "model_id": card.model_id,
        "network_sha256": card.network_sha256,
        "preparation_id": card.features.preparation_id,
        "classes": card.classes,
        "threshold": None if threshold is None else threshold.as_dict(),
    }


def _manifest_details(plan: PredictionPlan, shipped: ShippedModel) -> dict[str, Any]:
    """The manifest fields that only predictions have."""
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
        "threshold": None if shipped.threshold is None else shipped.threshold.as_dict(),
        "source": {"kind": "images" if plan.takes_images else "features", **plan.source.settings},
    }
