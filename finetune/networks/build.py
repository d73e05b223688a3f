"""The networks that are trained on features. Each ends in `probabilities`, a softmax over the logits, which are trained."""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from featurize.errors import UsageError
from featurize.recipes.model_section import UNFROZEN, ModelSettings
from finetune.networks.convnets import CONVNETS, apply_convnet, apply_hidden, size_faults
from finetune.networks.inputs import Statistics, flatten, input_faults, prepare_input
from finetune.networks.user_function_checks import check_own_model
from finetune.networks.user_functions import apply_own, check_function

if TYPE_CHECKING:
    import keras

LOGITS = "logits"
PROBABILITIES = "probabilities"
DEFAULT_HIDDEN = (256,)
"""Units of the hidden layers of `mlp_head` where the recipe names none."""
_MNIST_HIDDEN = (500, 100)


def model_faults(settings: ModelSettings, *, feature_shape: Sequence[int], feature_dtype: str) -> list[str]:
    """Why the model in `settings` cannot be trained on such features, a line for each fault. Needs no TensorFlow.

    Raises:
        UsageError: The user's own function cannot be found or called.
    """
    faults = input_faults(settings, feature_dtype)
    if settings.name in CONVNETS and feature_dtype == "uint8":
        faults += size_faults(settings.name, feature_shape)
    if settings.is_own_function:
        check_function(settings)
    return faults


def build_model(
    settings: ModelSettings,
    *,
    feature_shape: Sequence[int],
    feature_dtype: str,
    n_classes: int,
    seed: int,
    statistics: Statistics | None = None,
) -> "keras.Model":
    """The untrained model that `settings` describe.

    Input shape: features as the feature set stores them: ``float32 (n_images, feature_dim)``, or
    ``uint8 (n_images, height, width, channels)`` for `pixels`.
    Output shape: probabilities, ``float32 (n_images, n_classes)``.

    Args:
        settings: The recipe's `[model]` section.
        feature_shape: Shape of one image's features.
        feature_dtype: "float32" or "uint8".
        n_classes: Number of classes.
        seed: Seed of the initial weights, which are Glorot-uniform; each layer has a seed of its own.
        statistics: Statistics of the training split, where `input_statistics.needs_statistics`; otherwise ignored.

    Raises:
        UsageError: There are `model_faults`; or the network of the user's function cannot be trained exactly, or saved.
    """
    import keras

    if settings.name == UNFROZEN:
        raise ValueError(f"{UNFROZEN} is built by finetune.networks.unfrozen.build_unfrozen, from a trained head.")
    if faults := model_faults(settings, feature_shape=feature_shape, feature_dtype=feature_dtype):
        raise UsageError("; ".join(faults) + ".")
    inputs, prepared = prepare_input(
        settings, feature_shape=feature_shape, feature_dtype=feature_dtype, statistics=statistics
    )
    if settings.is_own_function:
        logits = apply_own(settings, prepared, feature_shape=feature_shape, n_classes=n_classes, seed=seed)
    else:
        seeds = layer_seeds(seed)
        last = _apply_hidden_layers(settings, prepared, seeds)
        initializer = keras.initializers.GlorotUniform(seed=next(seeds))
        logits = keras.layers.Dense(n_classes, kernel_initializer=initializer, name=LOGITS)(last)
    name = settings.name.replace(":", "_").replace(".", "_")
    model = keras.Model(inputs, keras.layers.Softmax(name=PROBABILITIES)(logits), name=name)
    if settings.is_own_function:
        check_own_model(settings, model, logits_of(model))
    return model


def logits_of(model: "keras.Model") -> "keras.Model":
    """`model` without its softmax, sharing its weights: used in training, as the loss on logits is exact."""
    import keras

    return keras.Model(model.input, model.get_layer(PROBABILITIES).input)


def layer_seeds(seed: int) -> Iterator[int]:
    """A seed for each layer that draws random numbers, in order, so that layers of equal shape differ."""
    return (int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) for number in count())


def _apply_hidden_layers(
    settings: ModelSettings, prepared: "keras.KerasTensor", seeds: Iterator[int]
) -> "keras.KerasTensor":
    """The output of all layers but the last of one of Firn's own networks: ``float32 (n_images, units)``."""
    if settings.name in CONVNETS:
        return apply_convnet(settings.name, prepared, seeds)
    hidden: Sequence[int] = ()
    if settings.name == "mnist_mlp":
        hidden = _MNIST_HIDDEN
    if settings.name == "mlp_head":
        hidden = settings.hidden or DEFAULT_HIDDEN
    return apply_hidden(flatten(prepared), hidden, settings.dropout or 0.0, seeds)
