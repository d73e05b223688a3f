"""Tests of finetune.prediction.predict: predictions as a table, made by Spark, resumed, added to, and refused in words."""

import json
import os
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.images.photos import make_photos
from helpers.project import Firn
from helpers.services.processes import wait_until
from helpers.tables.building import files_of, recipe
from helpers.tables.predictions import (
    Trained,
    assert_right,
    assert_same_predictions,
    manifest_of,
    predicted,
    read_predictions,
    read_rejects,
    train_on_photos,
)
from PIL import Image
from pyspark.sql import SparkSession

from featurize.building.staging import STAGING
from featurize.errors import JobError, UsageError
from featurize.jobs.ingest import ingest
from featurize.jobs.run import featurize
from featurize.sources.cards import read_card
from finetune.prediction.predict import plan_prediction

pytestmark = [
    pytest.mark.spark,
    pytest.mark.slow,
]
KEYS = ("head", "pixels", "unfrozen")


def partition(output: Path, model: Trained) -> Path:
    return output / f"model_id={model.card.model_id}"


@pytest.mark.parametrize("key", KEYS)
def test_images_get_what_evaluate_computes_of_them(
    spark: SparkSession, trained: dict[str, Trained], photos: Path, tmp_path: Path, key: str
) -> None:
    model, before = trained[key], datetime.now(UTC)
    result = predicted(spark, model.folder, tmp_path / "out", images=photos)
    assert (result.added, result.rejected, result.skipped) == (60, 2, 0)
    rows = read_predictions(tmp_path / "out")
    assert_right(rows, model.wanted(), model.card.classes)
    assert rows["predicted_at"].between(before, datetime.now(UTC)).all()
    assert rows["reason"].isna().all()
    rejects = read_rejects(partition(tmp_path / "out", model))
    assert rejects["error"].to_dict() == {
        "empty.jpg": "the file is empty",
        "notes.txt": "not an image in a known format, but a text file",
    }
    manifest = manifest_of(partition(tmp_path / "out", model))
    assert manifest.rows == {"predicted": rows["label"].value_counts().to_dict()}
    assert manifest.model["network_sha256"] == model.card.network_sha256


@pytest.mark.parametrize("key", KEYS)
def test_features_get_what_images_get_and_are_not_computed_twice(
    spark: SparkSession, trained: dict[str, Trained], photos: Path, tmp_path: Path, key: str
) -> None:
    model = trained[key]
    result = predicted(spark, model.folder, tmp_path / "out", features=model.features)
    assert (result.added, result.rejected) == (60, 0)
    assert_right(read_predictions(tmp_path / "out"), model.wanted(), model.card.classes)
    result = predicted(spark, model.folder, tmp_path / "out", images=photos)  # the same images, by their bytes
    assert (result.added, result.rejected, result.skipped, result.changed) == (0, 2, 60, 0)
    result = predicted(spark, model.folder, tmp_path / "out", features=model.features)
    assert (result.added, result.rejected, result.skipped, result.changed) == (0, 0, 60, 0)
    assert len(read_predictions(tmp_path / "out")) == 60


def test_an_images_table_is_read_as_the_folder_it_was_made_of(
    spark: SparkSession, trained: dict[str, Trained], photos: Path, tmp_path: Path
) -> None:
    card = f'name = "mine"\ntitle = "Mine"\nlicence = "CC0-1.0"\nlayout = "folders"\nsource = "{photos}"\n'
    (tmp_path / "mine.toml").write_text(card)
    ingest(spark, read_card(tmp_path / "mine.toml"), str(tmp_path / "images"), max_reject_fraction=1.0)
    predicted(spark, trained["head"].folder, tmp_path / "out", images=tmp_path / "images")
    assert_right(read_predictions(tmp_path / "out"), trained["head"].wanted(), trained["head"].card.classes)


