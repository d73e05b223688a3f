"""Tests of the logged model as MLflow's: a real server, a real Spark, and the probabilities that Firn itself computes."""

import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
from helpers.images.poison import scan_bomb
from helpers.models.logged_models import (
    client_of,
    free_port,
    post,
    registry_in,
    running,
    runs_of,
    train_model,
    write_clusters,
)
from helpers.tables.building import read_rows, recipe, stacked
from mlflow.exceptions import MlflowException
from numpy.typing import NDArray
from pyspark.sql import SparkSession

from featurize.decoding.decoder_process import DecoderPool
from featurize.jobs.run import featurize
from featurize.recipes.recipe import RegistrySettings
from finetune.models.folder import load_model
from finetune.networks.forward import predict_probabilities
from finetune.registry.log_model import log_fit
from finetune.registry.versions import logged_model_of

pytestmark = [
    pytest.mark.spark,
    pytest.mark.slow,
    pytest.mark.usefixtures("own_registry"),
]
NETWORKS = ("head", "pixels")


class Logged:
    """A model on the photos, where it was logged, and what it gives for each photo."""

    def __init__(self, folder: Path, features: Path, **registry: Any) -> None:
        self.settings: RegistrySettings = registry_in(folder, **registry)
        self.card = train_model(features, folder / "model", learning_rate=0.1)
        logged = log_fit(str(folder / "model"), self.settings)
        assert logged is not None
        self.logged = logged
        rows = read_rows(features)
        self.paths = [Path(path.removeprefix("file:")) for path in rows.index]
        self.contents = [path.read_bytes() for path in self.paths]
        self.features = stacked(rows)
        network, _ = load_model(str(folder / "model"))
        pixels = self.card.features.feature_dtype == "uint8"
        given = (
            self.features.reshape(-1, *self.card.features.feature_shape).astype(np.uint8) if pixels else self.features
        )
        self.wanted = predict_probabilities(network, given)

    @property
    def path(self) -> str:
        """Where the MLflow model lies."""
        (run,) = runs_of(self.settings)
        model_id = logged_model_of(run)
        assert model_id is not None
        location: str = client_of(self.settings).get_logged_model(model_id).artifact_location
        return location

    def load(self) -> Any:
        return mlflow.pyfunc.load_model(self.path)

    def assert_right(self, answer: pd.DataFrame, rows: slice = slice(None)) -> None:
        """The probabilities are those of Firn to 1e-5, and the labels go with them."""
        found = probabilities_of(answer, self.card.classes)
        np.testing.assert_allclose(found, self.wanted[rows], atol=1e-5, rtol=0)
        assert list(answer["label"]) == [self.card.classes[best] for best in found.argmax(axis=1)]
        np.testing.assert_allclose(answer["probability"], found.max(axis=1))
        assert set(answer["error"]) == {""}


def probabilities_of(answer: pd.DataFrame, classes: list[str]) -> NDArray[Any]:
    return np.array([[row[label] for label in classes] for row in answer["probabilities"]])


@pytest.fixture(scope="module")
def logged(
    spark: SparkSession, photos: Path, small_backbone: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Logged]:
    """A head on the features of a small network, and a model on pixels; do not change what is in it."""
    folder = tmp_path_factory.mktemp("pyfunc")
    featurize(spark, recipe(photos, folder / "features", small_backbone, layer="mean"))
    featurize(spark, recipe(photos, folder / "small", "pixels", height=8, width=8))
    names = {"head": "features", "pixels": "small"}
    return {key: Logged(folder / key, folder / name) for key, name in names.items()}


@pytest.mark.parametrize("key", NETWORKS)
def test_images_get_the_probabilities_of_firn(logged: dict[str, Logged], key: str) -> None:
    model = logged[key]
    model.assert_right(model.load().predict(pd.DataFrame({"image": model.contents})))
    assert model.wanted.std(axis=0).max() > 0.02
    assert model.logged.notice is None


def test_images_may_be_text_in_base64(logged: dict[str, Logged]) -> None:
    model = logged["head"].load()
    texts = [base64.b64encode(content).decode() for content in logged["head"].contents]
    logged["head"].assert_right(model.predict(pd.DataFrame({"image": texts})))
    urls = [f"data:image/png;base64,{text}" for text in texts[:3]]
    logged["head"].assert_right(model.predict(pd.DataFrame({"image": urls})), slice(3))


def test_features_do_as_well_as_images_for_a_head(logged: dict[str, Logged]) -> None:
    head = logged["head"]
    head.assert_right(head.load().predict(pd.DataFrame({"features": list(head.features.astype(float))})))
    head.assert_right(head.load().predict(pd.DataFrame({"features": [row.tolist() for row in head.features]})))


def test_an_image_on_which_decoding_hangs_costs_its_own_row(logged: dict[str, Logged]) -> None:
    """It is decoded in another process, which the kernel ends."""
    classifier = logged["head"].load()._model_impl
    model = replace(classifier, decoders=DecoderPool(2, timeout_s=1.0))
    answer = model.predict(pd.DataFrame({"image": [logged["head"].contents[0], scan_bomb(5000, 4000)]}))
    logged["head"].assert_right(answer[:1], slice(1))
    assert list(answer["error"]) == ["", "decoding took longer than 1 s"]
    assert classifier.decoders is not model.decoders
    model.decoders.close()


