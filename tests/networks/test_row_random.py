"""Tests of finetune.networks.row_random: the numbers against SplitMix64 in plain integers, their independence, their spread."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from finetune.networks.row_random import random_words, row_keys, uniforms

ROW_IDS = np.random.default_rng(0).integers(0, 16**15, 2000)
UINT64 = 2**64


def splitmix64(start: int, index: int) -> int:
    """Number `index` of the generator that starts at `start`, as Steele, Lea and Flood define it, in plain integers."""
    state = (start + (index + 1) * 0x9E3779B97F4A7C15) % UINT64
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % UINT64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % UINT64
    return state ^ (state >> 31)


def keys_of(row_ids: NDArray[Any], *, seed: int = 42, epoch: int = 1) -> Any:
    return row_keys(seed, epoch, tf.constant(row_ids, tf.int64))


def numbers(*, seed: int = 42, epoch: int = 1, stream: int = 0, count: int = 500) -> NDArray[Any]:
    """Of 2,000 rows: float32 (2000, count)."""
    result: NDArray[Any] = uniforms(keys_of(ROW_IDS, seed=seed, epoch=epoch), stream=stream, count=count).numpy()
    return result


def correlation(first: NDArray[Any], second: NDArray[Any]) -> float:
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


def test_the_reference_gives_the_published_numbers() -> None:
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [splitmix64(1234567, index) for index in range(5)] == published


@given(
    st.integers(0, 2**63 - 1), st.integers(0, 2**31 - 1), st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**64 - 1)
)
@settings(max_examples=50)
def test_keys_and_words_are_those_of_splitmix64(seed: int, epoch: int, row_id: int, stream: int) -> None:
    keys = row_keys(seed, tf.constant(epoch), tf.constant([row_id], tf.int64))
    key = splitmix64(row_id + splitmix64(epoch + splitmix64(seed, 0), 0), 0)
    assert keys.numpy().tolist() == [key]
    expected = [splitmix64(splitmix64(key, stream), index) for index in range(3)]
    halves = [half for number in expected for half in (number % 2**32, number >> 32)]
    assert random_words(keys, stream=stream, count=5).numpy().tolist() == [halves[:5]]


def test_uniforms_are_the_upper_24_bits() -> None:
    keys = keys_of(ROW_IDS)
    words = random_words(keys, stream=7, count=31).numpy()
    assert np.array_equal(uniforms(keys, stream=7, count=31).numpy(), (words >> 8).astype(np.float64) / 2**24)


@pytest.mark.parametrize("compiled", [False, True], ids=["graph", "xla"])
def test_one_graph_of_all_epochs_gives_the_bits_of_no_graph(compiled: bool) -> None:
    @tf.function(jit_compile=compiled, autograph=False)
    def in_graph(epoch: Any, row_ids: Any) -> Any:
        return uniforms(row_keys(42, epoch, row_ids), stream=3, count=101)

    for epoch in range(1, 4):
        expected = uniforms(keys_of(ROW_IDS, epoch=epoch), stream=3, count=101)
        given_in_graph = in_graph(tf.constant(epoch), tf.constant(ROW_IDS))
        assert np.array_equal(given_in_graph.numpy(), expected.numpy())
    assert in_graph.experimental_get_tracing_count() == 1


@given(st.lists(st.integers(0, 1999), max_size=40), st.integers(0, 40))
@settings(max_examples=50)
def test_a_rows_numbers_depend_on_no_other_row_and_not_on_their_count(rows: list[int], count: int) -> None:
    alone = uniforms(keys_of(ROW_IDS[np.array(rows, int)]), stream=1, count=count).numpy()
    assert alone.shape == (len(rows), count)
    assert np.array_equal(alone, uniforms(keys_of(ROW_IDS), stream=1, count=40).numpy()[np.array(rows, int), :count])


def test_keys_of_different_rows_differ() -> None:
    ids = np.arange(1_000_000)  # ids in a row are the worst for a poor mixing function
    keys = np.concatenate([keys_of(ids, epoch=epoch).numpy() for epoch in (1, 2)])
    assert len(np.unique(keys)) == len(keys)


def test_numbers_are_uniform() -> None:
    values = numbers()
    assert values.dtype == np.float32
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.bincount((values * 256).astype(int).ravel(), minlength=256)
    chi_square = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
    assert abs(chi_square - 255) < 5 * np.sqrt(2 * 255)  # mean and variance of chi square with 255 degrees of freedom
    assert np.abs(values.mean(axis=0) - 0.5).max() < 5 / np.sqrt(12 * len(values))  # of each unit over the rows
    assert np.abs(values.mean(axis=1) - 0.5).max() < 5 / np.sqrt(12 * values.shape[1])  # of each row over the units


def test_every_bit_is_set_in_half_of_the_words() -> None:
    words = random_words(keys_of(np.arange(2000)), stream=0, count=500).numpy()
    set_bits = [float(((words >> bit) & 1).mean()) for bit in range(32)]
    assert np.abs(np.array(set_bits) - 0.5).max() < 5 * 0.5 / np.sqrt(words.size)


@pytest.mark.parametrize(
    "other",
    [{"seed": 43}, {"epoch": 2}, {"stream": 1}, {"seed": 43, "epoch": 0}, {"stream": 2**32}],
    ids=["seed", "epoch", "stream", "seed and epoch", "far stream"],
)
def test_numbers_of_another_seed_epoch_or_stream_are_independent(other: dict[str, int]) -> None:
    first, second = numbers(), numbers(**other)
    bound = 5 / np.sqrt(first.size)
    assert abs(correlation(first, second)) < bound
    assert abs(correlation(first[:, 1:], second[:, :-1])) < bound  # nor are they the same ones, moved
    assert not np.isin(second[0], first[0]).all()


def test_numbers_of_rows_and_of_units_are_independent() -> None:
    values = uniforms(keys_of(np.arange(2000)), stream=0, count=500).numpy()  # ids in a row
    bound = 5 / np.sqrt(values[1:].size)
    for distance in (1, 2, 3, 64):
        assert abs(correlation(values[distance:], values[:-distance])) < bound * 1.1
        assert abs(correlation(values[:, distance:], values[:, :-distance])) < bound * 1.1
    between_rows = np.corrcoef(values[:300])[np.triu_indices(300, 1)]
    assert np.abs(between_rows).max() < 5.5 / np.sqrt(values.shape[1])
