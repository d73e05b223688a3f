"""One window of predictions against the reference of its model: the tests, whether they give alarm, what they can see."""

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
"""In a window: below, p by its asymptotic distribution means little."""
_LEAST_PERMUTATIONS = 2000
_PERMUTATIONS_PER_RATE = 20.0
_DIGITS = 5  # of a probability; two processors agree on them, and of a very sure model not on the seventh


@dataclass(frozen=True)
class Window:
    """Predictions of one model, in any order.

    Attributes:
        labels: the most probable class of each image, also where the model abstained: the first of `top_labels`.
        probabilities: float ``(n_images,)``, of this class.
        projections: float ``(n_projected, size)``, of the images that have one; they may be fewer, or none.
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
    """Attributes: `statistic`, `p`, `corrected`: p by Holm's correction for the tests on this window."""

    __test__ = False

    statistic: float
    p: float
    corrected: float


@dataclass(frozen=True)
class WindowResult:
    """What is known of a window.

    Attributes:
        images: in it.
        projected: of these, how many have a projection.
        tests: by the names `TESTS`; a test that could not be made is missing.
        stability_index: of labels; see `drift_statistics.stability_index`.
        stability_index_without_drift: what it would be on average for as many images if nothing had changed.
        confidence, reference_confidence: mean probability of the most probable class.
        fired: names of the tests whose corrected p is at most the rate of false alarms.
        retrain: labels or features have changed, confidence too, and it has fallen.
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
        """Whether any test gave alarm."""
        return bool(self.fired)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "fired": list(self.fired), "alarm": self.alarm}


def check_window(
    reference: Reference, window: Window, *, false_alarm_rate: float = FALSE_ALARM_RATE, seed: int = 0
) -> WindowResult:
    """Tests whether the images of `window` are as those of the reference. Takes well under a second for 500 images.

    Args:
        false_alarm_rate: of the whole window, all tests together: the chance of an alarm where nothing has changed.
        seed: of the permutations.

    Raises:
        UsageError: the rate is none, or there are too few images.
    """
    check_rate(false_alarm_rate)
    if window.rows < LEAST_IMAGES:
        raise UsageError(f"a window takes at least {LEAST_IMAGES} images. Got {window.rows}.")
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
    """How many images a window must have for each test to notice the changes of `drift_power` with its power.

    Each is taken at a third of the rate, which is what Holm's correction asks of the first of three.

    Returns:
        By the names `TESTS`; None where the reference is too small for any window to do.
    """
    rate = false_alarm_rate / len(TESTS)
    groups = count_together(reference.counts, reference.counts).shape[1]
    return {
        LABELS: images_for_labels(groups, reference.rows, rate=rate),
        CONFIDENCE: images_for_confidence(reference.rows, rate=rate),
        FEATURES: images_for_features(reference.projections, rate=rate),
    }


def too_small(needed: Mapping[str, int | None], images: int | None) -> list[str]:
    """A line for people on each test that cannot be sure of anything in windows of so many images.

    Args:
        needed: see `images_needed`.
        images: None: there is no window.
    """
    lines = []
    for test, least in needed.items():
        if least is None:
            lines.append(f"{test}: the reference is too small to be sure of a moderate change, whatever the window.")
        elif images is not None and images < least:
            lines.append(
                f"{test}: to be 80 % sure of a moderate change a window needs about {least:,} images, not {images:,}."
            )
    return lines


def check_rate(false_alarm_rate: float) -> None:
    """Raises UsageError where a rate of false alarms is none that the tests can keep."""
    if not LEAST_RATE <= false_alarm_rate <= MOST_RATE:
        raise UsageError(
            f"`--false-alarm-rate` must be in [{LEAST_RATE:g}, {MOST_RATE:g}], of one window. Got {false_alarm_rate:g}."
        )


def _corrected(tests: dict[str, Test]) -> dict[str, TestResult]:
    corrected = holm([test.p for test in tests.values()])
    return {
        name: TestResult(test.statistic, test.p, value)
        for (name, test), value in zip(tests.items(), corrected, strict=True)
    }


def _should_retrain(fired: Sequence[str], *, fallen: bool) -> bool:
    """Where other images come, and the model knows them less: one alone may be harmless."""
    return fallen and CONFIDENCE in fired and (LABELS in fired or FEATURES in fired)
