"""Tests of a model in SQL and in Spark ML: the answers of `finetune predict`, and of the model that MLflow loads."""

import json
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
from helpers.images.photos import make_photos
from helpers.models.logged_models import train_model, write_clusters
from helpers.tables.predictions import Trained, predicted, read_predictions
from pyspark.ml import Pipeline, PipelineModel
from pyspark.sql import DataFrame, SparkSession

from featurize import storage
from featurize.errors import UsageError
from finetune.prediction.predict import ImageClassifier, register
from finetune.prediction.threshold import choose_threshold
from finetune.registry.pyfunc_saving import save_pyfunc

pytestmark = [
    pytest.mark.spark,
    pytest.mark.slow,
    pytest.mark.usefixtures("own_registry"),
]
KEYS = ("head", "pixels", "unfrozen")


def read_images(spark: SparkSession, folder: Path) -> DataFrame:
    """As users read images: with Spark's `binaryFile`."""
    return spark.read.format("binaryFile").option("recursiveFileLookup", "true").load(str(folder))


def by_path(frame: DataFrame) -> pd.DataFrame:
    """The rows of `frame`, by the URL of the image as Firn writes it."""
    rows = frame.toPandas()
    return rows.assign(path=[storage.absolute_url(path) for path in rows["path"]]).set_index("path").sort_index()


@pytest.mark.parametrize("key", KEYS)
def test_batch_sql_transformer_and_mlflow_give_the_same_answers(
    spark: SparkSession, trained: dict[str, Trained], photos: Path, tmp_path: Path, key: str
) -> None:
    model = trained[key]
    predicted(spark, model.folder, tmp_path / "out", images=photos)
    wanted = read_predictions(tmp_path / "out")
    images = read_images(spark, photos)

    register(spark, "classify", str(model.folder))
    images.createOrReplaceTempView("images")
    in_sql = by_path(spark.sql("SELECT path, found.* FROM (SELECT path, classify(content) AS found FROM images)"))
    stage = ImageClassifier(model=str(model.folder), outputCol="found")
    in_pipeline = by_path(Pipeline(stages=[stage]).fit(images).transform(images).select("path", "found.*"))
    save_pyfunc(str(model.folder), model.card, tmp_path / "logged")
    paths = [str(path.removeprefix("file://")) for path in wanted.index]
    contents = [Path(path).read_bytes() for path in paths]
    logged = mlflow.pyfunc.load_model(str(tmp_path / "logged")).predict(pd.DataFrame({"image": contents}))

    assert len(in_sql) == len(in_pipeline) == len(wanted) + 1  # the text file; Spark passes over empty files
    for found in (in_sql, in_pipeline):
        assert_same_answers(found.loc[wanted.index], wanted)
        unreadable = found.drop(index=wanted.index)
        assert unreadable[["label", "probability", "top_labels", "top_probabilities"]].isna().all(axis=None)
        assert sorted(unreadable["reason"]) == ["not an image in a known format, but a text file"]
        assert set(found["model_id"]) == {model.card.model_id}
    assert list(logged["label"]) == list(wanted["label"])
    np.testing.assert_allclose(logged["probability"], wanted["probability"], atol=1e-5, rtol=0)
    for labels, values, probabilities in zip(
        wanted["top_labels"], wanted["top_probabilities"], logged["probabilities"], strict=True
    ):
        np.testing.assert_allclose([probabilities[label] for label in labels], values, atol=1e-5, rtol=0)


