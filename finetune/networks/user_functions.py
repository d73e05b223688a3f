"""Networks from a user's own function, named in the recipe as module:function: found, called, and built into a Firn model."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurize.digests import sha256_bytes
from featurize.errors import UsageError, first_line
from featurize.recipes.model_section import ModelSettings
from finetune.networks.inputs import INPUT_LAYERS
from finetune.networks.user_function_checks import check_class, check_layer

if TYPE_CHECKING:
    import keras

_GIVEN = ("feature_shape", "n_classes", "seed")
_RESERVED_NAMES = (*INPUT_LAYERS, "shape", "probabilities")


def see_working_folder() -> None:
    """Makes modules of the working directory, where users keep their networks, importable, as ``python -m finetune`` does."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))


def source_digest(name: str) -> str:
    """SHA-256 of the source file of the module in `name`, which is ``module:function``; modules that it imports are not covered.

    Raises:
        UsageError: There is no such module, or it is not Python source.
    """
    module = name.partition(":")[0]
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError) as error:
        raise UsageError(_not_importable(name, error)) from error
    if spec is None:
        raise UsageError(_not_importable(name, ImportError(f"No module named {module!r}")))
    if spec.loader is None or not spec.has_location or not str(spec.origin).endswith(".py"):
        raise UsageError(f"`model.name` {name}: the module {module!r} is not a file of Python source.")
    return sha256_bytes(spec.loader.get_data(str(spec.origin)))  # type: ignore[attr-defined]  # a file, or one in a zip


def check_function(settings: ModelSettings) -> None:
    """Checks that the function that `settings` name exists and takes the arguments that it will be given.

    Raises:
        UsageError: It does not exist, or does not take them.
    """
    if taken := sorted(set(_GIVEN) & set(settings.options)):
        raise UsageError(f"`model.options` must not have {' and '.join(f'`{key}`' for key in taken)}: Firn sets them.")
    function = _find_function(settings.name)
    try:
        inspect.signature(function).bind(**dict.fromkeys((*_GIVEN, *settings.options)))
    except (TypeError, ValueError) as error:  # ValueError: the function has no signature
        wanted = ", ".join((*_GIVEN, *settings.options))
        raise UsageError(f"`model.name` {settings.name} must take the keyword arguments {wanted}: {error}.") from error


def apply_own(
    settings: ModelSettings, prepared: "keras.KerasTensor", *, feature_shape: Sequence[int], n_classes: int, seed: int
) -> "keras.KerasTensor":
    """The logits, ``float32 (n_images, n_classes)``, from the network of the user's own function.

    The function is called with ``feature_shape``, ``n_classes``, ``seed`` and `model.options`. It returns a Sequential or
    functional ``keras.Model`` from float32 features of that shape to logits, or to a softmax in the last layer, which is
    removed. Its layers, also those of models within models, become layers of Firn's model. Random numbers that it draws without
    a seed follow from `seed` too.

    Args:
        settings: The recipe's `[model]` section.
        prepared: The features, prepared by `finetune.networks.inputs.prepare_input`.
        feature_shape: Shape of one image's features.
        n_classes: Number of classes.
        seed: Seed of the initial weights.

    Raises:
        UsageError: The returned object cannot be part of a Firn model; the message names the fault.
    """
    import keras

    keras.utils.set_random_seed(seed)
    shape = tuple(feature_shape)
    network = _find_function(settings.name)(feature_shape=shape, n_classes=n_classes, seed=seed, **settings.options)
    _check_network(settings.name, network, shape)
    if tuple(prepared.shape[1:]) != shape:
        prepared = keras.layers.Reshape(shape, name="shape")(prepared)
    calls = _Calls(settings.name)
    try:
        output = keras.tree.flatten(calls.apply_model(network, prepared))[0]  # it may be a list of one
    except ValueError as error:  # Keras raises it where layers do not fit the shape
        message = f"does not take float32 features of shape {shape}: {first_line(error)}"
        raise UsageError(f"`model.name` {settings.name}: the network {message}") from error
    if tuple(output.shape) != (None, n_classes) or output.dtype != "float32":
        raise UsageError(
            f"`model.name` {settings.name}: the network must give float32 (n_images, {n_classes}). "
            f"Got {output.dtype} {tuple(output.shape)}."
        )
    return calls.without_softmax(output)


