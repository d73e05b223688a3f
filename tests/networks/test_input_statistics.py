"""Tests of finetune.networks.input_statistics: NumPy's figures, however the rows are cut into chunks."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from featurize.errors import JobError
from featurize.recipes.model_section import ModelSettings
from finetune.networks import input_statistics
from finetune.networks.input_statistics import collect_statistics
from finetune.networks.inputs import Statistics, rows_to_standardize

FEATURES = ModelSettings(url="unused", standardize=True)
NORMALIZED = ModelSettings(url="unused", standardize=True, l2_normalize=True)
PIXELS = ModelSettings(url="unused", pixels="standardize")


def make_features(rows: int, *, seed: int = 0) -> NDArray[np.float32]:
    """Features of very different sizes, some far from 0 compared with how they spread."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(rows, 8)) * 10.0 ** np.arange(-4, 4) + 1000 * np.arange(8)
    return np.asarray(features, np.float32)


def make_pixels(images: int, *, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (images, 5, 4, 3), dtype=np.uint8)


def cut(rows: NDArray[Any], cuts: list[int]) -> list[NDArray[Any]]:
    """`rows` in chunks that end at `cuts`; some may be empty."""
    ends = [0, *sorted(min(end, len(rows)) for end in cuts), len(rows)]
    return [rows[start:end] for start, end in pairwise(ends)]


def assert_same(one: Statistics, other: Statistics) -> None:
    np.testing.assert_allclose(one.mean, other.mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(one.deviation, other.deviation, rtol=1e-12)


def test_statistics_of_features_are_numpys() -> None:
    features = make_features(1000)
    result = collect_statistics([features], FEATURES)
    assert result.mean.dtype == result.deviation.dtype == np.float64
    np.testing.assert_allclose(result.mean, features.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(result.deviation, features.astype(np.float64).std(axis=0), rtol=1e-9)


def test_statistics_of_normalized_features_are_of_what_normalization_gives() -> None:
    features = make_features(100).astype(np.float64)
    normalized = features / np.linalg.norm(features, axis=1, keepdims=True)
    result = collect_statistics([features.astype(np.float32)], NORMALIZED)
    np.testing.assert_allclose(result.mean, normalized.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(result.deviation, normalized.std(axis=0), rtol=1e-7)


def test_statistics_of_pixels_are_of_each_channel() -> None:
    images = make_pixels(50)
    result = collect_statistics([images], PIXELS)
    assert result.mean.shape == (3,)
    np.testing.assert_allclose(result.mean, images.mean(axis=(0, 1, 2), dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(result.deviation, images.std(axis=(0, 1, 2), dtype=np.float64), rtol=1e-12)


@given(
    st.lists(st.integers(0, 300), max_size=12), st.integers(0, 1000), st.sampled_from([FEATURES, NORMALIZED, PIXELS])
)
def test_statistics_are_the_same_however_the_rows_are_cut(cuts: list[int], seed: int, wanted: ModelSettings) -> None:
    rows = make_pixels(300, seed=seed) if wanted is PIXELS else make_features(300, seed=seed)
    assert_same(collect_statistics(cut(rows, cuts), wanted), collect_statistics([rows], wanted))


def test_a_large_chunk_is_taken_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_features(500)
    whole = collect_statistics([rows], FEATURES)
    sizes: list[int] = []

    def watched(block: NDArray[Any], wanted: ModelSettings) -> NDArray[np.float64]:
        sizes.append(block.size)
        return rows_to_standardize(block, wanted)

    monkeypatch.setattr(input_statistics, "rows_to_standardize", watched)
    assert_same(collect_statistics([rows], FEATURES, block_values=100), whole)
    assert max(sizes) <= 100
    assert sum(sizes) == rows.size


@pytest.mark.parametrize("value", [0.0, 0.1, -3.0, 1e30, 1e-30])
def test_constant_features_have_deviation_1(value: float) -> None:
    features = make_features(300)
    features[:, 2] = value
    result = collect_statistics(cut(features, [7, 100]), FEATURES)
    assert result.mean[2] == np.float32(value)
    assert result.deviation[2] == 1
    assert (np.delete(result.deviation, 2) != 1).all()


def test_features_that_are_constant_once_normalized_have_deviation_1() -> None:
    """Rows that are multiples of one another differ after normalization by rounding only."""
    direction = np.array([0.3, -1.7, 2.2, 0.9])
    features = (np.random.default_rng(0).uniform(0.1, 10, (50, 1)) * direction).astype(np.float32)
    assert (collect_statistics([features], NORMALIZED).deviation == 1).all()


def test_a_single_row_has_deviation_1() -> None:
    assert (collect_statistics([make_features(1)], FEATURES).deviation == 1).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named(value: float) -> None:
    features = make_features(30)
    features[20, 3] = features[21, 6] = value
    with pytest.raises(JobError, match="2 of 8 have values that are not finite in the training split, first feature 3"):
        collect_statistics(cut(features, [10]), FEATURES)


@pytest.mark.parametrize("chunks", [[], [make_features(0)]])
def test_nothing_to_standardise_by_is_an_error(chunks: list[NDArray[Any]]) -> None:
    with pytest.raises(JobError, match="no training rows"):
        collect_statistics(chunks, FEATURES)
