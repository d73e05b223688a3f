"""Tests of finetune.prediction.answers: what is said of an image from its probabilities."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from finetune.prediction.answers import ANSWERS, TOP, Threshold, answers_of

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")


def threshold_at(value: float) -> Threshold:
    return Threshold(0.9, value, "features", "0" * 64, "validation", rows=10, kept=5, right=5, precision_low=0.5)


@given(
    arrays.arrays(np.float32, st.tuples(st.integers(0, 9), st.just(len(CLASSES))), elements=st.floats(0, 1, width=32))
)
def test_the_label_is_that_of_argmax_and_the_top_five_fall(probabilities: NDArray[np.float32]) -> None:
    answers = answers_of(probabilities, CLASSES)
    for row, label, probability, labels, values, reason in zip(
        probabilities, *(answers[name] for name in ANSWERS), strict=True
    ):
        assert label == labels[0] == CLASSES[row.argmax()]
        assert probability == values[0] == row.max()
        assert values == sorted(values, reverse=True) == sorted(row.tolist(), reverse=True)[:TOP]
        assert len(set(labels)) == TOP
        assert [row[CLASSES.index(name)] for name in labels] == values
        assert reason is None


@given(st.floats(0, 1), st.lists(st.floats(0, 1, width=32), max_size=8))
def test_there_is_a_label_or_a_reason_and_never_both(value: float, tops: list[float]) -> None:
    probabilities = np.array([[top, 0] for top in tops], np.float32).reshape(-1, 2)
    answers = answers_of(probabilities, CLASSES[:2], threshold_at(value))
    for top, label, reason, first in zip(tops, answers["label"], answers["reason"], answers["top_labels"], strict=True):
        assert (label is None) == (top < value) == (reason is not None)
        assert first[0] == "ant"


def test_the_reason_names_the_threshold_and_what_it_is_for() -> None:
    answers = answers_of(np.array([[0.4, 0.35, 0.25]], np.float32), CLASSES[:3], threshold_at(0.8125))
    assert answers["label"] == [None]
    assert answers["reason"] == ["probability below 0.8125, the threshold for a precision of 0.9"]
    assert answers["probability"] == pytest.approx([0.4])
    assert answers["top_labels"] == [["ant", "bee", "cat"]]
