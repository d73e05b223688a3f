"""One rank's training loop, epoch by epoch. All it needs of other ranks is sums over all ranks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from featurize.errors import JobError, SharedError
from featurize.recipes.training_section import TrainingSettings
from finetune.ranks.communicator import Communicator, SingleRank
from finetune.ranks.consensus import any_rank, check_agreement, gather_rows, raise_together, share_variables
from finetune.rows.batches import begin_epoch
from finetune.rows.loader import Data
from finetune.training.divergence import check_losses, check_validation, check_weights
from finetune.training.optimizers import make_optimizer
from finetune.training.state import Entry, TrainingState, Weights, has_stalled, next_state
from finetune.training.steps import TrainSteps, make_train_steps
from finetune.training.validation import make_validation

if TYPE_CHECKING:
    import keras

_MAX_STEPS_A_CALL = 64
_CALL_S = 2.0  # about the longest call of many steps, in seconds, after which a rank can report its position
TIMES = ("data_seconds", "compute_seconds", "all_reduce_seconds", "idle_seconds")
EpochReport = Callable[[Entry], None]


@dataclass(frozen=True)
class FitResult:
    """The result of a training. The model holds the weights of the best epoch.

    Attributes:
        model: The trained model.
        history: For each epoch `epoch`, `loss`, `accuracy`, the validation scores, `seconds`, `rows_per_second` and the `TIMES`
            of this rank.
        best_epoch: The epoch with the best value of `best_by`, the later of two that tie; without validation rows, the last.
        last_weights: The trainable variables after the last epoch.
        rows_per_second: Training rows of all ranks, divided by the time spent in training steps.
        seconds_of_ranks: For each rank the sums of the `TIMES`.
        is_stopped_early: Whether early stopping ended the training.
    """

    model: "keras.Model"
    history: list[Entry]
    best_epoch: int
    last_weights: Weights
    rows_per_second: float
    seconds_of_ranks: list[dict[str, float]]
    is_stopped_early: bool


class InterruptedTrainingError(SharedError):
    """A training that stopped on request after an epoch, with its checkpoint written."""


def fit(
    model: "keras.Model",
    train: Data,
    validation: Data,
    settings: TrainingSettings,
    *,
    class_weights: Sequence[float] | None = None,
    ranks: Communicator | None = None,
    state: TrainingState | None = None,
    on_epoch: EpochReport | None = None,
    keep: Callable[[TrainingState], None] | None = None,
    is_asked_to_stop: Callable[[], bool] = lambda: False,
) -> FitResult:
    """Trains `model` by synchronous gradient descent.

    Args:
        model: Ends in a layer `probabilities`, a softmax.
        train: Training rows, the same on every rank.
        validation: Validation rows, the same on every rank; may be empty.
        settings: The recipe's `[training]` section.
        class_weights: Weight of each class, in the order of `label_index`.
        ranks: The other ranks; default: none.
        state: The state to resume from; default: the start.
        on_epoch: Called after each epoch with its entry in the history.
        keep: Called by rank 0 after each epoch; may raise a `JobError`, which ends the training on all ranks.
        is_asked_to_stop: Called after each epoch; true ends the training.

    Raises:
        SharedError: The loss is no longer finite or has exploded, or the ranks no longer hold the same weights.
        InterruptedTrainingError: It was asked to stop, here or on another rank.
    """
    ranks, state = ranks or SingleRank(), state or TrainingState()
    global_batch_size = settings.batch_size * ranks.size
    optimizer = make_optimizer(settings, steps=settings.epochs * train.steps(global_batch_size))
    optimizer.build(model.trainable_variables)
    _restore(model, optimizer, state)
    share_variables([*model.weights, *optimizer.variables], ranks)
    steps = make_train_steps(model, optimizer, settings, ranks, class_weights=class_weights)
    evaluate = make_validation(model, validation, ranks)
    totals = np.zeros(len(TIMES))
    training_seconds, done = 0.0, state.epoch
    while state.epoch < settings.epochs and not has_stalled(state.history, settings):
        started = perf_counter()
        entry, seconds = _train_epoch(steps, train, settings, ranks, epoch=state.epoch + 1, n_classes=_n_classes(model))
        training_seconds += seconds
        entry |= evaluate() | {"seconds": perf_counter() - started}
        check_validation(entry, settings)
        totals += [entry[name] for name in TIMES]
        ranks.report(f"the checkpoint of epoch {state.epoch + 1}")
        state = next_state(
            state,
            entry,
            settings,
            weights=_values(model.trainable_variables),
            optimizer=_values(optimizer.variables),
        )
        _keep(state, keep, ranks)
        if on_epoch is not None:
            on_epoch(entry)
        if any_rank(is_asked_to_stop(), ranks) and state.epoch < settings.epochs:
            raise InterruptedTrainingError(
                f"stopped on request after epoch {state.epoch} of {settings.epochs}; train again with `resume=True` (--resume)."
            )
    check_weights(model, settings)
    check_agreement(model, ranks)
    _assign(model.trainable_variables, state.best_weights)
    return FitResult(
        model=model,
        history=state.history,
        best_epoch=state.best_epoch,
        last_weights=state.weights,
        rows_per_second=train.rows * (state.epoch - done) / training_seconds if training_seconds else 0.0,
        seconds_of_ranks=[dict(zip(TIMES, row, strict=True)) for row in gather_rows(totals.tolist(), ranks)],
        is_stopped_early=state.epoch < settings.epochs,
    )


def _train_epoch(
    steps: TrainSteps, train: Data, settings: TrainingSettings, ranks: Communicator, *, epoch: int, n_classes: int
) -> tuple[Entry, float]:
    """Trains one epoch; returns its entry in the history and the seconds that its steps took."""
    import tensorflow as tf

    global_batch_size = settings.batch_size * ranks.size
    batches = train.batches(
        epoch, seed=settings.seed, global_batch_size=global_batch_size, rank=ranks.rank, size=ranks.size
    )
    started, n_steps, parts = perf_counter(), train.steps(global_batch_size), []
    with train.failures():
        source, done, count = begin_epoch(batches), 0, 1
        while done < n_steps:
            ranks.report(f"epoch {epoch}, step {done + 1}")
            called = perf_counter()
            part = steps(source, tf.constant(done), tf.constant(count), tf.constant(epoch, tf.int64)).numpy()
            check_losses(part[:, 0] / part[:, 2], settings, epoch=epoch, first_step=done + 1, n_classes=n_classes)
            parts.append(part)
            done += count
            wanted = int(count * _CALL_S / (perf_counter() - called))
            count = max(1, min(wanted, _MAX_STEPS_A_CALL, n_steps - done))
    seconds = perf_counter() - started
    loss, right, _, data, compute, reducing = np.concatenate(parts).T
    idle = reducing - np.asarray(ranks.minimum([tf.constant(reducing)])[0])
    return {
        "epoch": epoch,
        "loss": float(loss.sum()) / train.rows,
        "accuracy": float(right.sum()) / train.rows,
        "rows_per_second": train.rows / seconds,
        "data_seconds": float(data.sum()),
        "compute_seconds": float(compute.sum()),
        "all_reduce_seconds": float((reducing - idle).sum()),
        "idle_seconds": float(idle.sum()),
    }, seconds


def _restore(model: "keras.Model", optimizer: "keras.optimizers.Optimizer", state: TrainingState) -> None:
    if state.epoch:
        _assign(model.trainable_variables, state.weights)
        _assign(optimizer.variables, state.optimizer)


def _values(variables: Sequence["keras.Variable"]) -> Weights:
    return [np.asarray(variable.value) for variable in variables]


def _assign(variables: Sequence["keras.Variable"], values: Weights) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _keep(state: TrainingState, keep: Callable[[TrainingState], None] | None, ranks: Communicator) -> None:
    """Lets rank 0 keep a state; if it cannot, all ranks end."""
    if keep is None:
        return
    error: JobError | None = None
    if ranks.rank == 0:
        try:
            keep(state)
        except JobError as caught:
            error = caught
    raise_together(error, ranks)


def _n_classes(model: "keras.Model") -> int:
    return int(model.output.shape[-1])
