"""Tests of finetune.ranks.shared_memory, by real processes: sums of any arrays are those of NumPy, in the order of the ranks.

A piece takes 256 bytes here, so that small arrays take several.
"""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import reduce
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from finetune.ranks import shared_memory
from finetune.ranks.shared_memory import CollectiveError, Place, SharedMemory

PIECE_BYTES = 256
WAIT_S = 30.0
REDUCTIONS: dict[str, np.ufunc] = {"add": np.add, "minimum": np.minimum}
Task = tuple[str, str, Sequence[Sequence[int]], int]  # reduction, dtype, shapes, seed


def make_arrays(rank: int, dtype: str, shapes: Sequence[Sequence[int]], seed: int) -> list[NDArray[Any]]:
    random = np.random.default_rng([rank, seed])
    return [(random.standard_normal(shape) * 1000).astype(dtype) for shape in shapes]


def work(rank: int, size: int, place: Place | None, connection: Connection) -> None:
    """A rank: tells its place, and then the results, or the error, of each task until there is none."""
    shared_memory.PIECE_BYTES = PIECE_BYTES
    memory = SharedMemory(rank, size, place)
    connection.send(memory.place)
    random = np.random.default_rng(rank)
    while (task := connection.recv()) is not None:
        reduction, dtype, shapes, seed = task
        time.sleep(random.choice([0, 0, 0.001]))  # now one comes first, now another
        try:
            connection.send(memory.reduce(make_arrays(rank, dtype, shapes, seed), REDUCTIONS[reduction]))
        except CollectiveError as error:
            connection.send(str(error))
    memory.close()
    connection.send("closed")


