"""Two-sample tests for counts of labels, confidences and random features; and the correction for several tests at once.

Each test takes the reference first. Its p-value is for "both samples come from one distribution"; images count as independent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
LEAST_EXPECTED = 5.0
"""Images that each cell of the table must be expected to have. Source: W. G. Cochran, "Some methods for strengthening the
common chi-square tests", 1954."""
RIDGE = 0.1
"""Ridge added to the variance of every direction when directions are weighted: a tenth of the mean variance."""
_MASK_CELLS = 1 << 21  # cells of the mask of permutations in memory at a time


@dataclass(frozen=True)
class Test:
    """The outcome of one test.

    Attributes:
        statistic: The test statistic: the larger, the more the samples differ.
        p: Chance of a difference this large if nothing has changed, in [0, 1].
    """

    __test__ = False  # or pytest takes it for a class of tests

    statistic: float
    p: float


def count_together(
    reference: Mapping[str, int], window: Mapping[str, int], *, least: float = LEAST_EXPECTED
) -> NDArray[np.int64]:
    """Counts of both samples, with rare classes merged until each cell is expected to hold `least` images.

    Classes are merged from the most frequent to the rarest in both samples together, so that the grouping does not depend on how
    the samples differ. Classes that neither sample has are left out.

    Returns:
        int64 ``(2, n_groups)``; one group where there are too few images for more.
    """
    labels = sorted(reference.keys() | window.keys())
    counts = np.array([[part.get(label, 0) for label in labels] for part in (reference, window)], np.int64)
    counts = counts.reshape(2, len(labels))
    together = counts.sum(axis=0)
    order = [int(index) for index in np.argsort(-together, kind="stable") if together[index]]
    share = int(counts.sum(axis=1).min()) / max(1, int(together.sum()))  # of the smaller sample
    groups: list[NDArray[np.int64]] = []
    open_group = np.zeros(2, np.int64)
    for index in order:
        open_group = open_group + counts[:, index]
        if open_group.sum() * share >= least:
            groups.append(open_group)
            open_group = np.zeros(2, np.int64)
    if groups:
        groups[-1] = groups[-1] + open_group
    return np.stack(groups or [open_group], axis=1)


def chi_square(counts: NDArray[np.int64]) -> Test:
    """Pearson's test that the two rows of ``(2, n_groups)`` counts have the same shares; p is 1 if there is only one group.

    Sources: K. Pearson, 1900; for two samples R. A. Fisher, 1922. Without correction for continuity.
    """
    from scipy.stats import chi2

    totals = counts.sum(axis=1, keepdims=True)
    if counts.shape[1] < 2 or not totals.all():
        return Test(0.0, 1.0)
    expected = totals * counts.sum(axis=0, keepdims=True) / counts.sum()
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return Test(statistic, float(chi2.sf(statistic, counts.shape[1] - 1)))


def stability_index(counts: NDArray[np.int64]) -> float:
    """The population stability index of ``(2, n_groups)`` counts: the sum over groups of (p - q) ln(p / q).

    Half an image is added to every cell, so that an empty cell does not make it infinite.
    Sources: N. Siddiqi, Credit Risk Scorecards, 2006, which calls 0.1 to 0.25 a small shift and more a large one; the sum is the
    divergence J of H. Jeffreys, 1946.
    """
    shares = (counts + 0.5) / (counts + 0.5).sum(axis=1, keepdims=True)
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())


def expected_stability_index(counts: NDArray[np.int64]) -> float:
    """The average index of samples of these sizes where nothing has changed: (groups - 1) (1/n + 1/m).

    Source: B. Yurdakul, J. Naranjo, "Statistical properties of the population stability index", 2020: the index divided by
    (1/n + 1/m) has the chi-square distribution with groups - 1 degrees of freedom.
    """
    totals = counts.sum(axis=1)
    return float((counts.shape[1] - 1) * (1 / totals).sum()) if totals.all() else 0.0


def kolmogorov_smirnov(reference: Floats, window: Floats) -> Test:
    """The two-sample test: the largest distance between the empirical distribution functions, with its asymptotic p.

    Ties, such as probabilities that are 1 in float32, make the test conservative: p is then too large.
    """
    from scipy.stats import ks_2samp

    found = ks_2samp(reference, window, method="asymp")
    return Test(float(found.statistic), min(1.0, float(found.pvalue)))


def mean_discrepancy(reference: Floats, window: Floats, *, permutations: int, seed: int) -> Test:
    """Maximum mean discrepancy on explicit, weighted features: the squared distance between the means of the two samples.

    Without weights, the differences between classes would drown everything else; see `weighted`. Weights come from all images
    together. The p-value is that of the permutation test: all images are dealt anew into two samples of the same sizes, counting
    how often these are at least as far apart. It is exact for samples of any size, and never below 1 / (permutations + 1).
    Sources: A. Gretton et al., "A kernel two-sample test", 2012; with weights Z. Harchaoui, F. Bach, E. Moulines, "Testing for
    homogeneity with kernel Fisher discriminant analysis", 2008; on random features J. Zhao, D. Meng, "FastMMD", 2015; p:
    B. Phipson, G. K. Smyth, "Permutation p-values should never be zero", 2010.

    Args:
        reference: float ``(n_reference, n_features)``.
        window: float ``(n_window, n_features)``.
    """
    rows = weighted(np.concatenate([reference, window]))
    n, m = len(window), len(reference)
    # All rows sum to 0, so the reference's mean follows from the window's sum.
    scale = (1 / n + 1 / m) ** 2
    found = scale * float((rows[m:].sum(axis=0) ** 2).sum())
    random = np.random.default_rng(seed)
    at_least, left, chunk = 0, permutations, max(1, _MASK_CELLS // len(rows))
    while left:
        keys = random.random((min(chunk, left), len(rows)))
        chosen = np.argpartition(keys, n - 1, axis=1)[:, :n]
        mask = np.zeros(keys.shape)
        np.put_along_axis(mask, chosen, 1.0, axis=1)
        dealt = scale * ((mask @ rows) ** 2).sum(axis=1)
        at_least += int((dealt >= found * (1 - 1e-12)).sum())
        left -= len(keys)
    return Test(found, (1 + at_least) / (1 + permutations))


def weighted(rows: Floats) -> NDArray[np.float64]:
    """Centred rows along the eigenvectors of their covariance, each divided by the root of its variance plus a ridge.

    Args:
        rows: float ``(n_images, n_features)``.

    Returns:
        ``(n_images, n_features)``, with means 0 and variances below 1, near 1 where images differ much.
    """
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    variances, directions = np.linalg.eigh(centred.T @ centred / len(rows))
    variances = np.maximum(variances, 0.0)  # a direction without variance may come out below 0 by rounding
    ridge = max(RIDGE * float(variances.mean()), np.finfo(np.float64).tiny)
    result: NDArray[np.float64] = centred @ directions / np.sqrt(variances + ridge)
    return result


def holm(values: Sequence[float]) -> list[float]:
    """The p-values of several tests, corrected so that the chance of any one below a rate by accident is at most that rate.

    It holds whether or not the tests depend on each other. Source: S. Holm, "A simple sequentially rejective multiple test
    procedure", 1979.
    """
    corrected = [0.0] * len(values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=lambda index: values[index])):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = highest
    return corrected
