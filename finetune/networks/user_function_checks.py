"""Checks of a user's own network: no layers that make N ranks differ from one, no model that only its author can load."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featurize.errors import UsageError, first_line
from featurize.recipes.model_section import ModelSettings
from finetune.networks.keyed_dropout import with_keyed_dropout

if TYPE_CHECKING:
    import keras

_PROBE_ROWS = 4
_TOLERANCE = 1e-4  # for float32 sums in another order, relative to the largest value


def check_class(name: str, layer: Any) -> None:
    """Checks the class of a layer, operation or model in the network of the function `name`.

    Raises:
        UsageError: A model with it cannot be loaded without the user's code.
    """
    _refuse(name, layer, _fault_of_class(layer))


def check_layer(name: str, layer: Any) -> None:
    """Checks the behaviour in training of a built layer of the network of the function `name`; operations need no check.

    Raises:
        UsageError: It would differ with the number of ranks; the message says what to use instead.
    """
    import keras

    if isinstance(layer, keras.Layer):
        _refuse(name, layer, _fault_of_training(layer))


def check_own_model(settings: ModelSettings, model: "keras.Model", logits: "keras.Model") -> None:
    """Checks a whole model, made with the network of the user's own function, by running it on a few made-up rows.

    Raises:
        UsageError: There is nothing to train; a dropout layer's mask is not one for each row; rows are not independent of each
            other; the logits are probabilities; or the saved model cannot be loaded without the user's code.
    """
    prefix = f"`model.name` {settings.name}: the network"
    if not model.trainable_variables:
        raise UsageError(f"{prefix} has nothing to train.")
    try:
        with_keyed_dropout(logits)
    except UsageError as error:
        raise UsageError(f"`model.name` {settings.name}: {error}") from error
    rows = _made_up_rows(model)
    results = np.asarray(logits(rows))
    alone = np.concatenate([np.asarray(logits(rows[row : row + 1])) for row in range(_PROBE_ROWS)])
    if not _are_close(alone, results):
        raise UsageError(
            f"{prefix} gives a row other results when other rows are beside it. It must treat each row alone."
        )
    if results.min() >= 0 and _are_close(results.sum(axis=1), np.ones(_PROBE_ROWS)):
        raise UsageError(
            f"{prefix} gives probabilities, not logits. Let it end in a Dense layer with softmax, a Softmax layer, or neither."
        )
    if not _are_close(_reload_and_call(prefix, model, rows), np.asarray(model(rows))):
        raise UsageError(f"{prefix} gives other results after saving and loading.")


def _refuse(name: str, layer: Any, fault: str | None) -> None:
    if fault is not None:
        raise UsageError(f"`model.name` {name}: {type(layer).__name__} {layer.name!r} {fault}")


def _fault_of_class(layer: Any) -> str | None:
    """Why a layer's class cannot be part of a model that anybody can load in safe mode, or None."""
    import keras

    functional = type(keras.Model(inputs := keras.Input((1,)), inputs))
    if isinstance(layer, keras.Model) and type(layer) not in (keras.Sequential, functional):
        return "is a class of your own. Use a keras.Sequential or functional keras.Model, which can be loaded without your code."
    if not type(layer).__module__.startswith("keras."):
        return "is a class of your own. Use Keras's own layers and operations, which can be loaded without your code."
    if isinstance(layer, keras.layers.Lambda):
        return "contains code, and models with code are not loaded. Use Keras's own layers and operations."
    return None


def _fault_of_training(layer: Any) -> str | None:
    """Why a layer's training would depend on the number of ranks, or None."""
    import keras

    if any(
        isinstance(part, keras.layers.BatchNormalization | keras.layers.SpectralNormalization) and part.trainable
        for part in (layer, *layer._flatten_layers(include_self=False))
    ):
        return "depends on the rows that a rank holds. Use GroupNormalization or LayerNormalization, or freeze it."
    if _draws_random_numbers(layer):
        return (
            "draws random numbers that are not keyed by row. Use Dropout or SpatialDropout, or `training.augmentation`."
        )
    if layer.activity_regularizer is not None or any(variable.regularizer is not None for variable in layer.variables):
        return "has a regularizer, which Firn does not train with. Use `training.l2`."
    return None


def _draws_random_numbers(layer: Any) -> bool:
    """Whether a layer may draw random numbers in training, unless it is a dropout layer that Firn replaces by its own.

    Recurrent layers can, whatever their dropout is.
    """
    import keras

    dropouts = (keras.layers.SpatialDropout1D, keras.layers.SpatialDropout2D, keras.layers.SpatialDropout3D)
    if type(layer) in (keras.layers.Dropout, *dropouts):
        return False
    return len(layer.variables) > len(layer.weights)  # states of random generators are not weights


def _made_up_rows(model: "keras.Model") -> NDArray[Any]:
    random = np.random.default_rng(0)
    shape = (_PROBE_ROWS, *model.input.shape[1:])
    if model.input.dtype == "uint8":
        return random.integers(0, 256, shape, dtype=np.uint8)
    return random.standard_normal(shape, dtype=np.float32)


def _are_close(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return bool(np.allclose(one, other, rtol=0, atol=_TOLERANCE * max(1.0, float(np.abs(other).max()))))


def _reload_and_call(prefix: str, model: "keras.Model", rows: NDArray[Any]) -> NDArray[Any]:
    """The output of `model` for `rows` after saving it and loading it like a process that does not have the user's code."""
    from keras import saving

    with tempfile.TemporaryDirectory(prefix="firn-") as folder, _no_custom_objects():
        path = Path(folder) / "model.keras"
        try:
            model.save(path)
            loaded = saving.load_model(path, compile=False, safe_mode=True)
        except (ValueError, TypeError, KeyError, NotImplementedError) as error:
            raise UsageError(f"{prefix} cannot be loaded again without your code: {_cause_of(error)}") from error
        return np.asarray(loaded(rows))


def _cause_of(error: BaseException) -> str:
    """The first sentence of the original error: Keras wraps one around it for each layer and model."""
    while error.__context__ is not None:
        error = error.__context__
    return first_line(error).partition(". ")[0].rstrip(".") + "."


@contextmanager
def _no_custom_objects() -> Iterator[None]:
    """A block in which Keras does not know what user code has registered with it."""
    from keras import saving

    known = saving.get_custom_objects()
    kept = dict(known)
    known.clear()
    try:
        yield
    finally:
        known.update(kept)
