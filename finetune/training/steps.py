"""The steps of a training as graphs: gradients, one all-reduce for all of them, the update; many steps in a call.

N ranks with batches of B rows take the same steps as one rank with batches of N x B rows: every gradient is the sum over the
rows of the global batch, divided by their number, whatever share of them a rank holds.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from featurize.engines.tensorflow_log import start_xla
from featurize.recipes.training_section import TrainingSettings
from finetune.networks.augmentation import augment
from finetune.networks.build import logits_of
from finetune.networks.keyed_dropout import with_keyed_dropout
from finetune.networks.row_random import row_keys
from finetune.ranks.communicator import Communicator
from finetune.rows.batches import take_batch
from finetune.training.optimizers import add_penalty, group_by_layer, normalize_gradients

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

COLUMNS = ("loss", "right", "rows", "data_seconds", "compute_seconds", "all_reduce_seconds")
_COMPILED_LAYERS = {
    "Activation",
    "Dense",
    "Dropout",
    "Flatten",
    "InputLayer",
    "LayerNormalization",
    "Normalization",
    "ReLU",
    "Rescaling",
    "Reshape",
    "Softmax",
    "UnitNormalization",
}
TrainSteps = Callable[[Any, Any, Any, Any], "tf.Tensor"]


def make_train_steps(
    model: "keras.Model",
    optimizer: "keras.optimizers.Optimizer",
    settings: TrainingSettings,
    ranks: Communicator,
    *,
    class_weights: Sequence[float] | None = None,
) -> TrainSteps:
    """A function that takes a number of steps on all ranks, in one call.

    Its arguments are the source from `batches.begin_epoch`, the number of steps already taken in the epoch, the number to take,
    and the epoch. It returns ``float64 (n_steps, 6)``, the `COLUMNS`: loss and number of right answers before each step, summed
    over the rows of all ranks; the number of these rows; and the seconds that this rank waited for its batch (for rows in memory:
    gathered and augmented it), computed, and spent in the all-reduce, including waiting for other ranks.

    The loss is the cross-entropy with smoothed labels, each row times the weight of its class. The objective is its sum over
    the rows of the global batch, divided by their number, plus the penalty of `l2`, which is not part of the returned loss.
    """
    import tensorflow as tf

    training_model, dropout = with_keyed_dropout(logits_of(model))
    variables = model.trainable_variables
    layers = group_by_layer(model) if settings.gradient_normalization == "layer" else []
    weights_of_classes = None if class_weights is None else tf.constant(class_weights, tf.float32)

    def gradients_of(features: Any, labels: Any, row_ids: Any, epoch: Any) -> list[Any]:
        """Gradients of the loss, summed over this rank's rows; the last element is (loss, right answers)."""
        known = tf.maximum(labels, 0)
        weights = tf.cast(labels >= 0, tf.float32)
        if weights_of_classes is not None:
            weights *= tf.gather(weights_of_classes, known)
        with tf.GradientTape() as tape, dropout.keyed(row_keys(settings.seed, epoch, row_ids)):
            logits = training_model(features, training=True)
            losses = cross_entropy(logits, known, settings.label_smoothing)
            loss = tf.reduce_sum(weights * losses)
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        right = tf.reduce_sum(tf.cast(tf.argmax(logits, 1, tf.int32) == labels, tf.float32))
        return [*gradients, tf.stack([loss, right])]

    def update(sums: Sequence[Any], global_rows: Any) -> None:
        gradients = [gradient / global_rows for gradient in sums]
        if layers:
            gradients = normalize_gradients(gradients, layers)
        optimizer.apply(add_penalty(gradients, variables, settings.l2), variables)

    # All ranks or none: compiled code rounds differently, and ranks whose updates differ would drift apart, bit by bit.
    (least,) = ranks.minimum([tf.constant(int(is_compiled(model)))])
    step = _compose_step(gradients_of, update, ranks, compiled=bool(least))

    @tf.function(autograph=False)
    def run(source: Any, first: Any, n_steps: Any, epoch: Any) -> Any:
        def body(number: Any, rows: Any) -> Any:
            asked = tf.timestamp()
            with tf.control_dependencies([asked]):
                features, labels, row_ids, global_rows = take_batch(source, first + number)
                if settings.augmentation is not None:
                    features = augment(features, row_keys(settings.seed, epoch, row_ids), settings.augmentation)
            with tf.control_dependencies([features, global_rows]):
                began = tf.timestamp()
            with tf.control_dependencies([began]):
                metrics, reducing, done = step(features, labels, row_ids, global_rows, epoch)
            counts = tf.cast(tf.concat([metrics, global_rows[None]], 0), tf.float64)
            seconds = tf.stack([began - asked, done - began - reducing, reducing])
            return number + 1, rows.write(number, tf.concat([counts, seconds], 0))

        rows = tf.TensorArray(tf.float64, n_steps, element_shape=(len(COLUMNS),))
        return tf.while_loop(lambda number, _: number < n_steps, body, (0, rows), parallel_iterations=1)[1].stack()

    return run  # type: ignore[no-any-return, unused-ignore]


