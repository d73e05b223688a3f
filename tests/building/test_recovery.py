"""Tables after a failure: what was there stays, what was finished is kept, and the next run completes it."""

import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from helpers.images.photos import make_photos
from helpers.tables.building import Built, assert_same_rows, files_of, read_rows, recipe
from helpers.tables.publishing import grow_old
from pyspark.sql import SparkSession

import featurize as featurize_package
from featurize.building import build, staging
from featurize.building.spark_jobs import run_plan
from featurize.building.staging import STAGING
from featurize.errors import JobError, UsageError
from featurize.jobs.run import featurize
from featurize.jobs.run_task import FeaturizeTask
from featurize.storage.claims import CLAIM_NAME
from featurize.tables.layout import REJECTS

pytestmark = pytest.mark.spark


def test_too_many_rejects_publish_nothing_and_say_why_and_what_was_read_is_kept(
    spark: SparkSession, mean_backbone: Path, tmp_path: Path
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    make_photos(images, per_class=3)
    (images / "red" / "x.jpg").write_bytes(b"no picture")
    with pytest.raises(JobError, match=r"1 of 10 images could not be read.*`max_reject_fraction` = 0\.09") as raised:
        featurize(spark, recipe(images, out, mean_backbone, max_reject_fraction=0.09))
    assert "1 x decode: not an image in a known format" in str(raised.value)
    assert not (out / "_delta_log").exists()
    assert not (out / "data").exists()
    (rejects,) = (out / STAGING / REJECTS).iterdir()
    assert pq.ParquetFile(rejects).read()["path"].to_pylist() == [f"file://{images}/red/x.jpg"]
    result, _ = featurize(spark, recipe(images, out, mean_backbone, max_reject_fraction=0.1))
    assert (result.added, result.skipped, result.manifest.row_count, result.manifest.reject_count) == (0, 10, 9, 1)
    assert len(read_rows(out)) == 9
    assert not (out / STAGING).exists()


def test_one_broken_image_may_be_added_to_many(spark: SparkSession, mean_backbone: Path, tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    make_photos(images, per_class=4)
    featurize(spark, recipe(images, out, mean_backbone, max_reject_fraction=0.1))
    (images / "red" / "x.jpg").write_bytes(b"no picture")
    result, _ = featurize(spark, recipe(images, out, mean_backbone, max_reject_fraction=0.1))
    assert (result.manifest.row_count, result.manifest.reject_count) == (12, 1)


def test_a_mended_image_is_read_again_after_too_many_rejects(
    spark: SparkSession, mean_backbone: Path, tmp_path: Path
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    make_photos(images, per_class=1)
    (images / "red" / "x.png").write_bytes(b"no picture")
    with pytest.raises(JobError, match="could not be read"):
        featurize(spark, recipe(images, out, mean_backbone, max_reject_fraction=0.0))
    shutil.copy(images / "red" / "000.png", images / "red" / "x.png")
    result, _ = featurize(spark, recipe(images, out, mean_backbone, max_reject_fraction=0.0))
    assert (result.manifest.row_count, result.manifest.rejects) == (4, {})


def test_if_no_image_can_be_read_nothing_is_published(spark: SparkSession, mean_backbone: Path, tmp_path: Path) -> None:
    for label in ("red", "blue"):
        (tmp_path / "images" / label).mkdir(parents=True)
        (tmp_path / "images" / label / "x.jpg").write_bytes(b"no picture")
    with pytest.raises(JobError, match="2 of 2 images could not be read"):
        featurize(spark, recipe(tmp_path / "images", tmp_path / "out", mean_backbone, max_reject_fraction=1.0))
    assert not (tmp_path / "out" / "_delta_log").exists()


def failing_task(monkeypatch: pytest.MonkeyPatch, tries: Path, *, from_image: int) -> None:
    """Lets workers fail at the image of that number among all they begin; every failure leaves a file in `tries`."""
    begun = tries / "begun"
    tries.mkdir()

    class Failing(FeaturizeTask):
        def load(self, image: Any, *arguments: Any) -> Any:
            with begun.open("a") as file:
                file.write("x")
            if begun.stat().st_size > from_image:
                (tries / image.path.replace("/", "_")).touch()
                raise RuntimeError("the disk of this worker is full")
            return super().load(image, *arguments)

    monkeypatch.setattr("featurize.jobs.run.FeaturizeTask", Failing)


def test_a_failing_worker_leaves_an_earlier_table_as_it_was(
    spark: SparkSession, mean_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_photos(tmp_path / "images", per_class=2)
    featurize(spark, recipe(tmp_path / "images", tmp_path / "out", mean_backbone))
    before = files_of(tmp_path / "out")
    make_photos(tmp_path / "images" / "red" / "more", per_class=3)
    failing_task(monkeypatch, tmp_path / "tries", from_image=2)
    for url in (tmp_path / "out", tmp_path / "fresh"):
        with pytest.raises(JobError, match="RuntimeError: the disk of this worker is full"):
            featurize(spark, recipe(tmp_path / "images", url, mean_backbone))
    assert files_of(tmp_path / "out") == before
    assert not (tmp_path / "out" / STAGING).exists()
    assert list((tmp_path / "fresh").rglob("*")) == []
    monkeypatch.undo()
    result, _ = featurize(spark, recipe(tmp_path / "images", tmp_path / "out", mean_backbone))
    assert result.manifest.row_count == 15


def test_after_a_failure_only_unfinished_shards_are_made_again(
    built: Built,
    spark: SparkSession,
    photos: Path,
    mean_backbone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("featurize.building.plan.MAX_SHARD_BYTES", 60 << 10)
    with monkeypatch.context() as patch:
        failing_task(patch, tmp_path / "tries", from_image=40)
        with pytest.raises(JobError, match="finished is kept"):
            featurize(spark, recipe(photos, tmp_path / "out", mean_backbone))
    assert (tmp_path / "out" / STAGING / "commits").is_dir()
    assert not (tmp_path / "out" / "data").exists()
    with pytest.raises(UsageError, match=r"unfinished run with other settings[^$]*existing 7, requested 8"):
        featurize(spark, recipe(photos, tmp_path / "out", mean_backbone, rows_per_group=8))
    result, _ = featurize(spark, recipe(photos, tmp_path / "out", mean_backbone))
    assert 0 < result.skipped < 62
    assert result.skipped + result.added + result.rejected == 62
    assert result.manifest.content_digest == built.manifest.content_digest
    assert result.manifest.rejects == built.manifest.rejects
    assert_same_rows(read_rows(tmp_path / "out"), read_rows(built.folder))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"_delta_log", "_firn", "data"}


@pytest.mark.parametrize("step", ["place_files", "publish", "remove_staging"])
def test_a_publication_cut_short_at_any_step_is_completed_by_the_next_run(
    built: Built,
    spark: SparkSession,
    photos: Path,
    mean_backbone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    module = build if step == "publish" else staging
    done = getattr(module, step)

    def do_and_die(*arguments: Any, **settings: Any) -> None:
        done(*arguments, **settings)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, step, do_and_die)
        with pytest.raises(KeyboardInterrupt):
            featurize(spark, recipe(photos, tmp_path / "out", mean_backbone))
    result, _ = featurize(spark, recipe(photos, tmp_path / "out", mean_backbone))
    assert (result.added, result.skipped) == (0, 62)
    assert result.manifest.content_digest == built.manifest.content_digest
    assert_same_rows(read_rows(tmp_path / "out"), read_rows(built.folder))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"_delta_log", "_firn", "data"}


def test_staged_files_that_vanish_before_they_are_published_publish_nothing(
    spark: SparkSession, mean_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_photos(tmp_path / "images", per_class=2)

    def run_and_lose(*arguments: Any, **named: Any) -> Any:
        rows = run_plan(*arguments, **named)
        shutil.rmtree(tmp_path / "out" / STAGING / "data")
        return rows

    monkeypatch.setattr(build, "run_plan", run_and_lose)
    with pytest.raises(JobError, match="was written but is missing now; nothing was published"):
        featurize(spark, recipe(tmp_path / "images", tmp_path / "out", mean_backbone))
    assert not (tmp_path / "out" / "_delta_log").exists()
    monkeypatch.undo()
    result, _ = featurize(spark, recipe(tmp_path / "images", tmp_path / "out", mean_backbone))
    assert result.added == 6


def test_who_lost_the_claim_publishes_nothing_and_keeps_off_the_others_files(
    spark: SparkSession, mean_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    make_photos(tmp_path / "images", per_class=2)

    def run_and_lose(*arguments: Any, **named: Any) -> Any:
        rows = run_plan(*arguments, **named)
        (out / CLAIM_NAME).write_text('{"token": "theirs", "host": "elsewhere", "pid": 1, "beat_at": 9e9}')
        staging.write_state(str(out), settings={}, run="01234567", records=[], there=None)
        return rows

    monkeypatch.setattr(build, "run_plan", run_and_lose)
    with pytest.raises(JobError, match="lost"):
        featurize(spark, recipe(tmp_path / "images", out, mean_backbone))
    assert not (out / "_delta_log").exists()
    state = staging.read_state(str(out))
    assert state is not None
    assert state.run == "01234567"
    assert (out / CLAIM_NAME).exists()


def test_what_a_killed_job_left_is_cleaned_up_and_foreign_files_are_kept(
    spark: SparkSession, mean_backbone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    make_photos(tmp_path / "images", per_class=2)
    left = ["data/split=train/part-0123abcd-00000-1.parquet", "_firn/rejects/part-0123abcd-00000-1.parquet"]
    staged = [f"{STAGING}/{name}" for name in left] + [f"{STAGING}/commits/0123abcd-000000.json"]

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
    assert not [name for name in staged if (out / name).exists()]
    featurize_package.vacuum(str(out))
    assert all((out / name).exists() for name in left), "another job may be about to publish them"
    grow_old(out)
    featurize_package.vacuum(str(out))
    assert not [name for name in left if (out / name).exists()]
    assert len(read_rows(out)) == 9
    assert all(path.exists() for path in foreign)


def test_an_image_that_changed_and_changed_back_around_a_killed_run_is_one_row(
    spark: SparkSession, mean_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    make_photos(images, per_class=4)
    first, _ = featurize(spark, recipe(images, out, mean_backbone))
    path = images / "red" / "001.png"
    before, status = path.read_bytes(), path.stat()
    shutil.copy(images / "red" / "000.png", path)

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(staging, "place_files", die)
        with pytest.raises(KeyboardInterrupt):
            featurize(spark, recipe(images, out, mean_backbone))
    path.write_bytes(before)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    result, _ = featurize(spark, recipe(images, out, mean_backbone))
    assert (result.added, result.changed, result.skipped) == (0, 0, 12)
    assert result.manifest.content_digest == first.manifest.content_digest
    assert len(read_rows(out)) == 12
    assert not (out / STAGING).exists()
