"""Tests of drift from images to alarm: `finetune predict` by Spark keeps the reference and projections that drift is seen by."""

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from helpers.images.photos import make_photos
from helpers.models.logged_models import train_model
from helpers.tables.building import recipe
from helpers.tables.predictions import predicted, read_predictions
from PIL import Image
from pyspark.sql import SparkSession

from featurize.errors import JobError, UsageError
from featurize.jobs.run import featurize
from featurize.tables.predictions import read_views
from featurize.tables.readable import read_features_manifest
from finetune.drift.check import check_predictions, check_window
from finetune.drift.read import EVERYTHING, Selection, read_rows, window_of
from finetune.drift.reference import read_reference
from finetune.drift.window import FEATURES, LABELS
from finetune.models.folder import ModelCard
from finetune.prediction.predict import plan_prediction, predict
from finetune.rows.splits import read_split

pytestmark = [
    pytest.mark.spark,
    pytest.mark.slow,
]


def projections_of(rows: pd.DataFrame) -> Any:
    return np.stack(rows["projection"].to_list())


def test_predictions_of_images_and_of_features_keep_the_projections_of_the_reference(
    spark: SparkSession, small_backbone: Path, tmp_path: Path
) -> None:
    make_photos(tmp_path / "photos", per_class=100)
    featurize(spark, recipe(tmp_path / "photos", tmp_path / "features", small_backbone, layer="mean"))
    card = train_model(tmp_path / "features", tmp_path / "model", learning_rate=0.1)
    predicted(spark, tmp_path / "model", tmp_path / "images", images=tmp_path / "photos")
    predicted(spark, tmp_path / "model", tmp_path / "ready", features=tmp_path / "features")
    rows, ready = read_predictions(tmp_path / "images"), read_predictions(tmp_path / "ready")
    np.testing.assert_allclose(projections_of(rows), projections_of(ready), atol=1e-5)
    reference = read_reference(str(tmp_path / "images"), card.model_id)
    assert reference is not None
    url = str(tmp_path / "features")
    validation = read_split(url, read_features_manifest(url), "validation").paths.to_pylist()
    assert reference.rows == len(validation) >= 50
    of_images = rows.loc[validation].sort_values("image_id")
    np.testing.assert_allclose(projections_of(of_images), reference.projections, atol=1e-5)
    assert tuple(of_images["label"]) == reference.labels
    assert not check_predictions(str(tmp_path / "images")).alarms
    before = (tmp_path / "images" / "drift" / "references" / f"{card.model_id}.parquet").read_bytes()
    shutil.rmtree(tmp_path / "features")
    make_photos(tmp_path / "later", per_class=2, seed=5)
    with pytest.raises(UsageError, match="is not a feature set"):  # images need the feature set
        predicted(spark, tmp_path / "model", tmp_path / "images", images=tmp_path / "later")
    assert (tmp_path / "images" / "drift" / "references" / f"{card.model_id}.parquet").read_bytes() == before


def test_a_run_that_came_to_nothing_leaves_no_reference_and_a_small_split_gives_none(
    spark: SparkSession, small_backbone: Path, tmp_path: Path
) -> None:
    make_photos(tmp_path / "photos", per_class=100)
    featurize(spark, recipe(tmp_path / "photos", tmp_path / "features", small_backbone, layer="mean"))
    train_model(tmp_path / "features", tmp_path / "model", learning_rate=0.1)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "torn.png").write_bytes(b"no picture")
    with pytest.raises(JobError, match="could not be read"):
        predicted(spark, tmp_path / "model", tmp_path / "out", images=tmp_path / "bad", max_reject_fraction=0.0)
    make_photos(tmp_path / "few", per_class=20)
    featurize(spark, recipe(tmp_path / "few", tmp_path / "small", small_backbone, layer="mean"))
    train_model(tmp_path / "small", tmp_path / "small-model", learning_rate=0.1)
    plan = plan_prediction(str(tmp_path / "small-model"), str(tmp_path / "few-out"), images=str(tmp_path / "few"))
    made = predict(spark, plan)
    assert made.reference_fault is not None
    assert "images in its validation split; a reference for drift needs 50" in made.reference_fault
    assert read_predictions(tmp_path / "few-out")["projection"].isna().all()
    assert not (tmp_path / "few-out" / "drift").exists()