class Ranks:
    """Processes that share memory."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._processes: list[Any] = []
        self._connections: list[Connection] = []
        place = None
        for rank in range(size):
            connection, theirs = multiprocessing.Pipe()
            process = multiprocessing.get_context("spawn").Process(target=work, args=(rank, size, place, theirs))
            process.start()
            self._processes.append(process)
            self._connections.append(connection)
            place = place or self.answer(0)
            if rank > 0:
                self.answer(rank)

    def ask(self, rank: int, task: Task | None) -> None:
        self._connections[rank].send(task)

    def answer(self, rank: int) -> Any:
        assert self._connections[rank].poll(WAIT_S), f"rank {rank} does not answer"
        return self._connections[rank].recv()

    def waits(self, rank: int) -> bool:
        return not self._connections[rank].poll(0.3)

    def all(self, task: Task) -> list[Any]:
        for rank in range(self.size):
            self.ask(rank, task)
        return [self.answer(rank) for rank in range(self.size)]

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


@pytest.fixture(scope="module", params=[1, 2, 3])
def ranks(request: pytest.FixtureRequest) -> Iterator[Ranks]:
    """Used by all examples: what one call leaves behind must not reach into the next."""
    started = Ranks(request.param)
    yield started
    started.stop()


@pytest.fixture
def new_ranks() -> Iterator[Callable[[int], Ranks]]:
    started: list[Ranks] = []

    def start(size: int) -> Ranks:
        started.append(Ranks(size))
        return started[-1]

    yield start
    for these in started:
        these.stop()


SHAPES = st.lists(st.lists(st.integers(0, 40), max_size=2).map(tuple), min_size=1, max_size=5)


@pytest.mark.slow
@given(
    reduction=st.sampled_from(sorted(REDUCTIONS)),
    dtype=st.sampled_from(["float32", "float64", "int32", "uint8"]),
    shapes=SHAPES,
    seed=st.integers(0, 2**32),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_all_ranks_get_what_numpy_makes_of_their_arrays_in_order(
    ranks: Ranks, reduction: str, dtype: str, shapes: list[tuple[int, ...]], seed: int
) -> None:
    given_arrays = [make_arrays(rank, dtype, shapes, seed) for rank in range(ranks.size)]
    wanted = [reduce(REDUCTIONS[reduction], parts) for parts in zip(*given_arrays, strict=True)]
    for found in ranks.all((reduction, dtype, shapes, seed)):
        assert [part.shape for part in found] == shapes
        for part, expected in zip(found, wanted, strict=True):
            assert part.dtype == np.dtype(dtype)
            np.testing.assert_array_equal(part, expected)


def test_results_stay_what_they_are_when_more_is_reduced() -> None:
    """They are no views of the memory."""
    memory = SharedMemory(0, 1)
    first = memory.reduce([np.ones(10, np.float32)], np.add)
    memory.reduce([np.zeros(10, np.float32)], np.add)
    np.testing.assert_array_equal(first[0], np.ones(10))


def test_a_rank_that_waits_is_told_that_another_leaves(new_ranks: Callable[[int], Ranks]) -> None:
    ranks = new_ranks(3)
    task = ("add", "float32", [(100,)], 1)
    ranks.all(task)
    ranks.ask(0, task)
    assert ranks.waits(0)
    ranks.ask(1, None)
    assert ranks.answer(1) == "closed"
    ranks.ask(2, task)
    for rank in (0, 2):
        assert ranks.answer(rank) == f"rank 1 has left, and rank {rank} waits for it."


def test_a_rank_that_comes_later_is_told_that_another_has_left(new_ranks: Callable[[int], Ranks]) -> None:
    ranks = new_ranks(2)
    ranks.ask(0, None)
    assert ranks.answer(0) == "closed"
    ranks.ask(1, ("add", "float32", [(3,)], 1))
    assert ranks.answer(1) == "rank 0 has left, and rank 1 waits for it."


@pytest.mark.parametrize(
    "other",
    [
        ("minimum", "float32", [(30,)], 1),
        ("add", "int32", [(30,)], 1),
        ("add", "float32", [(31,)], 1),
    ],
)
def test_ranks_that_do_not_call_it_alike_all_get_an_error(new_ranks: Callable[[int], Ranks], other: Task) -> None:
    ranks = new_ranks(2)
    ranks.ask(0, ("add", "float32", [(30,)], 1))
    ranks.ask(1, other)
    for rank in range(2):
        assert "not in the same collective" in ranks.answer(rank)


def test_a_waiting_rank_takes_no_time_of_the_processor(new_ranks: Callable[[int], Ranks]) -> None:
    """As ranks wait for the one that reads or writes a file."""
    memory = SharedMemory(0, 2)
    threading.Thread(target=lambda: memory.reduce([np.ones(3)], np.add), daemon=True).start()
    time.sleep(0.1)
    before = time.process_time()
    time.sleep(1)
    assert time.process_time() - before < 0.5


def test_memory_that_is_not_there_is_refused() -> None:
    memory = SharedMemory(0, 2)
    with pytest.raises(OSError, match=f"/proc/{2**30}/fd"):
        SharedMemory(1, 2, replace(memory.place, pid=2**30))
    with pytest.raises(OSError, match=r"/proc/\d+/fd/\d+ is not the memory that rank 0 made"):
        SharedMemory(1, 2, replace(memory.place, token=5))
    with open(os.devnull, "rb") as other, pytest.raises(OSError, match=f"/proc/{os.getpid()}/fd/{other.fileno()}"):
        SharedMemory(1, 2, Place(os.getpid(), other.fileno(), 5))


def test_memory_is_gone_with_its_processes() -> None:
    """Descriptors and a mapping, and no file with a name."""
    maps, descriptors = Path("/proc/self/maps"), Path("/proc/self/fd")
    before = maps.read_text().count("memfd:firn"), len(list(descriptors.iterdir()))
    memory = SharedMemory(0, 2)
    assert "memfd:firn (deleted)" in str((descriptors / str(memory.place.descriptor)).readlink())
    assert maps.read_text().count("memfd:firn") > before[0]
    memory.forget_place()
    del memory
    assert (maps.read_text().count("memfd:firn"), len(list(descriptors.iterdir()))) == before
