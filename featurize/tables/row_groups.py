"""The Parquet files of a feature set, row group by row group, as its manifest lists them, on any storage that Firn knows."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from featurize import storage
from featurize.errors import JobError, UsageError, first_line
from featurize.tables.manifests import FEATURES_COLUMN, FeaturesManifest
from featurize.tables.row_edits import GroupEdit

READING_THREADS = 4
PARQUET_FAULTS = (OSError, pa.ArrowException, RuntimeError, UnicodeDecodeError)
"""What a Parquet file that is gone or damaged raises: pyarrow, also for names that are no UTF-8, and hdfs-native."""


@dataclass(frozen=True)
class RowGroup:
    """A row group of a data file.

    Attributes:
        url: URL of the file.
        index: Number of the row group in the file.
        footer: The file's footer, so that it need not be read again.
        path: Path of the file in the manifest.
        edit: How rows differ from the file; None: not at all.
        column: The column that is read as `features`; None: none was chosen of several.
    """

    url: str
    index: int
    footer: pq.FileMetaData
    path: str = ""
    edit: GroupEdit | None = None
    column: str | None = FEATURES_COLUMN

    @property
    def rows(self) -> int:
        """Number of selected images."""
        if self.edit is not None and self.edit.kept is not None:
            return int(self.edit.kept.sum())
        return self.stored_rows

    @property
    def stored_rows(self) -> int:
        """Number of images in the file."""
        return int(self.footer.row_group(self.index).num_rows)


def list_row_groups(url: str, manifest: FeaturesManifest, split: str) -> list[RowGroup]:
    """The row groups of one split, in the order of the files in the manifest. Reads the footers, in threads.

    Row groups without any selected row are included, so that numbers of row groups stay the same.

    Raises:
        JobError: A file is missing, damaged, or has other rows than the manifest says.
    """
    files = [file for file in manifest.files if file.split == split]
    urls = [storage.join_url(url, file.path) for file in files]
    with ThreadPoolExecutor(READING_THREADS) as pool:
        footers = list(pool.map(read_footer, urls))
    for file, file_url, footer in zip(files, urls, footers, strict=True):
        if footer.num_rows != file.rows:
            raise JobError(f"{file_url} has {footer.num_rows} rows, the manifest says {file.rows}.")
    rows = sum(footer.num_rows for footer in footers)
    if manifest.edits is None and rows != manifest.split_rows(split):
        raise JobError(f"{url}: split {split} has {rows} rows, the manifest says {manifest.split_rows(split)}.")
    edits = manifest.edits.groups if manifest.edits is not None else {}
    return [
        RowGroup(file_url, index, footer, file.path, edits.get((file.path, index)), manifest.column)
        for file, file_url, footer in zip(files, urls, footers, strict=True)
        for index in range(footer.num_row_groups)
        if footer.row_group(index).num_rows
    ]


def read_row_group(group: RowGroup, columns: Sequence[str]) -> pa.Table:
    """Some columns of a row group: the selected rows, with their corrected labels. `features` is the column that was chosen.

    Raises:
        JobError: The file is missing or damaged, or lacks a column.
        UsageError: `features` is among the columns, and the set has several that none was chosen of.
    """
    if group.column is None and FEATURES_COLUMN in columns:
        raise UsageError(f"{group.url} has several columns of features. Name one of them, `features.column`.")
    stored = {group.column if name == FEATURES_COLUMN else name: name for name in columns}
    with open_parquet(group.url, group.footer) as file:
        table = file.read_row_group(group.index, columns=[str(name) for name in stored], use_threads=False)
    if missing := [name for name in stored if name not in table.column_names]:
        raise JobError(f"{group.url} has no column {missing[0]}.")
    table = table.rename_columns([stored[name] for name in table.column_names])
    return table if group.edit is None else group.edit.apply(table)


def iterate_row_groups(groups: Sequence[RowGroup], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Some columns of each of `groups`, in order, a few read ahead in threads. Leaving the iterator early ends the threads."""
    pool = ThreadPoolExecutor(READING_THREADS)
    ahead: deque[Future[pa.Table]] = deque()
    try:
        for group in groups:
            ahead.append(pool.submit(read_row_group, group, columns))
            if len(ahead) > READING_THREADS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def read_table(url: str, manifest: FeaturesManifest, split: str, columns: Sequence[str]) -> pa.Table:
    """The rows of one split, from the files that the manifest lists, in their order.

    Raises:
        JobError: A file is missing, damaged, or has other rows than the manifest says.
    """
    tables = list(iterate_row_groups(list_row_groups(url, manifest, split), columns))
    return pa.concat_tables(tables) if tables else pa.table({name: pa.array([]) for name in columns})


