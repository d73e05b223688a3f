"""Trainings that diverge: stopped at once, naming the step and the remedy."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featurize.errors import SharedError
from featurize.recipes.training_section import TrainingSettings

if TYPE_CHECKING:
    import keras

_EXPLODED = 1e6  # times the loss of a guess


def check_losses(
    losses: NDArray[np.float64], settings: TrainingSettings, *, epoch: int, first_step: int, n_classes: int
) -> None:
    """Checks the mean loss of each of some steps, ``float64 (n_steps,)``, the first of which is `first_step`.

    Raises:
        SharedError: A loss is not finite, or a million times that of a guess.
    """
    bad = np.flatnonzero(~(losses <= _EXPLODED * math.log(max(n_classes, 2))))
    if len(bad):
        step = first_step + int(bad[0])
        raise SharedError(_diverged(f"the loss is {losses[bad[0]]:g} in step {step} of epoch {epoch}", settings))


def check_validation(entry: Mapping[str, float], settings: TrainingSettings) -> None:
    """Checks the values measured after an epoch.

    Raises:
        SharedError: The loss is not finite.
    """
    if not math.isfinite(entry.get("validation_loss", 0.0)):
        what = f"the validation loss is {entry['validation_loss']:g} after epoch {entry['epoch']}"
        raise SharedError(_diverged(what, settings))


def check_weights(model: "keras.Model", settings: TrainingSettings) -> None:
    """Checks the weights after the last step, whose effect no loss has shown yet.

    Raises:
        SharedError: A weight is not finite.
    """
    if not all(np.isfinite(weights).all() for weights in model.get_weights()):
        raise SharedError(_diverged("the weights are not finite after the last epoch", settings))


def _diverged(what: str, settings: TrainingSettings) -> str:
    return f"{what}. Lower `training.learning_rate` (now {settings.learning_rate:g}), and check that the features are finite."