class _Calls:
    """Calls the layers of a user's model one by one on a tensor of Firn's model, and remembers the origin of each tensor."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._layer_names = set(_RESERVED_NAMES)
        # By the id of a tensor: the tensor, the operation that made it, and that operation's input.
        self._made: dict[int, tuple[Any, Any, Any]] = {}

    def apply_model(self, network: Any, tensor: Any) -> Any:
        """The output of `network` on `tensor`."""
        import keras

        check_class(self._name, network)
        if isinstance(network, keras.Sequential):
            for layer in network.layers:
                tensor = self._call(layer, tensor)
            return tensor
        return network._run_through_graph(tensor, call_fn=self._call)

    def without_softmax(self, output: Any) -> Any:
        """The logits behind `output`: `output` itself, if the network does not end in a softmax.

        Raises:
            UsageError: It ends in another activation.
        """
        import keras

        _, operation, given = self._made.get(id(output), (output, None, output))
        if isinstance(operation, keras.layers.Softmax) and operation.axis in (-1, 1):
            return given
        activation = getattr(operation, "activation", keras.activations.linear)
        if activation is keras.activations.softmax:
            if isinstance(operation, keras.layers.Activation):
                return given
            operation.activation = keras.activations.linear
        elif activation is not keras.activations.linear:
            found = getattr(activation, "__name__", type(activation).__name__)
            raise UsageError(
                f"`model.name` {self._name}: the last layer, {operation.name!r}, must give logits or a softmax. Got {found}."
            )
        return output

    def _call(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        import keras

        if isinstance(operation, keras.Model):
            if given := [key for key, value in kwargs.items() if value is not None]:
                raise UsageError(
                    f"`model.name` {self._name}: the model {operation.name!r} inside the network is called with "
                    f"{', '.join(given)}. Freeze it with `trainable = False` instead."
                )
            return self.apply_model(operation, args[0])
        check_class(self._name, operation)
        if not any(operation is known for _, known, _ in self._made.values()):
            self._rename(operation)
        output = operation(*args, **kwargs)
        check_layer(self._name, operation)
        self._made[id(output)] = (output, operation, args[0] if args else None)
        return output

    def _rename(self, operation: Any) -> None:
        """Gives a layer a name that is unique in the whole model."""
        while operation.name in self._layer_names:
            operation.name += "_own"
        self._layer_names.add(operation.name)


def _find_function(name: str) -> Callable[..., Any]:
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, SyntaxError) as error:
        raise UsageError(_not_importable(name, error)) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UsageError(f"`model.name` {name}: the module {module_name!r} has no function {function_name!r}.")
    return function  # type: ignore[no-any-return]


def _not_importable(name: str, error: Exception) -> str:
    return (
        f"`model.name` {name}: the module {name.partition(':')[0]!r} cannot be imported: {first_line(error)}. "
        "It must be on the Python path of every rank, through PYTHONPATH or, with Spark, --py-files."
    )


def _check_network(name: str, network: Any, shape: tuple[int, ...]) -> None:
    """Checks the returned object as far as possible without calling it."""
    import keras

    if not isinstance(network, keras.Model):
        raise UsageError(f"`model.name` {name} must return a keras.Model. Got {type(network).__name__}.")
    check_class(name, network)
    if isinstance(network, keras.Sequential) and not network.built:
        return  # its layers adapt to the shape they get
    if len(network.inputs) != 1 or len(network.outputs) != 1:
        found = f"{len(network.inputs)} inputs and {len(network.outputs)} outputs"
        raise UsageError(f"`model.name` {name}: the network must have one input and one output. Got {found}.")
    expected, dtype = network.inputs[0].shape[1:], network.inputs[0].dtype
    fits = len(expected) == len(shape) and all(one in (None, other) for one, other in zip(expected, shape, strict=True))
    if not fits or dtype != "float32":
        raise UsageError(
            f"`model.name` {name}: the network must take float32 features of shape {shape}. Got {dtype} {tuple(expected)}."
        )
