"""The Parquet of a feature set: read whole by pyarrow, or streamed by Petastorm, on any file system that Firn knows."""

import posixpath
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from featurize import storage
from featurize.errors import JobError, UsageError, first_line
from featurize.manifests import FeaturesManifest

if TYPE_CHECKING:
    from petastorm.reader import Reader

_READING_THREADS = 4


def read_table(url: str, manifest: FeaturesManifest, split: str, columns: Sequence[str]) -> pa.Table:
    """The rows of one split, from the files that the manifest lists, in their order.

    Raises:
        JobError: a file is missing, damaged, or has other rows than the manifest says.
    """
    files = [file for file in manifest.files if file.split == split]

    def read(path: str) -> pa.Table:
        file_url = storage.join_url(url, path)
        filesystem, inner = storage.open_filesystem(file_url)
        try:
            with filesystem.open(inner, "rb") as file:
                return pq.ParquetFile(pa.PythonFile(file, mode="r")).read(columns=list(columns))
        except (OSError, pa.ArrowException) as error:
            raise JobError(f"{file_url} is listed in the manifest and cannot be read: {first_line(error)}") from error

    with ThreadPoolExecutor(_READING_THREADS) as pool:
        tables = list(pool.map(read, [file.path for file in files]))
    for file, table in zip(files, tables, strict=True):
        if table.num_rows != file.rows:
            raise JobError(
                f"{storage.join_url(url, file.path)} has {table.num_rows} rows, the manifest says {file.rows}."
            )
    rows = sum(table.num_rows for table in tables)
    if rows != manifest.split_rows(split):
        raise JobError(f"{url}: split {split} has {rows} rows, the manifest says {manifest.split_rows(split)}.")
    return pa.concat_tables(tables) if tables else pa.table({name: pa.array([]) for name in columns})


def open_petastorm_reader(
    url: str, manifest: FeaturesManifest, split: str, columns: Sequence[str], *, num_epochs: int | None = None
) -> "Reader":
    """Petastorm's `make_batch_reader` on one split, for a training loop of one's own; a context manager.

    It yields a row group at a time, endlessly unless `num_epochs` is given. Give it with care: at the end of its work the thread
    pool of Petastorm 0.13.1 may lose row groups, as it looks whether its workers are idle before it looks whether all work
    has been handed out. An endless reader never comes to that end.

    Raises:
        UsageError: the split has no rows.
    """
    with warnings.catch_warnings():  # Petastorm imports what pyarrow and setuptools deprecate
        warnings.simplefilter("ignore")
        from petastorm import make_batch_reader

    files = [storage.join_url(url, file.path) for file in manifest.files if file.split == split]
    if not files:
        raise UsageError(f"{url}: split {split!r} has no rows.")
    filesystem, _ = storage.open_filesystem(posixpath.dirname(files[0]))
    return make_batch_reader(
        files,
        schema_fields=[f"^{name}$" for name in columns],
        num_epochs=num_epochs,
        filesystem=_legacy_filesystem(filesystem),
    )


def _legacy_filesystem(filesystem: AbstractFileSystem) -> Any:
    """An fsspec file system as the legacy interface of pyarrow, the only one that Petastorm's Parquet reader accepts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pyarrow.filesystem import FileSystem

    class LegacyFileSystem(FileSystem):  # type: ignore[misc]
        pathsep = "/"
        isdir = staticmethod(filesystem.isdir)
        isfile = staticmethod(filesystem.isfile)
        exists = staticmethod(filesystem.exists)
        open = staticmethod(filesystem.open)

        def ls(self, path: str) -> list[str]:
            return [str(name) for name in filesystem.ls(path, detail=False)]

        def walk(self, path: str) -> Iterator[tuple[str, list[str], list[str]]]:
            yield from filesystem.walk(path)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LegacyFileSystem()
