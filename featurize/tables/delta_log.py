"""The Delta log of a table: numbered commits, each created exclusively, that say which Parquet files belong to the table.

    _delta_log/00000000000000000007.json                 the actions of version 7, one JSON object a line
    _delta_log/00000000000000000100.checkpoint.parquet   what is left of all actions up to version 100
    _delta_log/_last_checkpoint                          where readers begin

This is the part of the Delta protocol (reader version 1, writer version 2) that publishing needs. A commit is a compare-and-swap:
whoever creates the file of version N has published it, and every other writer that started from N - 1 has lost.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import time
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from featurize import storage
from featurize.errors import JobError

LOG = "_delta_log"
CHECKPOINT_EVERY = 100
"""Versions between two checkpoints: a reader replays fewer commits than this."""
KEPT_DAYS = 7
"""How long tombstones of removed files stay in checkpoints, and by default how long old versions stay readable."""
_THREADS = 16
_DIGITS = 20
_POINTER = f"{LOG}/_last_checkpoint"
_DELTA_TYPES = {
    pa.string(): "string",
    pa.int32(): "integer",
    pa.int64(): "long",
    pa.float32(): "float",
    pa.float64(): "double",
    pa.binary(): "binary",
    pa.timestamp("us", tz="UTC"): "timestamp",
}
_STRINGS = pa.map_(pa.string(), pa.string())
_FILE = [("path", pa.string()), ("partitionValues", _STRINGS), ("size", pa.int64())]
_CHECKPOINT_SCHEMA = pa.schema(
    [
        ("protocol", pa.struct([("minReaderVersion", pa.int32()), ("minWriterVersion", pa.int32())])),
        (
            "metaData",
            pa.struct(
                [
                    ("id", pa.string()),
                    ("format", pa.struct([("provider", pa.string()), ("options", _STRINGS)])),
                    ("schemaString", pa.string()),
                    ("partitionColumns", pa.list_(pa.string())),
                    ("createdTime", pa.int64()),
                    ("configuration", _STRINGS),
                ]
            ),
        ),
        (
            "add",
            pa.struct([*_FILE, ("modificationTime", pa.int64()), ("dataChange", pa.bool_()), ("stats", pa.string())]),
        ),
        (
            "remove",
            pa.struct(
                [
                    *_FILE,
                    ("deletionTimestamp", pa.int64()),
                    ("dataChange", pa.bool_()),
                    ("extendedFileMetadata", pa.bool_()),
                ]
            ),
        ),
    ]
)
Action = dict[str, Any]


@dataclass(frozen=True)
class ListedFile:
    """A Parquet file of a version: its path below the table, bytes, rows, and the values of the partition columns."""

    path: str
    size: int
    rows: int
    partition: tuple[tuple[str, str], ...] = ()

    def added(self, now: int, *, data_change: bool) -> Action:
        """The action that makes the file part of the table; `now` is in milliseconds since 1970."""
        stats = json.dumps({"numRecords": self.rows})
        return {"add": self._common(data_change) | {"modificationTime": now, "stats": stats}}

    def removed(self, now: int, *, data_change: bool) -> Action:
        """The action that takes the file out of the table; the file itself stays."""
        return {"remove": self._common(data_change) | {"deletionTimestamp": now, "extendedFileMetadata": True}}

    def _common(self, data_change: bool) -> dict[str, Any]:
        return {
            "path": quote(self.path, safe="/=-_.~"),
            "partitionValues": dict(self.partition),
            "size": self.size,
            "dataChange": data_change,
        }


def milliseconds() -> int:
    """The time by this machine's clock, in milliseconds since 1970."""
    return int(time() * 1000)


def protocol() -> Action:
    """What readers and writers must know: the oldest versions of the protocol."""
    return {"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}}


def metadata(table_id: str, schema: pa.Schema, partition_columns: Sequence[str], created: int) -> Action:
    """The columns of the table.

    Args:
        table_id: a UUID, the same in all versions.
        schema: the columns, partition columns included.
        created: milliseconds since 1970.
    """
    return {
        "metaData": {
            "id": table_id,
            "format": {"provider": "parquet", "options": {}},
            "schemaString": json.dumps(_struct(schema)),
            "partitionColumns": list(partition_columns),
            "createdTime": created,
            "configuration": {"delta.enableExpiredLogCleanup": "false"},
        }
    }


def latest_version(url: str, known: int = -1) -> int | None:
    """The number of the last commit of the table at `url`; None where there is none.

    Args:
        known: a version that is known to exist; then only later ones are looked for, one by one.
    """
    if known >= 0:
        while storage.exists(commit_url(url, known + 1)):
            known += 1
        return known
    numbers = [number for name in _names(url) if (number := _number(name, ".json")) is not None]
    return max(numbers, default=None)


def commit_url(url: str, version: int) -> str:
    """URL of the commit of a version."""
    return storage.join_url(url, LOG, f"{version:0{_DIGITS}d}.json")


def read_commit(url: str, version: int) -> list[Action]:
    """The actions of a version.

    Raises:
        FileNotFoundError: there is no such version.
        JobError: the commit is damaged.
    """
    place = commit_url(url, version)
    try:
        actions = [json.loads(line) for line in storage.read_bytes(place).decode().splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise JobError(f"{place} is damaged: {error}.") from error
    if not actions or not all(isinstance(action, dict) for action in actions):
        raise JobError(f"{place} is damaged: it holds no actions.")
    return actions


def read_commits(url: str, versions: Iterable[int]) -> list[list[Action]]:
    """The actions of several versions, read in threads."""
    numbers = list(versions)
    if len(numbers) < 2:
        return [read_commit(url, number) for number in numbers]
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda number: read_commit(url, number), numbers))


