"""The rows of a split as arrays: all of them in memory, or a row group at a time."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featurize.errors import JobError
from featurize.tables.manifests import FeaturesManifest
from featurize.tables.row_groups import (
    READING_THREADS,
    RowGroup,
    as_array,
    features_of,
    iterate_row_groups,
    list_row_groups,
    read_row_group,
    row_shape,
)

_ROW_ID_DIGITS = 15  # hexadecimal digits: 60 bits, the most that always fit into an int64
ALIGNMENT = 64  # bytes: the alignment at which TensorFlow shares memory
_KEYS = ("image_id", "path")
_COLUMNS = (*_KEYS, "label_index", "features")


@dataclass(frozen=True)
class SplitData:
    """Rows of one split of a feature set.

    Attributes:
        features: float32 ``(n_images, feature_dim)``, or uint8 ``(n_images, height, width, channels)`` for `pixels`.
        label_index: int32 ``(n_images,)``.
        paths: Arrow large_string ``(n_images,)``.
        row_ids: int64 ``(n_images,)``, the first digits of the image ids, which identify a row whatever file it is in. Equal
            images share a row id.
    """

    features: NDArray[Any]
    label_index: NDArray[np.int32]
    paths: pa.Array
    row_ids: NDArray[np.int64]

    @property
    def rows(self) -> int:
        """Number of images."""
        return len(self.label_index)


def read_split(url: str, manifest: FeaturesManifest, split: str) -> SplitData:
    """Reads one split of the feature set at `url` into memory, in the order of image id and path, whatever files rows are in.

    Every row group is written to its place in one array as it arrives: besides that array, memory holds only ids, paths, and as
    many row groups as there are threads.

    Raises:
        JobError: Files are missing or damaged, or hold other rows or features than the manifest says.
    """
    groups = list_row_groups(url, manifest, split)
    ids, paths, label_index = _read_keys(groups)
    keys = [(name, "ascending") for name in _KEYS]
    order = pc.sort_indices(pa.table([ids, paths], _KEYS), keys).to_numpy()
    places = np.empty_like(order)
    places[order] = np.arange(len(order), dtype=order.dtype)
    features = _aligned_empty((len(order), *row_shape(manifest)), np.dtype(manifest.feature_dtype))
    ends = np.cumsum([group.rows for group in groups])

    def fill(group: RowGroup, end: int) -> None:
        table = read_row_group(group, ("features",))
        features[places[end - group.rows : end]] = features_of(table, manifest, origin=group.url)

    with ThreadPoolExecutor(READING_THREADS) as pool:
        list(pool.map(fill, groups, ends))
    return SplitData(
        features, label_index[order], paths.take(pa.array(order)), row_ids_of(ids.to_pylist(), origin=url)[order]
    )


def iterate_split(url: str, manifest: FeaturesManifest, split: str) -> Iterator[SplitData]:
    """One split of the feature set at `url`, a row group at a time, in the order of the files.

    Raises:
        JobError: Raised by `read_split` for the same reasons.
    """
    yield from iterate_groups(list_row_groups(url, manifest, split), manifest)


def iterate_groups(groups: Sequence[RowGroup], manifest: FeaturesManifest) -> Iterator[SplitData]:
    """The rows of each of `groups`, a few of which are read ahead in threads.

    Raises:
        JobError: A file is missing or damaged, or has other features than the manifest says.
    """
    for group, table in zip(groups, iterate_row_groups(groups, _COLUMNS), strict=True):
        yield SplitData(
            features_of(table, manifest, origin=group.url),
            table["label_index"].to_numpy().astype(np.int32, copy=False),
            as_array(table["path"].cast(pa.large_string())),
            row_ids_of(table["image_id"].to_pylist(), origin=group.url),
        )


def _aligned_empty(shape: tuple[int, ...], dtype: "np.dtype[Any]") -> NDArray[Any]:
    """Like `np.empty`, but aligned to 64 bytes: TensorFlow shares such memory, and copies other memory."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % ALIGNMENT
    return memory[first : first + size].view(dtype).reshape(shape)


def row_ids_of(image_ids: Sequence[str], *, origin: str) -> NDArray[np.int64]:
    """The first 15 hexadecimal digits of each image id as int64 ``(n_images,)``.

    Raises:
        JobError: An image id is not a hexadecimal number.
    """
    try:
        return np.array([int(text[:_ROW_ID_DIGITS], 16) for text in image_ids], np.int64)
    except (ValueError, TypeError) as error:
        raise JobError(f"{origin} has an image_id that is not a SHA-256 in hexadecimal digits.") from error


def _read_keys(groups: Sequence[RowGroup]) -> tuple[pa.Array, pa.Array, NDArray[np.int32]]:
    """Image ids, paths and label indices of all rows, in the order of `groups`."""
    tables = list(iterate_row_groups(groups, _COLUMNS[:3]))
    empty = pa.schema([("image_id", pa.string()), ("path", pa.string()), ("label_index", pa.int32())]).empty_table()
    table = pa.concat_tables(tables) if tables else empty
    ids, paths = (as_array(table[name].cast(pa.large_string())) for name in _KEYS)
    return ids, paths, table["label_index"].to_numpy().astype(np.int32, copy=False)
