"""Tests of finetune.scores.metrics: scikit-learn is the reference, hypothesis looks for the exceptions."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as reference

from finetune.scores.metrics import (
    LOG_LOSS_EPSILON,
    ConfusedPair,
    class_scores,
    confusion_matrix,
    evaluate_probabilities,
    f1_of_means,
    log_loss,
    macro_average,
    most_confused,
    top_k_accuracy,
)

Predictions = tuple[NDArray[np.floating[Any]], NDArray[np.int64], tuple[str, ...]]


@st.composite
def predictions(draw: st.DrawFn) -> Predictions:
    """Random probabilities (n_rows, n_classes) with the true classes; small sizes leave some classes out."""
    rows, n_classes = draw(st.integers(1, 60)), draw(st.integers(2, 12))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    probabilities = random.dirichlet(np.full(n_classes, 0.5), rows).clip(1e-6)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    classes = tuple(f"class {index}" for index in range(n_classes))
    return probabilities.astype(dtype), random.integers(0, n_classes, rows), classes


@given(predictions())
def test_scores_equal_scikit_learn(case: Predictions) -> None:
    probabilities, label_index, classes = case
    predicted = probabilities.argmax(axis=1)
    evaluation = evaluate_probabilities(probabilities, label_index, classes)
    labels = list(range(len(classes)))
    macro = reference.precision_recall_fscore_support(label_index, predicted, average="macro", zero_division=0)
    assert (evaluation.precision, evaluation.recall, evaluation.f1) == pytest.approx(macro[:3])
    assert evaluation.accuracy == pytest.approx(reference.accuracy_score(label_index, predicted))
    np.testing.assert_array_equal(
        evaluation.confusion_matrix, reference.confusion_matrix(label_index, predicted, labels=labels)
    )
    double = probabilities.astype(np.float64)
    double /= double.sum(axis=1, keepdims=True)
    assert evaluation.log_loss == pytest.approx(reference.log_loss(label_index, double, labels=labels), rel=1e-5)


@given(predictions())
def test_class_scores_equal_scikit_learn(case: Predictions) -> None:
    probabilities, label_index, classes = case
    predicted = probabilities.argmax(axis=1)
    scores = class_scores(confusion_matrix(label_index, predicted, len(classes)))
    expected = reference.precision_recall_fscore_support(
        label_index, predicted, labels=list(range(len(classes))), zero_division=0
    )
    np.testing.assert_allclose([scores.precision, scores.recall, scores.f1], expected[:3])
    np.testing.assert_array_equal(scores.support, expected[3])


@given(predictions(), st.integers(1, 15))
def test_top_k_accuracy_equals_scikit_learn_without_ties(case: Predictions, k: int) -> None:
    probabilities, label_index, classes = case
    # Distinct values in every row: float32 and the clipping may have made ties.
    ranks = probabilities.argsort(axis=1).argsort(axis=1) + 1.0
    distinct = ranks / ranks.sum(axis=1, keepdims=True)
    order = np.argsort(-distinct, axis=1)[:, :k]
    assert top_k_accuracy(distinct, label_index, k) == pytest.approx((order == label_index[:, None]).any(axis=1).mean())
    if 2 < len(classes) > k:  # scikit-learn takes two classes to be a binary score.
        expected = reference.top_k_accuracy_score(label_index, distinct, k=k, labels=range(len(classes)))
        assert top_k_accuracy(distinct, label_index, k) == pytest.approx(expected)


@given(predictions())
def test_laws(case: Predictions) -> None:
    probabilities, label_index, classes = case
    evaluation = evaluate_probabilities(probabilities, label_index, classes)
    matrix = evaluation.confusion_matrix
    assert matrix.sum() == evaluation.rows == len(label_index)
    assert matrix.dtype == np.int64
    assert np.trace(matrix) / evaluation.rows == evaluation.accuracy == top_k_accuracy(probabilities, label_index, 1)
    np.testing.assert_array_equal(matrix.sum(axis=1), np.bincount(label_index, minlength=len(classes)))
    by_k = [top_k_accuracy(probabilities, label_index, k) for k in range(1, len(classes) + 3)]
    assert by_k == sorted(by_k)
    assert by_k[len(classes) - 1 :] == [1.0, 1.0, 1.0]
    assert evaluation.log_loss >= 0
    assert evaluation.f1 <= f1_of_means(evaluation.precision, evaluation.recall) + 1e-12
    errors = most_confused(matrix, classes, n=1000)
    assert sum(pair.count for pair in errors) == evaluation.rows - np.trace(matrix)


@given(predictions(), st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_order_of_rows_does_not_matter(case: Predictions, seed: int) -> None:
    probabilities, label_index, classes = case
    order = np.random.default_rng(seed).permutation(len(label_index))
    before = evaluate_probabilities(probabilities, label_index, classes).as_dict()
    after = evaluate_probabilities(probabilities[order], label_index[order], classes).as_dict()
    assert after.pop("log_loss") == pytest.approx(before.pop("log_loss"))  # The only sum of floats over rows.
    assert after == before


@given(predictions(), st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_order_of_classes_does_not_matter_to_scores(case: Predictions, seed: int) -> None:
    probabilities, label_index, classes = case
    order = np.random.default_rng(seed).permutation(len(classes))
    unique_best = (probabilities == probabilities.max(axis=1, keepdims=True)).sum(axis=1) == 1
    if unique_best.all():  # Only a tie for most probable goes to the lower index.
        before = evaluate_probabilities(probabilities, label_index, classes).as_dict()
        renamed = evaluate_probabilities(probabilities[:, order], np.argsort(order)[label_index], classes).as_dict()
        for score in ("accuracy", "top5_accuracy", "precision", "recall", "f1", "log_loss"):
            assert renamed[score] == pytest.approx(before[score], rel=1e-6)


def test_as_dict_is_json_ready() -> None:
    scores = evaluate_probabilities(np.array([[0.9, 0.1], [0.8, 0.2]], np.float32), np.array([0, 1]), ["cat", "dog"])
    read_back = json.loads(json.dumps(scores.as_dict()))
    assert read_back["log_loss"] == pytest.approx(-(np.log(0.9) + np.log(0.2)) / 2, rel=1e-6)
    del read_back["log_loss"]
    assert read_back == {
        "accuracy": 0.5,
        "top5_accuracy": 1.0,
        "precision": 0.25,
        "recall": 0.5,
        "f1": pytest.approx(1 / 3),
        "rows": 2,
        "confusion_matrix": [[1, 0], [1, 0]],
        "classes": ["cat", "dog"],
    }


def test_macro_average_leaves_out_classes_that_do_not_occur() -> None:
    # Class 2 is never true nor predicted; class 1 is predicted only and counts with 0.
    assert macro_average(np.array([[3, 1, 0], [0, 0, 0], [0, 0, 0]])) == pytest.approx((0.5, 0.375, 3 / 7))


def test_ties_count_against_the_model() -> None:
    saturated = np.array([[1.0] + [0.0] * 9])
    assert top_k_accuracy(saturated, np.array([1]), 5) == 0.0
    assert top_k_accuracy(saturated, np.array([1]), 9) == 0.0
    assert top_k_accuracy(saturated, np.array([1]), 10) == 1.0
    uniform = np.full((4, 4), 0.25)
    assert top_k_accuracy(uniform, np.arange(4), 1) == 0.25  # The prediction, index 0, still ranks first.


def test_log_loss_is_finite_when_the_model_is_surely_wrong_and_zero_when_surely_right() -> None:
    sure = np.array([[1.0, 0.0]], np.float32)
    assert log_loss(sure, np.array([1])) == pytest.approx(-np.log(LOG_LOSS_EPSILON))
    assert str(log_loss(sure, np.array([0]))) == "0.0"
    assert log_loss(np.array([[1.0005, 0.0]]), np.array([0])) == 0.0  # Rounding must not make a loss negative.


def test_narrow_index_types_do_not_wrap_around() -> None:
    index = np.arange(200, dtype=np.uint8)
    np.testing.assert_array_equal(confusion_matrix(index, index, 200), np.eye(200))
    assert class_scores(np.diag(np.array([200, 255], np.uint8))).f1.tolist() == [1.0, 1.0]


def test_one_class() -> None:
    evaluation = evaluate_probabilities(np.ones((3, 1)), np.zeros(3, np.int64), ["only"])
    assert (evaluation.accuracy, evaluation.f1, evaluation.log_loss) == (1.0, 1.0, 0.0)


def test_most_confused_sorts_by_count_then_by_names() -> None:
    matrix = np.array([[5, 2, 3], [2, 0, 2], [0, 3, 1]])
    assert most_confused(matrix, ["b", "a", "c"], n=4) == [
        ConfusedPair("b", "c", 3, 0.3),
        ConfusedPair("c", "a", 3, 0.75),
        ConfusedPair("a", "b", 2, 0.5),
        ConfusedPair("a", "c", 2, 0.5),
    ]
    assert most_confused(np.eye(3, dtype=np.int64), ["a", "b", "c"]) == []


GOOD = np.full((2, 4), 0.25)
LABELS = np.array([0, 3])


@pytest.mark.parametrize(
    ("probabilities", "label_index", "message"),
    [
        (GOOD, np.array([0, 7]), "`label_index` must be in [0, 4). Got 7."),
        (GOOD, np.array([-1, 0]), "`label_index` must be in [0, 4). Got -1."),
        (GOOD, np.array([0.0, 1.0]), "`label_index` must hold integers. Got float64."),
        (GOOD, np.array([[0], [1]]), "`label_index` must be shaped (n_rows,). Got (2, 1)."),
        (GOOD, np.array([0, 1, 2]), "`label_index` must have the shape (2,). Got (3,)."),
        (GOOD[:0], LABELS[:0], "`label_index` must have at least one row. Got 0."),
        (GOOD[0], LABELS, "`probabilities` must be shaped (n_rows, n_classes). Got (4,)."),
        (np.eye(4, dtype=int)[:2], LABELS, "`probabilities` must be floats. Got int64."),
        (np.array([[1.0, 0, 0, 0], [np.nan, 1, 0, 0]]), LABELS, "`probabilities` must be finite. Got nan in row 1."),
        (np.array([[np.inf, -np.inf, 0, 1]] * 2), LABELS, "`probabilities` must be finite. Got inf in row 0."),
        (np.array([[1.5, -0.5, 0, 0]] * 2), LABELS, "`probabilities` must be at least 0. Got -0.5 in row 0."),
        (GOOD * 2, LABELS, "`probabilities` must sum to 1 within 0.001 in every row. Got 2.0 in row 0."),
    ],
)
def test_bad_predictions_are_named(probabilities: Any, label_index: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        evaluate_probabilities(probabilities, label_index, "abcd")
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        log_loss(probabilities, label_index)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        top_k_accuracy(probabilities, label_index, 5)


def test_other_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"`classes` must have one label per column, 4\. Got 2\."):
        evaluate_probabilities(GOOD, LABELS, ["a", "b"])
    with pytest.raises(ValueError, match=r"`k` must be at least 1\. Got 0\."):
        top_k_accuracy(GOOD, LABELS, 0)
    with pytest.raises(ValueError, match=r"`n` must be at least 1\. Got 0\."):
        most_confused(np.eye(2, dtype=int), ["a", "b"], n=0)
    with pytest.raises(ValueError, match=r"`n_classes` must be at least 1\. Got 0\."):
        confusion_matrix(LABELS, LABELS, 0)
    with pytest.raises(ValueError, match=r"`predicted_index` must be in \[0, 4\)\. Got 4\."):
        confusion_matrix(LABELS, LABELS + 1, 4)
    with pytest.raises(ValueError, match=r"`predicted_index` must have the shape \(2,\)\. Got \(1,\)\."):
        confusion_matrix(LABELS, LABELS[:1], 4)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.ones((2, 3), int), "`matrix` must be shaped (n_classes, n_classes). Got (2, 3)."),
        (np.eye(2), "`matrix` must hold integers. Got float64."),
        (np.zeros((2, 2), int), "`matrix` must count at least one row. Got 0."),
        (-np.eye(2, dtype=int), "`matrix` must hold counts of at least 0. Got -1."),
        (np.eye(3, dtype=int), "`classes` must have one label per class, 3. Got 2."),
    ],
)
def test_bad_matrices_are_named(matrix: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        most_confused(matrix, ["a", "b"])
