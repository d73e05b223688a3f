"""One rank's training loop. It knows of other ranks only that sums over all of them can be had.

N ranks with batches of B rows take the steps of one rank with batches of N x B rows: every gradient is the sum over the rows
of the global batch, divided by their number, whatever share of them a rank holds.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featurize.errors import FirnError, SharedError
from featurize.recipe import TrainingSettings
from finetune.loader import SplitData, iterate_slices, make_batches, plan_epoch
from finetune.models import logits_of

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

_EVALUATION_ROWS = 4096
_AGREEMENT_TOLERANCE = 1e-5
_MESSAGE_BYTES = 4096
EpochReport = Callable[[dict[str, float]], None]


class Communicator(Protocol):
    """The other ranks, as far as training needs them."""

    rank: int
    size: int

    def sum(self, tensor: Any) -> Any:
        """The sum of `tensor` over all ranks: an all-reduce that every rank must enter, in a graph or outside."""


class SingleRank:
    """No other ranks."""

    rank = 0
    size = 1

    def sum(self, tensor: Any) -> Any:
        """`tensor` itself."""
        return tensor


@dataclass(frozen=True)
class FitResult:
    """What training gives. The model holds the weights of the best epoch.

    Attributes:
        history: for each epoch `epoch`, `loss`, `accuracy`, `validation_loss`, `validation_accuracy`, `seconds`.
        best_epoch: of the highest validation accuracy, the later of two that tie; without validation rows, the last.
        rows_per_second: training rows of all ranks, over the time spent in training steps.
    """

    model: "keras.Model"
    history: list[dict[str, float]]
    best_epoch: int
    rows_per_second: float


def fit(
    model: "keras.Model",
    train: SplitData,
    validation: SplitData,
    settings: TrainingSettings,
    *,
    ranks: Communicator | None = None,
    on_epoch: EpochReport | None = None,
) -> FitResult:
    """Trains `model` by synchronous gradient descent.

    Args:
        model: ends in a softmax over a layer `logits`.
        train: the whole split, the same on every rank.
        validation: likewise; may be empty.
        ranks: the other ranks; default: none.
        on_epoch: called after each epoch with its entry in the history.

    Raises:
        SharedError: the loss is no longer finite, or the ranks no longer hold the same weights.
    """
    import tensorflow as tf

    ranks = ranks or SingleRank()
    steps = settings.epochs * math.ceil(train.rows / (settings.batch_size * ranks.size))
    optimizer = make_optimizer(settings, steps=steps)
    optimizer.build(model.trainable_variables)
    share_weights(model, ranks)
    step, evaluate = (
        make_train_step(model, optimizer, ranks, l2=settings.l2),
        _make_evaluation(model, validation, ranks),
    )
    with tf.device("CPU:0"):
        features, labels = tf.constant(train.features), tf.constant(train.label_index)
    history: list[dict[str, float]] = []
    best: list[NDArray[Any]] = []
    best_epoch, training_seconds = 0, 0.0
    for epoch in range(1, settings.epochs + 1):
        started = perf_counter()
        plan = plan_epoch(
            train.rows,
            seed=settings.seed,
            epoch=epoch,
            global_batch_size=settings.batch_size * ranks.size,
            rank=ranks.rank,
            size=ranks.size,
        )
        sums = np.sum([step(*batch).numpy() for batch in make_batches(features, labels, plan)], axis=0)
        training_seconds += perf_counter() - started
        entry = {"epoch": epoch, "loss": float(sums[0]) / train.rows, "accuracy": float(sums[1]) / train.rows}
        entry |= evaluate() | {"seconds": perf_counter() - started}
        _check_finite(entry, settings)
        history.append(entry)
        if not best or _score(entry) >= _score(history[best_epoch - 1]):
            best, best_epoch = model.get_weights(), epoch
        if on_epoch is not None:
            on_epoch(entry)
    _check_weights_finite(model, settings)
    check_agreement(model, ranks)
    model.set_weights(best)
    return FitResult(model, history, best_epoch, train.rows * settings.epochs / training_seconds)


def make_optimizer(settings: TrainingSettings, *, steps: int) -> "keras.optimizers.Optimizer":
    """The optimizer that `settings` name. The learning rate is the recipe's, whatever the number of ranks.

    Args:
        steps: of the whole training, over which the cosine schedule falls to zero.

    Source: I. Loshchilov, F. Hutter: SGDR, Stochastic Gradient Descent with Warm Restarts, 2017, equation 5 (no restart).
    """
    import keras

    rate: Any = settings.learning_rate
    if settings.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(settings.learning_rate, steps)
    if settings.optimizer == "adam":
        return keras.optimizers.Adam(rate)
    return keras.optimizers.SGD(rate, momentum=settings.momentum, nesterov=settings.nesterov)


def make_train_step(
    model: "keras.Model", optimizer: "keras.optimizers.Optimizer", ranks: Communicator, *, l2: float = 0.0
) -> Callable[[Any, Any, Any], "tf.Tensor"]:
    """One step of all ranks: gradients, one all-reduce of everything at once, the update.

    The function takes this rank's features and labels, none perhaps, and the number of rows of all ranks; it returns
    ``float32 (2,)``: the loss and the number of right answers, summed over the rows of all ranks. `l2` times the sum of the
    squared kernels is added to the mean loss that is minimised, and left out of the one that is returned.
    """
    import tensorflow as tf

    logits_model = logits_of(model)
    variables = model.trainable_variables
    sizes = [int(np.prod(variable.shape)) for variable in variables]
    signature = [
        tf.TensorSpec((None, *model.input.shape[1:]), model.input.dtype),
        tf.TensorSpec((None,), tf.int32),
        tf.TensorSpec((), tf.float32),
    ]

    @tf.function(input_signature=signature, autograph=False)
    def step(features: Any, labels: Any, global_rows: Any) -> Any:
        with tf.GradientTape() as tape:
            logits = logits_model(features, training=True)
            loss = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        right = tf.reduce_sum(tf.cast(tf.argmax(logits, 1, tf.int32) == labels, tf.float32))
        flat = tf.concat([tf.reshape(gradient, [-1]) for gradient in gradients] + [tf.stack([loss, right])], 0)
        *parts, metrics = tf.split(ranks.sum(flat), [*sizes, 2])
        averaged = [tf.reshape(part, v.shape) / global_rows for part, v in zip(parts, variables, strict=True)]
        if l2:  # after the sum: the penalty is the model's, not the rows'
            averaged = [g + 2 * l2 * v.value if _is_kernel(v) else g for g, v in zip(averaged, variables, strict=True)]
        optimizer.apply(averaged, variables)
        return metrics

    return step  # type: ignore[no-any-return, unused-ignore]


def predict_probabilities(model: "keras.Model", features: NDArray[Any]) -> NDArray[np.float32]:
    """``float32 (n_images, n_classes)``, computed in slices of 4,096 rows."""
    slices = iterate_slices(len(features), _EVALUATION_ROWS)
    parts = [np.asarray(model(features[part], training=False)) for part in slices]
    return np.concatenate(parts) if parts else np.empty((0, int(model.output.shape[-1])), np.float32)


def share_weights(model: "keras.Model", ranks: Communicator) -> None:
    """Gives every rank the weights of rank 0."""
    for variable in model.weights:
        value = variable.value
        variable.assign(ranks.sum(value if ranks.rank == 0 else value * 0))


def raise_together(error: FirnError | None, ranks: Communicator) -> None:
    """Raises on every rank when one of them failed, so that none waits in a collective for a rank that is gone.

    Raises:
        SharedError: with the message of the first rank that failed.
    """
    import tensorflow as tf

    failed = ranks.sum(tf.one_hot(ranks.rank, ranks.size) * (0.0 if error is None else 1.0)).numpy()
    if not failed.any():
        return
    message = str(error).encode()[:_MESSAGE_BYTES] if ranks.rank == int(np.argmax(failed)) else b""
    padded = np.frombuffer(message.ljust(_MESSAGE_BYTES, b"\0"), np.uint8).astype(np.int32)
    shared = ranks.sum(tf.constant(padded)).numpy().astype(np.uint8).tobytes()
    raise SharedError(shared.rstrip(b"\0").decode(errors="replace")) from error


def check_agreement(model: "keras.Model", ranks: Communicator) -> None:
    """Checks that all ranks hold the same weights: the law that synchronous averaging keeps.

    Raises:
        SharedError: they do not.
    """
    import tensorflow as tf

    flat = tf.concat([tf.reshape(variable.value, [-1]) for variable in model.weights], 0)
    mean = ranks.sum(flat) / ranks.size
    apart = ranks.sum(tf.reduce_max(tf.abs(flat - mean)))
    if not float(apart) <= _AGREEMENT_TOLERANCE * max(1.0, float(tf.reduce_max(tf.abs(mean)))):
        raise SharedError(
            f"the ranks hold different weights (up to {float(apart):g} apart): gradients were not averaged."
        )


def _make_evaluation(model: "keras.Model", data: SplitData, ranks: Communicator) -> Callable[[], dict[str, float]]:
    """A function that gives loss and accuracy over all of `data`, each rank computing its share."""
    import tensorflow as tf

    if data.rows == 0:
        return dict
    logits_model = logits_of(model)

    @tf.function(autograph=False, reduce_retracing=True)
    def sums_of(features: Any, labels: Any) -> Any:
        logits = logits_model(features, training=False)
        loss = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        return tf.stack([loss, tf.reduce_sum(tf.cast(tf.argmax(logits, 1, tf.int32) == labels, tf.float32))])

    def evaluate() -> dict[str, float]:
        slices = iterate_slices(data.rows, _EVALUATION_ROWS, rank=ranks.rank, size=ranks.size)
        own = [sums_of(data.features[part], data.label_index[part]).numpy() for part in slices]
        loss, right = ranks.sum(tf.constant(np.sum(own, axis=0, dtype=np.float64) if own else np.zeros(2))).numpy()
        return {"validation_loss": float(loss) / data.rows, "validation_accuracy": float(right) / data.rows}

    return evaluate


def _is_kernel(variable: Any) -> bool:
    """Whether a variable is a matrix of weights; biases are not drawn to zero."""
    return len(variable.shape) > 1


def _score(entry: dict[str, float]) -> float:
    """What makes one epoch better than another; constant without validation, so that the last epoch wins."""
    return entry.get("validation_accuracy", 0.0)


def _check_finite(entry: dict[str, float], settings: TrainingSettings) -> None:
    for name in ("loss", "validation_loss"):
        if not math.isfinite(entry.get(name, 0.0)):
            what = f"the {name.replace('_', ' ')} is {entry[name]} in epoch {entry['epoch']}"
            raise SharedError(_diverged(what, settings))


def _check_weights_finite(model: "keras.Model", settings: TrainingSettings) -> None:
    if not all(np.isfinite(weights).all() for weights in model.get_weights()):
        raise SharedError(_diverged("the weights are not finite after the last epoch", settings))


def _diverged(what: str, settings: TrainingSettings) -> str:
    return f"{what}. Lower `training.learning_rate` (now {settings.learning_rate:g}), and check that the features are finite."
