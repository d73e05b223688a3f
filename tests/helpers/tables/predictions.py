"""Models on drawn photos, and predictions made by Spark and read back; for the tests."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyspark.sql import SparkSession

from featurize import storage
from featurize.building.build import BuildResult
from featurize.jobs.run import featurize
from featurize.recipes.recipe import FinetuneRecipe
from featurize.recipes.toml_settings import check_settings
from featurize.tables.manifests import PredictionsManifest
from featurize.tables.predictions import partition_url, read_views
from featurize.tables.publication import read_manifest
from finetune.models.folder import ModelCard, load_model
from finetune.networks.forward import predict_probabilities
from finetune.prediction.predict import plan_prediction, predict
from finetune.ranks.communicator import SingleRank
from finetune.training.plan import plan_training
from finetune.training.train import train
from helpers.models.logged_models import train_model
from helpers.tables.building import read_rows, recipe, stacked


@dataclass(frozen=True)
class Trained:
    """A model on photos, and what `finetune evaluate` would compute of each."""

    folder: Path
    features: Path
    card: ModelCard

    def wanted(self) -> pd.DataFrame:
        """By path: `image_id`, `true`, `split`, and the probabilities in the order of the classes."""
        rows = read_rows(self.features)
        given = stacked(rows)
        if self.card.features.feature_dtype == "uint8":
            given = given.reshape(-1, *self.card.features.feature_shape).astype(np.uint8)
        network, _ = load_model(str(self.folder))
        found = list(predict_probabilities(network, given))
        return rows[["image_id", "label", "split"]].rename(columns={"label": "true"}).assign(probabilities=found)


def train_on_photos(spark: SparkSession, photos: Path, backbone: Path, folder: Path) -> dict[str, Trained]:
    """A head on features of a small network, a ConvNet-like model on pixels, and the head with its backbone unfrozen."""
    featurize(spark, recipe(photos, folder / "features", backbone, layer="mean"))
    featurize(spark, recipe(photos, folder / "pixels", "pixels", height=12, width=12))
    card = train_model(folder / "features", folder / "head", learning_rate=0.1)
    trained = {"head": Trained(folder / "head", folder / "features", card)}
    card = train_model(folder / "pixels", folder / "on-pixels", learning_rate=0.1)
    trained["pixels"] = Trained(folder / "on-pixels", folder / "pixels", card)
    whole = train(plan_training(_unfrozen(folder), ranks=1), SingleRank())
    assert whole is not None
    trained["unfrozen"] = Trained(folder / "unfrozen", folder / "pixels", whole)
    return trained


def _unfrozen(folder: Path) -> FinetuneRecipe:
    model = {"name": "unfrozen", "url": str(folder / "unfrozen"), "head": str(folder / "head"), "unfreeze_from": "conv"}
    training = {"epochs": 2, "batch_size": 32, "learning_rate": 0.002}
    document = {"features": {"url": str(folder / "pixels")}, "model": model, "training": training}
    return check_settings(FinetuneRecipe, document, origin="test")


def predicted(
    spark: SparkSession, model: Path, output: Path, *, max_reject_fraction: float = 1.0, **given: Any
) -> BuildResult:
    """What `finetune predict` does; `given` is `images` or `features`, and what else `plan_prediction` takes."""
    given = {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
    plan = plan_prediction(str(model), str(output), **given)
    made = predict(spark, plan, max_reject_fraction=max_reject_fraction)
    assert made.views_fault is None
    return made.result


def read_predictions(output: Path | str) -> pd.DataFrame:
    """All rows that the manifests below `output`, a folder or a URL, list, by path, with their model."""
    parts = list[pd.DataFrame]()
    for model_id, manifest in read_views(str(output)).manifests.items():
        for file in manifest.files:
            with storage.open_input(storage.join_url(partition_url(str(output), model_id), file.path)) as opened:
                parts.append(pq.ParquetFile(opened).read().to_pandas().assign(model_id=model_id))
    return pd.concat(parts).set_index("path").sort_index()


def manifest_of(folder: Path) -> PredictionsManifest:
    manifest = read_manifest(str(folder))
    assert isinstance(manifest, PredictionsManifest)
    return manifest


def read_rejects(folder: Path) -> pd.DataFrame:
    """The rejects of one model's predictions, by the names of the files."""
    tables: list[pd.DataFrame] = [
        pq.ParquetFile(folder / file.path).read().to_pandas() for file in manifest_of(folder).reject_files
    ]
    return (
        pd.concat(tables).assign(name=lambda rows: rows["path"].str.rpartition("/")[2]).set_index("name").sort_index()
    )


def assert_same_predictions(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """Equal rows; when they were made may differ, and probabilities by rounding."""
    numbers = ["probability", "top_probabilities"]
    rest = ["image_id", "label", "reason", "model_id"]
    pd.testing.assert_frame_equal(one[rest], other[rest])
    for name in numbers:
        np.testing.assert_allclose(_stack(one[name]), _stack(other[name]), atol=1e-5, rtol=0)


def assert_right(rows: pd.DataFrame, wanted: pd.DataFrame, classes: list[str]) -> None:
    """The rows of one model's predictions are those of `Trained.wanted`: labels, and probabilities to 1e-5."""
    assert list(rows.index) == list(wanted.index)
    assert list(rows["image_id"]) == list(wanted["image_id"])
    probabilities = np.stack(wanted["probabilities"].to_list())
    assert list(rows["label"]) == [classes[best] for best in probabilities.argmax(axis=1)]
    np.testing.assert_allclose(rows["probability"], probabilities.max(axis=1), atol=1e-5, rtol=0)
    for labels, found, row in zip(rows["top_labels"], rows["top_probabilities"], probabilities, strict=True):
        by_label = dict(zip(classes, row, strict=True))
        np.testing.assert_allclose(found, sorted(row, reverse=True)[:5], atol=1e-5, rtol=0)
        np.testing.assert_allclose([by_label[label] for label in labels], found, atol=1e-5, rtol=0)


def _stack(column: pd.Series) -> NDArray[Any]:
    return np.stack([np.atleast_1d(value) for value in column])
