"""Tests of evaluation.label_errors and evaluation.out_of_fold: the paper's counts, and labels that were changed on purpose."""

from typing import Any

import numpy as np
import pytest
from helpers.tables.feature_sets import make_clusters
from helpers.tables.labels import flip
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from featurize.errors import JobError
from featurize.recipes.training_section import TrainingSettings
from finetune.evaluation.label_errors import (
    Pruning,
    Score,
    calibrated_joint,
    class_thresholds,
    confident_joint,
    find_label_errors,
    score_labels,
)
from finetune.evaluation.out_of_fold import assign_folds, default_training, out_of_fold_probabilities

BOTH: tuple[Pruning, Pruning] = ("class", "noise_rate")
SCORES: tuple[Score, Score] = ("self_confidence", "normalized_margin")


@st.composite
def cases(draw: Any) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Probabilities of at most 40 rows and 5 classes, and labels, mostly those of the largest."""
    n_rows, n_classes, seed = draw(st.integers(1, 40)), draw(st.integers(2, 5)), draw(st.integers(0, 10_000))
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.full(n_classes, 0.4), n_rows)
    labels = np.where(random.random(n_rows) < 0.7, probabilities.argmax(1), random.integers(0, n_classes, n_rows))
    return probabilities, labels


def test_counts_of_the_paper_by_hand() -> None:
    """Thresholds 0.6 and 0.6: the third row of class 0 is confidently of 1; the second of class 1 reaches none."""
    probabilities = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.3, 0.7], [0.5, 0.5]])
    labels = np.array([0, 0, 0, 1, 1])
    assert class_thresholds(probabilities, labels).tolist() == pytest.approx([0.6, 0.6])
    joint = confident_joint(probabilities, labels)
    assert joint.tolist() == [[2, 1], [0, 1]]
    assert calibrated_joint(joint, labels).tolist() == [[2, 1], [0, 2]]
    found = find_label_errors(probabilities, labels)
    assert (found.rows.tolist(), found.given.tolist(), found.suggested.tolist()) == ([2], [0], [1])
    assert found.estimated_share == pytest.approx(0.2)
    assert (found.given_probability[0], found.suggested_probability[0], found.score[0]) == pytest.approx(
        (0.2, 0.8, 0.2)
    )
    assert score_labels(probabilities, labels, score="normalized_margin").tolist() == pytest.approx(
        [0.9, 0.7, 0.2, 0.7, 0.5]
    )


@given(cases())
def test_joint_is_as_counted_row_by_row(case: tuple[NDArray[np.float64], NDArray[np.int64]]) -> None:
    probabilities, labels = case
    n_classes = probabilities.shape[1]
    thresholds = [
        probabilities[labels == index, index].mean() if (labels == index).any() else np.inf
        for index in range(n_classes)
    ]
    expected = np.zeros((n_classes, n_classes), int)
    for row, given_label in zip(probabilities, labels, strict=True):
        reached = [index for index in range(n_classes) if row[index] >= thresholds[index]]
        if reached:
            expected[given_label, max(reached, key=lambda index: row[index])] += 1
    joint = confident_joint(probabilities, labels)
    np.testing.assert_array_equal(joint, expected)
    scaled = calibrated_joint(joint, labels)
    np.testing.assert_allclose(scaled.sum(axis=1), np.bincount(labels, minlength=n_classes))
    assert (scaled >= 0).all()


@given(cases(), st.sampled_from(BOTH), st.sampled_from(SCORES), st.randoms())
def test_laws_of_what_is_found(
    case: tuple[NDArray[np.float64], NDArray[np.int64]], pruning: Pruning, score: Score, random: Any
) -> None:
    probabilities, labels = case
    found = find_label_errors(probabilities, labels, pruning=pruning, score=score)
    assert (found.suggested != found.given).all()
    assert (found.suggested_probability >= found.given_probability).all()
    assert (np.diff(found.score) >= 0).all()
    assert ((found.score >= 0) & (found.score <= 1)).all()
    assert (np.bincount(labels)[found.given] > 1).all()
    assert 0 <= found.estimated_share <= 1
    order = np.array(random.sample(range(len(labels)), len(labels)))
    again = find_label_errors(probabilities[order], labels[order], pruning=pruning, score=score)
    assert set(order[again.rows]) == set(found.rows)


@pytest.mark.parametrize("pruning", BOTH)
def test_sure_and_right_probabilities_show_no_error(pruning: Pruning) -> None:
    labels = np.arange(60) % 4
    found = find_label_errors(0.9 * np.eye(4)[labels] + 0.025, labels, pruning=pruning)
    assert (len(found.rows), found.estimated_share) == (0, 0.0)


def test_what_cannot_be_judged_is_refused() -> None:
    good, labels = np.full((3, 2), 0.5), np.array([0, 1, 0])
    refused: list[NDArray[Any]] = [np.ones((3, 2), int), np.empty((0, 2)), good[0], good + 1, good * np.nan, good - 1]
    for probabilities in refused:
        with pytest.raises(ValueError, match="`probabilities` must be"):
            find_label_errors(probabilities, labels)
    for wrong in (labels[:2], labels.astype(float), labels + 1, labels - 1):
        with pytest.raises(ValueError, match="`label_index` must be"):
            find_label_errors(good, wrong)


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 3)), min_size=1, max_size=80), st.integers(2, 6), st.randoms()
)
@settings(max_examples=50)
def test_folds_are_even_whole_and_the_same_in_any_order(rows: list[tuple[int, int]], n_folds: int, random: Any) -> None:
    ids, labels = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    folds = assign_folds(ids, labels, seed=3, n_folds=n_folds)
    assert ((folds >= 0) & (folds < n_folds)).all()
    by_id = dict(zip(ids.tolist(), folds.tolist(), strict=True))
    assert all(by_id[key] == fold for key, fold in zip(ids.tolist(), folds.tolist(), strict=True))
    lowest = {key: min(labels[ids == key]) for key in by_id}
    for label in {*lowest.values(), None}:  # None: all classes together
        counts = np.bincount([by_id[key] for key in by_id if label in (None, lowest[key])], minlength=n_folds)
        assert counts.max() - counts.min() <= 1
    order = np.array(random.sample(range(len(ids)), len(ids)))
    np.testing.assert_array_equal(assign_folds(ids[order], labels[order], seed=3, n_folds=n_folds), folds[order])


def test_folds_depend_on_the_seed() -> None:
    ids, labels = np.arange(100), np.zeros(100, int)
    one, other = (assign_folds(ids, labels, seed=seed) for seed in (1, 2))
    assert 0.6 < np.mean(one != other) < 0.95  # 0.8 are expected


@pytest.mark.slow
def test_no_head_has_seen_the_rows_it_judges() -> None:
    """Labels drawn by lot: whoever has seen a row knows its label by heart, and nobody can guess it."""
    random = np.random.default_rng(0)
    features, labels = random.standard_normal((200, 400), np.float32), random.integers(0, 2, 200)
    training = default_training(160, 400).model_copy(update={"l2": 0.0})
    unseen = out_of_fold_probabilities(features, labels, n_classes=2, row_ids=np.arange(200), training=training)
    assert 0.35 < np.mean(unseen.argmax(1) == labels) < 0.65  # 4 deviations either way
    twice = np.concatenate([features, features])
    apart = out_of_fold_probabilities(twice, np.tile(labels, 2), n_classes=2, row_ids=np.arange(400), training=training)
    assert np.mean(apart.argmax(1) == np.tile(labels, 2)) > 0.8  # seen as another image: most copies are in other folds
    together = out_of_fold_probabilities(
        twice, np.tile(labels, 2), n_classes=2, row_ids=np.tile(np.arange(200), 2), training=training
    )
    assert 0.35 < np.mean(together.argmax(1) == np.tile(labels, 2)) < 0.65


def test_probabilities_are_of_the_row_whatever_the_order_and_the_same_again() -> None:
    features, labels = make_clusters(120, spread=2.0)
    training = TrainingSettings(epochs=3, seed=9)
    ids = np.random.default_rng(0).permutation(10_000)[:120]
    first = out_of_fold_probabilities(features, labels, n_classes=3, row_ids=ids, training=training)
    order = np.random.default_rng(1).permutation(120)
    again = out_of_fold_probabilities(
        features[order], labels[order], n_classes=3, row_ids=ids[order], training=training
    )
    assert first.dtype == np.float32
    np.testing.assert_allclose(first.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(again, first[order])


def test_labels_changed_in_clusters_are_found() -> None:
    """The clusters do not touch, so nothing else has a reason to be named; the joint counts a few too few of the 30."""
    features, labels = make_clusters(600, dim=16, n_classes=10)
    changed, flipped = flip(labels, 0.05, 10)
    probabilities = out_of_fold_probabilities(features, changed, n_classes=10, row_ids=np.arange(600))
    for pruning in BOTH:
        for score in SCORES:
            found = find_label_errors(probabilities, changed, pruning=pruning, score=score)
            assert flipped[found.rows].all()
            assert len(found.rows) >= 0.75 * flipped.sum()
            np.testing.assert_array_equal(found.suggested, labels[found.rows])
            assert found.estimated_share == pytest.approx(0.05, abs=0.01)


def test_one_class_taken_for_another_shows_in_the_joint() -> None:
    features, labels = make_clusters(400, dim=8, n_classes=4)
    changed = labels.copy()
    changed[np.flatnonzero(labels == 1)[:25]] = 2
    probabilities = out_of_fold_probabilities(features, changed, n_classes=4, row_ids=np.arange(400))
    joint = find_label_errors(probabilities, changed).confident_joint
    off = joint - np.diag(np.diag(joint))
    assert off[2, 1] >= 15  # the thresholds leave some of the 25 uncounted
    assert off[2, 1] >= 0.8 * off.sum()


def test_pixels_are_judged_too() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 200)
    pixels = random.integers(0, 120, (200, 6, 5, 3)).astype(np.uint8)
    pixels[labels == 1, :3] += 100
    changed, flipped = flip(labels, 0.05, 2)
    probabilities = out_of_fold_probabilities(pixels, changed, n_classes=2, row_ids=np.arange(200))
    found = find_label_errors(probabilities, changed)
    assert flipped[found.rows].sum() >= 8
    assert flipped[found.rows[:8]].all()


def test_features_that_are_not_finite_are_named_and_too_few_rows_refused() -> None:
    features, labels = make_clusters(30)
    features[3, 2] = np.nan
    with pytest.raises(JobError, match="not finite"):
        out_of_fold_probabilities(features, labels, n_classes=3, row_ids=np.arange(30))
    with pytest.raises(ValueError, match=r"at least 5 rows.* Got 4"):
        out_of_fold_probabilities(features[:4], labels[:4], n_classes=3, row_ids=np.arange(4))