def commit(url: str, version: int, actions: Sequence[Action]) -> bool:
    """Publishes a version, unless another writer has published it. Returns whether this call's version counts.

    Raises:
        OSError: the storage failed, and nothing was published.
    """
    place = commit_url(url, version)
    content = b"".join(json.dumps(action, ensure_ascii=False).encode() + b"\n" for action in actions)
    try:
        return storage.create_exclusively(place, content) or _holds(place, content)
    except OSError:
        if _holds(place, content):  # the storage did it, and its answer was lost
            return True
        raise


def write_checkpoint(url: str, version: int) -> None:
    """Writes the checkpoint of a version. It says the same whoever writes it; readers do without it where it fails."""
    try:
        state = _replay(url, version)
        rows = [*state.heads, *state.files.values(), *state.tombstones.values()]
        table = pa.Table.from_pylist(rows, schema=_CHECKPOINT_SCHEMA)
        storage.write_file(_checkpoint_url(url, version), lambda file: pq.write_table(table, file))
        storage.write_bytes(
            storage.join_url(url, _POINTER), json.dumps({"version": version, "size": len(rows)}).encode()
        )
    except OSError as error:
        logging.getLogger(__name__).warning("no checkpoint of version %d of %s: %s", version, url, error)


@dataclass
class _State:
    """What is left of the actions up to a version: protocol and columns, files by path, and removed files by path."""

    heads: list[Action]
    files: dict[str, Action]
    tombstones: dict[str, Action]


def _replay(url: str, version: int) -> _State:
    numbers = [number for name in _names(url) if (number := _number(name, ".checkpoint.parquet")) is not None]
    start = max((number for number in numbers if number <= version), default=-1)
    rows = [] if start < 0 else _read_checkpoint(url, start)
    rows += [action for actions in read_commits(url, range(start + 1, version + 1)) for action in actions]
    heads, files, tombstones = dict[str, Action](), dict[str, Action](), dict[str, Action]()
    expired = milliseconds() - KEPT_DAYS * 86_400_000
    for row in rows:
        for kind in ("protocol", "metaData"):
            if kind in row:
                heads[kind] = {kind: row[kind]}
        if "add" in row:
            path = row["add"]["path"]
            files[path] = {"add": row["add"] | {"dataChange": False}}
            tombstones.pop(path, None)
        if "remove" in row:
            path = row["remove"]["path"]
            files.pop(path, None)
            if row["remove"]["deletionTimestamp"] >= expired:
                tombstones[path] = {"remove": row["remove"] | {"dataChange": False}}
    return _State(list(heads.values()), files, tombstones)


def _read_checkpoint(url: str, version: int) -> list[Action]:
    with storage.open_input(_checkpoint_url(url, version)) as file:
        rows = pq.ParquetFile(file).read().to_pylist()
    return [{key: value for key, value in row.items() if value is not None} for row in rows]


def _checkpoint_url(url: str, version: int) -> str:
    return storage.join_url(url, LOG, f"{version:0{_DIGITS}d}.checkpoint.parquet")


def _holds(url: str, content: bytes) -> bool:
    """Whether the file at `url` has this content, which a token makes unique."""
    try:
        return storage.read_bytes(url) == content
    except FileNotFoundError:
        return False


def _names(url: str) -> list[str]:
    return [file.rpartition("/")[2] for file in storage.list_files(storage.join_url(url, LOG))]


def _number(name: str, suffix: str) -> int | None:
    """The version in the name of a file of the log; None for a file of another kind."""
    digits = name.removesuffix(suffix)
    return int(digits) if digits != name and len(digits) == _DIGITS and digits.isdecimal() else None


def _struct(schema: pa.Schema) -> dict[str, Any]:
    fields = [
        {"name": field.name, "type": _delta_type(field.type), "nullable": True, "metadata": {}} for field in schema
    ]
    return {"type": "struct", "fields": fields}


def _delta_type(kind: pa.DataType) -> Any:
    """A type of Arrow as the protocol writes it."""
    if pa.types.is_list(kind):
        return {"type": "array", "elementType": _delta_type(kind.value_type), "containsNull": True}
    if pa.types.is_map(kind):
        key, value = _delta_type(kind.key_type), _delta_type(kind.item_type)
        return {"type": "map", "keyType": key, "valueType": value, "valueContainsNull": True}
    return _DELTA_TYPES[kind]
