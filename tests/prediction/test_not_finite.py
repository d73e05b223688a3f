"""Where a network gives NaN, an image has no label: a reject or a reason, by every way in which labels are given."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.tables.predictions import Trained, predicted, read_predictions, read_rejects
from PIL import Image
from pyspark.sql import SparkSession

import finetune
from finetune.models.folder import ModelCard, load_model, save_model
from finetune.networks.forward import FEATURES_NOT_FINITE, NOT_FINITE, is_finite
from finetune.prediction.threshold import _best, find_threshold
from finetune.prediction.transformer import ImageClassifier
from finetune.prediction.udf import register
from finetune.registry.pyfunc_model import Classifier

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module")
def dazzled(trained: dict[str, Trained], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model on pixels whose sums overflow where an image is white; for other images it gives numbers."""
    import keras

    folder = tmp_path_factory.mktemp("dazzled")
    network, card = load_model(str(trained["pixels"].folder))
    dense = next(layer for layer in reversed(network.layers) if layer.trainable_variables)
    before = keras.Model(network.input, dense.input)
    brightest = float(np.asarray(before(np.full((1, 12, 12, 3), 255, np.uint8))).sum())
    kernel, bias = dense.get_weights()
    kernel[:], kernel[:, 0] = 0, 3.4e38 / (0.9 * brightest)
    dense.set_weights([kernel, 0 * bias])
    fields = {name: value for name, value in card.model_dump().items() if "network_sha256" not in name}
    saved = save_model(str(folder), network, last_weights=[*map(np.asarray, network.trainable_variables)], **fields)
    assert isinstance(saved, ModelCard)
    return folder


@pytest.fixture(scope="module")
def images(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photos and a white picture."""
    folder = tmp_path_factory.mktemp("images")
    for path in sorted((photos / "blue").glob("*.png"))[:3]:
        (folder / path.name).write_bytes(path.read_bytes())
    Image.new("RGB", (30, 30), "white").save(folder / "white.png")
    return folder


@pytest.mark.slow
def test_in_a_table_it_is_a_reject_with_a_reason(
    spark: SparkSession, dazzled: Path, images: Path, tmp_path: Path
) -> None:
    result = predicted(spark, dazzled, tmp_path / "out", images=images)
    assert (result.added, result.rejected) == (3, 1)
    rows = read_predictions(tmp_path / "out")
    assert np.isfinite(rows["probability"]).all()
    (partition,) = (tmp_path / "out").glob("model_id=*")
    rejects = read_rejects(partition)
    assert list(rejects.index) == ["white.png"]
    assert tuple(rejects.iloc[0][["stage", "error"]]) == ("compute", NOT_FINITE)
    assert len(rejects.iloc[0]["image_id"]) == 64
    assert predicted(spark, dazzled, tmp_path / "out", images=images).skipped == 4  # the reject is known


@pytest.mark.slow
def test_in_sql_and_in_a_pipeline_there_is_a_reason_and_no_label(
    spark: SparkSession, dazzled: Path, images: Path
) -> None:
    rows = [(path.name, bytearray(path.read_bytes())) for path in sorted(images.iterdir())]
    frame = spark.createDataFrame(rows, "path string, content binary")
    of_sql = frame.withColumn("prediction", register(spark, "classify", str(dazzled))("content"))
    of_stage = ImageClassifier(model=str(dazzled)).transform(frame)
    for answers in (of_sql, of_stage):
        found = answers.select("path", "prediction.*").toPandas().set_index("path")
        assert list(found["reason"].isna()) == [True, True, True, False]
        white = found.loc["white.png"]
        assert white["reason"] == NOT_FINITE
        assert white[["label", "probability", "top_labels", "top_probabilities"]].isna().all()
        assert found["label"].notna().sum() == 3


@pytest.mark.slow
def test_features_that_are_nan_get_a_reason_too(spark: SparkSession, trained: dict[str, Trained]) -> None:
    head = trained["head"].folder
    good, bad = [1.0] * 8, [1.0] * 7 + [float("inf")]
    frame = spark.createDataFrame([(1, good), (2, bad)], "number int, features array<float>")
    rows = frame.withColumn("found", register(spark, "of", str(head), of="features")("features")).select("found.*")
    assert [row["reason"] for row in rows.collect()] == [None, FEATURES_NOT_FINITE]
    found = finetune.predict(head, np.array([good, bad, [np.nan] * 8], np.float32))
    assert list(found["error"]) == [None, FEATURES_NOT_FINITE, FEATURES_NOT_FINITE]
    assert list(found["label"].notna()) == [True, False, False]


def test_in_this_process_and_in_mlflow_it_is_an_error_of_the_image(dazzled: Path, images: Path) -> None:
    paths = sorted(images.iterdir())
    found = finetune.predict(dazzled, paths)
    assert list(found["error"]) == [None, None, None, NOT_FINITE]
    assert found["probability"].notna().sum() == found["label"].notna().sum() == 3

    network, card = load_model(str(dazzled))
    served = Classifier(card.classes, network, spec=None, forward=None, feature_dim=432)
    probabilities = np.asarray(network(np.full((1, 12, 12, 3), 255, np.uint8)))
    assert not np.isfinite(probabilities).all()
    assert served._answer(probabilities[0]) == ("", 0.0, {}, NOT_FINITE)


def test_served_features_that_are_nan_get_an_error(trained: dict[str, Trained]) -> None:
    network, card = load_model(str(trained["head"].folder))
    served = Classifier(card.classes, network, spec=None, forward=None, feature_dim=8)
    found = served.predict(pd.DataFrame({"features": [[1.0] * 8, [float("nan")] * 8]}))
    assert list(found["error"]) == ["", FEATURES_NOT_FINITE]
    assert list(found["label"] != "") == [True, False]


def test_a_row_is_finite_where_all_of_it_is() -> None:
    rows = np.array([[1, 2], [np.inf, 1], [0, -np.inf], [np.nan, np.nan]])
    assert list(is_finite(rows)) == [True, False, False, False]
    assert is_finite(np.empty((0, 3))).shape == (0,)
    assert list(is_finite(np.zeros((2, 3, 4), np.uint8))) == [True, True]


def test_a_threshold_is_found_among_the_images_that_get_an_answer() -> None:
    probabilities = np.array([[0.9, 0.1], [np.nan, np.nan], [0.2, 0.8], [np.inf, 0]], np.float32)
    best, right = _best(probabilities, np.array([0, 0, 0, 0], np.int32))
    np.testing.assert_allclose(best, [0.9, 0.8], rtol=1e-6)
    assert list(right) == [True, False]
    threshold = find_threshold(best, right, precision=1.0)
    assert threshold is not None
    assert 0.8 < threshold < 0.9
