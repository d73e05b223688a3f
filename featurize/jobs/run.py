"""The feature set: one row per image, made by one or several frozen backbones."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from featurize.backbones.spec import PreparedBackbone
from featurize.building.build import BuildResult, build_table, settings_in_place
from featurize.building.shipped_backbone import ship_backbone, shipping_folder
from featurize.building.starting_session import StartingSession, ready_session
from featurize.console import warn
from featurize.errors import UsageError
from featurize.jobs.engine_choice import EngineChoice
from featurize.jobs.feature_columns import PreparedColumns, as_decided, prepare_columns
from featurize.jobs.quantized import kept_files, prepare_quantized
from featurize.jobs.run_task import ColumnsOfFeatures, FeaturizeTask, TaskColumn
from featurize.recipes.feature_columns import ONLY, AskedColumn
from featurize.recipes.recipe import FeaturizeRecipe
from featurize.sources.listing import ImageSource
from featurize.sources.opening import open_source
from featurize.tables.manifests import FeatureColumn, FeaturesManifest


def featurize(
    spark: SparkSession | StartingSession,
    recipe: FeaturizeRecipe,
    *,
    card_folders: Sequence[Path] = (Path("datasets"),),
    on_backbone: Callable[[PreparedBackbone], None] = lambda backbone: None,
) -> tuple[BuildResult, PreparedColumns]:
    """Builds the feature set that `recipe` describes, or adds to it the images that are missing.

    Args:
        spark: a session; or one that is still starting, for which the job waits once the backbone is ready.
        card_folders: where the names of cards are looked up.
        on_backbone: called with each backbone when all are ready, before any image is read.

    Raises:
        UsageError: the source, the backbone or what is at the target does not match the recipe.
        JobError: the job failed, or another one is writing to the same place.
    """
    source = open_source(
        recipe.images.source,
        recipe.images.split,
        card_folders=card_folders,
        follow_links=recipe.images.follow_links,
    )
    for note in source.notes:
        warn(note)
    if len(source.classes) < 2:
        raise UsageError(
            f"{recipe.images.source}: there is one class only, {source.classes[0]}; at least two are required."
        )
    prepared = prepare_asked(spark, recipe, source, _decided_before(recipe))
    for backbone in prepared.backbones:
        on_backbone(backbone)
    session = ready_session(spark)
    result = build_table(
        session,
        source,
        recipe.features.url,
        manifest_type=FeaturesManifest,
        settings=identity_settings(recipe, source, prepared),
        details=manifest_details(recipe, source, prepared.as_manifest()),
        task=make_task(session, recipe, source, prepared),
        max_reject_fraction=recipe.images.max_reject_fraction,
        decode_timeout_s=recipe.images.decode_timeout_s,
        networks=networks_to_keep(prepared),
    )
    return result, prepared


def _decided_before(recipe: FeaturizeRecipe) -> list[AskedColumn]:
    """The columns; where engine or precision is "auto", that of rows that exist, also of an unfinished run."""
    there = settings_in_place(recipe.features.url) or {}
    known = list(there.get("columns", [ONLY] if "backbone" in there else []))
    if missing := [column.name for column in recipe.columns if known and column.name not in known]:
        raise UsageError(
            f"{recipe.features.url} has no column {missing[0]}, which the recipe names. `featurize add-column` computes it."
        )
    decided = [as_decided(column, backbone_in(there, column.name), recipe.features.url) for column in recipe.columns]
    return sorted(
        decided, key=lambda one: known.index(one.name) if known else 0
    )  # the files keep their order of columns


def prepare_asked(
    spark: SparkSession | StartingSession, recipe: FeaturizeRecipe, source: ImageSource, asked: Sequence[AskedColumn]
) -> PreparedColumns:
    """The backbones of some columns, ready to be sent to workers."""
    folder = shipping_folder().name
    timeout_s = recipe.images.decode_timeout_s
    return prepare_columns(
        asked,
        folder,
        decide=EngineChoice(spark),
        quantize=lambda settings: prepare_quantized(spark, settings, source, folder, decode_timeout_s=timeout_s),
    )


def backbone_in(settings: Mapping[str, Any], column: str) -> Mapping[str, Any] | None:
    """The backbone of a column in the settings of a feature set; None where it has no such column."""
    by_name: Mapping[str, Any] = settings.get("columns") or {ONLY: settings.get("backbone")}
    return by_name.get(column)


def identity_settings(recipe: FeaturizeRecipe, source: ImageSource, prepared: PreparedColumns) -> dict[str, object]:
    """Everything that determines the rows, besides the bytes of the images."""
    columns = {column.name: column.determining for column in prepared.columns}
    return {
        "table": "features",
        "source": source.settings,
        "classes": list(source.classes),
        **({"backbone": columns[ONLY]} if recipe.has_one_plain_column else {"columns": columns}),
        "rows_per_group": recipe.features.rows_per_group,
    }


def manifest_details(
    recipe: FeaturizeRecipe, source: ImageSource, columns: Sequence[FeatureColumn]
) -> dict[str, object]:
    """The fields that only the manifest of a feature set has."""
    first = columns[0]
    return {
        "preparation_id": first.preparation_id,
        "backbone": first.backbone,
        "feature_shape": first.feature_shape,
        "feature_dtype": first.feature_dtype,
        "columns": [] if recipe.has_one_plain_column else list(columns),
        "rows_per_group": recipe.features.rows_per_group,
        "recipe": recipe.model_dump(exclude_none=True),
        "lineage": source.lineage,
    }


def networks_to_keep(prepared: PreparedColumns) -> dict[str, Path]:
    """The files that the feature set keeps of its networks, by name."""
    return {name: path for backbone in prepared.backbones for name, path in kept_files(backbone).items()}


def ship_columns(spark: SparkSession, prepared: PreparedColumns) -> ColumnsOfFeatures:
    """Sends the networks to every executor."""
    return ColumnsOfFeatures(
        backbones=tuple(ship_backbone(spark, backbone) for backbone in prepared.backbones),
        columns=tuple(TaskColumn.of(column) for column in prepared.columns),
    )


def make_task(
    spark: SparkSession, recipe: FeaturizeRecipe, source: ImageSource, prepared: PreparedColumns
) -> FeaturizeTask:
    """What workers do; the networks are sent to them."""
    return FeaturizeTask(
        classes=source.classes,
        split_rule=source.split_rule,
        features=ship_columns(spark, prepared),
        rows_per_group=recipe.features.rows_per_group,
    )
