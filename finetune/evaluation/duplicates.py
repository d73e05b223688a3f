"""Exact and near duplicates in a feature set: images that a model is trained on and then tested on.

Exact duplicates have equal bytes, by their image ids. Near duplicates (re-encoded, resized or slightly cropped copies) have
almost equal features: the cosine of the angle between them is close to 1.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from finetune.rows.splits import SplitData

MAX_PAIRS = 10_000
BLOCK_ROWS = 2048
"""Rows that are compared at a time; fewer where they are long."""
_BLOCK_VALUES = 1 << 25  # 128 MiB of float32: of two blocks at a time, however long a row is
_SAMPLE_ROWS = 2000  # by which the threshold is chosen
_ALIKE = 0.05  # the share of the rows that may have near duplicates in another class without moving the threshold
_CLOSER = 4.0
_NO_THRESHOLD = 0.99  # where no two splits have rows of different classes
_DIGITS = 6  # the digits of a similarity that float32 keeps; so that rounding does not order pairs

Floats = NDArray[np.float32]


class DuplicatePair(NamedTuple):
    """Two images; the first is in the earlier split, or has the lower path.

    Attributes:
        similarity: Cosine similarity in [-1, 1]; 1 for exact duplicates.
        is_exact: Whether the image files are equal, byte by byte.
    """

    path: str
    other_path: str
    split: str
    other_split: str
    label: str
    other_label: str
    similarity: float
    is_exact: bool


@dataclass(frozen=True)
class Duplicates:
    """The duplicates in a feature set.

    Attributes:
        pairs: Exact duplicates within and across splits, then near duplicates across splits; each by falling similarity, then by
            paths. At most `max_pairs` of each kind.
        n_exact: Number of exact pairs, listed or not.
        n_near: Number of near pairs, listed or not, without the exact ones.
        threshold: The smallest similarity of near duplicates.
        leaks: For each split and each other split, the number of rows of the first with an exact or near duplicate in the second.
    """

    pairs: list[DuplicatePair]
    n_exact: int
    n_near: int
    threshold: float
    leaks: dict[str, dict[str, int]]


def find_duplicates(
    splits: Mapping[str, SplitData],
    classes: Sequence[str],
    *,
    threshold: float | None = None,
    max_pairs: int = MAX_PAIRS,
    block_rows: int = BLOCK_ROWS,
) -> Duplicates:
    """Finds exact duplicates within and across splits and classes, and near duplicates across splits.

    Memory besides the features: two blocks of 2,048 rows (fewer if these are longer than 16,384 values) in float32 and their
    products, and the pairs. 30,000 rows of 4,096 values in three splits took 12 s on two cores (`benchmarks/duplicates.py`).

    Args:
        splits: the splits by name, in the order in which pairs name them. Their features are float32 or uint8, all of one shape.
        classes: the label of every index.
        threshold: the least similarity of near duplicates; default: `choose_threshold`.
        max_pairs: the largest number of pairs of each kind, exact and near, that is listed.
        block_rows: the number of rows that are compared at a time.
    """
    if threshold is None:
        threshold = choose_threshold(splits, block_rows=block_rows)
    names, parts = list(splits), list(splits.values())
    first_rows = np.cumsum([0, *(part.rows for part in parts)])
    split_index = np.repeat(np.arange(len(parts)), [part.rows for part in parts])
    row_ids = np.concatenate([part.row_ids for part in parts]) if parts else np.empty(0, np.int64)
    has_copy = _splits_with_copies(row_ids, split_index, len(parts))
    near = _Closest(max_pairs)
    for one, other in combinations(range(len(parts)), 2):
        for rows, other_rows, similarity in _near_pairs(parts[one], parts[other], threshold, block_rows):
            rows, other_rows = rows + first_rows[one], other_rows + first_rows[other]
            has_copy[rows, other] = has_copy[other_rows, one] = True
            near.add(rows, other_rows, similarity)
    describe = _Describer(names, parts, first_rows, classes)
    exact = [describe(*rows, 1.0, is_exact=True) for rows in islice(_exact_pairs(row_ids), max_pairs)]
    listed = [describe(one, other, value, is_exact=False) for one, other, value in near.pairs()]
    return Duplicates(
        pairs=[*sorted(exact), *sorted(listed, key=lambda pair: (-pair.similarity, pair))],
        n_exact=_count_exact_pairs(row_ids),
        n_near=near.count,
        threshold=threshold,
        leaks={
            name: {
                to: int(has_copy[split_index == index, number].sum()) for number, to in enumerate(names) if to != name
            }
            for index, name in enumerate(names)
        },
    )


def choose_threshold(splits: Mapping[str, SplitData], *, block_rows: int = BLOCK_ROWS) -> float:
    """The similarity from which on two images count as near duplicates, by how similar different images of the set are.

    Images of different classes are different images, and the nearest image of another class in another split is as similar as
    different images get: in ReLU features, which have no negative values, a cosine of 0.7 means little. The threshold is a
    quarter of the distance (1 - cosine) that all but one in twenty images keep from that image. So one in twenty may have a
    duplicate in a wrong class without any effect.

    The divisor 4 was chosen on the 102 classes of `configs/objects_mobilenet.toml`, where the threshold comes to 0.94 and no two
    images of different classes are above 0.90. Of 300 images that were re-encoded (JPEG, quality 50 to 90), resized to 80 %,
    cropped by 2 % on each side or mirrored, it finds 99 to 100 %; cropped by 5 %, 93 %; resized to 50 %, 78 %. All 21 pairs
    that it finds in the data themselves were inspected: each shows the same photograph, drawing or symbol.

    It fails for a class whose different images hardly differ: of the 510 pairs that it finds among the 10,000 test digits of
    MNIST, as pixels, 505 are ones. Set a threshold of your own for such data.

    Args:
        splits: the splits by name, as for `find_duplicates`. At most 2,000 of their rows are compared, chosen by their ids.
        block_rows: rows that are compared at a time.
    """
    parts = list(splits.values())
    if not any(part.rows for part in parts):
        return _NO_THRESHOLD
    sizes = np.array([part.rows for part in parts])
    counts = np.minimum(sizes, np.ceil(sizes * (_SAMPLE_ROWS / sizes.sum())).astype(int))
    samples = [_sample(part, count) for part, count in zip(parts, counts, strict=True)]
    nearest = [
        np.max(
            [
                _nearest_of_another_class(sample, part, block_rows)
                for other, part in enumerate(parts)
                if other != number
            ],
            axis=0,
        )
        for number, sample in enumerate(samples)
        if len(parts) > 1
    ]
    found = np.concatenate(nearest) if nearest else np.empty(0)
    found = found[found > -np.inf]
    if not len(found):
        return _NO_THRESHOLD
    distance = max(0.0, 1.0 - float(np.quantile(found, 1 - _ALIKE)))
    return 1.0 - distance / _CLOSER


def unit_rows(features: NDArray[Any]) -> Floats:
    """Rows whose dot products are similarities: each scaled to length 1, for pixels after subtracting each channel's mean.

    Without the mean, which dominates pixels, the product is a correlation coefficient: brightness, colour of the light and
    contrast do not count, only the layout does. A row that is constant (pixels), zero or not finite becomes zero, and is
    similar to no other.

    Args:
        features: float32 ``(n_rows, feature_dim)`` or uint8 ``(n_rows, height, width, channels)``.

    Returns:
        float32 ``(n_rows, values in a row)``.
    """
    values = features.astype(np.float32)
    if features.dtype == np.uint8:
        values -= values.mean(axis=(1, 2), keepdims=True)
    rows = values.reshape(len(features), int(np.prod(features.shape[1:])))
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    usable = np.isfinite(lengths) & (lengths > 0)
    rows[~usable] = 0
    rows[usable] /= lengths[usable, None]
    return rows


def _near_pairs(
    one: SplitData, other: SplitData, threshold: float, block_rows: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], Floats]]:
    """Rows of two splits that are similar but not equal, and how much, block by block."""
    for start, left in _unit_blocks(one, block_rows):
        for other_start, right in _unit_blocks(other, block_rows):
            similarity = left @ right.T
            rows, other_rows = np.nonzero(similarity >= threshold)
            values = similarity[rows, other_rows]
            rows, other_rows = rows + start, other_rows + other_start
            near = one.row_ids[rows] != other.row_ids[other_rows]
            yield rows[near], other_rows[near], values[near]


def _nearest_of_another_class(sample: SplitData, part: SplitData, block_rows: int) -> NDArray[np.float64]:
    """For each row of `sample` the largest similarity with one of `part` of another class and other bytes; -inf where none is."""
    nearest = np.full(sample.rows, -np.inf)
    for start, left in _unit_blocks(sample, block_rows):
        rows = slice(start, start + len(left))
        for other_start, right in _unit_blocks(part, block_rows):
            others = slice(other_start, other_start + len(right))
            similarity = left @ right.T
            same = sample.label_index[rows, None] == part.label_index[None, others]
            same |= sample.row_ids[rows, None] == part.row_ids[None, others]
            similarity[same] = -np.inf
            np.maximum(nearest[rows], similarity.max(axis=1), out=nearest[rows])
    return nearest


def _unit_blocks(part: SplitData, block_rows: int) -> Iterator[tuple[int, Floats]]:
    """The first row of each block, and its `unit_rows`."""
    size = max(1, min(block_rows, _BLOCK_VALUES // max(1, int(np.prod(part.features.shape[1:])))))
    return ((start, unit_rows(part.features[start : start + size])) for start in range(0, part.rows, size))


def _sample(part: SplitData, count: int) -> SplitData:
    """The `count` rows with the lowest ids, which are hashes."""
    rows = np.sort(np.argsort(part.row_ids, kind="stable")[:count])
    return SplitData(part.features[rows], part.label_index[rows], part.paths.take(pa.array(rows)), part.row_ids[rows])


def _exact_pairs(row_ids: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """All pairs of rows with equal ids."""
    order = np.argsort(row_ids, kind="stable")
    starts = np.flatnonzero(np.diff(row_ids[order], prepend=row_ids[order][:1] - 1))
    for group in np.split(order, starts[1:]):
        yield from combinations(group.tolist(), 2)


def _count_exact_pairs(row_ids: NDArray[np.int64]) -> int:
    _, counts = np.unique(row_ids, return_counts=True)
    return int((counts * (counts - 1) // 2).sum())


def _splits_with_copies(row_ids: NDArray[np.int64], split_index: NDArray[np.int64], n_splits: int) -> NDArray[np.bool_]:
    """Whether each row has an exact copy, other than itself, in each split: bool ``(n_rows, n_splits)``."""
    ids, places = np.unique(row_ids, return_inverse=True)
    counts = np.zeros((len(ids), n_splits), np.int64)
    np.add.at(counts, (places, split_index), 1)
    own = split_index[:, None] == np.arange(n_splits)
    has_copy: NDArray[np.bool_] = counts[places] > own
    return has_copy


class _Closest:
    """Collects the most similar pairs, and counts all."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rows = np.empty((0, 2), np.int64)
        self._similarity = np.empty(0, np.float32)
        self.count = 0

    def add(self, rows: NDArray[np.int64], other_rows: NDArray[np.int64], similarity: Floats) -> None:
        self.count += len(rows)
        found = np.concatenate([self._rows, np.stack([rows, other_rows], axis=1)])
        values = np.concatenate([self._similarity, similarity.round(_DIGITS)])
        order = np.lexsort((found[:, 1], found[:, 0], -values))[: self._limit]
        self._rows, self._similarity = found[order], values[order]

    def pairs(self) -> Iterator[tuple[int, int, float]]:
        for (one, other), value in zip(self._rows.tolist(), self._similarity.tolist(), strict=True):
            yield one, other, min(1.0, round(value, _DIGITS))


class _Describer:
    """Turns pairs of rows, numbered over all splits, into pairs of images."""

    def __init__(
        self, names: Sequence[str], parts: Sequence[SplitData], first_rows: NDArray[Any], classes: Sequence[str]
    ) -> None:
        self._names, self._parts, self._first_rows, self._classes = names, parts, first_rows, classes

    def __call__(self, row: int, other_row: int, similarity: float, *, is_exact: bool) -> DuplicatePair:
        one, other = sorted((self._image(row), self._image(other_row)))
        names = self._names[one[0]], self._names[other[0]]
        return DuplicatePair(one[1], other[1], *names, one[2], other[2], similarity, is_exact)

    def _image(self, row: int) -> tuple[int, str, str]:
        number = int(np.searchsorted(self._first_rows, row, side="right")) - 1
        part, place = self._parts[number], row - int(self._first_rows[number])
        return number, part.paths[place].as_py(), self._classes[part.label_index[place]]
