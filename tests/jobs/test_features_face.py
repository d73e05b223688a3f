"""Tests of what `import featurize` offers: feature sets as pandas, NumPy and Spark, with corrected labels."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.tables.building import Built, read_rows, stacked, write_recipe
from helpers.tables.building import recipe as recipe_of
from helpers.tables.feature_sets import image_ids, make_clusters, write_feature_set
from pyspark.sql import SparkSession

import featurize
from featurize.jobs.features import FACTS
from finetune.evaluation.relabel import relabel

HEAVY = ("pyspark", "tensorflow", "keras", "pyarrow", "pandas", "PIL")
PROGRAM = """
import json, sys
{statement}
print(json.dumps([name for name in {heavy!r} if name in sys.modules]))
"""


@pytest.fixture
def corrected(built: Built, tmp_path: Path) -> tuple[featurize.Features, str]:
    """A copy of the feature set in which one red image of train was relabelled blue, and the path of this image."""
    folder = tmp_path / "corrected"
    shutil.copytree(built.folder, folder)
    rows = featurize.open_features(folder).to_pandas("train")
    image = rows[rows["label"] == "red"].iloc[0]
    table = tmp_path / "labels.csv"
    table.write_text(f"image_id,label\n{image['image_id']},blue\n")
    assert relabel(str(table), str(folder), reason="looked at it").corrected == 1
    return featurize.open_features(folder), image["path"]


@pytest.mark.parametrize("module", ["featurize", "featurize.__main__", "finetune", "finetune.__main__"])
def test_importing_a_package_or_its_command_loads_nothing_heavy(module: str) -> None:
    program = PROGRAM.format(statement=f"import {module}", heavy=HEAVY)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(ended.stdout) == []


def test_every_name_is_there_and_no_other() -> None:
    for name in featurize.__all__:
        assert getattr(featurize, name) is not None
        assert name in dir(featurize)
    with pytest.raises(AttributeError, match="'featurize' has no attribute 'featurise'"):
        _ = featurize.featurise


def test_reading_searching_and_describing_take_neither_spark_nor_tensorflow(built: Built) -> None:
    path = read_rows(built.folder).index[0]
    statement = (
        f"import featurize; features = featurize.open_features({str(built.folder)!r}); features.to_pandas(); "
        f"features.to_numpy('train'); features.similar({path!r}, k=3)._repr_html_(); repr(features)"
    )
    program = PROGRAM.format(statement=statement, heavy=HEAVY[:3])
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(ended.stdout) == []


@pytest.mark.spark
def test_pandas_has_every_row_with_its_split(built: Built) -> None:
    features = featurize.open_features(built.folder)
    frame = features.to_pandas()
    assert tuple(frame.columns) == (*FACTS, "features")
    assert list(frame.index) == list(range(60))
    assert (features.rows, sum(features.splits.values()), features.classes) == (60, 60, ["blue", "green", "red"])
    assert list(features.splits) == ["train", "validation", "test"]
    assert frame["split"].to_list() == [split for split, rows in features.splits.items() for _ in range(rows)]
    stored = read_rows(built.folder)
    ordered = frame.set_index("path").sort_index()
    pd.testing.assert_frame_equal(
        ordered.drop(columns="features"), stored[ordered.columns].drop(columns="features"), check_names=False
    )
    np.testing.assert_array_equal(stacked(ordered), stacked(stored))


@pytest.mark.spark
def test_numpy_has_the_rows_of_pandas_in_the_same_order(built: Built) -> None:
    features = featurize.open_features(str(built.folder))
    for split, rows in features.splits.items():
        x, y = features.to_numpy(split)
        assert (x.dtype.name, x.shape, y.dtype.name, y.shape) == ("float32", (rows, 3), "int32", (rows,))
        frame = features.to_pandas(split)
        np.testing.assert_array_equal(x, np.stack(frame["features"].to_list()))
        np.testing.assert_array_equal(y, frame["label_index"])
        assert [features.classes[index] for index in y] == frame["label"].to_list()
    some = features.to_pandas(split="test", columns=["split", "path"])
    assert list(some.columns) == ["split", "path"]
    assert some["path"].to_list() == features.to_pandas("test")["path"].to_list()
    assert set(features.to_pandas(columns=["split"])["split"]) == {"train", "validation", "test"}


def test_pixels_are_arrays_of_bytes(tmp_path: Path) -> None:
    images = np.random.default_rng(3).integers(0, 256, (40, 4, 5, 3), dtype=np.uint8)
    _, label_index = make_clusters(40)
    write_feature_set(tmp_path / "pixels", images, label_index)
    features = featurize.open_features(tmp_path / "pixels")
    frame = features.to_pandas("train")
    x, y = features.to_numpy("train")
    assert (x.dtype.name, x.shape) == ("uint8", (24, 4, 5, 3))
    numbers = [image_ids(40).index(image_id) for image_id in frame["image_id"]]
    np.testing.assert_array_equal(x, images[numbers])
    np.testing.assert_array_equal(y, label_index[numbers])
    np.testing.assert_array_equal(np.stack(frame["features"].to_list()), x)


@pytest.mark.spark
def test_spark_has_the_same_rows(spark: SparkSession, built: Built) -> None:
    features = featurize.open_features(built.folder)
    frame = features.to_spark(spark)
    assert tuple(frame.columns) == (*FACTS, "features")
    columns = list(FACTS)
    there = frame.select(*columns).toPandas().sort_values("path", ignore_index=True)
    pd.testing.assert_frame_equal(
        there, features.to_pandas(columns=columns).sort_values("path", ignore_index=True), check_dtype=True
    )
    assert features.to_spark(split="test").select("split").distinct().collect()[0].split == "test"
    assert features.to_spark(spark, split="test").count() == features.splits["test"]


@pytest.mark.spark
def test_corrected_labels_are_read_everywhere(spark: SparkSession, corrected: tuple[featurize.Features, str]) -> None:
    features, path = corrected
    frame = features.to_pandas()
    row = frame[frame["path"] == path].iloc[0]
    assert (row["label"], row["label_index"]) == ("blue", 0)
    _, y = features.to_numpy("train")
    assert y[int(np.flatnonzero(features.to_pandas("train")["path"] == path)[0])] == 0
    in_spark = features.to_spark(spark).where(f"path = '{path}'").first()
    assert in_spark is not None
    assert (in_spark.label, in_spark.label_index, in_spark.split) == ("blue", 0, "train")
    other = frame[frame["path"] != path].iloc[0]["path"]
    assert {image.path: image.label for image in features.similar(other, k=59).images}[path] == "blue"
    assert "1 of 60 corrected" in repr(features)
    assert features.describe().as_dict()["corrected_labels"] == 1
    featurize.register_views(spark, features=features)
    asked = spark.sql(f"SELECT label FROM features WHERE path = '{path}'").first()
    assert asked is not None
    assert asked.label == "blue"


@pytest.mark.spark
def test_wrong_splits_and_columns_name_what_is_allowed(built: Built) -> None:
    features = featurize.open_features(built.folder)
    for call in (features.to_pandas, features.to_numpy, lambda split: features.to_spark(split=split)):
        with pytest.raises(featurize.UsageError, match=r"`split` must be one of train, validation, test.*Got 'dev'"):
            call("dev")
    with pytest.raises(featurize.UsageError, match=r"`columns` must be among image_id, path, .*Got 'feature'"):
        features.to_pandas(columns=["path", "feature"])
    with pytest.raises(featurize.UsageError, match="each once"):
        features.to_pandas(columns=["path", "path"])
    with pytest.raises(featurize.UsageError, match=r"not a feature set"):
        featurize.open_features(built.folder / "data")
    with pytest.raises(featurize.UsageError, match=r"`metric` must be one of cosine, euclidean"):
        features.similar("x", metric="manhattan")  # type: ignore[arg-type]
    with pytest.raises(featurize.UsageError, match=r"`k` must be in \[1, 10000\]. Got 0"):
        features.similar("x", k=0)


@pytest.mark.spark
def test_similar_images_are_a_table_with_thumbnails(built: Built, photos: Path) -> None:
    path = next((photos / "red").glob("*.png"))
    similar = featurize.open_features(built.folder).similar(path, k=4)
    frame = similar.to_pandas()
    assert list(frame["rank"]) == [1, 2, 3, 4]
    assert frame["distance"].is_monotonic_increasing
    assert similar.images == featurize.find_similar(built.folder, str(path), k=4).images
    shown = repr(similar)
    html = similar._repr_html_()
    for name in frame["path"]:
        assert Path(name).name in shown
        assert Path(name).name in html
    assert html.count("data:image/jpeg;base64,") == 5  # the four, and the query image


@pytest.mark.spark
def test_a_set_is_shown_as_text_and_as_html(built: Built) -> None:
    features = featurize.open_features(built.folder)
    for shown in (repr(features), features._repr_html_(), repr(featurize.describe(str(built.folder)))):
        for word in ("mean.keras at mean", "60 in 3 classes, 2 rejects", "validation", "green", "empty"):
            assert word in shown
    assert "\x1b" not in repr(features)
    assert features._repr_html_().count("<table") == 3


@pytest.mark.spark
def test_run_uses_the_session_that_it_is_given_and_leaves_it(
    spark: SparkSession, photos: Path, mean_backbone: Path, built: Built, tmp_path: Path
) -> None:
    path = write_recipe(tmp_path / "recipe.toml", source="elsewhere", url=tmp_path / "x", backbone=mean_backbone)
    overrides = {"images.source": str(photos), "images.max_reject_fraction": 0.5}
    features = featurize.run(path, spark=spark, overrides={**overrides, "features.url": str(tmp_path / "set")})
    assert features.url == f"file://{tmp_path}/set"
    assert features.build is not None
    assert (features.build.added, features.build.rejected, features.rows) == (60, 2, 60)
    assert spark.range(7).count() == 7
    again = featurize.run(
        featurize.read_recipe(path, overrides), overrides={"features.url": str(tmp_path / "set")}
    )  # in the active session
    assert again.build is not None
    assert (again.build.added, again.build.skipped) == (0, 62)
    assert again == features == featurize.open_features(tmp_path / "set")
    assert spark.range(7).count() == 7
    assert features.manifest.content_digest == built.manifest.content_digest
    sections = recipe_of(photos, tmp_path / "set", mean_backbone).model_dump(exclude_none=True)
    assert featurize.run(sections, spark=spark).rows == 60


def test_a_wrong_recipe_is_refused_before_a_session_is_made(tmp_path: Path) -> None:
    program = (
        "import sys, featurize\ntry: featurize.run({'images': {'source': 'x'}})\n"
        "except featurize.UsageError as error: print(error)\n"
        "from pyspark import SparkContext; assert SparkContext._active_spark_context is None"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout.startswith("the recipe: ")
    assert "[backbone], [features]" in ended.stdout
    with pytest.raises(featurize.UsageError, match=r"dotted keys such as `images.source`. Got 'images..x'"):
        featurize.read_recipe({}, {"images..x": 1})


@pytest.mark.spark
def test_ingest_packs_a_card_and_its_table_is_read(
    spark: SparkSession, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    card = {"name": "mine", "title": "Mine", "licence": "CC0-1.0", "layout": "folders", "expect": {"images": 70}}
    images = featurize.ingest(card, tmp_path / "images", spark=spark, source=photos, max_reject_fraction=0.1)
    assert (images.rows, images.classes, images.manifest.reject_count) == (60, ["blue", "green", "red"], 2)
    assert images == featurize.open_images(str(tmp_path / "images"))
    assert "the card expects 70 images; there are 62." in caplog.text
    frame = images.to_pandas("test")
    assert len(frame) == images.splits["test"]
    assert "content" not in frame
    content = images.to_pandas(columns=["path", "content"])
    assert all(
        Path(path.removeprefix("file://")).read_bytes() == data for path, data in content.itertuples(index=False)
    )
    assert images.to_spark(spark).where("split = 'test'").count() == images.splits["test"]
    for shown in (repr(images), images._repr_html_()):
        assert "60 in 3 classes" in shown
    names = featurize.register_views(spark, images=images, tables={"other": tmp_path / "images"})
    assert names == ["images", "rejects", "other"]
    joined = spark.sql("SELECT count(*) AS n FROM images JOIN other USING (path)").first()
    assert joined is not None
    assert joined.n == 60
    with pytest.raises(featurize.UsageError, match="no table is named"):
        featurize.register_views(spark)
    with pytest.raises(featurize.UsageError, match="is not an images table"):
        featurize.open_images(tmp_path)
    with pytest.raises(featurize.UsageError, match=r"`max_reject_fraction` must be in \[0, 1\]. Got 2"):
        featurize.ingest(card, tmp_path / "more", spark=spark, max_reject_fraction=2)
