"""Petastorm on a feature set, on any file system that Firn knows."""

import posixpath
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from fsspec import AbstractFileSystem

from featurize import storage
from featurize.manifests import FeaturesManifest

warnings.filterwarnings("ignore", category=FutureWarning, module="petastorm")  # of pyarrow's legacy Parquet reader
warnings.filterwarnings("ignore", category=DeprecationWarning, module="petastorm")
warnings.filterwarnings("ignore", category=FutureWarning, message="pyarrow.filesystem")
warnings.filterwarnings("ignore", category=FutureWarning, message="pyarrow.hdfs")
warnings.filterwarnings("ignore", category=UserWarning, message="pkg_resources")
warnings.filterwarnings("ignore", category=DeprecationWarning, message="pkg_resources")

import pyarrow.filesystem as legacy  # noqa: E402 - after the filters: the import itself warns


class PetastormFileSystem(legacy.FileSystem):  # type: ignore[misc]
    """An fsspec file system as the legacy interface of pyarrow, the one that Petastorm's Parquet reader accepts."""

    pathsep = "/"

    def __init__(self, filesystem: AbstractFileSystem) -> None:
        self._filesystem = filesystem

    def isdir(self, path: str) -> bool:
        """Whether a folder is at `path`."""
        return bool(self._filesystem.isdir(path))

    def isfile(self, path: str) -> bool:
        """Whether a file is at `path`."""
        return bool(self._filesystem.isfile(path))

    def exists(self, path: str) -> bool:
        """Whether anything is at `path`."""
        return bool(self._filesystem.exists(path))

    def open(self, path: str, mode: str = "rb") -> Any:
        """The file at `path`."""
        return self._filesystem.open(path, mode)

    def ls(self, path: str) -> list[str]:
        """The paths in a folder."""
        return [str(name) for name in self._filesystem.ls(path, detail=False)]

    def walk(self, path: str) -> Iterator[tuple[str, list[str], list[str]]]:
        """As `os.walk`."""
        yield from self._filesystem.walk(path)


def iterate_batches(
    url: str, manifest: FeaturesManifest, split: str, columns: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """The rows of one split, a row group at a time, as NumPy arrays by column; the order is not fixed.

    Only the files that the manifest lists are read, and nothing is unpickled: this is `make_batch_reader`.
    """
    from petastorm import make_batch_reader

    files = [storage.join_url(url, file.path) for file in manifest.files if file.split == split]
    if not files:
        return
    filesystem, _ = storage.open_filesystem(posixpath.dirname(files[0]))
    reader = make_batch_reader(
        files,
        schema_fields=[f"^{name}$" for name in columns],
        shuffle_row_groups=False,
        num_epochs=1,
        reader_pool_type="thread",
        workers_count=2,
        filesystem=PetastormFileSystem(filesystem),
    )
    try:
        for batch in reader:
            yield batch._asdict()
    finally:  # not by `with`, whose end prints to standard output
        reader.stop()
        reader.join()
