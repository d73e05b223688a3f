"""Tests of `finetune.predict` and `finetune.register`: the same answers here, in Spark, and in a published table."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.tables.predictions import Trained
from pyspark.sql import SparkSession

import featurize
import finetune
from featurize import storage
from finetune.api.model import Model

pytestmark = [
    pytest.mark.spark,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.usefixtures("own_registry"),
]
ANSWERS = ["label", "probability", "top_labels", "top_probabilities", "reason"]


def assert_same_answers(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    assert list(found["label"]) == list(wanted["label"])
    assert [list(each) for each in found["top_labels"]] == [list(each) for each in wanted["top_labels"]]
    for name in ("probability", "top_probabilities"):
        ours, theirs = (
            np.stack([np.atleast_1d(each) for each in frame[name]]).astype(float) for frame in (found, wanted)
        )
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("key", ["head", "pixels", "unfrozen"])
def test_lists_spark_frames_and_tables_get_the_same_answers(
    spark: SparkSession, trained: dict[str, Trained], photos: Path, tmp_path: Path, key: str
) -> None:
    model = finetune.load_model(trained[key].folder)
    table = finetune.predict(model, photos, output=tmp_path / "out", spark=spark, max_reject_fraction=0.5)
    wanted = table.to_pandas().set_index("path").sort_index()
    assert (len(wanted), table.rows, table.threshold) == (60, 60, None)
    paths = [path.removeprefix("file://") for path in wanted.index]

    here = finetune.predict(model, paths)
    assert list(here["path"]) == paths
    assert here["error"].isna().all()
    assert_same_answers(here, wanted)
    by_bytes = model.predict([Path(path).read_bytes() for path in paths])
    assert list(by_bytes.columns) == [*ANSWERS, "error"]
    pd.testing.assert_frame_equal(by_bytes[ANSWERS], here[ANSWERS])
    frame = spark.read.format("binaryFile").option("recursiveFileLookup", "true").load(str(photos))
    rows = finetune.predict(model, frame).select("path", "prediction.*").toPandas()
    by_path = rows.assign(path=[storage.absolute_url(path) for path in rows["path"]]).set_index("path")
    assert_same_answers(by_path.loc[wanted.index], wanted)
    assert spark.range(2).count() == 2


@pytest.mark.parametrize("key", ["head", "pixels"])
def test_features_as_arrays_and_frames_get_what_images_get(
    spark: SparkSession, trained: dict[str, Trained], key: str
) -> None:
    model = trained[key]
    features = featurize.open_features(model.features)
    x, _ = features.to_numpy("train")
    frame = features.to_pandas("train", columns=["path", "features"]).set_index("path", drop=False)
    by_array, by_frame = finetune.predict(model.folder, x), finetune.predict(model.folder, frame)
    assert list(by_frame.index) == list(frame.index)
    pd.testing.assert_frame_equal(by_frame.reset_index(drop=True)[ANSWERS], by_array[ANSWERS])
    by_images = finetune.predict(model.folder, list(frame["path"]))
    assert_same_answers(by_array, by_images)
    in_spark = (
        finetune.predict(model.folder, features.to_spark(spark, "train")).select("path", "prediction.*").toPandas()
    )
    assert_same_answers(in_spark.set_index("path").loc[frame.index], by_array)


def test_an_image_that_cannot_be_read_is_a_row_with_an_error(trained: dict[str, Trained], photos: Path) -> None:
    good = sorted((photos / "green").glob("*.png"))[0]
    given: list[str | Path | bytes] = [photos / "blue" / "notes.txt", good, b"", "no/such/file.png", photos]
    found = finetune.predict(trained["head"].folder, given)
    assert list(found["label"]) == [None, found["label"][1], None, None, None]
    assert found["label"][1] in trained["head"].card.classes
    assert list(found["path"]) == [str(value) if not isinstance(value, bytes) else None for value in given]
    assert found["error"].notna().tolist() == [True, False, True, True, True]
    assert found["error"][0] == "not an image in a known format, but a text file"
    assert "No such file" in found["error"][3]
    assert found["probability"].isna().tolist() == [True, False, True, True, True]
    frame = pd.DataFrame({"content": [good.read_bytes(), None]}, index=["one", "two"])
    of_frame = finetune.predict(trained["head"].folder, frame)
    assert list(of_frame.index) == ["one", "two"]
    assert list(of_frame["error"]) == [None, "there is no image"]
    assert finetune.predict(trained["head"].folder, []).empty


def test_below_the_target_precision_there_is_a_reason_and_no_label(model: Model) -> None:
    x, y = featurize.open_features(model.card.features.url).to_numpy("validation")
    all_labels, sure = model.predict(x), model.predict(x, target_precision=0.95)
    kept = sure["label"].notna().to_numpy()
    assert 0 < kept.sum() < len(x)
    assert list(sure["label"][kept]) == list(all_labels["label"][kept])
    right = np.array([model.classes.index(label) for label in sure["label"][kept]]) == y[kept]
    assert right.mean() >= 0.95
    assert sure["reason"][~kept].str.contains("the threshold for a precision of 0.95").all()
    assert sure["error"].isna().all()


def test_a_model_is_a_function_of_sql(spark: SparkSession, model: Model) -> None:
    features = featurize.open_features(model.card.features.url)
    features.to_spark(spark, "test").createOrReplaceTempView("rows_of_test")
    finetune.register(spark, "classify", model, of="features")
    rows = spark.sql("SELECT path, classify(features).label AS label FROM rows_of_test").toPandas().set_index("path")
    frame = features.to_pandas("test", columns=["path", "features"])
    assert list(rows.loc[frame["path"], "label"]) == list(model.predict(frame)["label"])


def test_what_is_wrong_with_a_call_is_said(spark: SparkSession, trained: dict[str, Trained], photos: Path) -> None:
    head, pixels = trained["head"].folder, trained["pixels"].folder
    frame = spark.createDataFrame([(1,)], "number int")
    for folder, given, message in (
        (head, str(photos), "`output` is required to label a folder"),
        (head, [1, 2], "a list of images must hold paths or bytes. Got int"),
        (head, {"a": 1}, "`images` must be a list of paths or bytes, .* Got dict"),
        (head, np.zeros((3, 5), np.float32), r"must be float32 \(n_images, 8\).* Got float32 \(3, 5\)"),
        (pixels, np.zeros((3, 12, 12, 3), np.float32), r"must be uint8 \(n_images, 12, 12, 3\).* Got float32"),
        (head, pd.DataFrame({"number": [1]}), "one of the columns features, content, image, path. Got number"),
        (head, frame, "must have the column features or content. Got number"),
    ):
        with pytest.raises(finetune.UsageError, match=message):
            finetune.predict(folder, given)  # type: ignore[arg-type]
    with pytest.raises(finetune.UsageError, match=r"`target_precision` must be in \(0, 1\]. Got 1.5"):
        finetune.predict(head, [], target_precision=1.5)
    with pytest.raises(finetune.UsageError, match="either `images` or `features` is required"):
        finetune.predict(head, output="out")
