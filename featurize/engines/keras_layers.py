"""The layers of a Keras network: how `backbone.layer` names each, the shape of its output, its parameters and what it computes.

Nothing is computed: shapes come from the graph, so a network of any size is listed for the size that is asked for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from featurize.engines.keras_graph import can_be_named, is_model, layers_by_name, nodes_of
from featurize.engines.parts import NetworkLayer, is_one_name
from featurize.errors import UsageError, first_line
from featurize.recipes.backbone_section import BackboneSettings

if TYPE_CHECKING:
    import keras

Shape = tuple[int | None, ...]
_KERNELS = {  # the weights of a layer that are used at each position of its output
    "Conv1D": ("kernel",),
    "Conv2D": ("kernel",),
    "Conv3D": ("kernel",),
    "DepthwiseConv1D": ("kernel",),
    "DepthwiseConv2D": ("kernel",),
    "SeparableConv1D": ("depthwise_kernel", "pointwise_kernel"),
    "SeparableConv2D": ("depthwise_kernel", "pointwise_kernel"),
    "Dense": ("kernel",),
}
_PRODUCTS = {  # layers and operations that multiply without weights of their own
    *("Attention", "AdditiveAttention", "Dot", "DotProductAttention"),
    *("Matmul", "Einsum", "Tensordot", "Inner", "Outer", "Vdot", "Kron", "Cross", "Correlate"),
    *("Conv", "DepthwiseConv", "SeparableConv", "ConvTranspose"),
}


def has_kernel(layer: Any) -> bool:
    """Whether a layer is of a kind whose operations are counted from the shape of its output."""
    return type(layer).__name__ in _KERNELS


def count_layer(layer: Any, shape: Sequence[int | None]) -> int | None:
    """Multiplications, each with its addition, of one call of a layer for one image, from the shape of its output.

    Counted are convolutions and dense layers: each weight of their kernels is used once at every position of the output. The
    rest (biases, normalization, activations, pooling) counts as 0, the usual convention: with it VGG16 has 15.5 billion and
    ResNet50 3.9 billion.
    Source: Simonyan and Zisserman (2015) and He et al. (2016) for the layers; Howard et al., MobileNets (2017), section 3.1, for
    the count of a convolution and of a depthwise separable one.

    Args:
        layer: a layer that is no model, or an operation of `keras.ops`.
        shape: of its output, with the batch axis.

    Returns:
        The number; None if a length of the output is not known, or if the layer is of a kind that is not known: it has weights of
        two or more dimensions and is none of these, multiplies what it is given, or is not Keras's own.
    """
    kind, module = type(layer).__name__, type(layer).__module__
    if kind in _KERNELS:
        is_channels_first = kind != "Dense" and getattr(layer, "data_format", None) == "channels_first"
        positions = shape[2:] if is_channels_first else shape[1:-1]
        known = [length for length in positions if length is not None]
        weights = sum(math.prod(getattr(layer, name).shape) for name in _KERNELS[kind])
        return math.prod(known) * weights if shape and len(known) == len(positions) else None
    is_keras = module.partition(".")[0] == "keras" and not module.endswith(".ops.linalg")
    if kind in _PRODUCTS or not is_keras or any(len(weight.shape) > 1 for weight in getattr(layer, "weights", ())):
        return None
    return 0


def list_keras_layers(
    network: "keras.Model", settings: BackboneSettings, *, height: int, width: int
) -> tuple[NetworkLayer, ...]:
    """The layers of a network in the order of its graph, those of models in it before the model itself; inputs are left out.

    The parameters add up to those of the network. A model in the network adds none to those of its layers.

    Args:
        network: one that takes one RGB image.
        settings: what it was opened with; decides how its layers are named.
        height: of the image in pixels.
        width: of the image in pixels.

    Raises:
        UsageError: It does not take an image of this size.
    """
    walk = _Walk(settings)
    outputs = network.outputs
    own = _place_of(outputs[0]) if len(outputs) == 1 else None
    try:
        walk.visit(network, [(None, height, width, 3)], own=own)
    except (ValueError, TypeError) as error:  # of Keras, which finds shapes that do not fit
        raise UsageError(
            f"`backbone.name`: {settings.name} does not take images of {height} x {width}: {first_line(error)}"
        ) from error
    return tuple(row for row in walk.rows if row.is_worth_a_row)


@dataclass
class _Walk:
    """Rows of layers that were met, and the weights that have been counted."""

    settings: BackboneSettings
    rows: list[NetworkLayer] = field(default_factory=list)
    counted: set[int] = field(default_factory=set)

    def visit(
        self,
        network: Any,
        given: Sequence[Shape],
        *,
        before: str = "",
        own: tuple[int, int, int] | None = None,
        is_inside: bool = True,
    ) -> None:
        """Adds the rows of a network for inputs of the shapes `given`; `is_inside`: whether it can be cut inside."""
        nodes = nodes_of(network)
        shapes = _shapes_in(network, nodes, given)
        names = {id(layer): name for name, layer in layers_by_name(network, self.settings).items()}
        calls = [id(node.operation) for node in nodes]
        for place, node in enumerate(nodes):
            if node.is_input:
                continue
            layer = node.operation
            name = names.get(id(layer))
            number, count = calls[: place + 1].count(id(layer)), calls.count(id(layer))
            step = f"{name or layer.name}#{number}" if count > 1 else str(name or layer.name)
            can_be_cut = is_inside and name is not None and can_be_named(name, step)
            if is_model(layer):
                inputs = [shapes[id(tensor)] for tensor in node.input_tensors]
                self.visit(layer, inputs, before=f"{before}{step}/", is_inside=can_be_cut and len(layer.inputs) == 1)
            cost = 0 if is_model(layer) else count_layer(layer, shapes[id(node.outputs[0])])
            parameters = self._new_parameters(layer)
            for output, tensor in enumerate(node.outputs):
                text = before + (f"{step}[{output}]" if len(node.outputs) > 1 else step)
                self.rows.append(
                    NetworkLayer(
                        name=text,
                        kind=type(layer).__name__,
                        shape=shapes[id(tensor)][1:],
                        parameters=parameters if output == 0 else 0,
                        multiply_adds=cost if output == 0 else 0,
                        can_be_cut=can_be_cut and bool(shapes[id(tensor)]) and is_one_name(text),
                        is_default=own is not None and _place_of(tensor) == own,
                    )
                )

    def _new_parameters(self, layer: Any) -> int:
        new = {id(weight): math.prod(weight.shape) for weight in getattr(layer, "weights", ())}
        found = sum(int(size) for weight, size in new.items() if weight not in self.counted)
        self.counted.update(new)
        return found


def _shapes_in(network: Any, nodes: Sequence[Any], given: Sequence[Shape]) -> dict[int, Shape]:
    """The shapes of all tensors of a network, with the batch axis, for inputs of other shapes than those it was built for."""
    import keras

    tensors = [tensor for node in nodes for tensor in node.outputs]
    whole = keras.Function(network.inputs, tensors)
    inputs = [keras.KerasTensor(shape, dtype=tensor.dtype) for shape, tensor in zip(given, network.inputs, strict=True)]
    found = whole.compute_output_spec(inputs)
    return {id(tensor): tuple(one.shape) for tensor, one in zip(tensors, found, strict=True)}


def _place_of(tensor: Any) -> tuple[int, int, int]:
    history = tensor._keras_history
    return id(history.operation), history.node_index, history.tensor_index