def read_footer(url: str) -> pq.FileMetaData:
    """The footer of a data file.

    Raises:
        JobError: The file is missing or damaged.
    """
    with open_parquet(url) as file:
        return file.metadata


@contextmanager
def open_parquet(url: str, footer: pq.FileMetaData | None = None) -> Iterator[pq.ParquetFile]:
    """Opens a file that the manifest lists; errors inside the `with` block are attributed to this file.

    Args:
        url: URL of the file.
        footer: The file's footer, if it was read already.

    Raises:
        JobError: It is missing or damaged.
    """
    try:
        with open_source(url) as source:
            yield pq.ParquetFile(source, metadata=footer)
    except PARQUET_FAULTS as error:
        raise JobError(f"{url} is listed in the manifest but cannot be read: {first_line(error)}") from error


def open_source(url: str) -> pa.NativeFile:
    """The file at `url` for pyarrow to read; pyarrow reads a local file without going through Python."""
    filesystem, inner = storage.open_filesystem(url)
    if storage.is_local(url):
        return pa.OSFile(inner)
    return pa.PythonFile(filesystem.open(inner, "rb"), mode="r")


def row_shape(manifest: FeaturesManifest) -> tuple[int, ...]:
    """The shape of one image's features: ``(height, width, channels)`` for pixels, ``(feature_dim,)`` for a network's."""
    size = int(np.prod(manifest.feature_shape))
    return tuple(manifest.feature_shape) if manifest.feature_dtype == "uint8" else (size,)


def features_of(table: pa.Table, manifest: FeaturesManifest, *, origin: str) -> NDArray[Any]:
    """The column `features` as ``(n_images, *row_shape)``: a view of the table where possible.

    Raises:
        JobError: A row has another number of features than the manifest says.
    """
    column, shape = as_array(table["features"]), row_shape(manifest)
    size, pixels = int(np.prod(shape)), manifest.feature_dtype == "uint8"
    lengths = pc.min_max(pc.binary_length(column) if pixels else pc.list_value_length(column)).as_py()
    if len(column) and (column.null_count or lengths != {"min": size, "max": size}):
        raise wrong_features(origin, size)
    values = _bytes_of(column, size) if pixels else column.flatten().to_numpy(zero_copy_only=False)
    return values.astype(manifest.feature_dtype, copy=False).reshape(len(column), *shape)


def wrong_features(origin: str, size: int) -> JobError:
    """The error for rows with another number of features than the manifest says."""
    return JobError(f"{origin}: some rows do not have {size} features, as the manifest says.")


def as_array(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece; without a copy where it is in one piece already."""
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.array([], column.type)])


def _bytes_of(column: pa.Array, size: int) -> NDArray[np.uint8]:
    """The bytes of a binary column whose values have `size` bytes each."""
    data = column.buffers()[2]
    if data is None:
        return np.empty(0, np.uint8)
    first = int(np.frombuffer(column.buffers()[1], np.int32)[column.offset]) if len(column) else 0
    return np.frombuffer(data, np.uint8, len(column) * size, first)