def test_an_image_that_cannot_be_read_gets_a_row_of_its_own(logged: dict[str, Logged]) -> None:
    head = logged["head"]
    contents = [head.contents[0], b"no image", b"", head.contents[1], head.contents[2][:200], None]
    answer = head.load().predict(pd.DataFrame({"image": contents}, index=list("abcdef")))
    assert list(answer.index) == list("abcdef")
    head.assert_right(answer.loc[["a", "d"]], slice(2))
    bad = answer.loc[["b", "c", "e", "f"]]
    assert set(bad["label"]) == {""}
    assert [len(row) for row in bad["probabilities"]] == [0] * 4
    text = "not an image in a known format, but a text file"
    reasons = [text, "the file is empty", "the PNG file is truncated", "there is no image"]
    assert list(bad["error"]) == reasons
    only_bad = head.load().predict(pd.DataFrame({"image": [b"no image"]}))
    assert list(only_bad["error"]) == reasons[:1]
    nothing = head.load().predict(pd.DataFrame({"image": [None, None]}))
    assert list(nothing["error"]) == ["there is no image"] * 2
    assert list(head.load().predict(pd.DataFrame({"image": []}, dtype=object)).columns) == list(only_bad.columns)


@pytest.mark.parametrize(
    ("key", "columns", "message"),
    [
        ("head", {"picture": [1], "size": [2]}, "must have the column 'image'"),
        ("head", {"features": [[1.0, 2.0]]}, "lists of 8 numbers. Got 2"),
        ("pixels", {"features": [[1.0, 2.0]]}, "image"),
    ],
)
def test_wrong_input_is_refused_in_words(
    logged: dict[str, Logged], key: str, columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(MlflowException, match=message):
        logged[key].load().predict(pd.DataFrame(columns))


@pytest.mark.parametrize("key", NETWORKS)
def test_spark_udf(spark: SparkSession, logged: dict[str, Logged], key: str) -> None:
    model = logged[key]
    rows = list(enumerate([bytearray(content) for content in model.contents]))
    frame = spark.createDataFrame([*rows, (len(rows), bytearray(b"no image"))], "number int, content binary")
    classify = mlflow.pyfunc.spark_udf(spark, model.path)
    answer = frame.repartition(3).withColumn("found", classify("content")).select("number", "found.*").toPandas()
    answer = answer.sort_values("number").reset_index(drop=True)
    model.assert_right(answer.iloc[:-1])
    assert answer.iloc[-1][["label", "error"]].tolist() == ["", "not an image in a known format, but a text file"]


def test_spark_udf_of_features(spark: SparkSession, logged: dict[str, Logged]) -> None:
    head = logged["head"]
    rows = [(number, row.tolist()) for number, row in enumerate(head.features)]
    frame = spark.createDataFrame(rows, "number int, features array<double>")
    classify = mlflow.pyfunc.spark_udf(spark, head.path)
    answer = frame.selectExpr("number", "struct(features) as given").withColumn("found", classify("given"))
    head.assert_right(answer.select("number", "found.*").toPandas().sort_values("number"))


def test_mlflow_models_serve_answers_for_posted_images(logged: dict[str, Logged], tmp_path: Path) -> None:
    head, port = logged["head"], free_port()
    arguments = ["models", "serve", "-m", head.path, "--env-manager", "local", "-h", "127.0.0.1", "-p", str(port)]
    texts = [base64.b64encode(content).decode() for content in head.contents]
    url = f"http://127.0.0.1:{port}/invocations"
    with running(arguments, tmp_path, f"http://127.0.0.1:{port}/ping"):
        status, answer = post(url, {"dataframe_split": {"columns": ["image"], "data": [[text] for text in texts]}})
        assert status == 200, answer
        head.assert_right(pd.DataFrame(answer["predictions"]))
        status, answer = post(url, {"dataframe_records": [{"image": texts[0]}, {"image": "bm8gaW1hZ2U="}]})
        assert status == 200, answer
        head.assert_right(pd.DataFrame(answer["predictions"][:1]), slice(1))
        assert answer["predictions"][1]["error"] == "not an image in a known format, but a text file"
        status, answer = post(
            url, {"dataframe_split": {"columns": ["features"], "data": [[head.features[0].tolist()]]}}
        )
        assert status == 200, answer
        head.assert_right(pd.DataFrame(answer["predictions"]), slice(1))
        status, answer = post(url, {"dataframe_split": {"columns": ["features"], "data": [[[1.0]]]}})
        assert (status, "lists of 8 numbers. Got 1" in answer) == (400, True), answer


def test_a_head_whose_backbone_is_gone_takes_features(tmp_path: Path) -> None:
    write_clusters(tmp_path / "set")
    train_model(tmp_path / "set", tmp_path / "model")
    settings = registry_in(tmp_path)
    logged = log_fit(str(tmp_path / "model"), settings)
    assert logged is not None
    assert "takes features, not images" in str(logged.notice)
    assert "does not say how the backbone was made" in str(logged.notice)
    (run,) = runs_of(settings)
    assert run.data.tags["firn.takes"] == "features"
    model = mlflow.pyfunc.load_model(client_of(settings).get_logged_model(str(logged_model_of(run))).artifact_location)
    network, card = load_model(str(tmp_path / "model"))
    features = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    answer = model.predict(pd.DataFrame({"features": list(features.astype(float))}))
    wanted = predict_probabilities(network, features)
    np.testing.assert_allclose(probabilities_of(answer, card.classes), wanted, atol=1e-5, rtol=0)
    with pytest.raises(MlflowException, match="features"):
        model.predict(pd.DataFrame({"image": [b"content"]}))


def test_a_head_may_be_logged_without_its_backbone(
    spark: SparkSession, photos: Path, small_backbone: Path, tmp_path: Path
) -> None:
    featurize(spark, recipe(photos, tmp_path / "features", small_backbone, layer="mean"))
    head = Logged(tmp_path / "head", tmp_path / "features", backbone=False)
    assert head.logged.notice is None
    head.assert_right(head.load().predict(pd.DataFrame({"features": list(head.features.astype(float))})))
    assert not list((tmp_path / "head" / "mlartifacts").rglob("backbone.keras"))
