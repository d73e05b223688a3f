"""Tests of finetune.rows.shuffle_buffer: nothing is lost, the draw is fair, and only the generator decides."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.rows.shuffle_buffer import Rows, ShuffleBuffer


def make_rows(first: int, count: int) -> Rows:
    numbers = np.arange(first, first + count)
    return Rows(np.stack([numbers, -numbers], 1).astype(np.float32), numbers.astype(np.int32), numbers)


def in_pieces(pieces: Sequence[int]) -> Iterator[Rows]:
    first = 0
    for count in pieces:
        yield make_rows(first, count)
        first += count


def shuffled(pieces: Sequence[int], takes: Sequence[int], *, capacity: int, seed: int = 0) -> list[int]:
    """The numbers of the rows in the order in which they are taken; the arrays must agree on it."""
    buffer = ShuffleBuffer(in_pieces(pieces), capacity=capacity, random=np.random.default_rng(seed))
    target = Rows(np.empty((sum(takes), 2), np.float32), np.empty(sum(takes), np.int32), np.empty(sum(takes), np.int64))
    first = 0
    for count in takes:
        buffer.take(target, first=first, count=count)
        first += count
    np.testing.assert_array_equal(target.features, np.stack([target.row_ids, -target.row_ids], 1))
    np.testing.assert_array_equal(target.label_index, target.row_ids)
    numbers: list[int] = target.row_ids.tolist()
    return numbers


@given(
    st.lists(st.integers(0, 30), max_size=12), st.lists(st.integers(0, 40)), st.integers(1, 70), st.integers(0, 2**32)
)
def test_every_row_is_taken_once_whatever_the_pieces_and_takes(
    pieces: list[int], takes: list[int], capacity: int, seed: int
) -> None:
    rows, counts = sum(pieces), list[int]()
    for count in takes:
        counts.append(min(count, rows - sum(counts)))
    counts.append(rows - sum(counts))
    taken = shuffled(pieces, counts, capacity=capacity, seed=seed)
    assert sorted(taken) == list(range(rows))
    assert taken == shuffled([1] * rows, counts, capacity=capacity, seed=seed)  # how rows come does not matter
    assert all(number < place + capacity + max(counts) for place, number in enumerate(taken))  # none from the future


def test_buffer_of_one_row_keeps_the_order() -> None:
    assert shuffled([7, 5], [1] * 12, capacity=1) == list(range(12))


def test_buffer_as_large_as_the_source_gives_every_permutation_equally_often() -> None:
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(2400):
        order = tuple(shuffled([2, 2], [1, 2, 1], capacity=4, seed=seed))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    chi_square = sum((count - 100) ** 2 / 100 for count in counts.values())
    assert chi_square < 49.7  # one in a thousand of a fair draw with 23 degrees of freedom is above


def test_row_waits_as_many_takes_as_the_buffer_holds_in_the_mean() -> None:
    taken = np.array(shuffled([100] * 200, [10] * 2000, capacity=500))
    waits = np.empty(20000)
    waits[taken] = np.arange(20000)
    waits -= np.maximum(
        np.arange(20000) - 500, 0
    )  # a row comes in when as many have gone as came before it, less a buffer
    assert 450 < waits[1000:15000].mean() < 550
    assert 0.33 < (waits[1000:15000] > 500).mean() < 0.41  # exp(-1)


def test_more_rows_than_there_are_cannot_be_taken() -> None:
    with pytest.raises(ValueError, match="3 rows too early"):
        shuffled([4, 3], [5, 5], capacity=4)
