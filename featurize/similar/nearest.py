"""The rows nearest to a query, exactly, processing a block of rows at a time. Pure NumPy."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Metric = Literal["cosine", "euclidean"]
METRICS: tuple[Metric, ...] = ("cosine", "euclidean")
BLOCK_ROWS = 512
_TINY = 1e-15  # squares of smaller numbers are lost in float32
_SLICE_VALUES = 1 << 18  # 1 MiB of float32, so that differences stay in the cache of a core

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Nearest:
    """Rows by rising distance; ties are in the order in which the rows came.

    Attributes:
        rows: int64 ``(n,)``, row numbers over all blocks.
        distances: float64 ``(n,)``: 1 minus the cosine, in [0, 2], or the Euclidean distance.
    """

    rows: NDArray[np.int64]
    distances: Doubles


class NearestSearch:
    """Finds the `k` rows nearest to `query` among those that it is given, block by block. It keeps no block.

    Every row is compared. float32 finds the rows of a block that could be among the nearest, allowing for its rounding, and their
    distances are computed again in float64: the answer is that of float64 on all rows, at the speed of float32. A row that is
    not finite is never near; a row of zeros has no direction, and its cosine with all others is 0.

    Args:
        query: ``(dim,)``.
        k: Number of rows to find.
        metric: "cosine" or "euclidean".

    Raises:
        ValueError: `query` is not finite, or is zero with the metric "cosine".
    """

    def __init__(self, query: NDArray[np.generic], k: int, metric: Metric = "cosine") -> None:
        self._query = query.astype(np.float64).reshape(-1)
        length = float(np.sqrt(self._query @ self._query))
        if not np.isfinite(length) or (metric == "cosine" and length == 0):
            raise ValueError("the query is zero or not finite.")
        self._unit = self._query / length if metric == "cosine" else self._query
        self._query32 = self._unit.astype(np.float32)
        self._k, self._metric = k, metric
        # Error of a sum of n products in float32, in any order, relative to the sum of their absolute values, with a margin for
        # the operations after it. Source: N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 2002, section
        # 3.1.
        self._rounding = 2.0 * (len(self._query) + 8) * float(np.finfo(np.float32).eps)
        # The rounding error of the query itself, and squares that become zero in float32.
        self._coarse = float(np.linalg.norm(self._unit - self._query32)) + _TINY
        self._rows = np.empty(0, np.int64)
        self._distances = np.empty(0)
        self._seen = 0

    def add(self, block: NDArray[np.generic]) -> NDArray[np.int64]:
        """Compares the rows of `block`, float32 or uint8 ``(n_rows, dim)``.

        Returns:
            int64, ascending: the rows of this block that are among the nearest so far.
        """
        values = block.astype(np.float32, copy=False)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            near = self._candidates(self._rough_distances(values))
            distances = self._exact_distances(block[near])
        usable = np.isfinite(distances)
        rows = np.concatenate([self._rows, near[usable] + self._seen])
        distances = np.concatenate([self._distances, distances[usable]])
        order = np.lexsort((rows, distances))[: self._k]
        self._rows, self._distances = rows[order], distances[order]
        first, self._seen = self._seen, self._seen + len(block)
        return np.sort(self._rows[self._rows >= first]) - first

    @property
    def found(self) -> Nearest:
        """The nearest of all rows so far."""
        return Nearest(self._rows, self._distances)

    def _rough_distances(self, values: Floats) -> Floats:
        """Distances in float32, NaN where unknown. Euclidean ones use differences, as products are too inexact for near rows."""
        if self._metric == "cosine":
            lengths = np.sqrt(np.einsum("ij,ij->i", values, values))
            products = values @ self._query32
            usable = (lengths > _TINY) & np.isfinite(lengths)
            cosines = np.divide(products, lengths, out=np.full_like(products, np.nan), where=usable)
            return np.float32(1) - cosines
        found = np.empty(len(values), np.float32)
        step = max(1, _SLICE_VALUES // max(1, values.shape[1]))
        for start in range(0, len(values), step):
            difference = values[start : start + step] - self._query32
            found[start : start + step] = np.einsum("ij,ij->i", difference, difference)
        return np.sqrt(found, out=found)

    def _candidates(self, rough: Floats) -> NDArray[np.int64]:
        """Rows of a block that may be among the nearest of all, including those for which float64 must decide."""
        measured = rough[np.isfinite(rough)]
        limit = np.partition(measured, self._k - 1)[self._k - 1] if len(measured) >= self._k else np.inf
        limit = float(limit) + self._room(float(limit))
        if len(self._distances) == self._k:
            limit = min(limit, float(self._distances[-1]))
        return np.flatnonzero((rough <= limit + self._room(limit)) | ~np.isfinite(rough)).astype(np.int64)

    def _room(self, distance: float) -> float:
        """Largest error of a rough distance: a constant for cosines, a share of the distance for lengths."""
        return self._coarse + self._rounding * (1.0 if self._metric == "cosine" else distance)

    def _exact_distances(self, rows: NDArray[np.generic]) -> Doubles:
        """Distances in float64, each row by itself, so that equal rows have equal distances wherever they are."""
        values = rows.astype(np.float64)
        if self._metric == "euclidean":
            values -= self._query
            return np.asarray(np.sqrt(np.einsum("ij,ij->i", values, values)))
        lengths = np.sqrt(np.einsum("ij,ij->i", values, values))
        products = np.einsum("ij,j->i", values, self._unit)
        cosines = np.divide(products, lengths, out=np.zeros_like(products), where=lengths != 0)
        return np.asarray(np.clip(1.0 - cosines, 0.0, 2.0))


def find_nearest(features: NDArray[np.generic], query: NDArray[np.generic], *, k: int, metric: Metric) -> Nearest:
    """The `k` rows of `features`, float32 or uint8 ``(n_rows, dim)``, that are nearest to `query`; see `NearestSearch`.

    Raises:
        ValueError: Raised by `NearestSearch` for the same reasons.
    """
    search = NearestSearch(query, k, metric)
    for start in range(0, len(features), BLOCK_ROWS):
        search.add(features[start : start + BLOCK_ROWS])
    return search.found
