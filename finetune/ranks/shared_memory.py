"""Sums over the ranks of one host, through memory that they share: several times as fast as sockets.

The memory is an anonymous file of the kernel, gone with the last process that maps it. It holds a piece for each rank and one
for the result. Arrays are reduced piece by piece, and every rank reduces a share of each piece: it writes its values for the
shares of the others, waits for all ranks, reduces its own share in the order of the ranks, writes the result, waits again, and
reads the results of the others. So all ranks have the same bits.
"""

import ctypes
import mmap
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featurize.errors import JobError

PIECE_BYTES = 4 << 20
_LINE_BYTES = 64  # a cache line, which is slow if several ranks write to it; a semaphore takes 32
_PAGE_BYTES = 4096
_TRIES = 200  # before a rank sleeps until it is woken, which takes as long as 100 to 300 tries
_REDUCTIONS = (np.add, np.minimum)
_CALLS, _BYTES, _KIND, _REDUCTION, _LEFT = range(5)  # columns that describe the current call of each rank
_NOT_LEFT = np.iinfo(np.int64).max


class CollectiveError(JobError):
    """The ranks are not in the same collective: one has left, or is in another one."""


@dataclass(frozen=True)
class Place:
    """The place of memory that another process has made: the process, its descriptor, and the number at the beginning."""

    pid: int
    descriptor: int
    token: int


class _Run(NamedTuple):
    """Elements of an array that a rank reduces: their place in the array (`here`) and in a piece (`there`)."""

    owner: int
    array: int
    here: slice
    there: slice


