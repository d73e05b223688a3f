"""The feature set: one row per image, made by a frozen backbone."""

from collections.abc import Callable, Sequence
from pathlib import Path

from pyspark.sql import SparkSession

from featurize.backbones.backbone import prepare_backbone
from featurize.backbones.rebuild import kept_network
from featurize.backbones.spec import PreparedBackbone
from featurize.building.build import BuildResult, build_table, settings_in_place
from featurize.building.shipped_backbone import ship_backbone, shipping_folder
from featurize.building.starting_session import StartingSession, ready_session
from featurize.errors import UsageError
from featurize.jobs.engine_choice import EngineChoice
from featurize.jobs.quantized import kept_files, prepare_quantized
from featurize.jobs.run_task import FeaturizeTask
from featurize.recipes.backbone_section import BackboneSettings
from featurize.recipes.recipe import FeaturizeRecipe
from featurize.sources.listing import ImageSource
from featurize.sources.opening import open_source
from featurize.tables.manifests import FeaturesManifest


def featurize(
    spark: SparkSession | StartingSession,
    recipe: FeaturizeRecipe,
    *,
    card_folders: Sequence[Path] = (Path("datasets"),),
    on_backbone: Callable[[PreparedBackbone], None] = lambda backbone: None,
) -> tuple[BuildResult, PreparedBackbone]:
    """Builds the feature set that `recipe` describes, or adds to it the images that are missing.

    Args:
        spark: a session; or one that is still starting, for which the job waits once the backbone is ready.
        card_folders: where the names of cards are looked up.
        on_backbone: called when the backbone is ready, before any image is read.

    Raises:
        UsageError: the source, the backbone or what is at the target does not match the recipe.
        JobError: the job failed, or another one is writing to the same place.
    """
    source = open_source(recipe.images.source, recipe.images.split, card_folders=card_folders)
    if len(source.classes) < 2:
        raise UsageError(
            f"{recipe.images.source}: there is one class only, {source.classes[0]}; at least two are required."
        )
    backbone = _prepare(spark, recipe, source)
    on_backbone(backbone)
    session = ready_session(spark)
    result = build_table(
        session,
        source,
        recipe.features.url,
        manifest_type=FeaturesManifest,
        settings=_identity_settings(recipe, source, backbone),
        details=_manifest_details(recipe, source, backbone),
        task=_make_task(session, recipe, source, backbone),
        max_reject_fraction=recipe.images.max_reject_fraction,
        decode_timeout_s=recipe.images.decode_timeout_s,
        networks=kept_files(backbone),
    )
    return result, backbone


def _prepare(spark: SparkSession | StartingSession, recipe: FeaturizeRecipe, source: ImageSource) -> PreparedBackbone:
    settings, folder = _decided_before(recipe), shipping_folder().name
    if settings.precision == "int8":
        return prepare_quantized(spark, settings, source, folder, decode_timeout_s=recipe.images.decode_timeout_s)
    return prepare_backbone(settings, folder, decide=EngineChoice(spark))


def _decided_before(recipe: FeaturizeRecipe) -> BackboneSettings:
    """The backbone's settings; what they leave open is as in rows that exist, also of an unfinished run.

    Engine and precision are open where they are "auto", the network where it is to be in int8.
    """
    open_keys = [key for key in ("engine", "precision") if getattr(recipe.backbone, key) == "auto"]
    needs_network = recipe.backbone.precision in ("auto", "int8") and recipe.backbone.quantized is None
    there = settings_in_place(recipe.features.url) if open_keys or needs_network else None
    if there is None or "backbone" not in there:
        return recipe.backbone
    decided = {"engine": "tensorflow", **there["backbone"]}  # the engine of old sets, which do not name it
    if recipe.backbone.precision == "int8" != decided["precision"]:
        raise UsageError(
            f"{recipe.features.url} holds features in {decided['precision']}, not in int8; a mixture is refused. Write elsewhere."
        )
    changes = {key: decided[key] for key in open_keys}
    if needs_network and decided["precision"] == "int8":
        changes["quantized"] = kept_network(recipe.features.url, decided["quantized_sha256"])
    return recipe.backbone.model_copy(update=changes)


def _identity_settings(recipe: FeaturizeRecipe, source: ImageSource, backbone: PreparedBackbone) -> dict[str, object]:
    """Everything that determines the rows, besides the bytes of the images. `weights` names only the origin of the weights."""
    return {
        "table": "features",
        "source": source.settings,
        "classes": list(source.classes),
        "backbone": {key: value for key, value in backbone.spec.as_dict().items() if key != "weights"},
        "rows_per_group": recipe.features.rows_per_group,
    }


def _manifest_details(recipe: FeaturizeRecipe, source: ImageSource, backbone: PreparedBackbone) -> dict[str, object]:
    spec = backbone.spec
    file_sha256 = backbone.report.file_sha256 if backbone.report is not None else None
    return {
        "preparation_id": spec.preparation_id,
        "backbone": {
            **spec.as_dict(),
            "engine": spec.engine,
            "weights_file_sha256": file_sha256,
            "bfloat16_cosine": backbone.bfloat16_cosine,
            "batch_size": backbone.batch_size,
            "engines": [one.as_dict() for one in backbone.measured],
            **({} if backbone.quantization is None else {"quantization": backbone.quantization}),
        },
        "feature_shape": list(spec.feature_shape),
        "feature_dtype": spec.feature_dtype,
        "rows_per_group": recipe.features.rows_per_group,
        "recipe": recipe.model_dump(exclude_none=True),
        "lineage": source.lineage,
    }


def _make_task(
    spark: SparkSession, recipe: FeaturizeRecipe, source: ImageSource, backbone: PreparedBackbone
) -> FeaturizeTask:
    return FeaturizeTask(
        classes=source.classes,
        split_rule=source.split_rule,
        backbone=ship_backbone(spark, backbone),
        rows_per_group=recipe.features.rows_per_group,
    )
