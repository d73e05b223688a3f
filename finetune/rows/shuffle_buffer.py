"""A shuffle buffer: rows enter in the order of a stream and leave in a random order."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Rows(NamedTuple):
    """Some rows of a split: features ``(n, *row_shape)``, label_index int32 ``(n,)``, row_ids int64 ``(n,)``."""

    features: NDArray[Any]
    label_index: NDArray[Any]
    row_ids: NDArray[Any]

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.label_index)


class ShuffleBuffer:
    """Holds `capacity` rows of `source`; rows are drawn from these, and the next ones take their places.

    The rows drawn depend only on `source`, `capacity`, the state of `random` and the counts taken so far.

    Args:
        source: Rows in pieces of any length; read as far as needed.
        capacity: Number of rows, 1 or more. 1 keeps the order.
        random: Generator that draws the rows.
    """

    def __init__(self, source: Iterator[Rows], *, capacity: int, random: np.random.Generator) -> None:
        self._source, self._capacity, self._random = source, capacity, random
        self._held: Rows | None = None
        self._filled = 0
        self._coming: Rows | None = None
        self._used = 0  # rows of `_coming` that are in the buffer already

    def fill(self) -> None:
        """Reads until the buffer is full or the source has ended."""
        while self._filled < self._capacity and (there := self._look()):
            last = min(self._filled + there, self._capacity)
            self._put(slice(self._filled, last), last - self._filled)
            self._filled = last

    def take(self, target: Rows, *, first: int, count: int) -> None:
        """Moves `count` rows into `target`, starting at its row `first`.

        Raises:
            ValueError: There are fewer rows.
        """
        while count:
            self.fill()
            if self._held is None or not self._filled:
                raise ValueError(f"the source ended {count} rows too early.")
            part = min(count, self._filled)
            slots = self._random.choice(self._filled, part, replace=False)
            for held, out in zip(self._held, target, strict=True):
                np.take(held, slots, axis=0, out=out[first : first + part])
            self._replace(slots)
            first, count = first + part, count - part

    def _replace(self, slots: NDArray[np.int64]) -> None:
        """Fills `slots` with the next rows of the source or, where it has ended, with rows from the end of the buffer."""
        done = 0
        while done < len(slots) and (there := self._look()):
            part = slots[done : done + there]
            self._put(part, len(part))
            done += len(part)
        if self._held is not None and done < len(slots):
            left, empty = self._filled - (len(slots) - done), slots[done:]
            kept = np.setdiff1d(np.arange(left, self._filled), empty)
            for held in self._held:
                held[empty[empty < left]] = held[kept]
            self._filled = left

    def _put(self, where: slice | NDArray[np.int64], count: int) -> None:
        """Moves the next `count` rows, which have been read, into the buffer."""
        if self._coming is None:
            return
        if self._held is None:
            self._held = Rows(*(np.empty((self._capacity, *part.shape[1:]), part.dtype) for part in self._coming))
        for held, part in zip(self._held, self._coming, strict=True):
            held[where] = part[self._used : self._used + count]
        self._used += count

    def _look(self) -> int:
        """The number of rows read but not yet in the buffer; reads more where there are none. 0 at the end of the source."""
        while self._coming is None or self._used == self._coming.n_rows:
            self._coming, self._used = next(self._source, None), 0
            if self._coming is None:
                return 0
        return self._coming.n_rows - self._used
