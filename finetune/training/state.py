"""The state of a training after an epoch, and whether it ends early."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from featurize.recipes.training_section import TrainingSettings

Weights = list[NDArray[Any]]
Entry = dict[str, float]


@dataclass(frozen=True)
class TrainingState:
    """The state of a training after an epoch: everything needed to resume it.

    There is no random state, as every random number follows from the seed, the epoch and the row.

    Attributes:
        epoch: The last finished epoch; 0 before the first.
        weights: The trainable variables.
        optimizer: The optimizer's variables.
        best_epoch: The best epoch so far.
        best_weights: The trainable variables after `best_epoch`.
        history: An entry for each epoch.
    """

    epoch: int = 0
    weights: Weights = field(default_factory=list)
    optimizer: Weights = field(default_factory=list)
    best_epoch: int = 0
    best_weights: Weights = field(default_factory=list)
    history: list[Entry] = field(default_factory=list)


def next_state(
    state: TrainingState, entry: Entry, settings: TrainingSettings, *, weights: Weights, optimizer: Weights
) -> TrainingState:
    """The state after one more epoch, whose entry in the history is `entry`."""
    history = [*state.history, entry]
    after = replace(
        state,
        epoch=state.epoch + 1,
        weights=weights,
        optimizer=optimizer,
        history=history,
    )
    if state.best_epoch and _score(entry, settings.best_by) < _score(history[state.best_epoch - 1], settings.best_by):
        return after
    return replace(after, best_epoch=after.epoch, best_weights=weights)


def has_stalled(history: list[Entry], settings: TrainingSettings) -> bool:
    """Whether early stopping ends the training."""
    rule = settings.early_stopping
    if rule is None or not history:
        return False
    best, best_epoch = -math.inf, 0
    for number, entry in enumerate(history):
        if _score(entry, rule.metric) > best + rule.min_delta:
            best, best_epoch = _score(entry, rule.metric), number
    return len(history) - 1 - best_epoch >= rule.patience


def _score(entry: Entry, metric: str) -> float:
    """The value by which epochs are compared, larger being better; constant where unmeasured, so that the last epoch wins."""
    value = entry.get(metric, 0.0)
    return -value if metric.endswith("loss") else value
