"""Shards: the files that one Spark task writes to a staging folder. A record of them commits the shard (see `staging`)."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from featurize import storage
from featurize.digests import multiset_digest
from featurize.tables.layout import DATA, INDEX, REJECTS
from featurize.tables.manifests import DataFile, ShardRecord
from featurize.tables.schemas import INDEX_SCHEMA, REJECTS_SCHEMA
from featurize.timings import Timings

_SMALL_ROWS_PER_GROUP = 1 << 16
_TEXT_BYTES = 16  # of a text in a list, such as a label: a guess
GROUP_BYTES = 8 << 20
"""Most bytes of a column in a row group, before they are compressed: who streams rows holds a column of dozens of row groups."""


class ParquetFile:
    """One Parquet file whose row groups, except the last, hold a fixed number of rows, or fewer where these are large.

    Where a row group ends depends on the rows alone, not on the batches in which they come. A row of more than `GROUP_BYTES` has
    a row group of its own.
    """

    def __init__(self, url: str, schema: pa.Schema, *, rows_per_group: int, plain_columns: Sequence[str] = ()) -> None:
        self._url, self._schema, self._rows_per_group = url, schema, rows_per_group
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = self._rows = 0
        self._pending_bytes = np.zeros(len(schema), np.int64)
        self._stack = ExitStack()
        sink = self._stack.enter_context(_open_sink(url))
        dictionary = [name for name in schema.names if name not in plain_columns]
        self._writer = self._stack.enter_context(
            pq.ParquetWriter(pa.PythonFile(sink, mode="w"), schema, compression="zstd", use_dictionary=dictionary)
        )

    def write(self, batch: pa.RecordBatch) -> None:
        """Adds rows; every full row group is written out."""
        ends = np.vstack([np.zeros(batch.num_columns, np.int64), np.cumsum(_value_bytes(batch), axis=0)])
        start = 0
        while start < batch.num_rows:
            fits = (self._pending_bytes + ends[start + 1 :] - ends[start] <= GROUP_BYTES).all(axis=1)
            fitting = len(fits) if fits.all() else int(fits.argmin())
            count = min(max(fitting, 0 if self._pending_rows else 1), self._rows_per_group - self._pending_rows)
            if count:
                self._pending.append(batch.slice(start, count))
                self._pending_rows += count
                self._pending_bytes = self._pending_bytes + ends[start + count] - ends[start]
                start += count
            if start < batch.num_rows or self._pending_rows == self._rows_per_group:
                self.end_group()

    def end_group(self) -> None:
        """Ends the row group, however many rows it has."""
        if self._pending_rows:
            self._writer.write_table(pa.Table.from_batches(self._pending, schema=self._schema))
            self._rows += self._pending_rows
            self._pending, self._pending_rows = [], 0
            self._pending_bytes = np.zeros(len(self._schema), np.int64)

    def abandon(self) -> None:
        """Removes what was written. It never fails, so that the reason for abandoning the file is what is reported."""
        with suppress(OSError, _AbandonedError), self._stack:
            raise _AbandonedError
        with suppress(OSError):
            storage.remove(self._url)

    def close(self, *, path: str, split: str | None) -> DataFile:
        """Writes the last row group and the footer. `path` and `split` go into the entry for the manifest."""
        self.end_group()
        self._stack.close()
        filesystem, inner = storage.open_filesystem(self._url)
        return DataFile(path=path, rows=self._rows, bytes=int(filesystem.size(inner)), split=split)


def _value_bytes(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """The bytes of each value before they are compressed, of texts and lists those of what they hold: ``(n_rows, n_columns)``."""
    sizes = np.zeros((batch.num_rows, batch.num_columns), np.int64)
    for number, column in enumerate(batch.columns):
        kind = column.type
        if (each := _fixed_bytes(kind)) is not None:
            sizes[:, number] = each
        elif pa.types.is_nested(kind):
            each = None if pa.types.is_map(kind) else _fixed_bytes(kind.value_type)
            sizes[:, number] = np.diff(column.offsets.to_numpy()) * (each or _TEXT_BYTES)
        else:
            sizes[:, number] = pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False)
    return sizes


def _fixed_bytes(kind: pa.DataType) -> int | None:
    """The bytes of each value of a type; None where they differ."""
    try:
        return int(-(-kind.bit_width // 8))
    except ValueError:
        return None


class _AbandonedError(Exception):
    """Ends the writing of an abandoned file."""


@contextmanager
def _open_sink(url: str) -> Iterator[IO[bytes]]:
    """A file that takes minutes to write; for HDFS it is written on the local disk and copied when it is closed.

    If it were written to HDFS directly, the shard would fail with the DataNode it goes to; a copy can be tried again.
    """
    if storage.is_local(url):
        with storage.open_output(url) as file:
            yield file
        return
    with tempfile.NamedTemporaryFile(prefix="firn-") as spool:
        yield spool.file
        spool.flush()
        storage.upload(spool.name, url)


class ShardWriter:
    """Writes the rows and rejects of one shard into the staging folder.

    Args:
        staging: URL of the staging folder.
        name: part of all file names, unique to the shard and the attempt at it, so that attempts never share a file.
        schema: schema of the rows, with `image_id`, `path` and `label`.
        by_split: whether each split has a folder of its own, ``data/split=<split>``; otherwise `split` is a column.
        plain_columns: columns whose values hardly repeat, which are written without a dictionary.
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
        self._small_files: list[ParquetFile] = []
        self._rejects: list[dict[str, Any]] = []
        self._index: list[tuple[str, str | None, str]] = []
        self._rows: dict[str, dict[str, int]] = {}
        self._items: list[str] = []

    def write(
        self, splits: Sequence[str], stamps: Sequence[str], columns: Mapping[str, Sequence[Any] | pa.Array]
    ) -> None:
        """Adds rows; `splits` and `stamps` have an entry for each. Rows without a label are counted under ""."""
        batch = pa.RecordBatch.from_arrays(
            [pa.array(columns[field.name], type=field.type) for field in self._schema], schema=self._schema
        )
        labels, image_ids, paths = (batch.column(self._schema.get_field_index(name)).to_pylist() for name in _COUNTED)
        for split, label, image_id, path in zip(splits, labels, image_ids, paths, strict=True):
            counts = self._rows.setdefault(split, {})
            counts[label or ""] = counts.get(label or "", 0) + 1
            self._items.append(f"{image_id} {split} {label or ''} {path}")
        self._index += zip(paths, image_ids, stamps, strict=True)
        if not self._by_split:
            self._file(None).write(batch)
            return
        for split in sorted(set(splits)):
            rows = [index for index, value in enumerate(splits) if value == split]
            self._file(split).write(batch.take(pa.array(rows)))

    def reject(
        self, *, path: str, image_id: str | None, bytes_size: int | None, stamp: str, stage: str, error: str
    ) -> None:
        """Adds an image that gave no row, with the reason; `image_id` is None if its bytes could not be read."""
        self._rejects.append(
            {"image_id": image_id, "path": path, "bytes_size": bytes_size, "stage": stage, "error": error}
        )
        self._index.append((path, image_id, stamp))

    @property
    def images(self) -> int:
        """Number of images so far, rejects included."""
        return len(self._index)

    @property
    def rejects(self) -> int:
        """Number of rejects so far."""
        return len(self._rejects)

    def close(self) -> ShardRecord:
        """Closes the files. Writing the returned record commits them; the caller fills in its timings."""
        files = [file.close(path=path, split=split) for split, (path, file) in sorted(self._files.items(), key=str)]
        reasons: dict[str, int] = {}
        for reject in self._rejects:
            reason = f"{reject['stage']}: {reject['error']}"
            reasons[reason] = reasons.get(reason, 0) + 1
        index = [dict(zip(INDEX_SCHEMA.names, row, strict=True)) for row in self._index]
        return ShardRecord(
            files=files,
            reject_files=[self._write_small(REJECTS, REJECTS_SCHEMA, self._rejects)] if self._rejects else [],
            index_file=self._write_small(INDEX, INDEX_SCHEMA, index),
            rows=self._rows,
            rejects=reasons,
            unread=sum(reject["stage"] == "read" for reject in self._rejects),
            content_digest=multiset_digest(self._items),
            timings=Timings(),
        )

    def abandon(self) -> None:
        """Removes what was written so far, as the shard may have failed because the disk is full."""
        for file in (*(file for _, file in self._files.values()), *self._small_files):
            file.abandon()

    def _file(self, split: str | None) -> ParquetFile:
        if split not in self._files:
            folder = DATA if split is None else f"{DATA}/split={split}"
            path = f"{folder}/part-{self._name}.parquet"
            url = storage.join_url(self._staging, path)
            file = ParquetFile(
                url, self._schema, rows_per_group=self._rows_per_group, plain_columns=self._plain_columns
            )
            self._files[split] = (path, file)
        return self._files[split][1]

    def _write_small(self, folder: str, schema: pa.Schema, rows: list[dict[str, Any]]) -> DataFile:
        path = f"{folder}/part-{self._name}.parquet"
        file = ParquetFile(storage.join_url(self._staging, path), schema, rows_per_group=_SMALL_ROWS_PER_GROUP)
        self._small_files.append(file)
        file.write(pa.RecordBatch.from_pylist(rows, schema=schema))
        return file.close(path=path, split=None)


_COUNTED = ("label", "image_id", "path")
