"""The judge of int8: heads that are trained on both kinds of features."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from featurize.engines import judging
from featurize.engines.judging import FOLDS, MOST_LOSS, SEEDS, judge


def clusters(count: int, dim: int, classes: int, *, spread: float, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Features around one centre for each class, ``float32 (count, dim)``, and their classes."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = random.normal(size=(classes, dim))
    return (centres[labels] + spread * random.normal(size=(count, dim))).astype(np.float32), labels


def test_equal_features_lose_nothing_and_are_accepted() -> None:
    features, labels = clusters(300, 20, 4, spread=0.5)
    verdict = judge(features, features.copy(), labels)
    assert verdict.losses == (0, 0, 0)
    assert verdict.loss == 0
    assert verdict.cosine == 1
    assert verdict.is_accepted
    assert verdict.interval[0] == -verdict.interval[1]
    assert verdict.accuracy > 0.98


def test_no_loss_on_few_images_is_no_proof() -> None:
    features, labels = clusters(80, 20, 4, spread=0.1)
    verdict = judge(features, features, labels)
    assert verdict.accuracy == 1
    assert verdict.loss == 0
    assert not verdict.is_accepted


def test_features_that_lost_their_classes_are_refused_whatever_their_cosine() -> None:
    features, labels = clusters(300, 20, 4, spread=0.5)
    offset = np.float32(100)  # in all images alike: cosines are near 1, and tell nothing
    damaged = np.random.default_rng(1).normal(size=features.shape).astype(np.float32)
    verdict = judge(features + offset, damaged + offset, labels)
    assert verdict.cosine > 0.999
    assert verdict.loss > 0.5
    assert not verdict.is_accepted
    assert "a loss of " in str(verdict)


def test_far_features_that_tell_the_classes_apart_are_accepted_whatever_their_cosine() -> None:
    features, labels = clusters(300, 20, 4, spread=0.3)
    verdict = judge(features, -features, labels)
    assert verdict.cosine == pytest.approx(-1)
    assert verdict.is_accepted


def test_the_interval_covers_a_known_loss() -> None:
    """Of one image in twenty the features in int8 are those of another class."""
    features, labels = clusters(600, 20, 4, spread=0.2)
    wrong = np.random.default_rng(3).random(600) < 0.05
    rounded = np.where(wrong[:, None], np.roll(features, 1, axis=0), features)
    verdict = judge(features, rounded, labels)
    assert verdict.interval[0] < wrong.mean() < verdict.interval[1]
    assert not verdict.is_accepted
    assert judge(features, rounded, labels, bound=0.1).is_accepted


@pytest.mark.parametrize("dim", [30, 900])
def test_heads_are_near_the_best_softmax_regression(dim: int) -> None:
    """With more and with fewer features than images; the best known here is that of scikit-learn."""
    linear = pytest.importorskip("sklearn.linear_model")
    features, labels = clusters(400, dim, 5, spread=dim**0.5 / 1.6, seed=2)
    standard = (features - features.mean(0)) / features.std(0)
    fold = judging._folds(labels, SEEDS[0])
    right = 0
    for number in range(FOLDS):
        test = fold == number
        best = linear.LogisticRegression(C=1 / (judging._PENALTY * dim * (~test).sum()), max_iter=2000)
        right += int((best.fit(standard[~test], labels[~test]).predict(standard[test]) == labels[test]).sum())
    verdict = judge(features, features, labels)
    assert 0.3 < verdict.accuracy < 0.98
    assert verdict.accuracy == pytest.approx(right / len(labels), abs=0.04)


def test_every_part_has_its_share_of_every_class() -> None:
    labels = np.repeat([0, 1, 2], [100, 25, 10])
    fold = judging._folds(labels, 42)
    counts = np.array([np.bincount(fold[labels == one], minlength=FOLDS) for one in range(3)])
    assert (counts.max(1) - counts.min(1) <= 1).all()


def test_features_without_any_variation_are_judged_too() -> None:
    features, labels = clusters(200, 5, 2, spread=0.2)
    features = np.concatenate([features, np.zeros((200, 3), np.float32)], axis=1)
    assert judge(features, features, labels).accuracy == 1
    flat = judge(features, np.zeros_like(features), labels)
    assert not flat.is_accepted
    assert flat.bound == MOST_LOSS
