"""Tests of finetune.scores.calibration and of the ticks of plots: scipy and scikit-learn are the reference."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.calibration import calibration_curve

from finetune.reports.svg import ticks
from finetune.scores.calibration import (
    calibration_bins,
    expected_calibration_error,
    most_confident_mistakes,
    most_frequent_class,
    order_by_confusion,
    wilson_interval,
)


@given(st.integers(1, 5000), st.floats(0, 1))
def test_the_ends_of_the_wilson_interval_are_as_far_from_the_share_as_chance_allows(rows: int, share: float) -> None:
    """Wilson's definition: the end p solves |share - p| = z sqrt(p (1 - p) / rows), or is the share itself, 0 or 1."""
    right = round(share * rows)
    low, high = wilson_interval(right, rows)
    assert 0 <= low <= right / rows <= high <= 1
    for end, is_limit in ((low, right == 0), (high, right == rows)):
        allowed = norm.ppf(0.975) * math.sqrt(end * (1 - end) / rows)
        assert end == right / rows if is_limit else abs(right / rows - end) == pytest.approx(allowed, abs=1e-9)


@pytest.mark.parametrize(
    ("right", "rows", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_as_published(right: int, rows: int, low: float, high: float) -> None:
    """Source: R. G. Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I, method 3."""
    assert wilson_interval(right, rows) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("right", "rows"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_interval_of_nothing_is_refused(right: int, rows: int) -> None:
    with pytest.raises(ValueError, match="must be in"):
        wilson_interval(right, rows)


@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.integers(1, 400))
def test_calibration_bins_equal_scikit_learn(seed: int, n_classes: int, rows: int) -> None:
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.ones(n_classes), rows)
    label_index = random.integers(0, n_classes, rows)
    bins = calibration_bins(probabilities, label_index, bins=10)
    is_right = probabilities.argmax(axis=1) == label_index
    accuracy, confidence = calibration_curve(is_right, probabilities.max(axis=1), n_bins=10)
    assert [part.accuracy for part in bins] == pytest.approx(accuracy.tolist())
    assert [part.confidence for part in bins] == pytest.approx(confidence.tolist())
    assert sum(part.rows for part in bins) == rows
    assert all(part.low < part.confidence <= part.high for part in bins)
    assert 0 <= expected_calibration_error(bins) <= 1


def test_expected_calibration_error_of_a_known_case() -> None:
    probabilities = np.array([[0.9, 0.1]] * 4 + [[0.6, 0.4]] * 6)
    label_index = np.array([0, 0, 0, 1, 0, 0, 0, 1, 1, 1])
    bins = calibration_bins(probabilities, label_index, bins=10)
    assert [(part.rows, part.accuracy) for part in bins] == [(6, 0.5), (4, 0.75)]
    assert expected_calibration_error(bins) == pytest.approx(0.6 * 0.1 + 0.4 * 0.15)


def test_a_model_that_is_sure_and_right_has_no_calibration_error() -> None:
    bins = calibration_bins(np.eye(3, dtype=np.float32), np.arange(3))
    assert expected_calibration_error(bins) == 0
    assert (bins[0].high, bins[0].rows) == (1.0, 3)


def test_confident_mistakes_come_surest_first() -> None:
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.05, 0.95], [0.4, 0.6]])
    label_index = np.array([0, 0, 0, 0, 1])
    assert most_confident_mistakes(probabilities, label_index, 10).tolist() == [3, 1, 2]
    assert most_confident_mistakes(probabilities, label_index, 2).tolist() == [3, 1]


def test_the_baseline_is_the_most_frequent_class_of_training() -> None:
    assert most_frequent_class({"bee": 7, "cat": 9, "ant": 7}, ["ant", "bee", "cat"]) == 2
    assert most_frequent_class({"bee": 7, "ant": 7}, ["ant", "bee", "cat"]) == 0


@given(st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_an_order_by_confusion_has_every_class_once(n_classes: int, seed: int) -> None:
    matrix = np.random.default_rng(seed).integers(0, 3, (n_classes, n_classes))
    assert sorted(order_by_confusion(matrix)) == list(range(n_classes))


def test_classes_that_are_taken_for_each_other_stand_together() -> None:
    matrix = np.diag([9, 9, 9, 9, 9])
    matrix[0, 3] = matrix[3, 0] = 4
    matrix[1, 4] = 2
    order = order_by_confusion(matrix)
    assert abs(order.index(0) - order.index(3)) == 1
    assert abs(order.index(1) - order.index(4)) == 1


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3), st.integers(3, 9))
def test_ticks_are_few_round_and_inside(low: float, width: float, most: int) -> None:
    found = ticks(low, low + width, most)
    assert 1 <= len(found) <= most + 2
    assert all(low - 1e-6 * width <= tick <= low + width * (1 + 1e-6) for tick in found)
    assert found == sorted(set(found))
