"""Files as a file system of the legacy interface of pyarrow, the only one that Petastorm's Parquet reader accepts.

To be imported with warnings ignored, as that interface is deprecated.
"""

from collections.abc import Mapping
from typing import Any

from pyarrow.filesystem import FileSystem

from featurize.tables.row_groups import open_source


class LegacyFiles(FileSystem):  # type: ignore[misc]
    """Knows nothing but some files, by invented names.

    Petastorm cuts true names at `#` and `?`, and takes folders like ``split=train`` for columns.

    Args:
        urls: of the files, by name.
    """

    pathsep = "/"

    def __init__(self, urls: Mapping[str, str]) -> None:
        self._urls = urls

    def isdir(self, path: str) -> bool:
        """Nothing is a folder."""
        return False

    def isfile(self, path: str) -> bool:
        """Whether it is one of the files."""
        return path in self._urls

    exists = isfile

    def open(self, path: str, mode: str = "rb") -> Any:
        """One of the files, for reading, whatever `mode` is."""
        return open_source(self._urls[path])
