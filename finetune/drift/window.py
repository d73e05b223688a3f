"""One window of predictions against the model's reference: the tests, the alarm, and the changes that could be detected."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurize.errors import UsageError
from finetune.drift.reference import Reference
from finetune.drift.sample_size import images_for_confidence, images_for_features, images_for_labels
from finetune.drift.statistics import (
    Test,
    chi_square,
    count_together,
    expected_stability_index,
    holm,
    kolmogorov_smirnov,
    mean_discrepancy,
    stability_index,
)

LABELS, CONFIDENCE, FEATURES = TESTS = ("labels", "confidence", "features")
FALSE_ALARM_RATE = 0.01
LEAST_RATE, MOST_RATE = 0.001, 0.2
LEAST_IMAGES = 20
"""Fewest images in a window: below, p-values from asymptotic distributions mean little."""
_LEAST_PERMUTATIONS = 2000
_PERMUTATIONS_PER_RATE = 20.0
_DIGITS = 5  # of a probability, on which processors agree; for a very sure model they differ in the seventh


@dataclass(frozen=True)
class Window:
    """Predictions of one model, in any order.

    Attributes:
        labels: The most probable class of each image, the first of `top_labels`, even where the model abstained.
        probabilities: float ``(n_images,)``, the probability of that class.
        projections: float ``(n_projected, size)``, for the images that have one; n_projected may be below n_images, or 0.
    """

    labels: Sequence[str]
    probabilities: NDArray[np.floating[Any]]
    projections: NDArray[np.floating[Any]]

    @property
    def rows(self) -> int:
        """Number of images."""
        return len(self.labels)


@dataclass(frozen=True)
class TestResult:
    """One test of a window: its `statistic`, its `p`, and `corrected`, p after Holm's correction for the window's tests."""

    __test__ = False

    statistic: float
    p: float
    corrected: float


@dataclass(frozen=True)
class WindowResult:
    """The result of checking a window.

    Attributes:
        images: Number of images in the window.
        projected: Number of these that have a projection.
        tests: Results by the names in `TESTS`; a test that could not be made is missing.
        stability_index: Population stability index of the labels; see `drift.statistics.stability_index`.
        stability_index_without_drift: Its average for as many images if nothing had changed.
        confidence: Mean probability of the most probable class in the window.
        reference_confidence: Mean probability of the most probable class in the reference.
        fired: Names of the tests whose corrected p is at most the false alarm rate.
        retrain: Whether labels or features have changed, and confidence has changed and fallen.
    """

    images: int
    projected: int
    tests: dict[str, TestResult]
    stability_index: float
    stability_index_without_drift: float
    confidence: float
    reference_confidence: float
    fired: tuple[str, ...]
    retrain: bool

    @property
    def alarm(self) -> bool:
        """Whether any test raised an alarm."""
        return bool(self.fired)

    def as_dict(self) -> dict[str, Any]:
        """The result as a JSON-ready dict."""
        return {**asdict(self), "fired": list(self.fired), "alarm": self.alarm}


def check_window(
    reference: Reference, window: Window, *, false_alarm_rate: float = FALSE_ALARM_RATE, seed: int = 0
) -> WindowResult:
    """Tests whether the images in `window` look like the reference's. Takes well under a second for 500 images.

    Args:
        false_alarm_rate: Chance of an alarm where nothing has changed, for the whole window with all its tests.
        seed: Seed of the permutations.

    Raises:
        UsageError: The rate is out of range, or there are too few images.
    """
    check_rate(false_alarm_rate)
    if window.rows < LEAST_IMAGES:
        raise UsageError(f"a window needs at least {LEAST_IMAGES} images. Got {window.rows}.")
    counts = count_together(reference.counts, Counter(window.labels))
    tests = {
        LABELS: chi_square(counts),
        CONFIDENCE: kolmogorov_smirnov(
            np.round(reference.probabilities, _DIGITS), np.round(window.probabilities, _DIGITS)
        ),
    }
    if len(window.projections) >= LEAST_IMAGES:
        permutations = max(_LEAST_PERMUTATIONS, ceil(_PERMUTATIONS_PER_RATE / false_alarm_rate)) - 1
        tests[FEATURES] = mean_discrepancy(
            reference.projections, window.projections, permutations=permutations, seed=seed
        )
    corrected = _corrected(tests)
    fired = tuple(name for name, test in corrected.items() if test.corrected <= false_alarm_rate)
    confidence = float(np.mean(window.probabilities, dtype=np.float64))
    return WindowResult(
        images=window.rows,
        projected=len(window.projections),
        tests=corrected,
        stability_index=stability_index(counts),
        stability_index_without_drift=expected_stability_index(counts),
        confidence=confidence,
        reference_confidence=reference.confidence,
        fired=fired,
        retrain=_should_retrain(fired, fallen=confidence < reference.confidence),
    )


def images_needed(reference: Reference, *, false_alarm_rate: float = FALSE_ALARM_RATE) -> dict[str, int | None]:
    """Images that a window needs for each test to detect the changes of `drift.sample_size` with its power.

    Each test is given a third of the rate, as Holm's correction demands of the first of three.

    Returns:
        Numbers of images by the names in `TESTS`; None where the reference is too small for any window.
    """
    rate = false_alarm_rate / len(TESTS)
    groups = count_together(reference.counts, reference.counts).shape[1]
    return {
        LABELS: images_for_labels(groups, reference.rows, rate=rate),
        CONFIDENCE: images_for_confidence(reference.rows, rate=rate),
        FEATURES: images_for_features(reference.projections, rate=rate),
    }


def too_small(needed: Mapping[str, int | None], images: int | None) -> list[str]:
    """A line of text for each test that cannot reliably detect a moderate change in a window of `images`.

    Args:
        needed: The result of `images_needed`.
        images: Images in a window; None: there is no window.
    """
    lines = []
    for test, least in needed.items():
        if least is None:
            lines.append(
                f"{test}: the reference is too small to detect a moderate change reliably, in a window of any size."
            )
        elif images is not None and images < least:
            lines.append(
                f"{test}: to detect a moderate change with 80 % certainty, a window needs about {least:,} images, not {images:,}."
            )
    return lines


def check_rate(false_alarm_rate: float) -> None:
    """Raises UsageError where the false alarm rate is out of the range that the tests can keep."""
    if not LEAST_RATE <= false_alarm_rate <= MOST_RATE:
        raise UsageError(
            f"`false_alarm_rate` must be in [{LEAST_RATE:g}, {MOST_RATE:g}] for each window. Got {false_alarm_rate:g}."
        )


def _corrected(tests: dict[str, Test]) -> dict[str, TestResult]:
    corrected = holm([test.p for test in tests.values()])
    return {
        name: TestResult(test.statistic, test.p, value)
        for (name, test), value in zip(tests.items(), corrected, strict=True)
    }


def _should_retrain(fired: Sequence[str], *, fallen: bool) -> bool:
    """Whether other images arrive and the model is less sure of them; either alone may be harmless."""
    return fallen and CONFIDENCE in fired and (LABELS in fired or FEATURES in fired)
