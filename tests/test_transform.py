"""What runs on a worker: called here as Spark calls it, without Spark."""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from featurize import transform
from featurize.backbones import BackboneSpec
from featurize.decode import decode_image
from featurize.errors import JobError
from featurize.pipeline import SourceImage, map_ahead
from featurize.recipe import FractionSplit
from featurize.shards import ShardRecord
from featurize.splits import SplitRule
from featurize.transform import FeaturizeTask, make_featurize_fn

SPEC = BackboneSpec(
    name="pixels",
    network_sha256=None,
    layer=None,
    weights=None,
    weights_digest=None,
    preprocessing="none",
    resizing="x",
    height=4,
    width=5,
    channels=3,
    precision="float32",
    feature_shape=(4, 5, 3),
    feature_dtype="uint8",
)
SOURCE_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("label", pa.string()),
        ("own_split", pa.string()),
        ("content", pa.binary()),
        ("bytes_size", pa.int64()),
        ("image_id", pa.string()),
    ]
)


def picture(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def source_rows(count: int, **changes: Any) -> list[dict[str, Any]]:
    rows = []
    for index in range(count):
        content = picture(index)
        row = {"path": f"file:///{index}", "label": "ab"[index % 2], "own_split": None, "content": content}
        rows.append({**row, "bytes_size": len(content), "image_id": hashlib.sha256(content).hexdigest()} | changes)
    return rows


def task(folder: Path, **changes: Any) -> FeaturizeTask:
    settings: dict[str, Any] = {
        "staging": f"file://{folder}/0123abcd",
        "classes": ("a", "b"),
        "split_rule": SplitRule(fractions=FractionSplit()),
        "spec": SPEC,
        "backbone_file": None,
        "backbone_sha256": None,
        "batch_size": 4,
        "rows_per_group": 3,
    }
    return FeaturizeTask(**{**settings, **changes})


def run(
    task: FeaturizeTask, rows: list[dict[str, Any]], *, rows_per_batch: int = 3
) -> tuple[ShardRecord, dict[str, Any]]:
    """Runs the worker's function over `rows`; returns its record and the rows written, by path."""
    transform._loaded.clear()
    batches = [
        pa.RecordBatch.from_pylist(rows[start : start + rows_per_batch], schema=SOURCE_SCHEMA)
        for start in range(0, len(rows), rows_per_batch)
    ]
    (batch,) = make_featurize_fn(task)(iter(batches))
    record = ShardRecord.model_validate_json(batch.column(0)[0].as_py())
    folder = Path(task.staging.removeprefix("file://"))
    tables = [pq.ParquetFile(folder / file.path).read().to_pylist() for file in record.files]
    return record, {row["path"]: row for table in tables for row in table}


@pytest.mark.parametrize("batch_size", [1, 4, 5, 64])
@pytest.mark.parametrize("rows_per_batch", [1, 3, 10])
def test_batches_of_any_size_give_the_rows_of_each_image(tmp_path: Path, batch_size: int, rows_per_batch: int) -> None:
    rows = source_rows(10)
    rows[4]["content"] = b"broken"
    rows[9]["content"] = b""
    record, written = run(task(tmp_path, batch_size=batch_size), rows, rows_per_batch=rows_per_batch)
    assert set(written) == {row["path"] for index, row in enumerate(rows) if index not in (4, 9)}
    for row in rows:
        if row["path"] in written:
            found = written[row["path"]]
            assert found["features"] == decode_image(row["content"], height=4, width=5).tobytes()
            assert (found["image_id"], found["label"]) == (row["image_id"], row["label"])
            assert (found["label_index"], found["width"], found["height"]) == ("ab".index(row["label"]), 7, 9)
    assert sum(sum(labels.values()) for labels in record.rows.values()) == 8
    assert record.rejects == {"decode: not an image in a known format": 1, "decode: the file is empty": 1}


def test_a_partition_without_rows_gives_an_empty_record_and_no_files(tmp_path: Path) -> None:
    record, written = run(task(tmp_path), [])
    assert (record.files, record.reject_files, record.rows, record.rejects, written) == ([], [], {}, {}, {})
    assert int(record.content_digest, 16) == 0
    assert list(tmp_path.rglob("*")) == []


def test_a_partition_of_rejects_only_writes_only_rejects(tmp_path: Path) -> None:
    record, written = run(task(tmp_path), source_rows(3, content=b"broken"))
    assert (record.files, written) == ([], {})
    (file,) = record.reject_files
    rejects = pq.ParquetFile(tmp_path / "0123abcd" / file.path).read().to_pylist()
    assert [reject["path"] for reject in rejects] == ["file:///0", "file:///1", "file:///2"]
    assert {reject["bytes_size"] for reject in rejects} == {len(b"broken")}


def test_an_image_outside_a_class_folder_is_rejected_by_its_layout(tmp_path: Path) -> None:
    record, written = run(task(tmp_path), source_rows(2, label=None))
    assert written == {}
    assert record.rejects == {"layout: not in a class folder": 2}


def test_own_splits_are_kept(tmp_path: Path) -> None:
    rows = source_rows(6)
    for index, row in enumerate(rows):
        row["own_split"] = ("train", "validation", "test")[index % 3]
    record, written = run(task(tmp_path, split_rule=SplitRule(fractions=None)), rows)
    assert {file.split: file.rows for file in record.files} == {"train": 2, "validation": 2, "test": 2}
    assert len(written) == 6


def test_the_digest_of_the_content_does_not_know_the_order_or_the_batches(tmp_path: Path) -> None:
    rows = source_rows(9)
    one, _ = run(task(tmp_path / "1"), rows)
    other, _ = run(task(tmp_path / "2", batch_size=2), rows[::-1], rows_per_batch=2)
    fewer, _ = run(task(tmp_path / "3"), rows[1:])
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

    monkeypatch.setattr(transform, "load_backbone", load)
    run(task(tmp_path), source_rows(10))
    assert (len(loads), sizes) == (1, [4, 4, 2])


def test_a_backbone_file_of_another_digest_is_refused(tmp_path: Path, mean_backbone: Path) -> None:
    from dataclasses import replace

    from featurize.backbones import load_backbone

    spec = replace(SPEC, name="mean.keras", height=32, width=32, feature_shape=(3,), feature_dtype="float32")
    with pytest.raises(JobError, match=r"mean\.keras.*not the one this job prepared"):
        load_backbone(spec, mean_backbone, sha256="0" * 64)
    with pytest.raises(JobError, match="not the one"):
        load_backbone(spec, None, sha256="0" * 64)


def images(count: int) -> Iterator[SourceImage]:
    for index in range(count):
        yield SourceImage(str(index), str(index), "a", None, b"")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("ahead", [None, 1, 100])
def test_work_ahead_keeps_the_order_and_every_image(threads: int, ahead: int | None) -> None:
    import time

    def work(image: SourceImage) -> int:
        time.sleep(0.002 * (int(image.path) % 3))
        return int(image.path) ** 2

    found = list(map_ahead(work, images(20), threads, ahead=ahead))
    assert [(image.path, result) for image, result in found] == [(str(index), index**2) for index in range(20)]


def test_work_ahead_holds_no_more_images_than_it_may() -> None:
    taken, given = 0, 0

    def counted() -> Iterator[SourceImage]:
        nonlocal taken
        for image in images(30):
            taken += 1
            assert taken - given <= 5
            yield image

    for _ in map_ahead(lambda image: image.path, counted(), 2, ahead=5):
        given += 1
    assert given == 30


def test_a_fault_in_work_ahead_is_raised_where_its_result_is_asked_for() -> None:
    def work(image: SourceImage) -> int:
        return 1 // (3 - int(image.path))

    results = map_ahead(work, images(10), 2)
    assert [next(results)[1] for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
