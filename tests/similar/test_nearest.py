"""Tests of featurize.similar.nearest: what it finds is what float64 finds on all rows, whatever the numbers and the blocks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from featurize.similar.nearest import METRICS, Metric, NearestSearch, find_nearest


def distances_of(features: NDArray[np.generic], query: NDArray[np.generic], metric: Metric) -> NDArray[np.float64]:
    """In long double, row by row."""
    rows, one = features.astype(np.longdouble), query.astype(np.longdouble)
    if metric == "euclidean":
        distances: NDArray[np.float64] = np.sqrt(((rows - one) ** 2).sum(axis=1)).astype(np.float64)
        return distances
    lengths = np.sqrt((rows**2).sum(axis=1)) * np.sqrt((one**2).sum())
    cosines = np.divide(rows @ one, lengths, out=np.zeros_like(lengths), where=lengths != 0)
    return np.clip(1 - cosines, 0, 2).astype(np.float64)


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 300),
    dim=st.integers(1, 40),
    k=st.integers(1, 20),
    scale=st.sampled_from([1e-18, 1e-3, 1.0, 1e18]),
    offset=st.sampled_from([0.0, 1000.0]),
    block=st.integers(1, 64),
)
def test_the_nearest_are_those_of_all_rows_in_higher_precision(
    metric: Metric, seed: int, rows: int, dim: int, k: int, scale: float, offset: float, block: int
) -> None:
    """An offset leaves float32 three digits of what is between the rows."""
    random = np.random.default_rng(seed)
    features = ((random.standard_normal((rows, dim)) + offset) * scale).astype(np.float32)
    features[random.random(rows) < 0.1] = features[0]
    query = ((random.standard_normal(dim) + offset) * scale).astype(np.float32)
    search = NearestSearch(query, k, metric)
    for start in range(0, rows, block):
        search.add(features[start : start + block])
    wanted = distances_of(features, query, metric)
    order = np.lexsort((np.arange(rows), wanted))[:k]
    found = search.found
    np.testing.assert_allclose(found.distances, wanted[order], rtol=1e-9, atol=1e-14 * (1 if metric == "cosine" else 0))
    np.testing.assert_allclose(wanted[found.rows], wanted[order], rtol=1e-9, atol=1e-14)
    assert len(set(found.rows.tolist())) == min(k, rows)


def test_blocks_change_nothing_and_tell_which_of_their_rows_are_near() -> None:
    random = np.random.default_rng(1)
    features, query = random.standard_normal((1000, 8)).astype(np.float32), np.ones(8, np.float32)
    search, kept = NearestSearch(query, 5), set[int]()
    for start in range(0, 1000, 128):
        kept |= {start + int(row) for row in search.add(features[start : start + 128])}
        assert set(search.found.rows.tolist()) <= kept
    whole = find_nearest(features, query, k=5, metric="cosine")
    assert search.found.rows.tolist() == whole.rows.tolist()
    assert np.array_equal(search.found.distances, whole.distances)


@pytest.mark.parametrize("metric", METRICS)
def test_equal_rows_come_in_their_order(metric: Metric) -> None:
    features = np.tile(np.array([[3, 1, 2]], np.uint8), (700, 1))
    found = find_nearest(features, np.array([1, 2, 3], np.uint8), k=6, metric=metric)
    assert found.rows.tolist() == list(range(6))
    assert len(set(found.distances.tolist())) == 1


def test_rows_that_are_not_finite_are_never_near() -> None:
    features = np.array([[np.nan, 1], [np.inf, 1], [0, 0], [1, 0]], np.float32)
    cosine = find_nearest(features, np.array([1, 0], np.float32), k=4, metric="cosine")
    assert (cosine.rows.tolist(), cosine.distances.tolist()) == ([3, 2], [0.0, 1.0])
    euclidean = find_nearest(features, np.array([1, 0], np.float32), k=4, metric="euclidean")
    assert (euclidean.rows.tolist(), euclidean.distances.tolist()) == ([3, 2], [0.0, 1.0])


@pytest.mark.parametrize(("query", "metric"), [([0, 0], "cosine"), ([np.nan, 1], "euclidean")])
def test_a_query_without_direction_is_refused(query: list[float], metric: Metric) -> None:
    with pytest.raises(ValueError, match="zero or not finite"):
        NearestSearch(np.array(query, np.float32), 1, metric)


def test_a_query_of_zeros_has_distances() -> None:
    found = find_nearest(np.eye(3, dtype=np.float32), np.zeros(3, np.float32), k=1, metric="euclidean")
    assert (found.rows.tolist(), found.distances.tolist()) == ([0], [1.0])