class Objects:
    """A head on MobileNet's features of every second kind of object, and the images of its test split."""

    def __init__(self, spark: SparkSession, real_data: Path, folder: Path) -> None:
        self.spark, self.folder = spark, folder
        kinds = sorted(path for path in (real_data / "objects").iterdir() if path.is_dir())
        for kind in kinds[::2]:
            shutil.copytree(kind, folder / "known" / kind.name)
        backbone = real_data.parent / "backbones" / "mobilenet_v1_imagenet.keras"
        featurize(spark, recipe(folder / "known", folder / "features", backbone))
        self.card: ModelCard = train_model(
            folder / "features", folder / "model", learning_rate=0.05, epochs=25, l2=0.005
        )
        manifest = read_features_manifest(str(folder / "features"))
        paths = read_split(str(folder / "features"), manifest, "test").paths.to_pylist()
        self.test = [Path(path.removeprefix("file://")) for path in paths]
        self.new = [path for kind in kinds[1::2] for path in sorted(kind.iterdir())[:2]]

    def predict(self, name: str, paths: list[Path], change: Callable[[Image.Image], Image.Image]) -> pa.Table:
        """What `finetune drift` reads of the images at `paths`, changed."""
        folder, since = self.folder / name, datetime.now(UTC)
        folder.mkdir()
        for number, path in enumerate(paths):
            with Image.open(path) as image:
                change(image.convert("RGB")).save(folder / f"{number:04d}.png", compress_level=1)
        predicted(self.spark, self.folder / "model", self.folder / "out", images=folder)
        published = read_views(str(self.folder / "out"))
        return read_rows(published.url, published.manifests[self.card.model_id], Selection(since=since))


@pytest.mark.realdata
def test_real_objects_drift_when_they_are_grey_or_rotated_or_new_and_only_then(
    spark: SparkSession, real_data: Path, tmp_path: Path
) -> None:
    objects = Objects(spark, real_data, tmp_path)
    same = objects.predict("same", objects.test, lambda image: image)
    reference = read_reference(str(tmp_path / "out"), objects.card.model_id)
    assert reference is not None
    assert same.num_rows <= 500
    random = np.random.default_rng(0)
    halves = [same.take(pa.array(random.permutation(same.num_rows)[:150])) for _ in range(20)]
    assert sum(check_window(reference, window_of(half)).alarm for half in halves) <= 1
    assert not check_window(reference, window_of(same)).alarm

    grey = objects.predict("grey", objects.test, lambda image: image.convert("L"))
    assert check_window(reference, window_of(grey)).alarm
    rotated = objects.predict("rotated", objects.test, lambda image: image.transpose(Image.Transpose.ROTATE_90))
    result = check_window(reference, window_of(rotated))
    assert FEATURES in result.fired
    assert result.retrain
    new = objects.predict("new", objects.new, lambda image: image)
    mixed = pa.concat_tables([same, new])
    assert mixed.num_rows <= 500
    assert check_window(reference, window_of(mixed)).alarm
    frequent = set(objects.card.classes[::3])
    few = same.filter(pa.array([label in frequent for label in same["label"].to_pylist()]))
    assert LABELS in check_window(reference, window_of(few)).fired
    published = read_views(str(tmp_path / "out"))
    everything = read_rows(published.url, published.manifests[objects.card.model_id], EVERYTHING)
    assert everything.num_rows == same.num_rows + grey.num_rows + rotated.num_rows + new.num_rows
