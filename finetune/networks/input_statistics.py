"""Mean and deviation of the training split, for models that standardise: one pass over chunks, in float64."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurize.errors import JobError
from featurize.recipes.model_section import ModelSettings
from finetune.networks.inputs import Statistics, rows_to_standardize, standardizes_pixels

BLOCK_VALUES = 1 << 20
"""How many values are taken at a time, however large a chunk is: 8 MiB of float64."""
_RESOLUTION = float(np.finfo(np.float32).eps)


def needs_statistics(settings: ModelSettings, feature_dtype: str) -> bool:
    """Whether the model in `settings` standardises by mean and deviation of the training split."""
    return settings.standardize or (feature_dtype == "uint8" and standardizes_pixels(settings))


def collect_statistics(
    chunks: Iterable[NDArray[Any]], settings: ModelSettings, *, block_values: int = BLOCK_VALUES
) -> Statistics:
    """Mean and deviation of what `settings` standardise; the same to 1e-12 however the rows are cut into chunks.

    A feature that float32 cannot tell from a constant counts as constant: its deviation is 1.

    Args:
        chunks: The features of the training split, in parts: float32 ``(n_images, feature_dim)`` or
            uint8 ``(n_images, height, width, channels)``.
        block_values: how many values are taken at a time, of one row at least.

    Raises:
        JobError: There are no rows, or values that are not finite.
    """
    start, total = None, None
    for chunk in chunks:
        for block in _iterate_blocks(chunk, block_values):
            rows = rows_to_standardize(block, settings)
            start = rows[0] if start is None else start
            moments = _moments_of(rows, start)
            total = moments if total is None else _merge(total, moments)
    if start is None or total is None:
        raise JobError("there are no training rows whose mean and deviation could be taken.")
    _check_finite(total)
    mean, deviation = start + total.mean, np.sqrt(total.squares / total.count)
    return Statistics(mean, np.where(deviation <= _RESOLUTION * np.abs(mean), 1.0, deviation))


@dataclass(frozen=True)
class _Moments:
    """Moments of rows minus the very first row: constants give exact zeros, and means far from 0 lose no digits."""

    count: int
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]  # sum of the squared differences from the mean


def _moments_of(rows: NDArray[np.float64], start: NDArray[np.float64]) -> _Moments:
    with np.errstate(invalid="ignore", over="ignore"):  # values that are not finite are found at the end
        shifted = rows - start
        mean = shifted.mean(axis=0)
        return _Moments(len(rows), mean, np.sum((shifted - mean) ** 2, axis=0))


def _merge(one: _Moments, other: _Moments) -> _Moments:
    """The moments of both sets of rows together.

    Source: T. F. Chan, G. H. Golub, R. J. LeVeque: Algorithms for Computing the Sample Variance: Analysis and
    Recommendations, 1983, the pairwise formula.
    """
    count = one.count + other.count
    with np.errstate(invalid="ignore", over="ignore"):
        apart = other.mean - one.mean
        squares = one.squares + other.squares + apart**2 * (one.count * other.count / count)
        return _Moments(count, one.mean + apart * (other.count / count), squares)


def _check_finite(moments: _Moments) -> None:
    finite = np.isfinite(moments.mean) & np.isfinite(moments.squares)
    if not finite.all():
        raise JobError(
            f"features cannot be standardised: {np.count_nonzero(~finite)} of {finite.size} have values that are "
            f"not finite in the training split, first feature {int(np.argmin(finite))}."
        )


def _iterate_blocks(chunk: NDArray[Any], values: int) -> Iterable[NDArray[Any]]:
    rows = max(1, values // max(1, chunk[:1].size))
    return (chunk[start : start + rows] for start in range(0, len(chunk), rows))
