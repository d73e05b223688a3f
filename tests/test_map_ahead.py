"""Work ahead in threads: nothing is lost, nothing changes places, and no more is held than may be."""

import threading
import time
from collections.abc import Iterator

import pytest
from helpers.images.decoders import wait_until
from hypothesis import given, settings
from hypothesis import strategies as st

from featurize.map_ahead import map_ahead


def workers_left() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("firn-ahead")]


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 6), st.integers(1, 50))
@settings(max_examples=50)
def test_results_come_in_order_whatever_takes_longest(delays: list[int], threads: int, ahead: int) -> None:
    def work(item: tuple[int, int]) -> int:
        time.sleep(0.001 * item[1])
        return item[0] ** 2

    found = list(map_ahead(work, enumerate(delays), threads=threads, ahead=ahead))
    assert found == [number**2 for number in range(len(delays))]
    assert workers_left() == []


@pytest.mark.parametrize("ahead", [1, 5, 30])
def test_no_more_items_are_held_than_may_be(ahead: int) -> None:
    taken, given = 0, 0

    def items() -> Iterator[int]:
        nonlocal taken
        for item in range(30):
            taken += 1
            assert taken - given <= ahead
            yield item

    for _ in map_ahead(lambda item: item, items(), threads=2, ahead=ahead):
        given += 1
    assert given == 30


@pytest.mark.parametrize("threads", [1, 4])
def test_as_many_threads_work_at_a_time_as_there_are(threads: int) -> None:
    together = threading.Barrier(threads, timeout=30)
    found = list(map_ahead(lambda item: together.wait() >= 0, range(3 * threads), threads=threads, ahead=99))
    assert all(found)
    assert len(found) == 3 * threads


def test_work_goes_on_while_nobody_asks_for_results() -> None:
    done: list[int] = []
    results = map_ahead(lambda item: done.append(item), range(100), threads=2, ahead=7)
    next(results)
    wait_until(lambda: len(done) == 7)
    results.close()  # type: ignore[attr-defined]


def test_a_fault_is_raised_where_its_result_is_asked_for() -> None:
    results = map_ahead(lambda item: 1 // (3 - item), range(10), threads=2, ahead=9)
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert workers_left() == []


def test_a_fault_in_what_gives_the_items_is_raised_too() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("the storage is gone")

    with pytest.raises(OSError, match="the storage is gone"):
        list(map_ahead(lambda item: item, items(), threads=2, ahead=2))
    assert workers_left() == []


def test_who_loses_interest_leaves_no_work_behind() -> None:
    started: list[int] = []
    release = threading.Event()

    def work(item: int) -> int:
        started.append(item)
        assert item == 0 or release.wait(30)
        return item

    results = map_ahead(work, range(100), threads=2, ahead=50)
    assert next(results) == 0
    wait_until(lambda: len(started) == 3)
    threading.Timer(0.1, release.set).start()
    results.close()  # type: ignore[attr-defined]
    assert workers_left() == []
    assert len(started) <= 5  # of 50 that were waiting
