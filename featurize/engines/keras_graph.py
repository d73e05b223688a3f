"""Where a Keras network may be cut: by its graph, in which a layer may be called more than once and models may hold models.

conv5            a layer that is called once
act#2            the second call of a layer, in the order of the graph
split[1]         the second of several outputs, counted from 0
base/conv5       a layer of the model `base` that is a layer of the network, at any depth
"""

import difflib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featurize.errors import UsageError
from featurize.recipes.backbone_section import BackboneSettings
from featurize.shortening import name_some

if TYPE_CHECKING:
    import keras

_STEP = re.compile(r"(?P<layer>.+?)(?:#(?P<call>[1-9]\d*))?(?:\[(?P<output>\d+)\])?")


def layers_by_name(network: "keras.Model", settings: BackboneSettings) -> dict[str, Any]:
    """The layers of a network by name, in its order; those of a named network as in a process that has built nothing before.

    Keras numbers layers without a name through the whole process: the pooling of a second MobileNet is
    `global_average_pooling2d_1`. Here it is `global_average_pooling2d` again.
    """
    if settings.is_keras_file:
        return {layer.name: layer for layer in network.layers}
    numbered = [(*_number_of(layer), layer) for layer in network.layers]
    first: dict[str, int] = {}
    for base, number, _ in numbered:
        first[base] = min(number, first.get(base, number))
    return {
        layer.name if number < 0 else base + (f"_{number - first[base]}" if number > first[base] else ""): layer
        for base, number, layer in numbered
    }


def _number_of(layer: Any) -> tuple[str, int]:
    """The name that Keras makes from the class of a layer, and the number behind it; -1 if its name is its own."""
    base = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", type(layer).__name__)
    base = re.sub("([a-z])([A-Z])", r"\1_\2", base).lower()
    match = re.fullmatch(rf"{re.escape(base)}(?:_(\d+))?", layer.name)
    return (base, int(match[1] or 0)) if match else (layer.name, -1)


def own_output(network: "keras.Model", settings: BackboneSettings) -> Any:
    """The one output of a network.

    Raises:
        UsageError: It has several.
    """
    if len(network.outputs) > 1:
        makers = [str(output._keras_history.operation.name) for output in network.outputs]
        raise UsageError(
            f"`backbone.layer` is required: {settings.name} has {len(makers)} outputs, of the layers {name_some(makers)}."
        )
    return network.outputs[0]


def find_output(network: "keras.Model", name: str, settings: BackboneSettings) -> Any:
    """The output of a layer, named as above, as a tensor of the network.

    Raises:
        UsageError: There is no such layer, or it has several calls or outputs and the name does not choose one.
    """
    named = layers_by_name(network, settings)
    first, _, inner = (name, "", "") if name in named else name.partition("/")
    step = _STEP.fullmatch(first)
    layer = named.get(step["layer"]) if step is not None else None
    if step is None or layer is None:
        raise _no_such_layer(network, name, settings)
    calls = [node for node in nodes_of(network) if node.operation is layer]
    what = f"`backbone.layer`: {step['layer']} of {settings.name}"
    if step["call"] is None and len(calls) > 1:
        raise UsageError(
            f"{what} is called {len(calls)} times. Choose one: {_choices(step['layer'], '#{}', 1, len(calls))}."
        )
    number = int(step["call"] or 1)
    if number > len(calls):
        raise UsageError(f"{what} is called {len(calls)} times. Got {name!r}.")
    node = calls[number - 1]
    if inner:
        return _inside(layer, node, inner, settings, what=what)
    if step["output"] is None and len(node.outputs) > 1:
        raise UsageError(
            f"{what} has {len(node.outputs)} outputs. Choose one: {_choices(first, '[{}]', 0, len(node.outputs))}."
        )
    place = int(step["output"] or 0)
    if place >= len(node.outputs):
        raise UsageError(f"{what} has {len(node.outputs)} outputs, counted from 0. Got {name!r}.")
    return node.outputs[place]


def _inside(layer: Any, node: Any, inner: str, settings: BackboneSettings, *, what: str) -> Any:
    """The output of a layer in a model that is a layer, for what this model is given in the network."""
    import keras

    if not is_model(layer):
        raise UsageError(f"{what} is a layer, not a model: there is nothing in it that could be named.")
    if len(layer.inputs) != 1:
        raise UsageError(f"{what} has {len(layer.inputs)} inputs: it cannot be cut inside.")
    cut = keras.Model(layer.inputs[0], find_output(layer, inner, settings))
    return cut(node.input_tensors[0])


def is_model(layer: Any) -> bool:
    """Whether a layer is a model whose graph is known, so that it can be cut inside."""
    return getattr(layer, "layers", None) is not None and getattr(layer, "inputs", None) is not None


def can_be_named(layer: str, text: str) -> bool:
    """Whether `text`, the name of a layer with a call or an output, is read as this layer: its own name may look like both."""
    step = _STEP.fullmatch(text)
    return step is not None and step["layer"] == layer and "/" not in text


def nodes_of(network: Any) -> list[Any]:
    """The calls of layers in a network, those that are computed first before others."""
    graph = getattr(network, "_functional", None) or network  # of a sequential model
    by_depth: dict[int, list[Any]] = graph._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]


def _no_such_layer(network: "keras.Model", name: str, settings: BackboneSettings) -> UsageError:
    names = _all_names(network, settings)
    close = difflib.get_close_matches(name, names, n=3)
    hint = f"Did you mean {' or '.join(close)}?" if close else f"Its last layers are {', '.join(names[-8:])}."
    return UsageError(f"`backbone.layer`: {settings.name} has no layer {name!r}. {hint}")


def _all_names(network: Any, settings: BackboneSettings) -> list[str]:
    """The names of all layers, those inside of models too."""
    names = list[str]()
    for name, layer in layers_by_name(network, settings).items():
        inside: Sequence[str] = _all_names(layer, settings) if getattr(layer, "layers", None) else ()
        names += [*(f"{name}/{one}" for one in inside), name]
    return names


def _choices(name: str, pattern: str, first: int, count: int) -> str:
    return name_some([name + pattern.format(number) for number in range(first, first + count)])
