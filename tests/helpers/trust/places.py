"""All folders that Firn writes and reads, made by its own jobs, and what its readers do with each of them; for the tests."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from featurize import storage
from featurize.backbones import kept
from featurize.backbones.rebuild import backbone_settings
from featurize.backbones.spec import BackboneSpec
from featurize.building import staging
from featurize.errors import UsageError
from featurize.jobs.ingest import ingest
from featurize.jobs.run import featurize
from featurize.recipes.recipe import Recipe, RegistrySettings
from featurize.recipes.toml_settings import check_settings
from featurize.sources.listing import ImageSource, planned_images
from featurize.sources.opening import open_features, open_source
from featurize.sql.tables import SqlTable, find_tables
from featurize.storage.claims import CLAIM_NAME, Claim
from featurize.tables import delta_log, publication
from featurize.tables.predictions import read_views
from featurize.tables.publication import read_manifest
from featurize.tables.readable import read_features_manifest
from featurize.tables.row_groups import read_table
from featurize.upkeep.versions import upgrade, vacuum
from finetune.drift.check import reference_of
from finetune.drift.read import EVERYTHING, read_rows
from finetune.drift.reference import read_reference
from finetune.evaluation.evaluate import evaluate_model
from finetune.evaluation.split_answers import open_split_rows
from finetune.models.folder import load_model
from finetune.registry.client import registry_at
from finetune.registry.log_model import is_logged, registry_for_evaluations, write_record
from finetune.registry.resolve import read_folder
from finetune.registry.run_values import read_evaluations
from finetune.rows.joined_tables import read_parts
from finetune.streams.current_model import _folder_of
from finetune.streams.drift_windows import WindowSettings, read_position
from finetune.sweeps.folder import rank_settings, read_sweep
from finetune.sweeps.plan import plan_sweep
from finetune.sweeps.run import run_sweep
from finetune.training.checkpoints import read_checkpoint, remove_checkpoint, write_checkpoint
from finetune.training.state import TrainingState
from finetune.training.tensorboard import remove_event_files
from finetune.training.train import _remove_evaluations
from helpers.images.photos import make_photos
from helpers.models.logged_models import registry_in, train_model
from helpers.project import ROOT
from helpers.tables.building import recipe
from helpers.tables.listings import card
from helpers.tables.stream_places import Place

Reader = Callable[[Path], object]
FOLDERS = ("images", "features", "legacy", "unfinished", "predictions", "model", "sweep", "checkpoint", "cache")


@dataclass(frozen=True)
class Folder:
    """A folder of Firn's, and what reads it.

    Attributes:
        read: reads documents and rows.
        load: reads the files that are slow to read.
        clean: removes or replaces what a job would.
    """

    read: Sequence[Reader]
    load: Sequence[Reader] = ()
    clean: Sequence[Reader] = ()


def make_places(spark: SparkSession, backbone: Path, root: Path) -> None:
    """Makes `FOLDERS` in `root`."""
    make_photos(root / "photos", per_class=110)
    featurize(spark, recipe(root / "photos", root / "features", backbone, layer="mean", rows_per_group=64))
    ingest(spark, card(source=str(root / "photos"), split={"seed": 3}), str(root / "images"))
    model = train_model(root / "features", root / "model", learning_rate=0.1)
    evaluate_model(str(root / "model"), None, "test", None)
    write_record(str(root / "model"), registry_at(RegistrySettings()), model_id=model.model_id, run_id="0" * 32)
    write_checkpoint(str(root / "model"), model.model_id, TrainingState(history=[{"loss": 1.0}]))
    (root / "model" / "events").mkdir()
    (root / "model" / "events" / "events.out").write_bytes(b"events")
    run_sweep(plan_sweep(check_settings(Recipe, sweep_document(root), origin="test"), origin="test"))
    _make_stream(spark, root)
    shutil.copytree(ROOT / "tests/helpers/tables/made_by_0_1", root / "legacy")
    _make_unfinished(root)
    _make_cache(root / "cache")


def sweep_document(root: Path, **sections: Any) -> dict[str, Any]:
    """The recipe of the sweep."""
    return {
        "features": {"url": str(root / "features")},
        "model": {"name": "softmax_head", "url": str(root / "unused")},
        "training": {"epochs": 1, "batch_size": 32},
        "sweep": {"url": str(root / "sweep"), "values": {"training.learning_rate": [0.01, 0.1]}, "seeds": 1},
        **{name: section.model_dump() for name, section in sections.items()},
    }


def _make_stream(spark: SparkSession, root: Path) -> None:
    place = Place(spark, root / "stream")
    place.images.mkdir(parents=True)
    place.arrive(1, per_class=20, corrupt=1)
    place.run(root / "model", windows=WindowSettings(50))
    place.out.rename(root / "predictions")
    place.checkpoint.rename(root / "checkpoint")


def _make_unfinished(root: Path) -> None:
    """A feature set whose run was killed after its shards were done, by a process that is gone."""
    url = str(root / "unfinished")
    manifest = read_features_manifest(str(root / "features"))
    publication._write_snapshot(str(root / "features"), manifest)  # as every hundredth version has one
    delta_log.write_checkpoint(str(root / "features"), 0)
    for file in (file for shard in manifest.shards for file in shard.all_files):
        target = root / "unfinished" / staging.STAGING / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / "features" / file.path, target)
    staging.write_state(url, settings=manifest.settings, run="run1", records=manifest.shards[:1], there=None)
    for number, shard in enumerate(manifest.shards):
        staging.commit(url, "run1", number, shard)
    dead = {"host": os.uname().nodename, "pid": 2**22 - 3, "user": "x", "since": "2026-01-01", "beat_at": 0.0}
    (root / "unfinished" / CLAIM_NAME).write_text(json.dumps({"schema_version": 1, "token": "t", **dead}))


def _make_cache(folder: Path) -> None:
    os.environ["FIRN_CACHE"] = str(folder)
    network = folder.parent / "network.onnx"
    network.write_bytes(b"network")
    kept.keep_network("key", network, {"spec": PIXELS.as_dict(), "report": {"description": "x"}})
    kept.keep_document("specs", "key", PIXELS.as_dict())


PIXELS = BackboneSpec.from_dict(
    {
        **dict.fromkeys(("network_sha256", "layer", "weights", "weights_digest")),
        **{"name": "pixels", "preprocessing": "none", "resizing": "stretched", "precision": "float32"},
        **{"height": 8, "width": 8, "channels": 3, "feature_shape": [8, 8, 3], "feature_dtype": "uint8"},
    }
)


def first_content(source: ImageSource) -> None:
    images = planned_images(source.listing.slice(0, 2))
    for image, fetch in zip(images, source.reader.open(images), strict=True):
        source.reader.identify(image, fetch())


def read_sql(**urls: str) -> None:
    for table in find_tables(**urls):  # type: ignore[arg-type]
        if isinstance(table, SqlTable) and "image_id" in table.columns.names:
            read_parts(table, table.parts)


def read_images(url: Path) -> None:
    first_content(open_source(str(url), None))
    read_sql(images=str(url))


def read_features(url: Path) -> None:
    manifest = read_features_manifest(str(url))
    for split in manifest.rows:
        read_table(str(url), manifest, split, ("image_id", "label", "features"))
    first_content(open_features(str(url), manifest))
    read_sql(features=str(url))
    backbone_settings(str(url), manifest)


def read_legacy(url: Path) -> None:
    manifest = read_features_manifest(str(url))
    for split in manifest.rows:
        read_table(str(url), manifest, split, ("image_id", "label", "features"))
    read_sql(features=str(url))


def clean_table(url: Path) -> None:
    vacuum(str(url), older_than="0s")
    staging.remove_staging(str(url))


def read_unfinished(url: Path) -> None:
    unfinished = staging.read_unfinished(str(url), read_manifest(str(url)))
    for index in unfinished.index_urls if unfinished is not None else ():
        storage.read_bytes(index)


def clean_unfinished(url: Path) -> None:
    claim = Claim(str(url), patience_s=0, settling_s=0)
    claim.take()
    try:
        unfinished = staging.read_unfinished(str(url), None)
        records = [] if unfinished is None else unfinished.records
        staging.write_state(str(url), settings={}, run="run2", records=records, there=None)
        staging.remove_others(str(url), records)
        staging.place_files(str(url), records)
        staging.remove_staging(str(url))
    finally:
        claim.release()


def read_predictions(url: Path) -> None:
    read_sql(predictions=str(url))
    for model_id, manifest in read_views(str(url)).manifests.items():
        read_rows(str(url), manifest, EVERYTHING)
        read_reference(str(url), model_id)
        reference_of(str(url), manifest)
        read_position(str(url), model_id)


def clean_predictions(url: Path) -> None:
    vacuum(str(url), older_than="0s")


def read_model(url: Path) -> None:
    found = read_folder(str(url))
    open_split_rows([found], "test")
    read_checkpoint(str(url), found.model_id)
    read_evaluations(str(url))
    registry_for_evaluations(str(url))
    is_logged(str(url), registry_in(url), model_id=found.model_id)


def clean_model(url: Path) -> None:
    remove_checkpoint(str(url))
    remove_event_files(str(url))
    _remove_evaluations(str(url))


def read_sweep_folder(url: Path) -> None:
    found = read_sweep(str(url))
    if found is None:
        raise UsageError(f"{url} is no sweep")
    rank_settings(found)
    for trial in found.trials:
        read_folder(trial.url)


def read_stream(url: Path) -> None:
    place = Place(None, url.parent / "stream")  # type: ignore[arg-type]
    plan = place.plan(url.parent / "model")
    checkpoint = type(plan.checkpoint)(f"file://{url}")
    checkpoint.check(plan.record)
    query = checkpoint.query_id()
    pin = checkpoint.read_pin(0, query)
    if pin is not None:
        _folder_of(pin, checkpoint.pin_url(0))
        checkpoint.write_pin(1, pin)


def read_cache(url: Path) -> None:
    os.environ["FIRN_CACHE"] = str(url)
    found = kept.find_network("key", lambda about: BackboneSpec.from_dict(about["spec"]))
    if found is not None:
        found[0].read_bytes()
    kept.find_document("specs", "key", BackboneSpec.from_dict)
    kept.keep_document("specs", "key", {})


READERS = {
    "images": Folder([read_images], clean=[clean_table]),
    "features": Folder([read_features], clean=[clean_table]),
    "legacy": Folder([read_legacy], clean=[lambda url: upgrade(str(url))]),
    "unfinished": Folder([read_unfinished], clean=[clean_unfinished]),
    "predictions": Folder([read_predictions], clean=[clean_predictions]),
    "model": Folder([read_model], load=[lambda url: load_model(str(url))], clean=[clean_model]),
    "sweep": Folder([read_sweep_folder]),
    "checkpoint": Folder([read_stream]),
    "cache": Folder([read_cache]),
}