class SharedMemory:
    """The shared memory, as one rank uses it.

    Args:
        rank: the rank of this process.
        size: the number of ranks.
        place: the place of the memory that rank 0 has made; None for rank 0, which makes it.

    Raises:
        OSError: the memory cannot be made, or cannot be opened in this process.
    """

    def __init__(self, rank: int, size: int, place: Place | None = None) -> None:
        says = _LINE_BYTES + size * size * _LINE_BYTES  # after the token and the semaphores
        pieces = -(-(says + size * _LINE_BYTES) // _PAGE_BYTES) * _PAGE_BYTES
        n_bytes = pieces + (size + 1) * PIECE_BYTES
        self._descriptor, memory = _map_new(n_bytes) if place is None else _map_existing(place, n_bytes)
        self._rank, self._size = rank, size
        self._token = memory[:8].view(np.int64)
        self._says = memory[says:pieces].view(np.int64).reshape(-1, _LINE_BYTES // 8)[:size]
        self._pieces = [memory[start : start + PIECE_BYTES] for start in range(pieces, n_bytes, PIECE_BYTES)]
        # Short calls keep the interpreter's lock: once it is released, another thread may hold it for 5 ms.
        self._libc, self._unlocked = ctypes.PyDLL(None), ctypes.CDLL(None)
        semaphores = [
            [ctypes.c_void_p(memory.ctypes.data + (1 + to * size + by) * _LINE_BYTES) for by in range(size)]
            for to in range(size)
        ]
        others = [other for other in range(size) if other != rank]
        self._wakes = [semaphores[other][rank] for other in others]
        self._woken_by = [semaphores[rank][other] for other in others]
        self._waits = 0
        self._runs: dict[tuple[int, ...], list[list[_Run]]] = {}
        if place is None:
            self._says[:, _LEFT] = _NOT_LEFT
            for semaphore in chain(*semaphores):
                if self._libc.sem_init(semaphore, 1, 0) != 0:
                    raise OSError("processes cannot share semaphores")
            self._token[0] = secrets.randbits(62)

    @property
    def place(self) -> Place:
        """The place at which other processes find the memory, until `forget_place`."""
        return Place(os.getpid(), self._descriptor, int(self._token[0]))

    def forget_place(self) -> None:
        """Closes the descriptor, once all ranks have opened the memory."""
        os.close(self._descriptor)

    def reduce(self, arrays: Sequence[NDArray[Any]], reduction: np.ufunc) -> list[NDArray[Any]]:
        """`arrays` of all ranks, reduced element by element, in the order of the ranks. Every rank must call it.

        Args:
            arrays: of any shapes, and of one dtype with a fixed size; shapes and dtype are the same on all ranks.
            reduction: `np.add` or `np.minimum`.

        Raises:
            CollectiveError: another rank has left, or has called it with other sizes, another dtype or reduction.
        """
        own = [np.ascontiguousarray(array).reshape(-1) for array in arrays]
        totals = [_empty(array.size, array.dtype) for array in own]
        dtype = own[0].dtype
        says = self._says[self._rank]
        says[_CALLS] += 1
        says[_BYTES], says[_KIND] = sum(array.nbytes for array in own), dtype.num
        says[_REDUCTION] = _REDUCTIONS.index(reduction)
        *given, result = (piece.view(dtype) for piece in self._pieces)
        for runs in self._runs_of([array.size for array in own], PIECE_BYTES // dtype.itemsize):
            for run in runs:
                if run.owner != self._rank:
                    given[self._rank][run.there] = own[run.array][run.here]
            self._wait()
            self._check_alike()
            for run in runs:
                if run.owner == self._rank:
                    parts = [part[run.there] for part in given]
                    parts[self._rank], total = own[run.array][run.here], totals[run.array][run.here]
                    so_far = parts[0]
                    for part in parts[1:]:
                        so_far = reduction(so_far, part, out=total)
                    if so_far is not total:  # there is one rank only
                        total[:] = so_far
                    result[run.there] = total
            self._wait()
            for run in runs:
                if run.owner != self._rank:
                    totals[run.array][run.here] = result[run.there]
        return [total.reshape(array.shape) for total, array in zip(totals, arrays, strict=True)]

    def close(self) -> None:
        """Tells the other ranks that this one enters no more collectives: those that wait for it fail at once."""
        self._says[self._rank, _LEFT] = self._waits
        for semaphore in self._wakes:
            self._libc.sem_post(semaphore)

    def _runs_of(self, sizes: Sequence[int], per_piece: int) -> list[list[_Run]]:
        key = (per_piece, *sizes)
        if key not in self._runs:
            self._runs[key] = list(_cut(sizes, per_piece, self._size))
        return self._runs[key]

    def _wait(self) -> None:
        """Returns once all ranks have called it as often as this one. The semaphores also order memory, as POSIX requires."""
        self._waits += 1
        for semaphore in self._wakes:
            self._libc.sem_post(semaphore)
        for semaphore in self._woken_by:
            for _ in range(_TRIES):
                if self._libc.sem_trywait(semaphore) == 0:
                    break
            else:
                while self._unlocked.sem_wait(semaphore) != 0:  # a signal came
                    pass
        if (self._says[:, _LEFT] < self._waits).any():
            left = np.flatnonzero(self._says[:, _LEFT] < self._waits)
            raise CollectiveError(f"rank {left[0]} has left, and rank {self._rank} waits for it.")

    def _check_alike(self) -> None:
        calls = self._says[:, :_LEFT]
        if (calls != calls[self._rank]).any():
            raise CollectiveError(
                f"the ranks are not in the same collective: {calls.tolist()} (number, bytes, dtype, reduction)."
            )


def _map_new(n_bytes: int) -> tuple[int, NDArray[np.uint8]]:
    descriptor = os.memfd_create("firn")
    try:
        os.ftruncate(descriptor, n_bytes)
        return descriptor, np.frombuffer(mmap.mmap(descriptor, n_bytes), np.uint8)
    except OSError:
        os.close(descriptor)
        raise


def _map_existing(place: Place, n_bytes: int) -> tuple[int, NDArray[np.uint8]]:
    path = f"/proc/{place.pid}/fd/{place.descriptor}"
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        memory = np.frombuffer(mmap.mmap(descriptor, n_bytes), np.uint8)
        if memory[:8].view(np.int64)[0] != place.token:
            raise ValueError("it begins with another number")
    except (OSError, ValueError) as error:
        os.close(descriptor)
        raise OSError(f"{path} is not the memory that rank 0 made: {error}") from error
    return descriptor, memory


def _cut(sizes: Sequence[int], per_piece: int, n_ranks: int) -> Iterator[list[_Run]]:
    """The elements of arrays of these sizes, piece by piece, cut where an array, or the share of a rank, ends."""
    starts = np.concatenate([[0], np.cumsum(sizes)]).tolist()
    for first in range(0, max(1, starts[-1]), per_piece):
        n = min(per_piece, starts[-1] - first)
        runs = []
        for owner in range(n_ranks):
            share = first + n * owner // n_ranks, first + n * (owner + 1) // n_ranks
            for array, (start, end) in enumerate(pairwise(starts)):
                low, high = max(start, share[0]), min(end, share[1])
                if low < high:
                    runs.append(_Run(owner, array, slice(low - start, high - start), slice(low - first, high - first)))
        yield runs


def _empty(n: int, dtype: "np.dtype[Any]") -> NDArray[Any]:
    """An empty array, aligned as TensorFlow needs it to take the array without a copy."""
    raw = np.empty(n * dtype.itemsize + _LINE_BYTES, np.uint8)
    first = -raw.ctypes.data % _LINE_BYTES
    return raw[first : first + n * dtype.itemsize].view(dtype)
