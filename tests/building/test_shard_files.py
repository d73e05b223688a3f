"""Shards: what is written comes back in row groups of the wanted size, and the record says what lies there."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.tables.shard_files import SCHEMA, SPLITS, files_in, image_id, make_writer, reject, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from featurize.building.shard_files import GROUP_BYTES, ParquetFile, ShardWriter
from featurize.tables.manifests import ShardRecord
from featurize.tables.schemas import features_schema

lengths = st.lists(st.integers(1, 23), max_size=12)


def write_in_batches(writer: ShardWriter, numbers: list[int], lengths: list[int]) -> None:
    """All of `numbers`, in batches of these lengths and a last one."""
    ends = np.minimum(np.cumsum([0, *lengths, len(numbers)]), len(numbers)).tolist()
    for start, stop in pairwise(ends):
        if start < stop:
            write_rows(writer, numbers[start:stop])


def values_in(folder: Path, record: ShardRecord) -> dict[str | None, list[int]]:
    return {file.split: pq.ParquetFile(folder / file.path).read()["value"].to_pylist() for file in record.files}


@given(st.integers(0, 90), lengths, st.integers(1, 30), st.booleans())
@settings(max_examples=60)
def test_rows_keep_their_order_in_full_row_groups_whatever_the_batches(
    tmp_path_factory: pytest.TempPathFactory, count: int, lengths: list[int], rows_per_group: int, by_split: bool
) -> None:
    folder = tmp_path_factory.mktemp("shard")
    writer = make_writer(folder, "x", rows_per_group=rows_per_group, by_split=by_split)
    write_in_batches(writer, list(range(count)), lengths)
    record = writer.close()
    expected: dict[str | None, list[int]] = {None: list(range(count))}
    if by_split:
        expected = {split: list(range(number, count, 3)) for number, split in enumerate(SPLITS)}
    assert values_in(folder, record) == {split: values for split, values in expected.items() if values}
    for file in record.files:
        metadata = pq.ParquetFile(folder / file.path).metadata
        groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        assert set(groups[:-1]) <= {rows_per_group}
        assert 1 <= groups[-1] <= rows_per_group
        assert (file.rows, file.bytes) == (sum(groups), (folder / file.path).stat().st_size)


def groups_of(path: Path) -> list[int]:
    """The rows of each row group."""
    metadata = pq.ParquetFile(path).metadata
    return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]


def test_a_row_group_can_be_ended_before_it_is_full(tmp_path: Path) -> None:
    schema = pa.schema([("n", pa.int32())])
    file = ParquetFile(str(tmp_path / "x.parquet"), schema, rows_per_group=10)
    for numbers in (range(3), range(3, 6), range(6, 25)):
        file.write(pa.RecordBatch.from_pylist([{"n": number} for number in numbers], schema=schema))
        file.end_group()
        file.end_group()  # of nothing: adds none
    file.close(path="x", split=None)
    assert groups_of(tmp_path / "x.parquet") == [3, 3, 10, 9]


@given(st.lists(st.integers(0, 3 << 20), max_size=40), lengths)
@settings(max_examples=20)
def test_a_row_group_ends_before_it_has_too_many_bytes_whatever_the_batches(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], lengths: list[int]
) -> None:
    schema = pa.schema([("content", pa.binary()), ("exif", pa.map_(pa.string(), pa.string())), ("n", pa.bool_())])
    rows = [{"content": b"x" * size, "exif": [("k", "v")], "n": None} for size in sizes]
    found = []
    for cuts in (np.cumsum([0, *lengths, len(rows)]), np.array([0, len(rows)])):
        folder = tmp_path_factory.mktemp("shard")
        file = ParquetFile(str(folder / "x.parquet"), schema, rows_per_group=16)
        for start, stop in pairwise(np.minimum(cuts, len(rows)).tolist()):
            file.write(pa.RecordBatch.from_pylist(rows[start:stop], schema=schema))
        assert file.close(path="x", split=None).rows == len(rows)
        read = pq.ParquetFile(folder / "x.parquet").read()["content"].to_pylist()
        assert [len(content) for content in read] == sizes
        found.append(groups_of(folder / "x.parquet"))
    assert found[0] == found[1]
    ends = np.cumsum([0, *found[0]]).tolist()
    for start, stop in pairwise(ends):
        assert sum(sizes[start:stop]) <= GROUP_BYTES
        full = stop - start == 16 or stop == len(rows)
        assert full or sum(sizes[start : stop + 1]) > GROUP_BYTES


def test_large_features_lie_in_small_row_groups_and_what_is_larger_than_one_alone(tmp_path: Path) -> None:
    for values, groups in ((25_088, [83, 83, 34]), (4096, [512, 512, 1]), (3 << 20, [1] * 3)):
        schema = features_schema({"features": False})
        file = ParquetFile(str(tmp_path / "x.parquet"), schema, rows_per_group=512)
        for start in range(0, sum(groups), 32):
            count = min(32, sum(groups) - start)
            features = np.zeros((count, values), np.float32)
            arrays = [pa.nulls(count, field.type) for field in schema][:-1]
            file.write(pa.RecordBatch.from_arrays([*arrays, pa.array(list(features))], schema=schema))
        file.close(path="x", split=None)
        assert groups_of(tmp_path / "x.parquet") == groups


def test_the_record_counts_what_was_written_and_the_index_knows_every_image(tmp_path: Path) -> None:
    writer = make_writer(tmp_path, "x")
    write_rows(writer, range(7))
    for number, stage in ((7, "decode"), (8, "read"), (9, "decode")):
        reject(writer, number, stage=stage)
    record = writer.close()
    assert record.rows == {"train": {"a": 2, "b": 1}, "validation": {"a": 1, "b": 1}, "test": {"a": 1, "b": 1}}
    assert (record.row_count, record.reject_count, record.unread) == (7, 3, 1)
    assert record.rejects == {"decode: broken": 2, "read: broken": 1}
    assert files_in(tmp_path) == {file.path for file in record.all_files}
    index = pq.ParquetFile(tmp_path / record.index_file.path).read().to_pylist()
    assert {row["path"]: (row["image_id"], row["stamp"]) for row in index} == {
        f"file:///{number}": (image_id(number) if number != 8 else None, f"{number}:1") for number in range(10)
    }
    (rejects,) = record.reject_files
    found = pq.ParquetFile(tmp_path / rejects.path).read().to_pylist()
    assert [(row["path"], row["stage"]) for row in found] == [
        ("file:///7", "decode"),
        ("file:///8", "read"),
        ("file:///9", "decode"),
    ]
    for file in record.all_files:
        assert file.bytes == (tmp_path / file.path).stat().st_size


def test_a_shard_without_images_has_an_index_and_nothing_else(tmp_path: Path) -> None:
    record = make_writer(tmp_path, "x").close()
    assert (record.files, record.reject_files, record.rows, record.rejects) == ([], [], {}, {})
    assert int(record.content_digest, 16) == 0
    assert files_in(tmp_path) == {record.index_file.path}


@given(st.permutations(range(12)), lengths)
@settings(max_examples=30)
def test_the_digest_knows_neither_order_nor_batches_nor_rejects(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], lengths: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("shard")
    one, other, fewer, twice = (make_writer(folder, name) for name in ("one", "other", "fewer", "twice"))
    write_rows(one, range(12))
    write_in_batches(other, order, lengths)
    reject(other, 99)
    write_rows(fewer, range(11))
    write_rows(twice, [*range(12), 11])
    digest = one.close().content_digest
    assert other.close().content_digest == digest
    assert digest not in (fewer.close().content_digest, twice.close().content_digest)


def test_only_columns_that_repeat_are_written_by_dictionary(tmp_path: Path) -> None:
    writer = make_writer(tmp_path, "x", by_split=False)
    write_rows(writer, range(4))
    (file,) = writer.close().files
    group = pq.ParquetFile(tmp_path / file.path).metadata.row_group(0)
    by_dictionary = {
        name for number, name in enumerate(SCHEMA.names) if "RLE_DICTIONARY" in group.column(number).encodings
    }
    assert by_dictionary == {"image_id", "label"}


@pytest.mark.parametrize("closed", [False, True])
def test_an_abandoned_shard_leaves_no_file(tmp_path: Path, closed: bool) -> None:
    writer = make_writer(tmp_path, "x")
    write_rows(writer, range(50))
    reject(writer, 50)
    if closed:
        writer.close()
    assert len(files_in(tmp_path)) == (5 if closed else 3)
    writer.abandon()
    assert files_in(tmp_path) == set()
