"""Tables: a rerun adds what is missing, a failure leaves what was there, and only one job writes at a time."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from building import SPLIT, Built, assert_same_rows, files_of, read_rows, recipe
from conftest import make_photos
from pyspark.sql import SparkSession

from featurize import features, storage, tables
from featurize.claims import CLAIM_NAME
from featurize.errors import JobError, UsageError
from featurize.features import featurize
from featurize.manifests import read_features_manifest
from featurize.tables import STAGING

pytestmark = pytest.mark.spark


# Reruns


def test_a_rerun_does_nothing_and_changes_nothing(
    built: Built, spark: SparkSession, mean_backbone: Path, photos: Path
) -> None:
    before = files_of(built.folder)
    result, _ = featurize(spark, recipe(photos, built.folder, mean_backbone))
    assert (result.added, result.rejected, result.skipped, result.removed) == (0, 0, 62, 0)
    assert files_of(built.folder) == before


def test_added_images_are_all_that_is_added_and_the_result_is_that_of_one_run(
    spark: SparkSession, mean_backbone: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images [x] 100%"
    grown, whole = tmp_path / "grown [y] 100%", tmp_path / "whole"
    make_photos(images, per_class=6, seed=1)
    (images / "red" / "broken.jpg").write_bytes(b"\xff\xd8broken")
    first, _ = featurize(spark, recipe(images, grown, mean_backbone))
    before = files_of(grown)
    make_photos(images / "green" / "later", per_class=3, seed=2)
    (images / "blue" / "later.jpg").write_bytes(b"")
    second, _ = featurize(spark, recipe(images, grown, mean_backbone))
    assert (second.added, second.rejected, second.skipped) == (9, 1, 19)
    after = files_of(grown)
    assert {name: after[name] for name in before if name != "manifest.json"} == {
        name: before[name] for name in before if name != "manifest.json"
    }
    once, _ = featurize(spark, recipe(images, whole, mean_backbone, batch_size=5))
    assert_same_rows(read_rows(grown), read_rows(whole))
    one, other = read_features_manifest(str(grown)), read_features_manifest(str(whole))
    for key in ("identity", "content_digest", "rows", "rejects", "classes", "preparation_id"):
        assert getattr(one, key) == getattr(other, key), key
    assert one.created_at == first.manifest.created_at
    assert once.manifest.row_count == 27


def test_the_way_it_was_partitioned_does_not_show(
    built: Built,
    spark: SparkSession,
    mean_backbone: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def many_small_tasks(session: SparkSession, **_: int) -> None:
        session.conf.set("spark.sql.files.maxPartitionBytes", str(120 << 10))

    monkeypatch.setattr("featurize.folders.plan_partitions", many_small_tasks)
    result, _ = featurize(spark, recipe(photos, tmp_path / "small", mean_backbone, batch_size=3))
    assert len({Path(file.path).name for file in result.manifest.files}) > 1
    assert result.manifest.content_digest == built.manifest.content_digest
    assert result.manifest.identity == built.manifest.identity
    assert_same_rows(read_rows(tmp_path / "small"), read_rows(built.folder))


def test_partitions_without_rows_write_no_files(
    built: Built,
    spark: SparkSession,
    mean_backbone: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tables._run
    monkeypatch.setattr(
        tables, "_run", lambda s, frame, worker: run(s, frame.coalesce(1).union(frame.limit(0)), worker)
    )
    result, _ = featurize(spark, recipe(photos, tmp_path / "out", mean_backbone))
    assert result.manifest.content_digest == built.manifest.content_digest
    assert all(file.rows > 0 for file in result.manifest.files)


def test_removed_images_are_counted_and_kept(spark: SparkSession, mean_backbone: Path, tmp_path: Path) -> None:
    make_photos(tmp_path / "images", per_class=2)
    featurize(spark, recipe(tmp_path / "images", tmp_path / "out", mean_backbone))
    (tmp_path / "images" / "red" / "000.png").unlink()
    result, _ = featurize(spark, recipe(tmp_path / "images", tmp_path / "out", mean_backbone))
    assert (result.added, result.skipped, result.removed, result.manifest.row_count) == (0, 5, 1, 6)


def test_a_changed_image_is_refused_by_its_path(spark: SparkSession, mean_backbone: Path, tmp_path: Path) -> None:
    make_photos(tmp_path / "images", per_class=2)
    featurize(spark, recipe(tmp_path / "images", tmp_path / "out", mean_backbone))
    before = files_of(tmp_path / "out")
    shutil.copy(tmp_path / "images" / "red" / "000.png", tmp_path / "images" / "red" / "001.png")
    with pytest.raises(JobError, match=r"1 images have changed.*red/001\.png"):
        featurize(spark, recipe(tmp_path / "images", tmp_path / "out", mean_backbone))
    assert files_of(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"split": {**SPLIT, "seed": 8}}, "source.split.seed: there 7, asked 8"),
        ({"preprocessing": "tf"}, "backbone.preprocessing: there 'none', asked 'tf'"),
        ({"precision": "bfloat16"}, "backbone.precision: there 'float32', asked 'bfloat16'"),
        ({"rows_per_group": 8}, "rows_per_group: there 7, asked 8"),
    ],
)
def test_other_settings_in_the_same_place_are_refused_by_name(
    built: Built, spark: SparkSession, mean_backbone: Path, photos: Path, changes: dict[str, Any], named: str
) -> None:
    before = files_of(built.folder)
    with pytest.raises(UsageError) as raised:
        featurize(spark, recipe(photos, built.folder, mean_backbone, **changes))
    assert named in str(raised.value)
    assert str(raised.value).count("\n") == 1
    assert files_of(built.folder) == before


def test_another_batch_size_is_no_other_setting(
    built: Built, spark: SparkSession, mean_backbone: Path, photos: Path
) -> None:
    result, _ = featurize(spark, recipe(photos, built.folder, mean_backbone, batch_size=5))
    assert result.skipped == 62


def test_another_session_of_the_same_backbone_may_follow(
    spark: SparkSession, mean_backbone: Path, tmp_path: Path
) -> None:
    """The backbone is saved anew each time, and its file differs by the date within."""
    import time

    make_photos(tmp_path / "images", per_class=2)
    for name in ("one", "two"):
        result, _ = featurize(spark, recipe(tmp_path / "images", tmp_path / name, mean_backbone))
        assert result.added == 6
        time.sleep(1.1)


# Failures


def test_one_class_only_is_refused_before_anything_is_written(
    spark: SparkSession, mean_backbone: Path, tmp_path: Path
) -> None:
    make_photos(tmp_path / "images", per_class=2, classes=("red",))
    with pytest.raises(UsageError, match="one class only, red"):
        featurize(spark, recipe(tmp_path / "images", tmp_path / "out", mean_backbone))
    assert not (tmp_path / "out").exists()


def test_if_no_image_can_be_read_nothing_is_left_behind(
    spark: SparkSession, mean_backbone: Path, tmp_path: Path
) -> None:
    for label in ("red", "blue"):
        (tmp_path / "images" / label).mkdir(parents=True)
        (tmp_path / "images" / label / "x.jpg").write_bytes(b"no picture")
    with pytest.raises(JobError, match="none of the 2 images could be read") as raised:
        featurize(spark, recipe(tmp_path / "images", tmp_path / "out", mean_backbone))
    assert "2 x decode: not an image in a known format" in str(raised.value)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_failing_worker_leaves_an_earlier_table_as_it_was(
    spark: SparkSession, mean_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_photos(tmp_path / "images", per_class=2)
    featurize(spark, recipe(tmp_path / "images", tmp_path / "out", mean_backbone))
    before = files_of(tmp_path / "out")
    make_photos(tmp_path / "images" / "red" / "more", per_class=3)

    def make_failing(task: Any) -> Any:
        def write_and_fail(batches: Any) -> Any:
            storage.write_bytes(storage.join_url(task.staging, "data/split=train/part-half.parquet"), b"half")
            raise RuntimeError("the disk of this worker is full")
            yield from batches

        return write_and_fail

    monkeypatch.setattr(features, "make_featurize_fn", make_failing)
    for url in (tmp_path / "out", tmp_path / "fresh"):
        with pytest.raises(JobError, match="RuntimeError: the disk of this worker is full") as raised:
            featurize(spark, recipe(tmp_path / "images", url, mean_backbone))
        assert "\n" not in str(raised.value)
    assert files_of(tmp_path / "out") == before
    assert not (tmp_path / "out" / STAGING).exists()
    assert list((tmp_path / "fresh").rglob("*")) == []
    monkeypatch.undo()
    result, _ = featurize(spark, recipe(tmp_path / "images", tmp_path / "out", mean_backbone))
    assert result.manifest.row_count == 15


def test_staged_files_that_vanish_before_they_are_published_publish_nothing(
    spark: SparkSession, mean_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_photos(tmp_path / "images", per_class=2)
    run = tables._run

    def run_and_lose(*arguments: Any) -> Any:
        records = run(*arguments)
        shutil.rmtree(tmp_path / "out" / STAGING)
        return records

    monkeypatch.setattr(tables, "_run", run_and_lose)
    with pytest.raises((JobError, OSError)):
        featurize(spark, recipe(tmp_path / "images", tmp_path / "out", mean_backbone))
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_who_lost_the_claim_publishes_nothing_and_keeps_off_the_others_files(
    spark: SparkSession, mean_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_photos(tmp_path / "images", per_class=2)
    run = tables._run
    theirs = tmp_path / "out" / STAGING / "01234567" / "data" / "theirs.parquet"

    def run_and_lose(*arguments: Any) -> Any:
        records = run(*arguments)
        (tmp_path / "out" / CLAIM_NAME).write_text('{"token": "theirs", "host": "elsewhere", "pid": 1, "beat_at": 9e9}')
        theirs.parent.mkdir(parents=True)
        theirs.write_bytes(b"theirs")
        return records

    monkeypatch.setattr(tables, "_run", run_and_lose)
    with pytest.raises(JobError, match="lost"):
        featurize(spark, recipe(tmp_path / "images", tmp_path / "out", mean_backbone))
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert theirs.exists()
    assert (tmp_path / "out" / CLAIM_NAME).exists()


def test_what_a_killed_job_left_is_cleaned_up_and_foreign_files_are_kept(
    spark: SparkSession, mean_backbone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    make_photos(tmp_path / "images", per_class=2)
    left = ["data/split=train/part-0123abcd-00000-1.parquet", "rejects/part-0123abcd-00000-1.parquet"]
    staged = [f"{STAGING}/0123abcd/{name}" for name in left]

    def leave() -> None:
        for name in left + staged:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(b"half")

    leave()
    featurize(spark, recipe(tmp_path / "images", out, mean_backbone))
    assert len(read_rows(out)) == 6
    leave()
    foreign = [out / "notes.txt", out / "data" / "notes.txt", out / "data" / "split=train" / "mine.parquet"]
    for path in foreign:
        path.write_text("mine")
    make_photos(tmp_path / "images" / "red" / "more", per_class=1)
    featurize(spark, recipe(tmp_path / "images", out, mean_backbone))
    assert len(read_rows(out)) == 9
    assert not [name for name in left + staged if (out / name).exists()]
    assert all(path.exists() for path in foreign)


@pytest.mark.parametrize("name", ["notes.txt", "data/mine.parquet", "data/split=train/part-1.parquet", "rejects/x"])
def test_a_folder_that_holds_something_else_is_refused_and_left_alone(
    spark: SparkSession, mean_backbone: Path, photos: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match="not empty") as raised:
        featurize(spark, recipe(photos, tmp_path, mean_backbone))
    assert name in str(raised.value)
    assert set(files_of(tmp_path)) == {name}


def test_a_job_that_writes_to_the_same_place_is_refused(
    built: Built, spark: SparkSession, mean_backbone: Path, photos: Path
) -> None:
    from featurize.claims import claim_output

    with claim_output(str(built.folder)), pytest.raises(JobError, match="is being written by process"):
        featurize(spark, recipe(photos, built.folder, mean_backbone))


def test_an_output_inside_its_own_source_is_refused(spark: SparkSession, mean_backbone: Path, tmp_path: Path) -> None:
    """Or else the feature set would be a class of images in the next run."""
    make_photos(tmp_path / "images", per_class=2)
    with pytest.raises(UsageError):
        featurize(spark, recipe(tmp_path / "images", tmp_path / "images" / "features", mean_backbone))
