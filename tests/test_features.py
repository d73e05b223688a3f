"""The feature set: one row per image, the same whatever the way it was made, and readable by everybody."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import make_photos
from numpy.typing import NDArray
from pyspark.sql import SparkSession

from featurize import features, storage, tables
from featurize.backbones import PreparedBackbone
from featurize.claims import CLAIM_NAME
from featurize.decode import decode_image
from featurize.errors import JobError, UsageError
from featurize.features import featurize
from featurize.manifests import FeaturesManifest, read_features_manifest
from featurize.recipe import FeaturizeRecipe
from featurize.settings import check_settings
from featurize.tables import STAGING, BuildResult

pytestmark = pytest.mark.spark
SPLIT = {"train": 0.6, "validation": 0.2, "test": 0.2, "seed": 7}


@dataclass(frozen=True)
class Built:
    folder: Path
    result: BuildResult
    backbone: PreparedBackbone
    manifest: FeaturesManifest


def recipe(source: Path, url: Path, backbone: Path, **changes: Any) -> FeaturizeRecipe:
    settings: dict[str, Any] = {
        "images": {"source": str(source), "split": changes.pop("split", SPLIT)},
        "backbone": {"name": str(backbone), "preprocessing": "none", "precision": "float32", "batch_size": 8},
        "features": {"url": str(url), "rows_per_group": 7},
    }
    for key, value in changes.items():
        settings["features" if key == "rows_per_group" else "backbone"][key] = value
    return check_settings(FeaturizeRecipe, settings, origin="test")


def files_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """When every file under `folder` was last changed, and what is in it."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def read_rows(folder: Path) -> pd.DataFrame:
    """All rows that the manifest lists, by path, with their split."""
    manifest = read_features_manifest(str(folder))
    parts = [pq.ParquetFile(folder / file.path).read().to_pandas().assign(split=file.split) for file in manifest.files]
    return pd.concat(parts).set_index("path").sort_index()


def stacked(rows: pd.DataFrame) -> NDArray[np.float32]:
    return np.stack(rows["features"].to_list())


