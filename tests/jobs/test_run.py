"""The feature set: one row per image, and readable by everybody."""

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from helpers.images.photos import make_photos
from helpers.tables.building import SPLIT, Built, files_of, read_rows, recipe, stacked
from numpy.typing import NDArray
from pyspark.sql import SparkSession

from featurize import storage
from featurize.decoding.decode import decode_image
from featurize.jobs.run import featurize
from featurize.recipes.recipe import FeaturizeRecipe
from featurize.recipes.toml_settings import check_settings
from featurize.tables.readable import read_features_manifest

pytestmark = pytest.mark.spark


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


def test_the_manifest_says_where_the_time_went(built: Built) -> None:
    timings = built.manifest.timings
    assert min(timings.model_dump().values()) > 0
    filling, computing = timings.wait + timings.write, timings.startup + timings.forward  # beside each other
    assert 0.5 * timings.tasks < filling + computing
    assert max(filling, computing) <= timings.tasks
    assert timings.tasks <= built.manifest.seconds


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
    assert {path.name for path in built.folder.iterdir()} == {"_delta_log", "_firn", "data"}
    listed = {file.path for shard in built.manifest.shards for file in shard.all_files}
    assert set(files_of(built.folder)) == listed | {f"_delta_log/{0:020d}.json"}


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
    with make_batch_reader(
        urls, num_epochs=None
    ) as reader:  # endless: see finetune.rows.petastorm_reader on what its end loses
        for batch in reader:
            found |= dict(zip(batch.path, batch.features, strict=True))
            if len(found) == built.manifest.row_count:
                break
    rows = read_rows(built.folder)
    assert set(found) == set(rows.index)
    np.testing.assert_array_equal(np.stack([found[path] for path in rows.index]), stacked(rows))


def test_the_trainers_reader_reads_each_split(built: Built) -> None:
    from featurize.tables.row_groups import read_table

    rows = read_rows(built.folder)
    for split in built.manifest.rows:
        table = read_table(str(built.folder), built.manifest, split, ("path", "features"))
        found = dict(zip(table["path"].to_pylist(), table["features"].to_pylist(), strict=True))
        expected = rows[rows["split"] == split]
        assert set(found) == set(expected.index)
        np.testing.assert_array_equal(np.stack([found[path] for path in expected.index]), stacked(expected))


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


def test_auto_precision_of_a_rerun_is_that_of_the_rows_that_are_there(
    built: Built, spark: SparkSession, mean_backbone: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def another_processor(*_: Any, **__: Any) -> Any:
        raise AssertionError("the precision was decided already")

    monkeypatch.setattr("featurize.backbones.backbone.choose_precision", another_processor)
    result, prepared = featurize(spark, recipe(photos, built.folder, mean_backbone, precision="auto"))
    assert prepared.columns[0].spec.precision == built.backbone.spec.precision
    assert result.skipped == 62
