"""Many dense networks trained at once: those that see the same batches become one network, side by side.

The first layers of K networks of the same shape are one matrix product, as all of them multiply the same features; every later
layer is a product batched over the networks. The gradient of the sum of their losses holds the gradient of each, and every
network has its own learning rate and penalty. So each of them takes the steps that it would take alone.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featurize.errors import FirnError
from featurize.training_settings import TrainingSettings
from finetune.divergence import check_losses, check_validation, check_weights
from finetune.fit import TIMES, FitResult
from finetune.loader import Data
from finetune.models import logits_of
from finetune.optimizers import make_optimizer
from finetune.steps import cross_entropy, n_threads
from finetune.training_state import Entry, TrainingState, Weights, has_stalled, next_state
from finetune.validation import count_rows, scores_of

if TYPE_CHECKING:
    import keras

_OWN = ("learning_rate", "l2", "best_by", "early_stopping")
"""The settings in which the networks of one stack may differ."""


@dataclass(frozen=True)
class Chain:
    """A network that is dense layers one after another.

    Attributes:
        before: what is done to the features first, without any weights to train: float32 ``(n_images, feature_dim)``.
        layers: the dense layers, ReLU after all but the last.
    """

    before: "keras.Model"
    layers: "list[keras.layers.Dense]"


def stack_key(settings: TrainingSettings) -> Hashable | None:
    """What trainings must have in common to be stacked, beside the features and the network; None: it cannot be stacked."""
    if settings.augmentation is not None or settings.gradient_normalization is not None:
        return None
    return repr(sorted(settings.model_dump(exclude=set(_OWN)).items()))


def find_chain(model: "keras.Model") -> Chain | None:
    """The dense layers of `model`, or None if it is not only that, so that it cannot be stacked."""
    import keras

    logits = logits_of(model)
    layers = [layer for layer in logits.layers if layer.trainable_variables]
    if not layers or any(type(layer) is not keras.layers.Dense or not layer.use_bias for layer in layers):
        return None
    first = logits.layers.index(layers[0])
    *hidden, last = layers
    if logits.layers[first:] != layers or last.activation is not keras.activations.linear:
        return None
    if any(layer.activation is not keras.activations.relu for layer in hidden):
        return None
    return Chain(keras.Model(model.input, layers[0].input), layers)


def fit_stack(
    models: "Sequence[keras.Model]",
    train: Data,
    validation: Data,
    settings: Sequence[TrainingSettings],
    *,
    class_weights: Sequence[float] | None = None,
    on_epoch: Callable[[int], None] | None = None,
) -> list[FitResult | FirnError]:
    """Trains each of `models` as `fit` would by its own settings, all of them at once.

    Args:
        models: of the same shape, each a chain by `find_chain`.
        settings: of each model; with the same `stack_key`.
        class_weights: of each class, by index.
        on_epoch: called with the number of each epoch when it is over.

    Returns:
        For each model what `fit` returns, or the error that it raises. Seconds and rows per second are the stack's, divided
        among the models.
    """
    stack = _Stack(models, settings, class_weights=class_weights, steps=train.steps(settings[0].batch_size))
    members = [_Member(model, own) for model, own in zip(models, settings, strict=True)]
    for epoch in range(1, settings[0].epochs + 1):
        if not any(member.is_going for member in members):
            break
        started = perf_counter()
        sums = stack.train_epoch(train, epoch)
        seconds = (perf_counter() - started) / len(members)
        scores, weights = stack.validate(validation), stack.weights()
        shared = {"epoch": epoch, "rows_per_second": train.rows / seconds, **dict.fromkeys(TIMES, 0.0)}
        shared |= {"compute_seconds": seconds, "seconds": (perf_counter() - started) / len(members)}
        for number, member in enumerate(members):
            member.take(sums[:, number], scores[number] | shared, weights=weights[number])
        if on_epoch is not None:
            on_epoch(epoch)
    return [member.result() for member in members]


class _Member:
    """One network of a stack: its history, its best weights, and whether it goes on."""

    def __init__(self, model: "keras.Model", settings: TrainingSettings) -> None:
        self._model, self._settings = model, settings
        self._state = TrainingState()
        self._error: FirnError | None = None

    @property
    def is_going(self) -> bool:
        """Whether there is an epoch to come, as far as it is for this network alone."""
        return self._error is None and not has_stalled(self._state.history, self._settings)

    def take(self, sums: NDArray[np.float64], facts: Entry, *, weights: Weights) -> None:
        """Takes what an epoch has given: `_Stack.train_epoch` and the rest of the entry."""
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
        """What `fit` returns or raises."""
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


class _Stack:
    """The variables of K networks side by side, and the functions that train and evaluate them.

    The first layer is of shape ``(feature_dim, K x units)``, its bias ``(K x units,)``; later layers are ``(K, units, units)``,
    their biases ``(K, 1, units)``.

    Args:
        steps: of an epoch.
    """

    def __init__(
        self,
        models: "Sequence[keras.Model]",
        settings: Sequence[TrainingSettings],
        *,
        class_weights: Sequence[float] | None,
        steps: int,
    ) -> None:
        import keras
        import tensorflow as tf

        chain = find_chain(models[0])
        if chain is None:
            raise ValueError("only chains of dense layers can be stacked.")
        self._n_models, self._settings, self._before, self._steps = len(models), settings[0], chain.before, steps
        self._n_classes = int(models[0].output.shape[-1])
        self._variables = [keras.Variable(value) for value in _side_by_side([model.get_weights() for model in models])]
        unit = settings[0].model_copy(update={"learning_rate": 1.0})
        self._optimizer = make_optimizer(unit, steps=steps * unit.epochs)
        self._optimizer.build(self._variables)
        self._class_weights = None if class_weights is None else tf.constant(class_weights, tf.float32)
        self._rates = self._spread([own.learning_rate for own in settings])
        self._penalties = self._spread([2 * own.l2 for own in settings]) if any(own.l2 for own in settings) else []
        self._run, self._evaluate = self._make_run(), self._make_evaluation()

    def train_epoch(self, train: Data, epoch: int) -> NDArray[np.float64]:
        """Trains all networks for one epoch.

        Returns:
            float64 ``(n_steps, K, 3)``: loss and right answers before each step, summed over its rows; the number of rows.
        """
        import tensorflow as tf

        seed, size = self._settings.seed, self._settings.batch_size
        batches = train.batches(epoch, seed=seed, global_batch_size=size)
        with train.failures():
            sums: NDArray[np.float64] = self._run(iter(batches.prefetch(2)), tf.constant(self._steps)).numpy()
        return sums

    def validate(self, validation: Data) -> list[Entry]:
        """The scores of each network on a split."""
        if validation.rows == 0:
            return [{} for _ in range(self._n_models)]
        sums = np.zeros((self._n_models, 1 + 3 * self._n_classes))
        for features, label_index in validation.slices():
            losses, predicted = (np.asarray(value) for value in self._evaluate(features, label_index))
            sums[:, 0] += losses
            for number in range(self._n_models):
                sums[number, 1:] += count_rows(label_index, predicted[number], n_classes=self._n_classes)
        return [scores_of(row) for row in sums]

    def weights(self) -> list[Weights]:
        """The trainable weights of each network now."""
        return _apart([variable.numpy() for variable in self._variables], self._n_models)

    def _make_run(self) -> Callable[..., Any]:
        import tensorflow as tf

        @tf.function(jit_compile=n_threads() > 1, autograph=False)
        def step(features: Any, labels: Any, global_rows: Any) -> Any:
            gradients, sums = self._gradients(features, labels)
            self._update(gradients, global_rows)
            return tf.concat([sums, tf.fill((self._n_models, 1), global_rows)], 1)

        def body(iterator: Any, number: Any, rows: Any) -> Any:
            features, labels, _, global_rows = iterator.get_next()
            return number + 1, rows.write(number, step(features, labels, global_rows))

        @tf.function(autograph=False)
        def run(iterator: Any, n_steps: Any) -> Any:
            rows = tf.TensorArray(tf.float32, n_steps, element_shape=(self._n_models, 3))
            take = partial(body, iterator)
            done = tf.while_loop(lambda number, _: number < n_steps, take, (0, rows), parallel_iterations=1)
            return tf.cast(done[1].stack(), tf.float64)

        return run  # type: ignore[no-any-return, unused-ignore]

    def _gradients(self, features: Any, labels: Any) -> tuple[list[Any], Any]:
        """Of the losses, summed over rows; and float32 ``(K, 2)``, summed loss and right answers of each network."""
        import tensorflow as tf

        known, weights = tf.maximum(labels, 0), tf.cast(labels >= 0, tf.float32)
        if self._class_weights is not None:
            weights *= tf.gather(self._class_weights, known)
        prepared = self._before(features, training=False)
        with tf.GradientTape() as tape:
            logits = self._logits(prepared)
            shape = (self._n_models, tf.shape(labels)[0])
            losses = cross_entropy(logits, tf.broadcast_to(known, shape), self._settings.label_smoothing)
            sums = tf.reduce_sum(weights * losses, 1)
            total = tf.reduce_sum(sums)
        gradients = tape.gradient(total, [variable.value for variable in self._variables])
        right = tf.reduce_sum(tf.cast(tf.argmax(logits, 2, tf.int32) == labels, tf.float32), 1)
        return gradients, tf.stack([sums, right], 1)

    def _logits(self, prepared: Any) -> Any:
        """Of features ``(n, feature_dim)``, ``(K, n, n_classes)``."""
        import tensorflow as tf

        kernel, bias, *later = self._variables
        wide = tf.matmul(prepared, kernel.value) + bias.value
        tensor = tf.transpose(tf.reshape(wide, (-1, self._n_models, wide.shape[1] // self._n_models)), (1, 0, 2))
        for kernel, bias in zip(later[::2], later[1::2], strict=True):
            tensor = tf.matmul(tf.nn.relu(tensor), kernel.value) + bias.value
        return tensor

    def _update(self, gradients: Sequence[Any], global_rows: Any) -> None:
        """The step of every network, by its own learning rate and penalty."""
        factor = self._optimizer.learning_rate
        for place, (variable, gradient, rate) in enumerate(zip(self._variables, gradients, self._rates, strict=True)):
            mean = gradient / global_rows
            if self._penalties and place % 2 == 0:
                mean += self._penalties[place] * variable.value
            self._optimizer.update_step(mean, variable, factor * rate)
        self._optimizer.iterations.assign_add(1)

    def _make_evaluation(self) -> Callable[[Any, Any], Any]:
        import tensorflow as tf

        @tf.function(autograph=False, reduce_retracing=True)
        def evaluate(features: Any, labels: Any) -> Any:
            logits = self._logits(self._before(features, training=False))
            losses = cross_entropy(logits, tf.broadcast_to(labels, (self._n_models, tf.shape(labels)[0])), 0.0)
            return tf.reduce_sum(losses, 1), tf.argmax(logits, 2, tf.int32)

        return evaluate  # type: ignore[no-any-return, unused-ignore]

    def _spread(self, values: Sequence[float]) -> list[Any]:
        """A number for each network as a tensor for each variable, that goes with its shape."""
        import tensorflow as tf

        each = np.array(values, np.float32)
        wide = np.repeat(each, self._variables[1].shape[0] // self._n_models)
        later = each.reshape(-1, 1, 1)
        return [tf.constant(wide), tf.constant(wide), *(tf.constant(later) for _ in self._variables[2:])]


def _side_by_side(weights: Sequence[Weights]) -> Weights:
    """The weights of the networks as those of a stack."""
    kernel, bias, *later = (np.stack(values) for values in zip(*weights, strict=True))
    wide = np.moveaxis(kernel, 0, 1).reshape(kernel.shape[1], -1)
    return [wide, bias.reshape(-1), *(value if value.ndim == 3 else value[:, None] for value in later)]


def _apart(stacked: Weights, n_models: int) -> list[Weights]:
    """The inverse of `_side_by_side`; copies."""
    kernel, bias, *later = stacked
    kernels = np.moveaxis(kernel.reshape(len(kernel), n_models, -1), 1, 0)
    rest = [value if place % 2 == 0 else value[:, 0] for place, value in enumerate(later)]
    values = [kernels, bias.reshape(n_models, -1), *rest]
    return [[np.array(value[number]) for value in values] for number in range(n_models)]


def _assign(model: "keras.Model", weights: Weights) -> None:
    for variable, value in zip(model.trainable_variables, weights, strict=True):
        variable.assign(value)