def assert_same_rows(one: pd.DataFrame, other: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(one.drop(columns="features"), other.drop(columns="features"))
    np.testing.assert_allclose(stacked(one), stacked(other), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def built(spark: SparkSession, photos: Path, mean_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The feature set of `photos`; do not change it."""
    folder = tmp_path_factory.mktemp("built") / "mean"
    result, backbone = featurize(spark, recipe(photos, folder, mean_backbone))
    return Built(folder, result, backbone, read_features_manifest(str(folder)))


# What is in it


def test_every_readable_image_is_one_row_and_every_other_one_reject(built: Built, photos: Path) -> None:
    rows = read_rows(built.folder)
    rejects = pd.concat(
        pq.ParquetFile(built.folder / file.path).read().to_pandas() for file in built.manifest.reject_files
    )
    readable = {f"file://{path}" for path in photos.rglob("*.png")}
    assert len(rows) == 60
    assert set(rows.index) == readable
    assert set(rejects["path"]) == {f"file://{photos}/red/empty.jpg", f"file://{photos}/blue/notes.txt"}
    assert set(rejects["stage"]) == {"decode"}
    assert rejects.set_index("path").loc[f"file://{photos}/red/empty.jpg", "error"] == "the file is empty"
    assert set(rejects["bytes_size"]) == {0, len("no picture")}


def test_labels_indices_sizes_and_splits_are_right(built: Built) -> None:
    from PIL import Image

    rows = read_rows(built.folder)
    assert built.manifest.classes == ["blue", "green", "red"]
    for url, row in rows.iterrows():
        path = Path(str(url).removeprefix("file://"))
        assert row["label"] == path.parent.name == built.manifest.classes[row["label_index"]]
        with Image.open(path) as image:
            assert (row["width"], row["height"]) == image.size


def test_the_features_are_those_of_the_decoded_image(built: Built) -> None:
    rows = read_rows(built.folder)
    contents = [storage.read_bytes(str(url)) for url in rows.index]
    expected = [decode_image(content, height=32, width=32).mean(axis=(0, 1)) for content in contents]
    np.testing.assert_allclose(stacked(rows), expected, rtol=1e-4)


def test_the_manifest_counts_what_the_files_hold(built: Built) -> None:
    manifest, rows = built.manifest, read_rows(built.folder)
    counted = rows.groupby(["split", "label"]).size()
    expected = {(split, label): n for split, labels in manifest.rows.items() for label, n in labels.items() if n}
    assert counted.to_dict() == expected
    assert manifest.reject_count == 2
    for file in manifest.files:
        path = built.folder / file.path
        assert file.path.startswith(f"data/split={file.split}/")
        assert (path.stat().st_size, pq.ParquetFile(path).metadata.num_rows) == (file.bytes, file.rows)
    assert built.result.added == 60
    assert built.result.rejected == 2


def test_the_manifest_says_how_the_features_were_made(built: Built) -> None:
    backbone = built.manifest.backbone
    assert (backbone["name"], backbone["layer"], backbone["preprocessing"]) == ("mean.keras", "mean", "none")
    assert (backbone["height"], backbone["width"], backbone["precision"]) == (32, 32, "float32")
    assert backbone["weights_file_sha256"]
    assert (built.manifest.feature_shape, built.manifest.feature_dtype) == ([3], "float32")
    assert built.manifest.preparation_id == built.backbone.spec.preparation_id
    assert {"keras", "pyspark", "numpy"} <= set(built.manifest.versions)
    assert built.manifest.recipe["images"]["split"] == SPLIT


def test_nothing_else_is_left_in_the_folder(built: Built) -> None:
    assert {path.name for path in built.folder.iterdir()} == {"manifest.json", "data", "rejects"}
    listed = {file.path for file in (*built.manifest.files, *built.manifest.reject_files)}
    assert set(files_of(built.folder)) == listed | {"manifest.json"}


def test_row_groups_hold_the_rows_that_were_asked_for(built: Built) -> None:
    sizes: dict[str, list[int]] = {}
    for file in built.manifest.files:
        metadata = pq.ParquetFile(built.folder / file.path).metadata
        sizes[file.path] = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    assert any(len(groups) > 1 for groups in sizes.values())
    for groups in sizes.values():
        assert set(groups[:-1]) <= {7}
        assert 1 <= groups[-1] <= 7


# Read by everybody


def test_spark_sql_reads_it(built: Built, spark: SparkSession) -> None:
    frame = spark.read.parquet(str(built.folder / "data"))
    assert dict(frame.dtypes)["features"] == "array<float>"
    frame.createOrReplaceTempView("built_features")
    sums = spark.sql(
        "select split, count(*) n, count(distinct image_id) d from built_features group by split"
    ).collect()
    assert {row["split"]: row["n"] for row in sums} == {s: built.manifest.split_rows(s) for s in built.manifest.rows}
    assert sum(row["d"] for row in sums) == 60


def test_pandas_reads_it(built: Built) -> None:
    frame = pd.read_parquet(built.folder / "data").set_index("path").sort_index()
    assert set(frame["split"]) == {"train", "validation", "test"}
    np.testing.assert_array_equal(stacked(frame), stacked(read_rows(built.folder)))
    assert frame["features"].iloc[0].dtype == np.float32


def test_duckdb_reads_it(built: Built) -> None:
    source = f"read_parquet('{built.folder}/data/*/*.parquet', hive_partitioning = true)"
    with duckdb.connect() as connection:
        types = dict(
            connection.sql(f"select column_name, column_type from (describe select * from {source})").fetchall()
        )
        assert types["features"] == "FLOAT[]"
        counts = dict(connection.sql(f"select split, count(*) from {source} group by split").fetchall())
        reds = connection.sql(
            f"select avg(features[1]) > avg(features[3]) from {source} where label = 'red'"
        ).fetchall()
    assert counts == {split: built.manifest.split_rows(split) for split in built.manifest.rows}
    assert reds == [(True,)]


def test_petastorm_reads_it(built: Built) -> None:
    from petastorm import make_batch_reader

    urls = [f"file://{built.folder}/{file.path}" for file in built.manifest.files]
    found: dict[str, NDArray[np.float32]] = {}
    with make_batch_reader(urls, num_epochs=None) as reader:  # endless: see finetune.reading on what its end loses
        for batch in reader:
            found |= dict(zip(batch.path, batch.features, strict=True))
            if len(found) == built.manifest.row_count:
                break
    rows = read_rows(built.folder)
    assert set(found) == set(rows.index)
    np.testing.assert_array_equal(np.stack([found[path] for path in rows.index]), stacked(rows))


def test_the_trainers_reader_reads_each_split(built: Built) -> None:
    from finetune.reading import read_table

    rows = read_rows(built.folder)
    for split in built.manifest.rows:
        table = read_table(str(built.folder), built.manifest, split, ("path", "features"))
        found = dict(zip(table["path"].to_pylist(), table["features"].to_pylist(), strict=True))
        expected = rows[rows["split"] == split]
        assert set(found) == set(expected.index)
        np.testing.assert_array_equal(np.stack([found[path] for path in expected.index]), stacked(expected))


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


# Other sources


def test_pixels_are_a_feature_set_like_any_other(spark: SparkSession, photos: Path, tmp_path: Path) -> None:
    settings = {
        "images": {"source": str(photos), "split": SPLIT},
        "backbone": {"name": "pixels", "height": 6, "width": 5, "channels": 1, "batch_size": 7},
        "features": {"url": str(tmp_path / "pixels")},
    }
    featurize(spark, check_settings(FeaturizeRecipe, settings, origin="test"))
    manifest, rows = read_features_manifest(str(tmp_path / "pixels")), read_rows(tmp_path / "pixels")
    assert (manifest.feature_shape, manifest.feature_dtype) == ([6, 5, 1], "uint8")
    for url, row in rows.iterrows():
        expected = decode_image(storage.read_bytes(str(url)), height=6, width=5, channels=1)
        assert row["features"] == expected.tobytes()


def test_split_folders_and_an_images_table_give_the_splits_they_have(
    spark: SparkSession, mean_backbone: Path, tmp_path: Path
) -> None:
    make_photos(tmp_path / "images" / "train", per_class=30)
    make_photos(tmp_path / "images" / "test", per_class=2, seed=5)
    result, _ = featurize(spark, recipe(tmp_path / "images", tmp_path / "out", mean_backbone, split="folders"))
    manifest = result.manifest
    assert manifest.split_rows("test") == 6
    assert manifest.split_rows("train") + manifest.split_rows("validation") == 90
    assert 1 <= manifest.split_rows("validation") <= 25
    rows = read_rows(tmp_path / "out")
    assert all(("/test/" in str(path)) == (row["split"] == "test") for path, row in rows.iterrows())