def test_running_twice_adds_nothing_and_new_images_are_added_wherever_they_lie(
    spark: SparkSession, trained: dict[str, Trained], tmp_path: Path
) -> None:
    model, out = trained["head"], tmp_path / "out"
    make_photos(tmp_path / "monday", per_class=3)
    predicted(spark, model.folder, out, images=tmp_path / "monday")
    first, before = read_predictions(out), files_of(out)
    again = predicted(spark, model.folder, out, images=tmp_path / "monday")
    assert (again.added, again.rejected, again.skipped) == (0, 0, 9)
    assert files_of(out) == before
    (tmp_path / "tuesday" / "deep" / "er").mkdir(parents=True)
    make_photos(tmp_path / "new", per_class=1, seed=1)
    for number, path in enumerate(sorted((tmp_path / "new").rglob("*.png"))):
        folder = tmp_path / "tuesday" / "deep" / "er" if number == 2 else tmp_path / "tuesday"
        shutil.copy(path, folder / f"{number}.png")
    (tmp_path / "tuesday" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    result = predicted(spark, model.folder, out, images=tmp_path / "tuesday")
    assert (result.added, result.rejected, result.skipped) == (3, 1, 0)
    rows = read_predictions(out)
    pd.testing.assert_frame_equal(rows[rows.index.str.contains("monday")], first)
    assert rows.index.is_unique
    assert sum("tuesday" in path for path in rows.index) == 3
    assert list(read_rejects(partition(out, model)).index) == ["torn.png"]


def test_a_changed_image_is_labelled_anew(spark: SparkSession, trained: dict[str, Trained], tmp_path: Path) -> None:
    model, out = trained["head"], tmp_path / "out"
    make_photos(tmp_path / "images", per_class=3)
    predicted(spark, model.folder, out, images=tmp_path / "images")
    first = read_predictions(out)
    shutil.copy(tmp_path / "images" / "red" / "000.png", tmp_path / "images" / "blue" / "001.png")
    result = predicted(spark, model.folder, out, images=tmp_path / "images")
    assert (result.changed, result.manifest.row_count) == (1, 9)
    rows = read_predictions(out)
    changed = rows["image_id"] != first["image_id"]
    assert [path.rpartition("images/")[2] for path in rows.index[changed]] == ["blue/001.png"]
    assert_same_predictions(rows[~changed], first[~changed])


def test_a_second_models_predictions_go_beside_those_of_the_first(
    spark: SparkSession, trained: dict[str, Trained], photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    predicted(spark, trained["head"].folder, out, images=photos)
    before = files_of(partition(out, trained["head"]))
    predicted(spark, trained["pixels"].folder, out, images=photos)
    assert files_of(partition(out, trained["head"])) == before
    rows = read_predictions(out)
    assert rows["model_id"].value_counts().to_dict() == {trained[key].card.model_id: 60 for key in ("head", "pixels")}
    found = spark.read.option("basePath", str(out)).parquet(
        *(str(folder / "data") for folder in out.glob("model_id=*"))
    )
    assert found.groupBy("model_id").count().count() == 2
    assert found.select("label", "probability", "top_labels", "predicted_at").count() == 120


def test_a_corrupt_image_is_a_reject_and_too_many_publish_nothing(
    spark: SparkSession, trained: dict[str, Trained], tmp_path: Path
) -> None:
    model, out = trained["head"], tmp_path / "out"
    make_photos(tmp_path / "images", per_class=3)
    (tmp_path / "images" / "loose.jpg").write_bytes(b"no picture")
    with pytest.raises(JobError, match="1 of 10 images could not be read"):
        predicted(spark, model.folder, out, images=tmp_path / "images", max_reject_fraction=0.05)
    assert not (partition(out, model) / "_delta_log").exists()
    result = predicted(spark, model.folder, out, images=tmp_path / "images", max_reject_fraction=0.1)
    assert (result.added, result.skipped, result.manifest.reject_count) == (0, 10, 1)
    reject = read_rejects(partition(out, model)).loc["loose.jpg"]
    assert (reject["stage"], reject["error"]) == ("decode", "not an image in a known format, but a text file")


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that take some 10 ms each to decode, in two shards where one task runs at a time; three of them broken."""
    folder = tmp_path_factory.mktemp("heavy")
    for number in range(260):
        path = folder / f"{number:03d}.png"
        blocks = np.random.default_rng(number).integers(0, 256, (15, 15, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((900, 900), Image.Resampling.NEAREST).save(path, compress_level=1)
        if number % 100 == 7:
            path.write_bytes(path.read_bytes()[:2000])
    return folder


def test_a_killed_job_that_is_run_again_gives_the_predictions_of_an_undisturbed_one(
    spark: SparkSession, trained: dict[str, Trained], heavy: Path, tmp_path: Path
) -> None:
    model, out = trained["head"], tmp_path / "out"
    staging = partition(out, model) / STAGING
    command = [sys.executable, "-m", "finetune", "predict", str(model.folder), "--images", str(heavy)]
    with (tmp_path / "log").open("wb") as log:
        job = subprocess.Popen(
            [*command, "--output", str(out)],
            cwd=tmp_path,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if not name.startswith(("SPARK_", "PYSPARK_"))},
        )

        def has_committed() -> bool:
            assert job.poll() is None, (tmp_path / "log").read_text()
            return any(staging.glob("commits/*.json"))

        try:
            wait_until(has_committed, "the first shard", timeout_s=240)
        finally:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
    assert not (partition(out, model) / "_delta_log").exists(), "it was too fast to be killed"
    result = predicted(spark, model.folder, out, images=heavy)
    assert result.skipped >= 100
    assert result.added + result.rejected + result.skipped == 260
    predicted(spark, model.folder, tmp_path / "undisturbed", images=heavy)
    assert_same_predictions(read_predictions(out), read_predictions(tmp_path / "undisturbed"))
    found, wanted = (partition(folder, model) for folder in (out, tmp_path / "undisturbed"))
    assert manifest_of(found).content_digest == manifest_of(wanted).content_digest
    assert list(read_rejects(found).index) == list(read_rejects(wanted).index) == ["007.png", "107.png", "207.png"]
    assert not staging.exists()


def test_what_is_wrong_with_a_call_is_said(
    spark: SparkSession, trained: dict[str, Trained], photos: Path, tmp_path: Path, small_backbone: Path
) -> None:
    def refused(match: str, model: Path | str = trained["head"].folder, output: str = "out", **given: Any) -> None:
        before = set(tmp_path.rglob("*"))
        texts: dict[str, Any] = {key: str(value) for key, value in given.items()}
        with pytest.raises(UsageError, match=match):
            plan_prediction(str(model), str(tmp_path / output), **texts)
        assert set(tmp_path.rglob("*")) == before

    (tmp_path / "empty").mkdir()
    refused("there is no model .*nowhere: it is not a folder", tmp_path / "nowhere", images=photos)
    refused("holds no files", images=tmp_path / "empty")
    refused("there is nothing at .*none", images=tmp_path / "none")
    refused("either `images` or `features`")
    refused("either `images` or `features`", images=photos, features=trained["head"].features)
    refused("is a feature set; images are required", images=trained["head"].features)
    refused("is not a feature set", features=photos)
    features = trained["head"].features
    with pytest.raises(UsageError, match="predictions need a folder of their own"):
        plan_prediction(str(trained["head"].folder), str(features), images=str(photos))
    featurize(spark, recipe(photos, tmp_path / "scores", small_backbone, layer="scores"))
    refused("made by another backbone.*\n.*feature_shape: model .8., features .5.", features=tmp_path / "scores")
    refused("made by another backbone", trained["pixels"].folder, features=features)
    with pytest.raises(UsageError, match="in the folder of the images"):
        predicted(spark, trained["head"].folder, photos / "out", images=photos)


def test_a_model_whose_backbone_is_another_by_now_labels_no_images(
    spark: SparkSession, photos: Path, small_backbone: Path, tmp_path: Path
) -> None:
    models = train_on_photos(spark, photos, small_backbone, tmp_path / "own")
    shutil.rmtree(models["head"].features)
    featurize(spark, recipe(photos, models["head"].features, small_backbone, layer="scores"))
    with pytest.raises(UsageError, match="now holds features of another backbone"):
        predicted(spark, models["head"].folder, tmp_path / "out", images=photos)
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_it_did(firn: Firn, trained: dict[str, Trained], photos: Path, tmp_path: Path) -> None:
    arguments = ["predict", str(trained["head"].folder), "--output", "out", "--json"]
    missing = firn("finetune", "predict", "nowhere", "--images", str(photos), "--output", "out", timeout_s=60)
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "there is no model nowhere" in missing.stderr
    ended = firn("finetune", *arguments, "--images", str(photos))
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout.splitlines()[-1])
    assert result["predictions"] == f"file://{partition(tmp_path / 'out', trained['head'])}"
    assert (result["rows"], result["rejects"], result["skipped"]) == (60, 2, 0)
    assert "not an image in a known format, but a text file" in ended.stderr
    described = firn("featurize", "describe", result["predictions"])
    assert "table of predictions" in described.stdout
    assert described.returncode == 0
