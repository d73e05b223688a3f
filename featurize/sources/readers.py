"""Readers on workers: the bytes of listed images from files, images tables, IDX files, or by drawing them."""

import io
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from featurize import storage
from featurize.digests import sha256_bytes
from featurize.errors import first_line
from featurize.sources.idx import read_idx
from featurize.sources.listing import Fetch, ImageReadError, PlannedImage
from featurize.sources.names import true_name
from featurize.sources.scenes import draw_scene, encode_scene

MAX_FILE_BYTES = 512 << 20
"""A larger file is rejected without being read: it is a film, an archive, or a mistake."""
NOT_UTF8 = "the name of the file, or of a folder that it is in, is not UTF-8; rename it"
OUTSIDE = "the link leads out of the source, and `follow_links` is not set"
_PAUSES_S = (0.5, 2.0, 5.0)  # pauses before trying to read a file again

Value = TypeVar("Value")


class _ById:
    """Images whose id is the digest of the bytes read."""

    def identify(self, image: PlannedImage, content: bytes) -> str:
        """See `ContentReader`."""
        return sha256_bytes(content)


@dataclass(frozen=True)
class FileReader(_ById):
    """Images in files of their own; `path` is the URL.

    Attributes:
        inside: URL of the folder that links must not lead out of; None: all links are followed.
    """

    inside: str | None = None

    def open(self, images: Sequence[PlannedImage]) -> Iterator[Fetch]:
        """See `ContentReader`."""
        return (partial(read_file, image.path, image.bytes_size, inside=self.inside) for image in images)


@dataclass(frozen=True)
class TableReader(_ById):
    """Rows of an images table; `container` is one of its Parquet files, `position` the number of a row in it."""

    column: str = "content"

    def open(self, images: Sequence[PlannedImage]) -> Iterator[Fetch]:
        """See `ContentReader`. A row group is read for its first image and released after its last."""
        for container, part in groupby(images, key=lambda image: str(image.container)):
            starts = _group_starts(container)
            places = [(int(image.position or 0), image) for image in part]
            for group, members in groupby(places, key=lambda place: _group_of(starts, place[0])):
                shared = _Shared(partial(_read_group, container, group, self.column))
                for position, _ in members:
                    yield partial(_content_in_group, shared, position - int(starts[group]))


@dataclass(frozen=True)
class FeaturesReader(TableReader):
    """Rows of a feature set, as `TableReader`; the bytes read are each row's features, float32 or uint8, in row-major order."""

    column: str = "features"

    def identify(self, image: PlannedImage, content: bytes) -> str:
        """See `ContentReader`. A feature set has image ids of its own, which the listing holds as stamps."""
        return image.stamp


@dataclass(frozen=True)
class IdxReader(_ById):
    """Images in IDX files; `container` is the file, `position` the number of an image in it. They are returned as PNG."""

    def open(self, images: Sequence[PlannedImage]) -> Iterator[Fetch]:
        """See `ContentReader`. A file is read for its first image and released after its last."""
        files = {container: _Shared(partial(read_idx, container)) for container in {str(i.container) for i in images}}
        return (partial(_encode_idx_image, files[str(image.container)], int(image.position or 0)) for image in images)


@dataclass(frozen=True)
class SceneReader(_ById):
    """Scenes that are drawn on demand; `position` is the index of a scene."""

    seed: int
    height: int
    width: int

    def open(self, images: Sequence[PlannedImage]) -> Iterator[Fetch]:
        """See `ContentReader`."""
        return (partial(self._draw, str(image.label), int(image.position or 0)) for image in images)

    def _draw(self, label: str, index: int) -> bytes:
        return encode_scene(draw_scene(label, seed=self.seed, index=index, height=self.height, width=self.width))


def read_file(url: str, bytes_size: int | None = None, *, inside: str | None = None) -> bytes:
    """The content of an image file; reading is retried for some seconds where storage fails.

    Args:
        url: URL of the file.
        bytes_size: The size that was listed, if it is known.
        inside: As for `FileReader`.

    Raises:
        ImageReadError: The file is gone, not readable for this user, or too large; a link leads out of the folder; or only this
            file cannot be read.
        OSError: The storage does not answer.
    """
    if inside is not None and storage.leads_outside(url, inside):
        raise ImageReadError(OUTSIDE)
    if bytes_size is not None and bytes_size > MAX_FILE_BYTES:
        raise ImageReadError(f"the file has {bytes_size} bytes, more than the limit of {MAX_FILE_BYTES}")
    pauses = iter(_PAUSES_S)
    while True:
        try:
            return storage.read_bytes(url)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ImageReadError(NOT_UTF8 if _is_spelled_out(url) else "the file is gone") from error
        except PermissionError as error:
            raise ImageReadError("no permission to read the file") from error
        except OSError as error:
            pause = next(pauses, None)
            if pause is None and _folder_is_there(url):
                raise ImageReadError(f"the file cannot be read: {error.strerror or first_line(error)}") from error
            if pause is None:
                raise
            time.sleep(pause)


def _is_spelled_out(url: str) -> bool:
    """Whether a path, under which no file was found, spells the bytes of the name of one."""
    path = url.removeprefix("file://")
    name = true_name(path)
    return storage.is_local(url) and name != path.encode() and os.path.lexists(name)


def _folder_is_there(url: str) -> bool:
    """Whether storage finds the folder of a file, so that a fault is that of the file itself."""
    return storage.exists(url.rpartition("/")[0])


class _Shared(Generic[Value]):
    """A value that is made on first use, by whichever thread uses it first."""

    def __init__(self, make: Callable[[], Value]) -> None:
        self._make, self._lock = make, threading.Lock()
        self._values: list[Value] = []

    def get(self) -> Value:
        with self._lock:
            if not self._values:
                self._values.append(self._make())
            return self._values[0]


def _group_starts(container: str) -> NDArray[np.int64]:
    """The number of the first row of each row group, followed by the number of all rows."""
    with storage.open_input(container) as file:
        metadata = pq.ParquetFile(file).metadata
        return np.cumsum([0] + [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)])


def _group_of(starts: NDArray[np.int64], position: int) -> int:
    return int(np.searchsorted(starts, position, side="right")) - 1


def _read_group(container: str, group: int, column: str) -> pa.ChunkedArray:
    with storage.open_input(container) as file:
        return pq.ParquetFile(file).read_row_group(group, columns=[column]).column(column)


def _content_in_group(group: _Shared[pa.ChunkedArray], row: int) -> bytes:
    value = group.get()[row]
    return value.values.to_numpy().tobytes() if pa.types.is_list(value.type) else bytes(value.as_py())


def _encode_idx_image(file: _Shared[NDArray[np.uint8]], index: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(file.get()[index]).save(buffer, format="PNG")
    return buffer.getvalue()
