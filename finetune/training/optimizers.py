"""Optimizers by name, and the processing of gradients between the all-reduce and the update."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featurize.recipes.training_section import TrainingSettings

if TYPE_CHECKING:
    import keras


def make_optimizer(settings: TrainingSettings, *, steps: int) -> "keras.optimizers.Optimizer":
    """The optimizer that `settings` name. The learning rate is the recipe's, whatever the number of ranks.

    Args:
        settings: The recipe's `[training]` section.
        steps: Number of steps in the whole training, over which the cosine schedule falls to zero.

    Source: I. Loshchilov, F. Hutter: SGDR, Stochastic Gradient Descent with Warm Restarts, 2017, equation 5 (no restart).
    """
    import keras

    rate: Any = settings.learning_rate
    if settings.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(settings.learning_rate, steps)
    if settings.optimizer == "sgd":
        return keras.optimizers.SGD(rate, momentum=settings.momentum, nesterov=settings.nesterov)
    adaptive = {
        "adagrad": keras.optimizers.Adagrad,
        "adam": keras.optimizers.Adam,
        "rmsprop": keras.optimizers.RMSprop,
    }
    return adaptive[settings.optimizer](rate)


def group_by_layer(model: "keras.Model") -> list[list[int]]:
    """For each layer with trainable variables, their positions in `model.trainable_variables`."""
    place = {id(variable): number for number, variable in enumerate(model.trainable_variables)}
    layers = [layer for layer in model._flatten_layers(include_self=False) if layer._trainable_variables]
    return [[place[id(variable)] for variable in layer._trainable_variables] for layer in layers if layer.trainable]


def normalize_gradients(gradients: Sequence[Any], layers: Sequence[Sequence[int]]) -> list[Any]:
    """The gradients of each layer divided by their common Euclidean length; gradients that are all zero stay zero.

    Args:
        gradients: One gradient for each trainable variable.
        layers: The positions of each layer's variables, from `group_by_layer`.

    Source: Deeplearning4j's `RenormalizeL2PerLayer`, by its documentation.
    """
    import tensorflow as tf

    result = list(gradients)
    for places in layers:
        length = tf.sqrt(tf.add_n([tf.reduce_sum(tf.square(gradients[place])) for place in places]))
        for place in places:
            result[place] = tf.math.divide_no_nan(gradients[place], length)
    return result


def add_penalty(gradients: Sequence[Any], variables: Sequence[Any], l2: float) -> list[Any]:
    """The gradients plus those of `l2` times the sum of the squared kernels; biases are not penalised."""
    if not l2:
        return list(gradients)
    return [
        gradient + 2 * l2 * variable.value if len(variable.shape) > 1 else gradient
        for gradient, variable in zip(gradients, variables, strict=True)
    ]
