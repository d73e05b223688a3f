"""Many dense networks trained at once: networks that see the same batches become one network, side by side.

The first layers of K networks of the same shape are one matrix product, as all of them multiply the same features; every later
layer is a product batched over the networks. The gradient of the sum of their losses contains the gradient of each, and every
network has its own learning rate and penalty. So each network takes the steps that it would take alone.
"""

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featurize.errors import FirnError
from featurize.recipes.training_section import TrainingSettings
from finetune.rows.loader import Data
from finetune.sweeps.stacks import Stacks
from finetune.training.divergence import check_losses, check_validation, check_weights
from finetune.training.loop import TIMES, FitResult, InterruptedTrainingError
from finetune.training.state import Entry, TrainingState, Weights, has_stalled, next_state

if TYPE_CHECKING:
    import keras


def fit_stack(
    models: "Sequence[keras.Model]",
    train: Data,
    validation: Data,
    settings: Sequence[TrainingSettings],
    *,
    class_weights: Sequence[float] | None = None,
    stacks: Stacks | None = None,
    is_asked_to_stop: Callable[[], bool] = lambda: False,
) -> list[FitResult | FirnError]:
    """Trains each of `models`, all at once, as `fit` would by the model's own settings.

    Args:
        models: Networks of the same shape, each a chain according to `stacks.find_chain`.
        train: The training rows.
        validation: The validation rows.
        settings: Settings of each model; with the same `stacks.stack_key`.
        class_weights: Weight of each class, in the order of `label_index`.
        stacks: Stacks of earlier calls; one that fits is used again, as building the graphs takes seconds.
        is_asked_to_stop: Called before each epoch; true ends the training.

    Returns:
        For each model the result of `fit`, or the error that it raises. Seconds and rows per second are the stack's, divided
        among the models.

    Raises:
        InterruptedTrainingError: It was asked to stop; nothing is kept.
    """
    steps = train.steps(settings[0].batch_size)
    stack = (stacks or Stacks()).take(models, settings, class_weights=class_weights, steps=steps)
    members = [_Member(model, own) for model, own in zip(models, settings, strict=True)]
    for epoch in range(1, settings[0].epochs + 1):
        if not any(member.is_going for member in members):
            break
        if is_asked_to_stop():
            raise InterruptedTrainingError(f"stopped on request after epoch {epoch - 1} of {settings[0].epochs}.")
        started = perf_counter()
        sums = stack.train_epoch(train, epoch)
        seconds = (perf_counter() - started) / len(members)
        scores, weights = stack.validate(validation), stack.weights()
        shared = {"epoch": epoch, "rows_per_second": train.rows / seconds, **dict.fromkeys(TIMES, 0.0)}
        shared |= {"compute_seconds": seconds, "seconds": (perf_counter() - started) / len(members)}
        for number, member in enumerate(members):
            member.take(sums[:, number], scores[number] | shared, weights=weights[number])
    return [member.result() for member in members]


class _Member:
    """One network of a stack: its history, its best weights, and whether its training continues."""

    def __init__(self, model: "keras.Model", settings: TrainingSettings) -> None:
        self._model, self._settings = model, settings
        self._state = TrainingState()
        self._error: FirnError | None = None

    @property
    def is_going(self) -> bool:
        """Whether this network, taken alone, has an epoch left."""
        return self._error is None and not has_stalled(self._state.history, self._settings)

    def take(self, sums: NDArray[np.float64], facts: Entry, *, weights: Weights) -> None:
        """Records the results of an epoch: those of `Stack.train_epoch` and the rest of the entry."""
        if not self.is_going:
            return
        loss, right, rows = sums.T
        n_classes = int(self._model.output.shape[-1])
        entry = {"loss": loss.sum() / rows.sum(), "accuracy": right.sum() / rows.sum()} | facts
        try:
            check_losses(loss / rows, self._settings, epoch=int(entry["epoch"]), first_step=1, n_classes=n_classes)
            check_validation(entry, self._settings)
        except FirnError as error:
            self._error = error
            return
        entry = {key: float(value) for key, value in entry.items()} | {"epoch": self._state.epoch + 1}
        self._state = next_state(self._state, entry, self._settings, weights=weights, optimizer=[])

    def result(self) -> FitResult | FirnError:
        """The result or the error of `fit` for this network."""
        if self._error is not None:
            return self._error
        _assign(self._model, self._state.weights)
        try:
            check_weights(self._model, self._settings)
        except FirnError as error:
            return error
        _assign(self._model, self._state.best_weights)
        history = self._state.history
        return FitResult(
            model=self._model,
            history=history,
            best_epoch=self._state.best_epoch,
            last_weights=self._state.weights,
            rows_per_second=float(np.mean([entry["rows_per_second"] for entry in history])),
            seconds_of_ranks=[{name: sum(entry[name] for entry in history) for name in TIMES}],
            is_stopped_early=len(history) < self._settings.epochs,
        )


def _assign(model: "keras.Model", weights: Weights) -> None:
    for variable, value in zip(model.trainable_variables, weights, strict=True):
        variable.assign(value)
