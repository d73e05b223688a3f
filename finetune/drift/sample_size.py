"""The number of images that a window needs for a test to detect a change of a stated size."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.drift.statistics import weighted

POWER = 0.8
"""The chance of detecting the change."""
STABILITY_INDEX = 0.2
"""Population stability index of the predicted labels: between a shift called small and one called large."""
CONFIDENCE_DISTANCE = 0.15
"""Largest distance between the distribution functions of confidence: for instance, 15 % of the images become unsure."""
FEATURE_SHIFT = 0.5
"""Distance between the means of features, in standard deviations: a medium effect.

Source: J. Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988.
"""
_MOST = 10_000_000


def images_for_labels(
    groups: int, reference: int, *, rate: float, index: float = STABILITY_INDEX, power: float = POWER
) -> int | None:
    """Images that chi-square needs to detect a population stability index of `index`.

    The index divided by (1/n + 1/m) is about the non-centrality of chi-square (see `expected_stability_index`).

    Args:
        groups: Number of groups of classes.
        reference: Images in the reference, m.
        rate: False alarm rate of this test.
        index: The index to detect.
        power: The chance of detecting it.

    Returns:
        The least n; None where the reference is too small for any window.
    """
    from scipy.stats import chi2, ncx2

    if groups < 2:
        return None
    critical = chi2.isf(rate, groups - 1)
    return _least(lambda n: float(ncx2.sf(critical, groups - 1, index / (1 / n + 1 / reference))) >= power)


def images_for_confidence(
    reference: int, *, rate: float, distance: float = CONFIDENCE_DISTANCE, power: float = POWER
) -> int | None:
    """Images that Kolmogorov-Smirnov needs to detect distribution functions that are `distance` apart somewhere.

    An upper bound: the distance at that point alone is about normal, with a variance of at most (1/n + 1/m) / 4, and must exceed
    the critical distance sqrt(-ln(rate / 2) / 2 (1/n + 1/m)). Source of the critical distance: N. Smirnov, 1939.
    """
    from scipy.stats import norm

    needed = np.sqrt(-np.log(rate / 2) / 2) + norm.ppf(power) / 2
    return _least(lambda n: distance >= needed * np.sqrt(1 / n + 1 / reference))


def images_for_features(
    projections: NDArray[np.floating[Any]], *, rate: float, shift: float = FEATURE_SHIFT, power: float = POWER
) -> int | None:
    """Images that the test on features needs to detect means that are `shift` standard deviations apart in some direction.

    Without a change, the squared distance is about a scaled chi-square variable with the same mean and variance (Source:
    G. E. P. Box, "Some theorems on quadratic forms", 1954); with a change it is treated as normal. The direction is the one in
    which images differ most.

    Args:
        projections: Projections of the reference, ``(n_reference, n_features)``; weighted here as in the test.
    """
    from scipy.stats import chi2, norm

    covariance = np.cov(weighted(projections), rowvar=False)
    total, squared = float(np.trace(covariance)), float((covariance**2).sum())
    if total <= 0:
        return None
    largest = float(np.linalg.eigvalsh(covariance)[-1])
    critical = squared / total * chi2.isf(rate, total**2 / squared)
    distance = shift**2 * largest

    def suffices(n: int) -> bool:
        spread = 1 / n + 1 / len(projections)
        deviation = np.sqrt(2 * squared * spread**2 + 4 * largest * distance * spread)
        return bool(norm.sf((critical * spread - total * spread - distance) / deviation) >= power)

    return _least(suffices)


def _least(suffices: Callable[[int], bool]) -> int | None:
    """The least number that suffices, given that every larger one does too; None where there is none."""
    if not suffices(_MOST):
        return None
    too_few, enough = 1, _MOST
    if suffices(too_few):
        return too_few
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if suffices(middle) else (middle, enough)
    return enough