def _compose_step(
    gradients_of: Callable[..., list[Any]],
    update: Callable[[Sequence[Any], Any], None],
    ranks: Communicator,
    *,
    compiled: bool,
) -> Callable[..., Any]:
    """One step: returns (loss, right answers), the seconds of the all-reduce, and the time at which the step was done.

    A single rank runs it all in one graph. Several ranks need two, as XLA cannot compile the all-reduce between them; there is
    one all-reduce for all gradients and metrics, since ten small ones take ten times as long.
    """
    import tensorflow as tf

    if compiled:
        start_xla()
    # Not inlined, so that their results are ready only once they are done; otherwise the times would be wrong.
    function = partial(tf.function, autograph=False, jit_compile=compiled, experimental_attributes={"_noinline": True})

    @function
    def alone(features: Any, labels: Any, row_ids: Any, global_rows: Any, epoch: Any) -> Any:
        *gradients, metrics = gradients_of(features, labels, row_ids, epoch)
        update(gradients, global_rows)
        return metrics

    own_sums = function(gradients_of)

    @function
    def apply_sums(sums: Any, global_rows: Any) -> Any:
        *gradients, metrics = sums
        update(gradients, global_rows)
        return metrics

    def step_alone(features: Any, labels: Any, row_ids: Any, global_rows: Any, epoch: Any) -> Any:
        metrics = alone(features, labels, row_ids, global_rows, epoch)
        with tf.control_dependencies([metrics]):
            return metrics, tf.constant(0.0, tf.float64), tf.timestamp()

    def step_of_many(features: Any, labels: Any, row_ids: Any, global_rows: Any, epoch: Any) -> Any:
        own = own_sums(features, labels, row_ids, epoch)
        with tf.control_dependencies(own):
            before = tf.timestamp()
        with tf.control_dependencies([before]):
            sums = ranks.sum(own)
        with tf.control_dependencies(sums):
            after = tf.timestamp()
        with tf.control_dependencies([after]):
            metrics = apply_sums(sums, global_rows)
        with tf.control_dependencies([metrics]):
            return metrics, after - before, tf.timestamp()

    return step_alone if ranks.size == 1 else step_of_many


def make_evaluation(model: "keras.Model") -> Callable[[Any, Any], tuple["tf.Tensor", "tf.Tensor"]]:
    """A function of features and labels: the summed cross-entropy, ``float32 ()``, and the predictions, ``int32 (n,)``."""
    import tensorflow as tf

    logits_model = logits_of(model)

    @tf.function(autograph=False, reduce_retracing=True)
    def evaluate(features: Any, labels: Any) -> Any:
        logits = logits_model(features, training=False)
        return tf.reduce_sum(cross_entropy(logits, labels, 0.0)), tf.argmax(logits, 1, tf.int32)

    return evaluate  # type: ignore[no-any-return, unused-ignore]


def is_compiled(model: "keras.Model") -> bool:
    """Whether XLA compiles the steps.

    For dense networks and several threads this saves a fifth of a step; with one thread it costs a tenth, and XLA's gradients of
    convolutions are slow on CPUs.
    """
    layers = model._flatten_layers(include_self=False)
    return n_threads() > 1 and all(type(layer).__name__ in _COMPILED_LAYERS for layer in layers)


def n_threads() -> int:
    """The number of threads that an operation can use."""
    import tensorflow as tf

    return tf.config.threading.get_intra_op_parallelism_threads() or len(os.sched_getaffinity(0))


def cross_entropy(logits: Any, labels: Any, smoothing: float) -> Any:
    """The cross-entropy of each row; classes are the last axis of `logits`.

    Source of the label smoothing: C. Szegedy et al., Rethinking the Inception Architecture, 2016, section 7.
    """
    import tensorflow as tf

    plain = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    if not smoothing:
        return plain
    of_all = tf.reduce_logsumexp(logits, -1) - tf.reduce_mean(logits, -1)
    return (1 - smoothing) * plain + smoothing * of_all
