"""Tests of scores.seed_stability: against counting one by one, scipy's binomial test, and all ways to exchange two models."""

from collections import Counter
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.stats import binomtest

from finetune.scores.metrics import class_scores, confusion_matrix
from finetune.scores.seed_stability import class_stability, exact_p_value, mcnemar_test, row_stability

N_CLASSES = 4
Ints = NDArray[np.int64]
matrices = st.tuples(st.integers(1, 6), st.integers(1, 12)).flatmap(
    lambda shape: arrays(np.int64, shape, elements=st.integers(0, N_CLASSES - 1))
)


def labels_for(predictions: Ints) -> st.SearchStrategy[Ints]:
    return arrays(np.int64, predictions.shape[1], elements=st.integers(0, N_CLASSES - 1))


@given(matrices)
def test_rows_are_as_counted_one_by_one(predictions: Ints) -> None:
    found = row_stability(predictions)
    for row, said in enumerate(predictions.T.tolist()):
        counts = Counter(said)
        most = max(counts.values())
        assert found.majority[row] == min(index for index, count in counts.items() if count == most)
        assert found.agreement[row] == most / len(said)
        assert found.is_changing[row] == (len(counts) > 1)
    assert found.changing_share == found.is_changing.mean()


@given(matrices, st.randoms())
def test_order_of_the_models_does_not_matter(predictions: Ints, random: Any) -> None:
    order = list(range(len(predictions)))
    random.shuffle(order)
    one, other = row_stability(predictions), row_stability(predictions[order])
    np.testing.assert_array_equal(one.majority, other.majority)
    np.testing.assert_array_equal(one.agreement, other.agreement)


def test_most_unstable_rows_come_first_and_stable_ones_not_at_all() -> None:
    predictions = np.array([[0, 1, 2, 1], [0, 1, 1, 1], [0, 2, 0, 1]])
    found = row_stability(predictions)
    assert found.most_unstable() == [2, 1]
    assert found.most_unstable(1) == [2]
    assert row_stability(predictions[:1]).most_unstable() == []


@given(matrices.flatmap(lambda predictions: st.tuples(st.just(predictions), labels_for(predictions))))
def test_recall_of_each_model_is_that_of_its_confusion_matrix(case: tuple[Ints, Ints]) -> None:
    predictions, labels = case
    found = class_stability(predictions, labels, N_CLASSES)
    scores = [class_scores(confusion_matrix(labels, row, N_CLASSES)) for row in predictions]
    has_rows = scores[0].support > 0
    np.testing.assert_array_equal(found.support, scores[0].support)
    np.testing.assert_allclose(found.recall[:, has_rows], np.stack([score.recall for score in scores])[:, has_rows])
    assert np.isnan(found.recall[:, ~has_rows]).all()
    np.testing.assert_allclose(found.mean[has_rows], found.recall[:, has_rows].mean(axis=0))
    if len(predictions) > 1:
        np.testing.assert_allclose(found.sd[has_rows], np.std(found.recall[:, has_rows], axis=0, ddof=1), atol=1e-12)
    else:
        assert np.isnan(found.sd).all()
    # As many rows as the recall moves by must have changed; they may change without moving it.
    assert (found.range[has_rows] <= found.changing_share[has_rows] + 1e-12).all()


def test_classes_that_depend_on_the_seed_come_first() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
    same = labels.copy()
    other = np.array([0, 0, 0, 2, 0, 0, 1, 1, 2, 2, 2, 2])
    found = class_stability(np.stack([same, other]), labels, 4)
    assert found.most_dependent() == [1, 0]
    assert found.range[:3].tolist() == [0.25, 0.5, 0.0]
    assert found.sd[1] == pytest.approx(0.5 / np.sqrt(2))
    assert np.isnan(found.mean[3])


@given(st.integers(0, 400), st.integers(0, 400))
def test_p_value_is_that_of_the_exact_binomial_test(only_first: int, only_second: int) -> None:
    trials = only_first + only_second
    expected = binomtest(only_first, trials, 0.5).pvalue if trials else 1.0
    assert exact_p_value(only_first, only_second) == pytest.approx(expected, rel=1e-9)
    assert exact_p_value(only_second, only_first) == exact_p_value(only_first, only_second)


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 5), (1, 9), (3, 7), (6, 6), (1, 0), (2, 10)])
def test_p_value_is_the_share_of_exchanges_that_are_as_uneven(only_first: int, only_second: int) -> None:
    """If the models are as good, each row on which one alone is right might as well be the other's: all 2^(b + c) ways."""
    trials, apart = only_first + only_second, abs(only_first - only_second)
    ways = [abs(2 * sum(way) - trials) >= apart for way in product((0, 1), repeat=trials)]
    assert exact_p_value(only_first, only_second) == pytest.approx(np.mean(ways))


def test_p_value_of_models_that_are_as_good_is_rarely_small() -> None:
    """5 % of such pairs fall below 0.05, or fewer, as the counts are whole. 0.065 is 3 deviations above, of 2,000 pairs."""
    random = np.random.default_rng(0)
    labels = np.zeros(200, np.int64)
    values = []
    for _ in range(2000):
        first, second = (random.random((2, 200)) < 0.3).astype(np.int64)
        values.append(mcnemar_test(first, second, labels).p_value)
    assert 0.01 < np.mean(np.array(values) <= 0.05) < 0.065


def test_large_counts_have_a_p_value() -> None:
    assert exact_p_value(50_000, 50_000) == 1.0
    assert 0 < exact_p_value(50_000, 51_000) < 0.01


@given(matrices.filter(lambda m: len(m) > 1).flatmap(lambda m: st.tuples(st.just(m), labels_for(m))))
def test_counts_of_two_models_are_as_counted_one_by_one(case: tuple[Ints, Ints]) -> None:
    (first, second), labels = case[0][:2], case[1]
    found = mcnemar_test(first, second, labels)
    pairs = Counter(zip((first == labels).tolist(), (second == labels).tolist(), strict=True))
    counts = (found.both_right, found.only_first, found.only_second, found.both_wrong)
    assert counts == tuple(pairs[key] for key in ((True, True), (True, False), (False, True), (False, False)))
    assert found.differing == sum(one != other for one, other in zip(first, second, strict=True))
    assert found.differing >= found.only_first + found.only_second
    assert found.p_value == exact_p_value(found.only_first, found.only_second)


def test_models_may_differ_where_both_are_wrong() -> None:
    found = mcnemar_test(np.array([1, 2, 0]), np.array([2, 2, 0]), np.array([0, 0, 0]))
    assert (found.differing, found.only_first, found.only_second, found.p_value) == (1, 0, 0, 1.0)


@pytest.mark.parametrize(
    "predictions",
    [np.zeros(3, int), np.zeros((0, 3), int), np.zeros((2, 0), int), np.zeros((2, 3)), -np.ones((2, 3), int)],
)
def test_other_predictions_are_refused(predictions: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match=r"`predictions` must .* Got"):
        row_stability(predictions)


def test_labels_that_do_not_fit_are_refused() -> None:
    predictions = np.zeros((2, 3), int)
    wrong: list[NDArray[Any]] = [np.zeros(2, int), np.zeros(3), np.array([0, 0, 4]), np.array([0, -1, 0])]
    for labels in wrong:
        with pytest.raises(ValueError, match=r"`label_index` must .* Got"):
            class_stability(predictions, labels, 4)
    with pytest.raises(ValueError, match=r"`first` must have the shape \(3,\)"):
        mcnemar_test(np.zeros(2, int), np.zeros(3, int), np.zeros(3, int))
