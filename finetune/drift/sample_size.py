"""How many images a window must have, so that a test would notice a change of a stated size."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.drift.statistics import weighted

POWER = 0.8
"""The chance with which the change is noticed."""
STABILITY_INDEX = 0.2
"""Of predicted labels: between what is called a small and a large shift."""
CONFIDENCE_DISTANCE = 0.15
"""The largest distance of the distribution functions of confidence: 15 % of all images become unsure, for instance."""
FEATURE_SHIFT = 0.5
"""Distance of the means of features, in standard deviations: a medium effect.

Source: J. Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988.
"""
_MOST = 10_000_000


def images_for_labels(
    groups: int, reference: int, *, rate: float, index: float = STABILITY_INDEX, power: float = POWER
) -> int | None:
    """Images for chi-square to notice a population stability index of `index`.

    The index over (1/n + 1/m) is about the non-centrality of chi-square (see `expected_stability_index`).

    Args:
        groups: of classes.
        reference: images in the reference, m.
        rate: of false alarms, of this test.

    Returns:
        The least n; None where no window would do, as the reference is too small.
    """
    from scipy.stats import chi2, ncx2

    if groups < 2:
        return None
    critical = chi2.isf(rate, groups - 1)
    return _least(lambda n: float(ncx2.sf(critical, groups - 1, index / (1 / n + 1 / reference))) >= power)


def images_for_confidence(
    reference: int, *, rate: float, distance: float = CONFIDENCE_DISTANCE, power: float = POWER
) -> int | None:
    """Images for Kolmogorov-Smirnov to notice distribution functions that are `distance` apart somewhere.

    A bound: the distance found there alone is about normal, of a variance of at most (1/n + 1/m) / 4, and must exceed the
    critical distance sqrt(-ln(rate / 2) / 2 (1/n + 1/m)). Source of the latter: N. Smirnov, 1939.
    """
    from scipy.stats import norm

    needed = np.sqrt(-np.log(rate / 2) / 2) + norm.ppf(power) / 2
    return _least(lambda n: distance >= needed * np.sqrt(1 / n + 1 / reference))


def images_for_features(
    projections: NDArray[np.floating[Any]], *, rate: float, shift: float = FEATURE_SHIFT, power: float = POWER
) -> int | None:
    """Images for the test on features to notice means that are `shift` standard deviations apart in some direction.

    Without a change the squared distance is about a chi-square variable, scaled, of the same mean and variance (Source:
    G. E. P. Box, "Some theorems on quadratic forms", 1954); with one it is taken for normal. The direction is that in which
    images differ most.

    Args:
        projections: of the reference, ``(n_reference, n_features)``; they are weighted as the test does.
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
    """The least number that suffices, where every larger one does too; None where there is none."""
    if not suffices(_MOST):
        return None
    too_few, enough = 1, _MOST
    if suffices(too_few):
        return too_few
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if suffices(middle) else (middle, enough)
    return enough
