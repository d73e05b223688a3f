"""Shards written without Spark and without a network, and what lies in a folder; for the tests."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from featurize.building.shard_files import ShardWriter
from featurize.building.staging import STAGING
from featurize.tables.manifests import ShardRecord

SCHEMA = pa.schema([("image_id", pa.string()), ("path", pa.string()), ("label", pa.string()), ("value", pa.int64())])
SPLITS = ("train", "validation", "test")


def make_writer(staging: Path, name: str, *, rows_per_group: int = 4, by_split: bool = True) -> ShardWriter:
    return ShardWriter(
        str(staging), name, SCHEMA, rows_per_group=rows_per_group, by_split=by_split, plain_columns=("path", "value")
    )


def write_rows(writer: ShardWriter, numbers: Sequence[int]) -> None:
    """A row for each number, which tells its label, split and stamp."""
    columns: dict[str, Any] = {
        "image_id": [image_id(number) for number in numbers],
        "path": [f"file:///{number}" for number in numbers],
        "label": ["ab"[number % 2] for number in numbers],
        "value": list(numbers),
    }
    writer.write([SPLITS[number % 3] for number in numbers], [f"{number}:1" for number in numbers], columns)


def reject(writer: ShardWriter, number: int, *, stage: str = "decode") -> None:
    writer.reject(
        path=f"file:///{number}",
        image_id=None if stage == "read" else image_id(number),
        bytes_size=1,
        stamp=f"{number}:1",
        stage=stage,
        error="broken",
    )


def image_id(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def write_shard(
    table: Path, run: str, shard: int, *, attempt: int = 0, images: int = 5, unread: int = 0, broken: int = 1
) -> ShardRecord:
    """The files of one shard in the staging folder of a table; its record is not committed."""
    writer = make_writer(table / STAGING, f"{run}-{shard:05d}-{attempt}")
    numbers = range(100 * shard, 100 * shard + images)
    write_rows(writer, numbers)
    for number in range(100 * shard + 50, 100 * shard + 50 + broken):
        reject(writer, number)
    for number in range(100 * shard + 80, 100 * shard + 80 + unread):
        reject(writer, number, stage="read")
    return writer.close()


def files_in(folder: Path) -> set[str]:
    """The paths of all files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def paths_of(records: Sequence[ShardRecord], *, below: str = "") -> set[str]:
    """Where the files of shards lie."""
    return {below + file.path for record in records for file in record.all_files}