def assert_same_answers(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    assert list(found["label"]) == list(wanted["label"])
    assert found["reason"].isna().all()
    np.testing.assert_allclose(found["probability"].astype(float), wanted["probability"], atol=1e-5, rtol=0)
    names = ["top_labels", "top_probabilities"]
    for (labels, values), (wanted_labels, wanted_values) in zip(
        found[names].to_numpy(), wanted[names].to_numpy(), strict=True
    ):
        assert list(labels) == list(wanted_labels)
        np.testing.assert_allclose(values, wanted_values, atol=1e-5, rtol=0)


@pytest.mark.parametrize("key", KEYS)
def test_features_in_sql_get_what_images_get(spark: SparkSession, trained: dict[str, Trained], key: str) -> None:
    model = trained[key]
    rows = spark.read.parquet(str(model.features / "data"))
    classify = register(spark, "of_features", str(model.folder), of="features")
    found = by_path(rows.withColumn("found", classify("features")).select("path", "found.*"))
    wanted = model.wanted()
    probabilities = np.stack(wanted["probabilities"].to_list())
    assert list(found.index) == list(wanted.index)
    assert list(found["label"]) == [model.card.classes[best] for best in probabilities.argmax(axis=1)]
    np.testing.assert_allclose(found["probability"].astype(float), probabilities.max(axis=1), atol=1e-5, rtol=0)


def test_rows_that_hold_nothing_get_a_reason(spark: SparkSession, trained: dict[str, Trained]) -> None:
    classify = register(spark, "classify", str(trained["head"].folder))
    frame = spark.createDataFrame([(1, None), (2, bytearray(b"x"))], "number int, content binary")
    rows = frame.withColumn("found", classify("content")).select("number", "found.*").orderBy("number").collect()
    assert [row["reason"] for row in rows] == ["there is no image", "not an image in a known format, but a text file"]
    assert frame.limit(0).select(classify("content")).count() == 0
    of_features = register(spark, "of_features", str(trained["head"].folder), of="features")
    frame = spark.createDataFrame([(1, None), (2, [1.0, 2.0])], "number int, features array<double>")
    rows = frame.withColumn("found", of_features("features")).select("number", "found.*").orderBy("number").collect()
    assert [row["reason"] for row in rows] == ["there are no features", "expected 8 features, got 2"]


def test_two_models_in_one_query(spark: SparkSession, trained: dict[str, Trained], tmp_path: Path) -> None:
    make_photos(tmp_path, per_class=4)
    for key in ("head", "pixels"):
        register(spark, f"by_{key}", str(trained[key].folder))
    read_images(spark, tmp_path).createOrReplaceTempView("images")
    found = spark.sql("SELECT by_head(content).model_id AS one, by_pixels(content).model_id AS other FROM images")
    assert {tuple(row) for row in found.collect()} == {tuple(trained[key].card.model_id for key in ("head", "pixels"))}


def test_every_image_is_decoded_and_computed_once_whatever_is_taken_of_the_answer(
    spark: SparkSession, trained: dict[str, Trained], photos: Path
) -> None:
    register(spark, "classify", str(trained["head"].folder))
    read_images(spark, photos).createOrReplaceTempView("images")
    plan = spark.sql("SELECT classify(content).label, classify(content).probability FROM images WHERE length > 0")
    text = plan._sc._jvm.PythonSQLUtils.explainString(plan._jdf.queryExecution(), "simple")  # type: ignore[union-attr]
    (evaluation,) = [line for line in text.splitlines() if "ArrowEvalPython" in line]
    assert evaluation.count("classify(") == 1


def test_a_saved_pipeline_labels_again(
    spark: SparkSession, trained: dict[str, Trained], photos: Path, tmp_path: Path
) -> None:
    images = read_images(spark, photos)
    stage = ImageClassifier(model=str(trained["head"].folder)).setParams(inputCol="content", outputCol="found")
    Pipeline(stages=[stage]).fit(images).write().overwrite().save(str(tmp_path / "pipeline"))
    loaded = PipelineModel.load(str(tmp_path / "pipeline"))
    first, again = (by_path(model.transform(images).select("path", "found.label")) for model in (stage, loaded))
    pd.testing.assert_frame_equal(first, again)


def test_a_wanted_precision_makes_it_abstain(spark: SparkSession, tmp_path: Path) -> None:
    card = train_model(write_clusters(tmp_path / "set"), tmp_path / "model", epochs=20)
    rows = spark.read.parquet(str(tmp_path / "set" / "data"))
    stage = ImageClassifier(
        model=str(tmp_path / "model"), inputCol="features", outputCol="found", of="features", target_precision=0.95
    )
    found = by_path(stage.transform(rows).select("path", "found.*"))
    threshold = choose_threshold(str(tmp_path / "model"), card, target_precision=0.95)
    is_kept = found["probability"] >= threshold.threshold
    assert 0 < is_kept.sum() < len(found)
    assert (found["label"].notna() == is_kept).all()
    assert set(found["reason"].dropna()) == {threshold.reason}


def test_what_is_wrong_with_a_call_is_said(spark: SparkSession, trained: dict[str, Trained], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no model"):
        register(spark, "classify", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="must be images or features"):
        register(spark, "classify", str(trained["head"].folder), of="text")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_stage_that_version_0_1_saved_is_loaded_with_its_precision(spark: SparkSession, tmp_path: Path) -> None:
    ImageClassifier(model="flowers@champion", target_precision=0.9).write().save(str(tmp_path / "stage"))
    (part,) = (tmp_path / "stage" / "metadata").glob("part-*")
    old = part.read_text().replace("finetune.prediction.transformer", "finetune.predict_transformer")
    old = old.replace("target_precision", "precision")
    assert old.count('"precision"') == 2  # its value and its default
    rewritten = tmp_path / "of-0.1" / "metadata"
    rewritten.mkdir(parents=True)
    (rewritten / "part-00000").write_text(old)
    loaded = ImageClassifier.load(str(tmp_path / "of-0.1"))
    assert (loaded.getOrDefault("model"), loaded.getOrDefault("target_precision")) == ("flowers@champion", 0.9)
    assert loaded.uid == json.loads(old)["uid"]
