"""Tests of `finetune.check_data`, `finetune.check_drift` and `finetune.relabel`."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
from helpers.tables.drift_sets import draw_many, grey, publish, train_on_shapes
from helpers.tables.feature_sets import make_clusters, write_feature_set
from pyspark.sql import SparkSession

import featurize
import finetune

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture
def own_set(tmp_path: Path) -> Path:
    """A feature set whose labels may be corrected; 12 rows have a label that is wrong."""
    features, label_index = make_clusters(300)
    label_index[:12] = (label_index[:12] + 1) % 3
    write_feature_set(tmp_path / "set", features, label_index)
    return tmp_path / "set"


def test_check_data_finds_what_the_frames_say(own_set: Path, tmp_path: Path) -> None:
    found = finetune.check_data(featurize.open_features(own_set), output=tmp_path / "out")
    errors = found.label_errors
    assert len(errors) == len(found.quality.label_errors) > 0
    assert list(errors.columns[:4]) == ["path", "split", "given", "suggested"]
    assert (errors["given"] != errors["suggested"]).all()
    assert len(pd.read_csv(found.files["label_errors"])) == len(errors)
    assert len(found.duplicates) == len(found.quality.duplicates.pairs)
    assert set(found.leaks) == {"train", "validation", "test"}
    for shown in (repr(found), found._repr_html_()):
        assert errors["path"][0] in shown
        assert "exact duplicates" in shown


def test_check_data_writes_nothing_by_itself(own_set: Path) -> None:
    before = sorted(own_set.rglob("*"))
    assert finetune.check_data(own_set).files == {}
    assert sorted(own_set.rglob("*")) == before


@pytest.mark.spark
def test_labels_are_corrected_by_frames_mappings_and_files(own_set: Path, tmp_path: Path, spark: SparkSession) -> None:
    rows = featurize.open_features(own_set).to_pandas("train", columns=["image_id", "label"])
    ids, labels = list(rows["image_id"][:4]), sorted(set(rows["label"]))
    other = {row.image_id: labels[(labels.index(row.label) + 1) % 3] for row in rows[:4].itertuples()}
    frame = pd.DataFrame({"image_id": ids[:1], "label": [other[ids[0]]], "note": ["blurred"]})
    first = finetune.relabel(frame, own_set, reason="looked at it", by="Ada")
    assert (first.corrected, first.unchanged, first.number) == (1, 0, 1)
    finetune.relabel({ids[1]: other[ids[1]]}, featurize.open_features(own_set), reason="typo")
    in_spark = spark.createDataFrame([(ids[2], other[ids[2]])], "image_id string, label string")
    finetune.relabel(in_spark, own_set, reason="typo")
    (tmp_path / "table.csv").write_text(f"image_id,label\n{ids[3]},{other[ids[3]]}\n{ids[0]},{other[ids[0]]}\n")
    last = finetune.relabel(tmp_path / "table.csv", own_set, reason="typo")
    assert (last.corrected, last.unchanged) == (1, 1)
    assert "corrected" in repr(last)
    after = featurize.open_features(own_set).to_pandas("train", columns=["image_id", "label"])
    assert dict(zip(after["image_id"][:4], after["label"][:4], strict=True)) == other


def test_a_table_that_is_wrong_corrects_nothing(own_set: Path) -> None:
    frame = pd.DataFrame({"image_id": ["no such image"], "label": ["a"]})
    for table, message in (
        (frame, "is not a class|has no image"),
        (frame.rename(columns={"label": "class"}), "must have the columns image_id and label. Got no label"),
        ({}, "the table has no rows"),
        ({"one": None}, "must be text. Got 'one' and None"),
    ):
        with pytest.raises(finetune.UsageError, match=message):
            finetune.relabel(table, own_set, reason="why")  # type: ignore[arg-type]
    with pytest.raises(finetune.UsageError, match="`reason` is required"):
        finetune.relabel(frame, own_set, reason=" ")


BEGIN = datetime(2026, 11, 1, 8, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def predictions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """700 predictions, 100 a minute; the last 350 are of grey images."""
    folder = tmp_path_factory.mktemp("drift")
    known = train_on_shapes(folder / "model", epochs=4)
    pixels = draw_many(700, seed=1)
    pixels[350:] = grey(pixels[350:])
    publish(folder / "predictions", known, pixels, at=BEGIN)
    return folder / "predictions"


@pytest.mark.slow
def test_drift_is_shown_window_by_window(predictions: Path, tmp_path: Path) -> None:
    found = finetune.check_drift(predictions, window=350, output=tmp_path / "windows")
    windows = found.windows
    assert list(windows.index) == [0, 1]
    assert list(windows["alarm"]) == [False, True]
    assert found.alarms == 1
    assert {"labels_p", "confidence_p"} <= set(windows.columns)
    kept = pd.read_parquet(str(found.table).removeprefix("file://"))
    assert list(kept["alarm"]) == list(windows["alarm"])
    for shown in (repr(found), found._repr_html_()):
        assert "1 of 2 windows" in shown


@pytest.mark.slow
def test_times_are_objects_or_text(predictions: Path, tmp_path: Path) -> None:
    later = BEGIN + timedelta(minutes=3)
    for since in (later, later.isoformat(), "2026-11-01T08:03"):
        assert finetune.check_drift(predictions, since=since, output=tmp_path).report.images == 400
    with pytest.raises(finetune.UsageError, match="`since` must be a date or a time"):
        finetune.check_drift(predictions, since="yesterday")
