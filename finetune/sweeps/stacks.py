"""The variables of many dense networks side by side, and the graphs that train and evaluate them as one."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featurize.engines.tensorflow_log import start_xla
from featurize.recipes.training_section import TrainingSettings
from finetune.networks.build import logits_of
from finetune.rows.batches import begin_epoch, take_batch
from finetune.rows.loader import Data
from finetune.training.optimizers import make_optimizer
from finetune.training.state import Entry, Weights
from finetune.training.steps import cross_entropy
from finetune.training.validation import count_rows, scores_of

if TYPE_CHECKING:
    import keras

_OWN = ("learning_rate", "l2", "best_by", "early_stopping")
"""The settings that may differ between the networks of one stack."""


@dataclass(frozen=True)
class Chain:
    """A network of dense layers one after another.

    Attributes:
        before: Preparation of the features, without trainable weights: float32 ``(n_images, feature_dim)``.
        layers: The dense layers, with ReLU after all but the last.
    """

    before: "keras.Model"
    layers: "list[keras.layers.Dense]"


def stack_key(settings: TrainingSettings) -> Hashable | None:
    """The settings that stacked trainings must share, besides the features and the network; None: they cannot be stacked."""
    if settings.augmentation is not None or settings.gradient_normalization is not None:
        return None
    return repr(sorted(settings.model_dump(exclude=set(_OWN)).items()))


def find_chain(model: "keras.Model") -> Chain | None:
    """The dense layers of `model`, or None if it has anything else and cannot be stacked."""
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


class Stacks:
    """The stacks of a process, by the settings that their graphs depend on."""

    def __init__(self) -> None:
        self._stacks: dict[Hashable, Stack] = {}

    @property
    def count(self) -> int:
        """Stacks that were made so far."""
        return len(self._stacks)

    def take(
        self,
        models: "Sequence[keras.Model]",
        settings: Sequence[TrainingSettings],
        *,
        class_weights: Sequence[float] | None,
        steps: int,
    ) -> "Stack":
        """A stack of `models`, ready to be trained with `steps` steps an epoch."""
        chain = find_chain(models[0])
        if chain is None:
            raise ValueError("only chains of dense layers can be stacked.")
        weights = [model.get_weights() for model in models]
        before = [(type(layer).__name__, layer.get_config()) for layer in chain.before.layers]
        shared = stack_key(settings[0].model_copy(update={"seed": 0}))
        key = repr(([len(models), *(value.shape for value in weights[0])], before, shared, class_weights, steps))
        if key not in self._stacks:
            stack = Stack(chain.before, weights, settings[0], class_weights=class_weights, steps=steps)
            self._stacks[key] = stack
        self._stacks[key].load(weights, settings)
        return self._stacks[key]


class Stack:
    """The variables of K networks side by side, and the functions that train and evaluate them.

    The first layer is of shape ``(feature_dim, K x units)``, its bias ``(K x units,)``; later layers are ``(K, units, units)``,
    their biases ``(K, 1, units)``.

    Args:
        before: Preparation of the features.
        weights: The weights of each network.
        settings: The settings of one network, for the values that all share.
        class_weights: Weight of each class, in the order of `label_index`.
        steps: Number of steps in an epoch.
    """

    def __init__(
        self,
        before: "keras.Model",
        weights: Sequence[Weights],
        settings: TrainingSettings,
        *,
        class_weights: Sequence[float] | None,
        steps: int,
    ) -> None:
        import keras
        import tensorflow as tf

        self._n_models, self._settings, self._before, self._steps = len(weights), settings, before, steps
        self._n_classes = len(weights[0][-1])
        self._variables = [keras.Variable(value) for value in _side_by_side(weights)]
        unit = settings.model_copy(update={"learning_rate": 1.0})
        self._optimizer = make_optimizer(unit, steps=steps * unit.epochs)
        self._optimizer.build(self._variables)
        self._optimizer_start = [variable.numpy() for variable in self._optimizer.variables]
        self._class_weights = None if class_weights is None else tf.constant(class_weights, tf.float32)
        ones = [1.0] * self._n_models
        self._is_linear = settings.optimizer == "sgd"
        self._scales = tf.Variable(ones)
        self._rates, self._penalties = ([tf.Variable(value) for value in self._spread(ones)] for _ in range(2))
        self._run, self._evaluate = self._make_run(), self._make_evaluation()

    def load(self, weights: Sequence[Weights], settings: Sequence[TrainingSettings]) -> None:
        """Loads these networks, at the start of their training."""
        self._settings = settings[0]
        rates = [own.learning_rate for own in settings]
        scales = rates if self._is_linear else [1.0] * len(settings)
        doubled = [2 * scale * own.l2 for scale, own in zip(scales, settings, strict=True)]
        variables = [*self._variables, *self._optimizer.variables, self._scales, *self._rates, *self._penalties]
        starts = [*_side_by_side(weights), *self._optimizer_start, scales, *self._spread(rates), *self._spread(doubled)]
        for variable, value in zip(variables, starts, strict=True):
            variable.assign(value)

    def train_epoch(self, train: Data, epoch: int) -> NDArray[np.float64]:
        """Trains all networks for one epoch.

        Returns:
            float64 ``(n_steps, K, 3)``: before each step, loss and right answers, summed over its rows; and the number of rows.
        """
        import tensorflow as tf

        seed, size = self._settings.seed, self._settings.batch_size
        batches = train.batches(epoch, seed=seed, global_batch_size=size)
        with train.failures():
            sums: NDArray[np.float64] = self._run(begin_epoch(batches), tf.constant(self._steps)).numpy()
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
        """The current trainable weights of each network."""
        return _apart([variable.numpy() for variable in self._variables], self._n_models)

    def _make_run(self) -> Callable[..., Any]:
        import tensorflow as tf

        start_xla()

        @tf.function(jit_compile=True, autograph=False)
        def step(features: Any, labels: Any, global_rows: Any) -> Any:
            gradients, sums = self._gradients(features, labels, global_rows)
            self._update(gradients)
            return tf.concat([sums, tf.fill((self._n_models, 1), global_rows)], 1)

        def body(source: Any, number: Any, rows: Any) -> Any:
            features, labels, _, global_rows = take_batch(source, number)
            return number + 1, rows.write(number, step(features, labels, global_rows))

        @tf.function(autograph=False)
        def run(source: Any, n_steps: Any) -> Any:
            rows = tf.TensorArray(tf.float32, n_steps, element_shape=(self._n_models, 3))
            take = partial(body, source)
            done = tf.while_loop(lambda number, _: number < n_steps, take, (0, rows), parallel_iterations=1)
            return tf.cast(done[1].stack(), tf.float64)

        return run  # type: ignore[no-any-return, unused-ignore]

    def _gradients(self, features: Any, labels: Any, global_rows: Any) -> tuple[list[Any], Any]:
        """Gradients of the scaled mean losses; and float32 ``(K, 2)``, each network's summed loss and right answers."""
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
            total = tf.reduce_sum(sums * self._scales) / global_rows
        gradients = tape.gradient(total, [variable.value for variable in self._variables])
        right = tf.reduce_sum(tf.cast(tf.argmax(logits, 2, tf.int32) == labels, tf.float32), 1)
        return gradients, tf.stack([sums, right], 1)

    def _logits(self, prepared: Any) -> Any:
        """The logits, ``(K, n, n_classes)``, of features ``(n, feature_dim)``."""
        import tensorflow as tf

        kernel, bias, *later = self._variables
        wide = tf.matmul(prepared, kernel.value) + bias.value
        tensor = tf.transpose(tf.reshape(wide, (-1, self._n_models, wide.shape[1] // self._n_models)), (1, 0, 2))
        for kernel, bias in zip(later[::2], later[1::2], strict=True):
            tensor = tf.matmul(tf.nn.relu(tensor), kernel.value) + bias.value
        return tensor

    def _update(self, gradients: Sequence[Any]) -> None:
        """Takes a step for every network, with its own learning rate and penalty.

        Operations on every weight take longer than the matrix products. So the number of rows, and with an optimizer that is
        linear in the gradient the learning rates too, are multiplied into the losses and cost nothing here.
        """
        factor = self._optimizer.learning_rate
        for place, (variable, gradient, rate) in enumerate(zip(self._variables, gradients, self._rates, strict=True)):
            if place % 2 == 0:  # a kernel
                gradient = gradient + self._penalties[place] * variable.value
            self._optimizer.update_step(gradient, variable, factor if self._is_linear else factor * rate)
        self._optimizer.iterations.assign_add(1)

    def _make_evaluation(self) -> Callable[[Any, Any], Any]:
        import tensorflow as tf

        @tf.function(autograph=False, reduce_retracing=True)
        def evaluate(features: Any, labels: Any) -> Any:
            logits = self._logits(self._before(features, training=False))
            losses = cross_entropy(logits, tf.broadcast_to(labels, (self._n_models, tf.shape(labels)[0])), 0.0)
            return tf.reduce_sum(losses, 1), tf.argmax(logits, 2, tf.int32)

        return evaluate  # type: ignore[no-any-return, unused-ignore]

    def _spread(self, values: Sequence[float]) -> Weights:
        """A number for each network as an array for each variable, shaped to broadcast with it."""
        each = np.array(values, np.float32)
        wide = np.repeat(each, self._variables[1].shape[0] // self._n_models)
        return [wide, wide, *(each.reshape(-1, 1, 1) for _ in self._variables[2:])]


def _side_by_side(weights: Sequence[Weights]) -> Weights:
    """The weights of the networks as those of a stack."""
    kernel, bias, *later = (np.stack(values) for values in zip(*weights, strict=True))
    wide = np.moveaxis(kernel, 0, 1).reshape(kernel.shape[1], -1)
    return [wide, bias.reshape(-1), *(value if value.ndim == 3 else value[:, None] for value in later)]


def _apart(stacked: Weights, n_models: int) -> list[Weights]:
    """The inverse of `_side_by_side`; returns copies."""
    kernel, bias, *later = stacked
    kernels = np.moveaxis(kernel.reshape(len(kernel), n_models, -1), 1, 0)
    rest = [value if place % 2 == 0 else value[:, 0] for place, value in enumerate(later)]
    values = [kernels, bias.reshape(n_models, -1), *rest]
    return [[np.array(value[number]) for value in values] for number in range(n_models)]
