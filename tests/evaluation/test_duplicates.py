"""Tests of finetune.evaluation.duplicates: against comparing all with all, and copies that were planted."""

import tracemalloc
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from finetune.evaluation.duplicates import choose_threshold, find_duplicates, unit_rows
from finetune.rows.splits import SplitData

CLASSES = ("ant", "bee", "cat")
NAMES = ("train", "validation", "test")


def split(features: NDArray[Any], labels: NDArray[Any], ids: NDArray[Any], name: str = "") -> SplitData:
    paths = pa.array([f"{name}{number:05d}.png" for number in range(len(labels))], pa.large_string())
    return SplitData(features, labels.astype(np.int32), paths, ids.astype(np.int64))


def relu_features(rows: int, dim: int = 256, *, n_classes: int = 3, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """As a network gives them: half of them zero, images of a class more alike than others."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, n_classes, rows)
    values = random.standard_normal((n_classes, dim))[labels] + random.standard_normal((rows, dim))
    return np.maximum(values, 0).astype(np.float32), labels


def in_splits(features: NDArray[Any], labels: NDArray[Any], ids: NDArray[Any]) -> dict[str, SplitData]:
    """Three in five rows are train, one validation, one test; paths are numbered in each."""
    kind = np.array([0, 0, 0, 1, 2])[np.arange(len(labels)) % 5]
    return {
        name: split(features[kind == number], labels[kind == number], ids[kind == number], name)
        for number, name in enumerate(NAMES)
    }


def all_pairs(splits: dict[str, SplitData], threshold: float) -> tuple[set[Any], set[Any]]:
    """Exact and near pairs of paths, by comparing all with all in float64."""
    exact, near = set(), set()
    rows = [(name, row) for name, part in splits.items() for row in range(part.rows)]
    for (one, i), (other, j) in combinations(rows, 2):
        first, second = splits[one], splits[other]
        paths = frozenset((first.paths[i].as_py(), second.paths[j].as_py()))
        if first.row_ids[i] == second.row_ids[j]:
            exact.add(paths)
        elif one != other:
            left, right = first.features[i].astype(float), second.features[j].astype(float)
            lengths = np.linalg.norm(left) * np.linalg.norm(right)
            if lengths > 0 and left @ right >= threshold * lengths:
                near.add(paths)
    return exact, near


@given(st.integers(5, 40), st.integers(1, 7), st.integers(0, 1000))
@settings(max_examples=40)
def test_pairs_and_leaks_are_those_of_all_with_all_whatever_the_blocks(rows: int, block: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    features, labels = relu_features(rows, 12, seed=seed)
    splits = in_splits(features, labels, random.integers(0, rows, rows))
    found = find_duplicates(splits, CLASSES, threshold=0.8123, block_rows=block)
    exact, near = all_pairs(splits, 0.8123)
    listed = [{frozenset((p.path, p.other_path)) for p in found.pairs if p.is_exact == kind} for kind in (True, False)]
    assert listed == [exact, near]
    assert (found.n_exact, found.n_near) == (len(exact), len(near))
    owner = {path: name for name, part in splits.items() for path in part.paths.to_pylist()}
    for name in NAMES:
        for other in set(NAMES) - {name}:
            leaking = {
                p for pair in exact | near for p in pair if owner[p] == name and any(owner[q] == other for q in pair)
            }
            assert found.leaks[name][other] == len(leaking)


def test_pairs_say_what_is_where_and_come_in_order() -> None:
    features = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0.1, 1], [1, 0, 0.3]], np.float32)
    splits = {
        "train": split(features[[0, 1]], np.array([0, 1]), np.array([7, 8]), "train"),
        "test": split(features[[0, 4]], np.array([2, 0]), np.array([7, 9]), "test"),
        "validation": split(features[:0], np.array([]), np.array([]), "validation"),
    }
    found = find_duplicates(splits, CLASSES, threshold=0.9)
    assert [tuple(pair) for pair in found.pairs] == [
        ("train00000.png", "test00000.png", "train", "test", "ant", "cat", 1.0, True),
        (
            "train00000.png",
            "test00001.png",
            "train",
            "test",
            "ant",
            "ant",
            pytest.approx(1 / np.hypot(1, 0.3), abs=1e-6),
            False,
        ),
    ]
    assert found.leaks["train"] == {"test": 1, "validation": 0}
    assert found.leaks["test"] == {"train": 2, "validation": 0}


def test_exact_duplicates_within_a_split_are_found_and_near_ones_left() -> None:
    same = np.ones((4, 3), np.float32)
    found = find_duplicates({"train": split(same, np.array([0, 0, 1, 2]), np.array([5, 5, 6, 5]))}, CLASSES)
    assert [(pair.path[4], pair.other_path[4], pair.other_label) for pair in found.pairs] == [
        ("0", "1", "ant"),
        ("0", "3", "cat"),
        ("1", "3", "cat"),
    ]
    assert (found.n_near, found.leaks) == (0, {"train": {}})


def test_of_too_many_pairs_the_most_similar_are_listed_and_all_are_counted() -> None:
    features, labels = relu_features(60, 8)
    splits = in_splits(features, labels, np.arange(60))
    every = find_duplicates(splits, CLASSES, threshold=0.5)
    few = find_duplicates(splits, CLASSES, threshold=0.5, max_pairs=7)
    assert every.n_near == few.n_near == len(every.pairs) > 50
    assert few.pairs == every.pairs[:7]
    blank = {"train": split(features, labels, np.zeros(60))}
    assert (
        find_duplicates(blank, CLASSES, max_pairs=5).n_exact,
        len(find_duplicates(blank, CLASSES, max_pairs=5).pairs),
    ) == (
        1770,
        5,
    )


@pytest.mark.parametrize("wrong_class", [False, True])
def test_planted_copies_of_relu_features_are_found_and_nothing_else(wrong_class: bool) -> None:
    """Copies are 2 % off. 24 of 600 images have one or are one: fewer than one in twenty, which may be of a wrong class."""
    random = np.random.default_rng(1)
    features, labels = relu_features(600)
    train, test = slice(0, 400), slice(400, 600)
    features[400:412] = np.maximum(features[:12] * (1 + 0.02 * random.standard_normal((12, 256))), 0)
    labels[400:412] = (labels[:12] + wrong_class) % 3
    splits = {
        "train": split(features[train], labels[train], np.arange(400), "a"),
        "test": split(features[test], labels[test], np.arange(400, 600), "b"),
    }
    found = find_duplicates(splits, CLASSES)
    assert {(pair.path, pair.other_path) for pair in found.pairs} == {
        (f"a{number:05d}.png", f"b{number:05d}.png") for number in range(12)
    }
    assert sum(pair.label != pair.other_label for pair in found.pairs) == 12 * wrong_class
    assert found.leaks == {"train": {"test": 12}, "test": {"train": 12}}


def test_threshold_is_a_quarter_of_the_distance_that_different_images_keep() -> None:
    """Rows on a circle, a class each: the nearest of another class in the other split is 0.1 away, in cosine."""
    angles = np.array([0.0, np.arccos(0.9)])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    splits = {
        "train": split(rows[:1], np.array([0]), np.array([1])),
        "test": split(rows[1:], np.array([1]), np.array([2])),
    }
    assert choose_threshold(splits) == pytest.approx(1 - 0.1 / 4, abs=1e-6)


def test_threshold_does_not_depend_on_scale_or_order() -> None:
    features, labels = relu_features(300)
    splits = in_splits(features, labels, np.arange(300))
    scaled = in_splits(1000 * features, labels, np.arange(300))
    backwards = {
        name: split(part.features[::-1], part.label_index[::-1], part.row_ids[::-1]) for name, part in splits.items()
    }
    threshold = choose_threshold(splits)
    assert 0.7 < threshold < 1
    assert choose_threshold(scaled) == pytest.approx(threshold, abs=1e-6)
    assert choose_threshold(backwards) == pytest.approx(threshold, abs=1e-6)


def test_without_another_class_in_another_split_the_threshold_is_fixed() -> None:
    features, labels = relu_features(20)
    for splits in (
        {},
        {"train": split(features, labels, np.arange(20))},
        in_splits(features, np.zeros(20), np.arange(20)),
        in_splits(features[:0], labels[:0], np.arange(0)),
    ):
        assert choose_threshold(splits) == 0.99


def test_rows_without_content_are_similar_to_none() -> None:
    features = np.array([[0, 0], [np.nan, 1], [np.inf, 1], [3, 4]], np.float32)
    np.testing.assert_allclose(unit_rows(features), np.array([[0, 0], [0, 0], [0, 0], [0.6, 0.8]]), rtol=1e-6)
    assert not unit_rows(np.full((2, 4, 4, 3), 200, np.uint8)).any()


def test_light_and_contrast_of_pixels_do_not_count() -> None:
    pixels = np.random.default_rng(0).integers(0, 100, (5, 8, 8, 3))
    other = pixels * 2 + np.array([10, 50, 0])
    one, changed = unit_rows(pixels.astype(np.uint8)), unit_rows(other.astype(np.uint8))
    np.testing.assert_allclose((one * changed).sum(axis=1), 1, atol=1e-5)
    assert np.abs(one @ one.T - np.eye(5)).max() < 0.4


def test_memory_is_that_of_blocks() -> None:
    """All products of 12,000 by 6,000 rows would take 288 MB, all rows at length 1 another 18 MB."""
    features, labels = relu_features(18_000, 256)
    splits = {
        "train": split(features[:12_000], labels[:12_000], np.arange(12_000)),
        "test": split(features[12_000:], labels[12_000:], np.arange(12_000, 18_000)),
    }
    tracemalloc.start()
    try:
        find_duplicates(splits, CLASSES, block_rows=512)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12e6
