"""A model on one column of a feature set is the model on a set that has this column alone, in every use of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.tables.building import SPLIT
from pyspark.sql import SparkSession

import featurize
import finetune
from finetune.api.model import Model

pytestmark = pytest.mark.spark
COLUMN = "features_pool"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("columns")


def make_set(spark: SparkSession, photos: Path, backbone: Path, url: Path, **changes: Any) -> featurize.Features:
    network = {"name": str(backbone), "preprocessing": "none", "precision": "float32", "engine": "tensorflow"}
    recipe = {
        "images": {"source": str(photos), "split": SPLIT, "max_reject_fraction": 1.0},
        "backbone": {**network, **changes},
        "features": {"url": str(url)},
    }
    return featurize.run(recipe, spark=spark)


@pytest.fixture(scope="module")
def several(spark: SparkSession, photos: Path, small_backbone: Path, folder: Path) -> featurize.Features:
    """A set with the columns of two layers."""
    return make_set(spark, photos, small_backbone, folder / "several", layers=["pool", "mean"])


@pytest.fixture(scope="module")
def alone(spark: SparkSession, photos: Path, small_backbone: Path, folder: Path) -> featurize.Features:
    """A set of one of these layers."""
    return make_set(spark, photos, small_backbone, folder / "alone", layer="pool")


def document(url: str, model: Path, **features: Any) -> dict[str, Any]:
    return {
        "features": {"url": url, **features},
        "model": {"url": str(model)},
        "training": {"epochs": 4, "batch_size": 16, "learning_rate": 0.01},
    }


@pytest.fixture(scope="module")
def model(several: featurize.Features, folder: Path) -> Model:
    return finetune.fit(document(several.url, folder / "model", column=COLUMN))


def test_the_column_must_be_named_and_decides_the_model(
    several: featurize.Features, alone: featurize.Features, model: Model, folder: Path
) -> None:
    with pytest.raises(finetune.UsageError, match=r"`features.column` is required"):
        finetune.fit(document(several.url, folder / "other"))
    other = finetune.fit(document(several.url, folder / "other", column="features_mean"))
    same = finetune.fit(document(alone.url, folder / "same"))
    assert model.card.model_id == same.card.model_id != other.card.model_id  # as it is trained on the same values
    assert model.card.features.preparation_id == same.card.features.preparation_id
    assert model.metrics["validation_loss"] == pytest.approx(same.metrics["validation_loss"], abs=1e-5)
    disk = document(several.url, folder / "disk", column=COLUMN)
    streamed = finetune.fit({**disk, "training": {**disk["training"], "cache": "stream"}})
    assert streamed.card.features.feature_shape == [5, 5, 8]


def test_it_is_evaluated_on_either_set(several: featurize.Features, alone: featurize.Features, model: Model) -> None:
    own, other = model.evaluate(), model.evaluate(features=alone)
    assert own.result["accuracy"] == other.result["accuracy"]
    assert own.rows == several.manifest.split_rows("test")


def test_images_and_rows_get_the_labels_of_the_features(
    spark: SparkSession,
    several: featurize.Features,
    alone: featurize.Features,
    model: Model,
    photos: Path,
    folder: Path,
) -> None:
    tables = {
        "images": finetune.predict(model, images=photos, output=folder / "p1", spark=spark, max_reject_fraction=1.0),
        "several": finetune.predict(model, features=several, output=folder / "p2", spark=spark),
        "alone": finetune.predict(model, features=alone, output=folder / "p3", spark=spark),
    }
    frames = {name: table.to_pandas().set_index("path").sort_index() for name, table in tables.items()}
    expected = model.predict(several.to_numpy("test", COLUMN)[0])
    test = several.to_pandas("test", ["path"])["path"]
    for frame in frames.values():
        assert list(frame.index) == sorted(several.to_pandas(columns=["path"])["path"])
        assert list(frame.loc[test, "label"]) == list(expected["label"])
        np.testing.assert_allclose(frame.loc[test, "probability"], expected["probability"], atol=1e-5)


def test_the_data_are_checked_by_one_column(several: featurize.Features, alone: featurize.Features) -> None:
    with pytest.raises(finetune.UsageError, match=r"`features.column` is required"):
        finetune.check_data(several)
    one, other = finetune.check_data(several, column=COLUMN), finetune.check_data(alone)
    pd.testing.assert_frame_equal(one.duplicates, other.duplicates)
    assert one.quality.out_of_fold_accuracy == pytest.approx(other.quality.out_of_fold_accuracy, abs=1e-6)


def test_a_sweep_over_columns_trains_each_head_as_it_would_be_alone(several: featurize.Features, folder: Path) -> None:
    columns = several.manifest.column_names
    values = {"training.learning_rate": [0.001, 0.01], "features.column": columns, "training.l2": [0.0, 0.01]}
    recipe = {
        **document(several.url, folder / "unused"),
        "sweep": {"url": str(folder / "sweep"), "seeds": 2, "values": values},
    }
    made = finetune.sweep(recipe)
    assert (made.trained, made.failed) == (16, 0)
    table = made.settings
    assert set(table["features.column"]) == set(columns)
    assert len(table) == 8
    row = made.trials[
        (made.trials["features.column"] == COLUMN)
        & (made.trials["training.learning_rate"] == 0.01)
        & (made.trials["training.l2"] == 0.0)
    ].iloc[0]
    single = document(several.url, folder / "single", column=COLUMN)
    lone = finetune.fit({**single, "training": {**single["training"], "seed": int(row["seed"])}})
    assert row["validation_loss"] == pytest.approx(lone.metrics["validation_loss"], abs=1e-5)
    again = finetune.sweep(recipe)
    assert (again.trained, again.reused) == (0, 16)
    page = made.report(folder / "report.html")
    assert "features_mean" in Path(str(page.url).removeprefix("file://")).read_text(encoding="utf-8")
