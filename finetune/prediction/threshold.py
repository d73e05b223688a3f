"""Abstaining: choosing the probability below which a model gives no label, so that its labels reach a target precision."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurize import storage
from featurize.errors import UsageError
from finetune.evaluation.split_answers import open_split_rows
from finetune.models.folder import ModelCard, load_model
from finetune.networks.forward import is_finite
from finetune.prediction.answers import Threshold
from finetune.scores.calibration import wilson_interval

SPLIT = "validation"


def choose_threshold(url: str, card: ModelCard, *, target_precision: float) -> Threshold:
    """The lowest threshold at which labels reach the target precision on the validation split used in training.

    Args:
        url: URL of the model's folder.
        card: The model's description.
        target_precision: The share of right labels among those given, in (0, 1].

    Raises:
        UsageError: No threshold reaches that precision, or the feature set or its validation split is gone.
    """
    if not 0 < target_precision <= 1:
        raise UsageError(f"`target_precision` must be in (0, 1]. Got {target_precision:g}.")
    rows = open_split_rows([card], SPLIT, purpose="to choose a threshold")
    network, _ = load_model(url)
    parts = [_best(probabilities, part.label_index) for part, (probabilities,) in rows.answers([network])]
    probabilities, right = (np.concatenate(column) for column in zip(*parts, strict=True))
    threshold = find_threshold(probabilities, right, precision=target_precision)
    if threshold is None:
        raise UsageError(
            f"no threshold reaches a precision of {target_precision:g}: on the {len(right)} images of the validation split "
            f"the best is {best_precision(probabilities, right):.4f}. Lower the target or train a better model."
        )
    kept = probabilities >= threshold
    return Threshold(
        precision=target_precision,
        threshold=threshold,
        features=storage.absolute_url(rows.url),
        features_identity=rows.manifest.identity,
        split=SPLIT,
        rows=len(right),
        kept=int(kept.sum()),
        right=int(right[kept].sum()),
        precision_low=wilson_interval(int(right[kept].sum()), int(kept.sum()))[0],
    )


def find_threshold(probabilities: NDArray[Any], right: NDArray[np.bool_], *, precision: float) -> float | None:
    """The threshold that keeps most rows while the share of right rows among them is at least `precision`.

    It lies halfway between the lowest probability that is kept and the highest that is not, so that rounding does not matter. It
    is 0 if all rows are kept, and None if no threshold reaches `precision`.

    Args:
        probabilities: float ``(n_images,)``, the probability of the most probable class.
        right: bool ``(n_images,)``, whether the most probable class is the true one.
    """
    values, precisions = _precision_by_threshold(probabilities, right)
    enough = np.flatnonzero(precisions >= precision)
    if not len(enough):
        return None
    last = int(enough[-1])
    return 0.0 if last == len(values) - 1 else float((values[last] + values[last + 1]) / 2)


def best_precision(probabilities: NDArray[Any], right: NDArray[np.bool_]) -> float:
    """The highest precision that any threshold reaches."""
    return float(_precision_by_threshold(probabilities, right)[1].max())


def _best(probabilities: NDArray[np.float32], label_index: NDArray[np.int32]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The highest probability of each row that would get an answer, and whether its class is the true one."""
    usable = is_finite(probabilities)
    probabilities, label_index = probabilities[usable], label_index[usable]
    best = probabilities.argmax(axis=1)
    return probabilities.max(axis=1).astype(np.float64), best == label_index


def _precision_by_threshold(
    probabilities: NDArray[Any], right: NDArray[np.bool_]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The distinct probabilities in falling order, and for each the precision of all rows with at least that probability."""
    order = np.argsort(-probabilities, kind="stable")
    values = probabilities[order]
    ends = np.flatnonzero(np.append(values[1:] != values[:-1], True))  # equal probabilities are kept together
    return values[ends], np.cumsum(right[order])[ends] / (ends + 1)
