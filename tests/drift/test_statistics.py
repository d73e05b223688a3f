"""Tests of drift.statistics and drift.sample_size: against SciPy, against brute force, and against chance itself."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from finetune.drift.sample_size import images_for_confidence, images_for_features, images_for_labels
from finetune.drift.statistics import (
    LEAST_EXPECTED,
    RIDGE,
    chi_square,
    count_together,
    expected_stability_index,
    holm,
    kolmogorov_smirnov,
    mean_discrepancy,
    stability_index,
    weighted,
)

COUNTS = st.dictionaries(st.sampled_from("abcdefghij"), st.integers(0, 60), max_size=10)


@given(COUNTS, COUNTS)
def test_every_image_is_counted_once_and_no_cell_is_expected_to_hold_too_few(
    reference: dict[str, int], window: dict[str, int]
) -> None:
    counts = count_together(reference, window)
    assert counts.sum(axis=1).tolist() == [sum(reference.values()), sum(window.values())]
    if counts.shape[1] > 1:
        expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0, keepdims=True) / counts.sum()
        assert expected.min() >= LEAST_EXPECTED * (1 - 1e-12)


def test_frequent_classes_stand_alone_and_rare_ones_go_together() -> None:
    counts = count_together({"a": 50, "b": 30, "c": 4, "d": 3, "e": 0}, {"a": 40, "b": 20, "c": 3, "f": 9})
    assert counts.tolist() == [[50, 30, 7], [40, 20, 12]]


def test_too_few_images_make_one_group_and_no_test() -> None:
    counts = count_together({"a": 3, "b": 2}, {"a": 1, "b": 4})
    assert counts.tolist() == [[5], [5]]
    assert chi_square(counts).p == 1
    assert chi_square(count_together({}, {"a": 9})).p == 1


@given(st.lists(st.tuples(st.integers(1, 99), st.integers(1, 99)), min_size=2, max_size=8))
def test_chi_square_is_that_of_scipy(cells: list[tuple[int, int]]) -> None:
    counts = np.array(cells).T
    found = chi_square(counts)
    wanted = stats.chi2_contingency(counts, correction=False)
    assert (found.statistic, found.p) == pytest.approx((wanted.statistic, wanted.pvalue))


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=8))
def test_the_stability_index_is_the_divergence_in_both_directions(cells: list[tuple[int, int]]) -> None:
    counts = np.array(cells).T
    p, q = (counts[0] + 0.5) / (counts[0] + 0.5).sum(), (counts[1] + 0.5) / (counts[1] + 0.5).sum()
    assert stability_index(counts) == pytest.approx(stats.entropy(p, q) + stats.entropy(q, p), abs=1e-12)
    assert stability_index(counts) == pytest.approx(stability_index(counts[::-1]))


def test_without_drift_the_stability_index_is_what_is_expected() -> None:
    random = np.random.default_rng(3)
    counts = [np.stack([random.multinomial(size, [0.1] * 10) for size in (800, 400)]) for _ in range(400)]
    found = np.mean([stability_index(one) for one in counts])
    assert found == pytest.approx(expected_stability_index(counts[0]), rel=0.1)


def test_kolmogorov_smirnov_is_the_largest_distance_and_its_p_that_of_chance() -> None:
    random = np.random.default_rng(4)
    one, other = random.random(300), random.random(200) ** 1.2
    steps = np.concatenate([one, other])
    distance = max(abs((one <= step).mean() - (other <= step).mean()) for step in steps)
    found = kolmogorov_smirnov(one, other)
    assert found.statistic == pytest.approx(distance)
    assert found.p == pytest.approx(stats.ks_2samp(one, other, method="exact").pvalue, rel=0.1)
    assert kolmogorov_smirnov(np.ones(50, np.float32), np.ones(60, np.float32)).p == 1


def test_the_discrepancy_is_the_weighted_distance_of_means_and_its_p_that_of_all_permutations() -> None:
    rows = np.random.default_rng(5).normal(size=(9, 3)) * [3, 1, 0.1] + 2
    reference, window = rows[:5], rows[5:] + 0.8
    both = np.concatenate([reference, window])
    covariance = np.cov(both, rowvar=False, bias=True)
    inverse = np.linalg.inv(covariance + RIDGE * np.trace(covariance) / 3 * np.eye(3))

    def distance(chosen: tuple[int, ...]) -> float:
        others = [row for row in range(9) if row not in chosen]
        difference = both[list(chosen)].mean(axis=0) - both[others].mean(axis=0)
        return float(difference @ inverse @ difference)

    found = mean_discrepancy(reference, window, permutations=20_000, seed=0)
    wanted = distance((5, 6, 7, 8))
    assert found.statistic == pytest.approx(wanted)
    exact = np.mean([distance(chosen) >= wanted - 1e-12 for chosen in combinations(range(9), 4)])
    assert found.p == pytest.approx(exact, abs=0.02)
    assert mean_discrepancy(reference, window, permutations=20_000, seed=0) == found


def test_a_small_shift_where_images_hardly_differ_is_seen_beside_large_differences() -> None:
    random = np.random.default_rng(11)
    one, other = (random.normal(size=(size, 5)) * [9, 9, 1, 1, 1] for size in (300, 200))
    assert mean_discrepancy(one, other, permutations=999, seed=0).p > 0.05
    other[:, 2] += 3
    assert mean_discrepancy(one, other, permutations=999, seed=0).p == 0.001


def test_weighted_rows_have_variances_up_to_1_and_no_nan() -> None:
    rows = np.random.default_rng(12).normal(size=(500, 4)) * [5, 1, 0.01, 0] + 7
    found = weighted(rows.astype(np.float32))
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-9)
    assert 0.9 < found.var(axis=0).max() <= 1
    assert np.all(weighted(np.ones((5, 3))) == 0)


def test_the_discrepancy_is_never_sure_beyond_its_permutations() -> None:
    random = np.random.default_rng(6)
    found = mean_discrepancy(random.normal(size=(40, 2)), random.normal(size=(30, 2)) + 9, permutations=99, seed=0)
    assert found.p == 0.01


def test_under_chance_alone_p_is_even() -> None:
    random = np.random.default_rng(7)
    values = [
        mean_discrepancy(random.random((60, 4)), random.random((30, 4)), permutations=199, seed=trial).p
        for trial in range(300)
    ]
    assert stats.kstest(values, "uniform").pvalue > 0.01


@given(st.lists(st.floats(0, 1), max_size=6))
def test_holm_is_what_its_definition_says(values: list[float]) -> None:
    corrected = holm(values)
    order = np.argsort(values, kind="stable")
    for rank, index in enumerate(order):
        wanted = max((min(1.0, (len(values) - i) * values[order[i]]) for i in range(rank + 1)), default=0)
        assert corrected[index] == pytest.approx(wanted)


def test_holm_on_a_known_example() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_as_many_images_as_it_says_notice_a_shift_of_labels() -> None:
    shares = np.array([0.25, 0.25, 0.25, 0.25])
    tilt = np.array([1, -1, 1, -1])
    step = next(
        t for t in np.linspace(0, 0.2, 2001) if ((t * tilt) * np.log((shares + t * tilt) / shares)).sum() >= 0.2
    )
    needed = images_for_labels(4, 1000, rate=0.01)
    assert needed is not None
    random = np.random.default_rng(8)
    noticed = [
        chi_square(np.stack([random.multinomial(1000, shares), random.multinomial(needed, shares + step * tilt)])).p
        <= 0.01
        for _ in range(600)
    ]
    assert 0.72 <= np.mean(noticed) <= 0.9


def test_as_many_images_as_it_says_notice_a_shift_of_confidence() -> None:
    needed = images_for_confidence(2000, rate=0.01)
    assert needed is not None
    random = np.random.default_rng(9)
    noticed = []
    for _ in range(200):
        unsure = random.random(needed) < 0.15
        window = np.where(unsure, random.random(needed) * 0.01, random.random(needed) * 0.9 + 0.1)
        noticed.append(kolmogorov_smirnov(random.random(2000) * 0.9 + 0.1, window).p <= 0.01)
    assert np.mean(noticed) >= 0.78  # it is a bound: mostly more


def test_as_many_images_as_it_says_notice_a_shift_of_features() -> None:
    random = np.random.default_rng(10)
    scales = np.array([1.0, 0.7, 0.5, 0.3])
    needed = images_for_features(random.normal(size=(600, 4)) * scales, rate=0.01)
    assert needed is not None
    shift = 0.5 * scales * np.array([1, 0, 0, 0])
    noticed = [
        mean_discrepancy(
            random.normal(size=(600, 4)) * scales,
            random.normal(size=(needed, 4)) * scales + shift,
            permutations=499,
            seed=trial,
        ).p
        <= 0.01
        for trial in range(100)
    ]
    assert 0.65 <= np.mean(noticed) <= 0.95


def test_a_reference_that_is_too_small_is_said_to_be_so() -> None:
    assert images_for_labels(100, 60, rate=0.003) is None
    assert images_for_labels(1, 1000, rate=0.003) is None
    assert images_for_confidence(100, rate=0.003) is None
    assert images_for_features(np.random.default_rng(0).normal(size=(20, 8)), rate=0.003) is None
    assert images_for_features(np.ones((50, 3)), rate=0.003) is None
    small, large = (images_for_labels(10, reference, rate=0.003) for reference in (500, 5000))
    assert small is not None
    assert large is not None
    assert large < small
