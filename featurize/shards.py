"""Shards: what one Spark task writes. Files go to a staging folder; a record of them, returned to the driver, commits them."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from featurize import storage
from featurize.digests import multiset_digest
from featurize.manifests import DataFile

REJECTS_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("path", pa.string()),
        ("bytes_size", pa.int64()),
        ("stage", pa.string()),
        ("error", pa.string()),
    ]
)
_REJECT_ROWS_PER_GROUP = 4096


class ShardRecord(BaseModel):
    """What a task wrote: the files, and the counts that enter the manifest."""

    files: list[DataFile]
    reject_files: list[DataFile]
    rows: dict[str, dict[str, int]]
    rejects: dict[str, int]
    content_digest: str


class ParquetFile:
    """One Parquet file whose row groups hold a fixed number of rows, the last excepted."""

    def __init__(self, url: str, schema: pa.Schema, *, rows_per_group: int, plain_columns: Sequence[str] = ()) -> None:
        self._url, self._schema, self._rows_per_group = url, schema, rows_per_group
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self._rows = 0
        self._stack = ExitStack()
        sink = self._stack.enter_context(storage.open_output(url))
        dictionary = [name for name in schema.names if name not in plain_columns]
        self._writer = self._stack.enter_context(
            pq.ParquetWriter(pa.PythonFile(sink, mode="w"), schema, compression="zstd", use_dictionary=dictionary)
        )

    def write(self, batch: pa.RecordBatch) -> None:
        """Adds rows; every full row group is written out."""
        self._pending.append(batch)
        self._pending_rows += batch.num_rows
        if self._pending_rows >= self._rows_per_group:
            table = pa.Table.from_batches(self._pending, schema=self._schema)
            whole = table.num_rows - table.num_rows % self._rows_per_group
            self._writer.write_table(table.slice(0, whole), row_group_size=self._rows_per_group)
            self._pending = table.slice(whole).combine_chunks().to_batches()
            self._pending_rows = table.num_rows - whole
            self._rows += whole

    def close(self, *, path: str, split: str | None) -> DataFile:
        """Writes the last row group and the footer. `path` and `split` go into the entry for the manifest."""
        if self._pending_rows:
            self._writer.write_table(pa.Table.from_batches(self._pending, schema=self._schema))
            self._rows += self._pending_rows
        self._stack.close()
        filesystem, inner = storage.open_filesystem(self._url)
        return DataFile(path=path, rows=self._rows, bytes=int(filesystem.size(inner)), split=split)


class ShardWriter:
    """Writes the rows and rejects of one task into the staging folder of its run.

    Args:
        staging: URL of the folder.
        name: unique to the task and its attempt, so that a failed attempt leaves nothing under a name that counts.
        schema: of the rows; `image_id`, `path` and `label` are in it.
        by_split: whether each split has a folder of its own, ``data/split=<split>``; else `split` is a column.
        plain_columns: columns whose values hardly repeat, to be written without a dictionary.
    """

    def __init__(
        self,
        staging: str,
        name: str,
        schema: pa.Schema,
        *,
        rows_per_group: int,
        by_split: bool,
        plain_columns: Sequence[str] = (),
    ) -> None:
        self._staging, self._name, self._schema = staging, name, schema
        self._rows_per_group, self._by_split, self._plain_columns = rows_per_group, by_split, plain_columns
        self._files: dict[str | None, tuple[str, ParquetFile]] = {}
        self._rejects: list[dict[str, Any]] = []
        self._rows: dict[str, dict[str, int]] = {}
        self._items: list[str] = []

    def write(self, splits: Sequence[str], columns: Mapping[str, Sequence[Any] | pa.Array]) -> None:
        """Adds rows; `splits` has the split of each."""
        batch = pa.RecordBatch.from_arrays(
            [pa.array(columns[field.name], type=field.type) for field in self._schema], schema=self._schema
        )
        labels, image_ids, paths = (batch.column(self._schema.get_field_index(name)).to_pylist() for name in _COUNTED)
        for split, label, image_id, path in zip(splits, labels, image_ids, paths, strict=True):
            counts = self._rows.setdefault(split, {})
            counts[label] = counts.get(label, 0) + 1
            self._items.append(f"{image_id} {split} {label} {path}")
        if not self._by_split:
            self._file(None).write(batch)
            return
        for split in sorted(set(splits)):
            rows = [index for index, value in enumerate(splits) if value == split]
            self._file(split).write(batch.take(pa.array(rows)))

    def reject(self, *, image_id: str, path: str, bytes_size: int, stage: str, error: str) -> None:
        """Keeps an image that gave no row, with the reason."""
        self._rejects.append(
            {"image_id": image_id, "path": path, "bytes_size": bytes_size, "stage": stage, "error": error}
        )

    def close(self) -> ShardRecord:
        """Closes the files. The record commits them, once the driver has it."""
        files = [file.close(path=path, split=split) for split, (path, file) in sorted(self._files.items(), key=str)]
        reasons: dict[str, int] = {}
        for reject in self._rejects:
            reason = f"{reject['stage']}: {reject['error']}"
            reasons[reason] = reasons.get(reason, 0) + 1
        return ShardRecord(
            files=files,
            reject_files=self._write_rejects(),
            rows=self._rows,
            rejects=reasons,
            content_digest=multiset_digest(self._items),
        )

    def _file(self, split: str | None) -> ParquetFile:
        if split not in self._files:
            folder = "data" if split is None else f"data/split={split}"
            path = f"{folder}/part-{self._name}.parquet"
            url = storage.join_url(self._staging, path)
            file = ParquetFile(
                url, self._schema, rows_per_group=self._rows_per_group, plain_columns=self._plain_columns
            )
            self._files[split] = (path, file)
        return self._files[split][1]

    def _write_rejects(self) -> list[DataFile]:
        if not self._rejects:
            return []
        path = f"rejects/part-{self._name}.parquet"
        url = storage.join_url(self._staging, path)
        file = ParquetFile(url, REJECTS_SCHEMA, rows_per_group=_REJECT_ROWS_PER_GROUP)
        file.write(pa.RecordBatch.from_pylist(self._rejects, schema=REJECTS_SCHEMA))
        return [file.close(path=path, split=None)]


_COUNTED = ("label", "image_id", "path")
