"""Files behind pyarrow's legacy file system interface, the only one that Petastorm's Parquet reader accepts.

Import it with warnings ignored, as that interface is deprecated.
"""

from collections.abc import Mapping
from typing import Any

from pyarrow.filesystem import FileSystem

from featurize.tables.row_groups import open_source


class LegacyFiles(FileSystem):  # type: ignore[misc]
    """A file system that holds only some files, under made-up names.

    Petastorm cuts true names at `#` and `?`, and takes folders such as ``split=train`` for columns.

    Args:
        urls: URLs of the files, by name.
    """

    pathsep = "/"

    def __init__(self, urls: Mapping[str, str]) -> None:
        self._urls = urls

    def isdir(self, path: str) -> bool:
        """Always false: nothing is a folder."""
        return False

    def isfile(self, path: str) -> bool:
        """Whether `path` is one of the files."""
        return path in self._urls

    exists = isfile

    def open(self, path: str, mode: str = "rb") -> Any:
        """Opens one of the files for reading, whatever `mode` is."""
        return open_source(self._urls[path])
