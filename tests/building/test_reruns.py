"""Tables: a rerun adds what is missing and changes nothing else, and what does not belong there is refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.images.photos import make_photos
from helpers.tables.building import SPLIT, Built, assert_same_rows, files_of, read_rows, recipe
from pyspark.sql import SparkSession

from featurize.errors import JobError, UsageError
from featurize.jobs.run import featurize
from featurize.storage.claims import claim_output
from featurize.tables.readable import read_features_manifest

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
    assert {name: after[name] for name in before} == before
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
    monkeypatch.setattr("featurize.building.plan.MAX_SHARD_BYTES", 60 << 10)
    result, _ = featurize(spark, recipe(photos, tmp_path / "small", mean_backbone, batch_size=3))
    assert len({Path(file.path).name for file in result.manifest.files}) > 1
    assert result.manifest.content_digest == built.manifest.content_digest
    assert result.manifest.identity == built.manifest.identity
    assert_same_rows(read_rows(tmp_path / "small"), read_rows(built.folder))


def test_removed_images_are_counted_and_kept(spark: SparkSession, mean_backbone: Path, tmp_path: Path) -> None:
    make_photos(tmp_path / "images", per_class=2)
    featurize(spark, recipe(tmp_path / "images", tmp_path / "out", mean_backbone))
    (tmp_path / "images" / "red" / "000.png").unlink()
    result, _ = featurize(spark, recipe(tmp_path / "images", tmp_path / "out", mean_backbone))
    assert (result.added, result.skipped, result.removed, result.manifest.row_count) == (0, 5, 1, 6)


def test_changed_images_are_made_again_and_the_result_is_that_of_a_fresh_run(
    spark: SparkSession, mean_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A readable image gets other bytes, a broken one is mended, a readable one breaks; in a shard of theirs one is removed."""
    monkeypatch.setattr("featurize.building.plan.MAX_SHARD_BYTES", 40 << 10)
    images, grown = tmp_path / "images", tmp_path / "grown"
    make_photos(images, per_class=8)
    (images / "red" / "008.png").write_bytes(b"broken")
    featurize(spark, recipe(images, grown, mean_backbone))
    before = read_rows(grown)
    shutil.copy(images / "red" / "000.png", images / "red" / "001.png")
    shutil.copy(images / "red" / "000.png", images / "red" / "008.png")
    (images / "blue" / "003.png").write_bytes(b"broken too")
    (images / "blue" / "004.png").unlink()
    result, _ = featurize(spark, recipe(images, grown, mean_backbone))
    fresh, _ = featurize(spark, recipe(images, tmp_path / "fresh", mean_backbone))
    assert (result.changed, result.removed) == (3, 1)
    assert 0 < result.skipped < 23  # the shards without any of them stay
    assert_same_rows(read_rows(grown), read_rows(tmp_path / "fresh"))
    for key in ("identity", "content_digest", "rows", "rejects"):
        assert getattr(result.manifest, key) == getattr(fresh.manifest, key), key
    assert set(files_of(grown)) >= {file.path for shard in result.manifest.shards for file in shard.all_files}
    assert_same_rows(read_rows(grown, version=0), before)


def test_an_image_that_could_not_be_read_is_tried_again_with_the_next_run(
    spark: SparkSession, mean_backbone: Path, tmp_path: Path
) -> None:
    images, elsewhere = tmp_path / "images", tmp_path / "elsewhere.png"
    make_photos(images, per_class=3)
    shutil.move(images / "red" / "001.png", elsewhere)
    (images / "red" / "001.png").symlink_to(elsewhere.with_name("not mounted.png"))
    first, _ = featurize(spark, recipe(images, tmp_path / "out", mean_backbone, follow_links=True))
    assert first.manifest.rejects == {"read: the file is gone": 1}
    same, _ = featurize(spark, recipe(images, tmp_path / "out", mean_backbone, follow_links=True))
    assert (same.added, same.skipped, same.changed) == (0, 9, 0)
    shutil.move(elsewhere, elsewhere.with_name("not mounted.png"))
    result, _ = featurize(spark, recipe(images, tmp_path / "out", mean_backbone, follow_links=True))
    assert (result.manifest.row_count, result.manifest.rejects, result.changed) == (9, {}, 1)


def test_images_that_were_only_touched_are_read_and_skipped(
    spark: SparkSession, mean_backbone: Path, tmp_path: Path
) -> None:
    make_photos(tmp_path / "images", per_class=2)
    featurize(spark, recipe(tmp_path / "images", tmp_path / "out", mean_backbone))
    before = files_of(tmp_path / "out")
    for path in (tmp_path / "images").rglob("*.png"):
        path.touch()
    result, _ = featurize(spark, recipe(tmp_path / "images", tmp_path / "out", mean_backbone))
    assert (result.added, result.skipped, result.changed) == (0, 6, 0)
    assert files_of(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"split": {**SPLIT, "seed": 8}}, "source.split.seed: existing 7, requested 8"),
        ({"preprocessing": "tf"}, "backbone.preprocessing: existing 'none', requested 'tf'"),
        ({"precision": "bfloat16"}, "backbone.precision: existing 'float32', requested 'bfloat16'"),
        ({"rows_per_group": 8}, "rows_per_group: existing 7, requested 8"),
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


# Refusals


def test_one_class_only_is_refused_before_anything_is_written(
    spark: SparkSession, mean_backbone: Path, tmp_path: Path
) -> None:
    make_photos(tmp_path / "images", per_class=2, classes=("red",))
    with pytest.raises(UsageError, match="one class only, red"):
        featurize(spark, recipe(tmp_path / "images", tmp_path / "out", mean_backbone))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["notes.txt", "data/mine.parquet", "data/split=train/part-1.parquet", "_firn/rejects/x"]
)
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
    with claim_output(str(built.folder)), pytest.raises(JobError, match="is being written by process"):
        featurize(spark, recipe(photos, built.folder, mean_backbone))


def test_an_output_inside_its_own_source_is_refused(spark: SparkSession, mean_backbone: Path, tmp_path: Path) -> None:
    """Or else the feature set would be a class of images in the next run."""
    make_photos(tmp_path / "images", per_class=2)
    with pytest.raises(UsageError):
        featurize(spark, recipe(tmp_path / "images", tmp_path / "images" / "features", mean_backbone))
