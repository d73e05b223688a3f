"""Featurizing on a worker: called here as Spark calls it, without Spark."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.tables.listings import picture, put
from helpers.tables.shard_files import files_in
from helpers.tables.worker_runs import PIXELS, as_spark_task, make_run, make_task, rejects_of, rows_of
from hypothesis import given
from hypothesis import strategies as st

from featurize.backbones.backbone import load_backbone
from featurize.backbones.spec import BackboneSpec
from featurize.building import shipped_backbone
from featurize.building.shipped_backbone import ShippedBackbone
from featurize.building.staging import STAGING
from featurize.building.worker import make_shard
from featurize.decoding.decode import decode_image
from featurize.errors import JobError
from featurize.sources.listing import ImageSource
from featurize.sources.opening import open_source
from featurize.sources.splits import SplitRule
from featurize.tables.manifests import ShardRecord


@pytest.fixture(autouse=True)
def no_backbone() -> Iterator[None]:
    """Each test begins as a fresh worker process does, and leaves one."""
    shipped_backbone.forget_backbone()
    yield
    shipped_backbone.forget_backbone()


def put_pictures(folder: Path, count: int) -> dict[str, bytes]:
    """Pictures of 7 x 9 pixels in the classes a and b; returns their bytes by the names of their files."""
    contents = {f"{index:02d}.png": picture(index, height=9, width=7) for index in range(count)}
    for index, (name, content) in enumerate(contents.items()):
        (folder / "ab"[index % 2]).mkdir(parents=True, exist_ok=True)
        (folder / "ab"[index % 2] / name).write_bytes(content)
    return contents


def run(table: Path, source: ImageSource, **changes: Any) -> ShardRecord:
    """Makes one shard of all images."""
    return make_shard(make_run(table, source), make_task(source, **changes), 0)


@pytest.mark.parametrize("batch_size", [1, 4, 5, 64])
@pytest.mark.parametrize(("rows_per_group", "cpus"), [(1, 3), (3, 1), (10, 2)])
def test_batches_of_any_size_give_the_rows_of_each_image(
    tmp_path: Path, batch_size: int, rows_per_group: int, cpus: int
) -> None:
    contents = put_pictures(tmp_path / "photos", 10)
    for name, content in (("a/04.png", b"broken"), ("b/09.png", b"")):
        (tmp_path / "photos" / name).write_bytes(content)
    with as_spark_task(cpus=cpus):
        record = run(
            tmp_path / "table",
            open_source(str(tmp_path / "photos"), None),
            batch_size=batch_size,
            rows_per_group=rows_per_group,
        )
    written = rows_of(tmp_path / "table", record)
    assert set(written) == set(contents) - {"04.png", "09.png"}
    for name, row in written.items():
        assert row["features"] == decode_image(contents[name], height=4, width=5).tobytes()
        assert row["label"] == Path(row["path"]).parent.name == "ab"[int(name[:2]) % 2]
        assert (row["label_index"], row["width"], row["height"]) == ("ab".index(row["label"]), 7, 9)
    assert record.row_count == 8
    assert record.rejects == {
        "decode: not an image in a known format, but a text file": 1,
        "decode: the file is empty": 1,
    }
    for file in record.files:
        metadata = pq.ParquetFile(tmp_path / "table" / STAGING / file.path).metadata
        assert metadata.num_row_groups == -(-file.rows // rows_per_group)


def test_a_shard_of_rejects_only_loads_no_backbone_and_writes_only_rejects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> Any:
        raise AssertionError("nothing is there to be computed")

    monkeypatch.setattr(shipped_backbone, "load_backbone", load)
    put(tmp_path / "photos", "a/1.png", "a/2.png")
    source = open_source(str(tmp_path / "photos"), None)
    for name in ("1.png", "2.png"):
        (tmp_path / "photos" / "a" / name).write_bytes(b"broken")
    record = run(tmp_path / "table", source)
    assert (record.files, record.rows) == ([], {})
    assert int(record.content_digest, 16) == 0
    assert set(rejects_of(tmp_path / "table", record)) == {"1.png", "2.png"}


def test_images_outside_class_folders_are_rejected_by_their_layout(tmp_path: Path) -> None:
    put(tmp_path, "photos/a/1.png", "photos/loose.png", "photos/2.png")
    record = run(tmp_path / "table", open_source(str(tmp_path / "photos"), None))
    assert set(rows_of(tmp_path / "table", record)) == {"1.png"}
    assert record.rejects == {"layout: not in a class folder": 2}


def test_own_splits_are_kept(tmp_path: Path) -> None:
    put(tmp_path, *(f"photos/{split}/a/{index}.png" for split in ("train", "val", "test") for index in range(2)))
    source = open_source(str(tmp_path / "photos"), "folders")
    record = run(tmp_path / "table", source, split_rule=SplitRule(fractions=None))
    assert {file.split: file.rows for file in record.files} == {"train": 2, "validation": 2, "test": 2}
    for file in record.files:
        assert file.path.startswith(f"data/split={file.split}/")


def test_the_digest_of_the_content_does_not_know_the_batches_or_the_files(tmp_path: Path) -> None:
    put_pictures(tmp_path / "photos", 9)
    source = open_source(str(tmp_path / "photos"), None)
    one = run(tmp_path / "1", source)
    other = run(tmp_path / "2", source, batch_size=2, rows_per_group=1)
    fewer = run(tmp_path / "3", dataclasses.replace(source, listing=source.listing.slice(1)))
    assert one.content_digest == other.content_digest != fewer.content_digest


def test_the_backbone_is_loaded_once_and_fed_full_batches_but_for_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, sizes = [], []

    def load(spec: BackboneSpec, path: Path | None, *, sha256: str | None) -> Any:
        loads.append(spec)

        def forward(images: Any) -> Any:
            sizes.append(len(images))
            return images

        return forward

    monkeypatch.setattr(shipped_backbone, "load_backbone", load)
    put_pictures(tmp_path / "photos", 10)
    (tmp_path / "photos" / "a" / "00b.png").write_bytes(b"broken")  # its place in the batch is not left empty
    source = open_source(str(tmp_path / "photos"), None)
    for name in ("one", "another"):
        run(tmp_path / name, source)
    assert (len(loads), sizes) == (1, [4, 4, 2, 4, 4, 2])


def test_another_backbone_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    contents = put_pictures(tmp_path / "photos", 3)
    source = open_source(str(tmp_path / "photos"), None)
    for channels in (3, 1):
        spec = dataclasses.replace(PIXELS, channels=channels, feature_shape=(4, 5, channels))
        record = run(tmp_path / str(channels), source, spec=spec)
        for name, row in rows_of(tmp_path / str(channels), record).items():
            assert row["features"] == decode_image(contents[name], height=4, width=5, channels=channels).tobytes()
    assert len(shipped_backbone.kept_backbones()) == 1


def test_float_features_are_lists_in_the_order_of_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> Any:
        return lambda images: images.reshape(len(images), -1).astype(np.float32)[:, 3:16] / 7

    monkeypatch.setattr(shipped_backbone, "load_backbone", load)
    contents = put_pictures(tmp_path / "photos", 7)
    spec = dataclasses.replace(PIXELS, name="Invented", feature_shape=(13,), feature_dtype="float32")
    record = run(tmp_path / "table", open_source(str(tmp_path / "photos"), None), spec=spec)
    written = rows_of(tmp_path / "table", record)
    assert set(written) == set(contents)
    for name, row in written.items():
        expected = decode_image(contents[name], height=4, width=5).reshape(-1)[3:16].astype(np.float32) / 7
        np.testing.assert_array_equal(np.array(row["features"], np.float32), expected)


def test_a_backbone_file_of_another_digest_is_refused(tmp_path: Path, mean_backbone: Path) -> None:
    spec = dataclasses.replace(
        PIXELS, name="mean.keras", height=32, width=32, feature_shape=(3,), feature_dtype="float32"
    )
    with pytest.raises(JobError, match=r"mean\.keras.*not the one that this job prepared"):
        load_backbone(spec, mean_backbone, sha256="0" * 64)
    with pytest.raises(JobError, match="not the one"):
        load_backbone(spec, None, sha256="0" * 64)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 512), st.integers(1, 64))
def test_what_is_decoded_ahead_fills_batches_of_small_images_and_a_set_memory_with_large_ones(
    height: int, width: int, batch_size: int, threads: int
) -> None:
    spec = dataclasses.replace(PIXELS, height=height, width=width, feature_shape=(height, width, 3))
    task = ShippedBackbone(spec, None, None, batch_size)
    ahead, image_bytes = task.ahead(threads), height * width * 3
    assert ahead >= min(threads, 2 * batch_size)
    assert ahead <= max(threads, (256 << 20) // image_bytes)
    if (2 * batch_size + threads) * image_bytes <= 256 << 20:
        assert ahead > 2 * batch_size  # one batch is computed while the next is ready


def test_nothing_is_left_beside_the_files_of_the_record(tmp_path: Path) -> None:
    put_pictures(tmp_path / "photos", 5)
    record = run(tmp_path / "table", open_source(str(tmp_path / "photos"), None))
    others = {"plan-0123abcd.parquet", "commits/0123abcd-000000.json"}
    assert files_in(tmp_path / "table" / STAGING) == {file.path for file in record.all_files} | others
