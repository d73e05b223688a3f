"""The tensors of an ONNX network that `backbone.layer` may name: their shapes, parameters and what their nodes compute.

Shapes are those of tensors that ONNX Runtime has computed, as many exports compute the shapes of others only while they run.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featurize.engines.onnx_graph import (
    ImageInput,
    compute,
    cut_at,
    find_image_input,
    fixed_number,
    free_batch,
    inputs_of,
    is_first_of,
    make_images,
    open_session,
)
from featurize.engines.parts import NetworkLayer, Part, is_one_name
from featurize.errors import UsageError

if TYPE_CHECKING:
    import onnx

Shapes = dict[str, tuple[int, ...]]
_AT_ONCE = 64  # tensors of which the values are in memory together
_WEIGHT_TYPES = {1, 2, 3, 10, 11, *range(16, 23)}  # of TensorProto.DataType: floats, and integers of 8 bits and less
_UNKNOWN = {"Einsum", "LSTM", "GRU", "RNN", "If", "Loop", "Scan", "DeformConv", "Attention", "DFT", "STFT", "Det"}
_UNKNOWN |= {"SequenceMap", "CausalConvWithState", "LinearAttention"}


@dataclass(frozen=True)
class _Node:
    """What is kept of a node, as the model is cut meanwhile."""

    kind: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    is_first_transposed: bool
    parameters_inside: int


@dataclass(frozen=True)
class _Found:
    """A tensor that was computed: its shape for one image, with all axes, and whether its rows are those of the images."""

    shape: tuple[int, ...]
    is_of_images: bool


def list_onnx_layers(
    model: "onnx.ModelProto", size: Callable[[ImageInput], tuple[int, int]], *, origin: str
) -> tuple[tuple[NetworkLayer, ...], tuple[int, int]]:
    """The tensors that depend on the image, in the order of the graph, and the height and width that they are listed for.

    A tensor that cannot be cut, as it has no row for each image or needs another input too, is only among them where its node has
    weights or computes something that counts.

    Args:
        model: is changed.
        size: gives height and width of the image in pixels for the input.
        origin: the path of its file, for messages.

    Raises:
        UsageError: No input is an RGB image, or the network does not compute or takes a fixed number of images.
    """
    nodes = [_kept(node) for node in model.graph.node]
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    known: Shapes = {name: tuple(tensor.dims) for name, tensor in weights.items()}
    sizes = _weights_in(model.graph)
    default = model.graph.output[0].name
    needed = _inputs_needed(nodes, [value.name for value in model.graph.input if value.name not in weights])
    given, model = _image_input(model, needed, origin=origin)
    height, width = size(given)
    free_batch(model, given, height=height, width=width)
    tensors = [name for node in model.graph.node for name in node.output if name]
    found = _compute(model, tensors, given, make_images(given, height=height, width=width), origin=origin)
    known |= {name: one.shape for name, one in found.items()}
    known[given.name] = (1, 3, height, width) if given.layout == "nchw" else (1, height, width, 3)

    rows: list[NetworkLayer] = []
    carried = {name: {name} for name in sizes}  # the weights that a tensor holds which depends on no input
    counted: set[str] = set()
    for node in nodes:
        held = set[str]().union(*(carried.get(name, ()) for name in node.inputs))
        if not any(needed[name] for name in node.outputs):
            own = {name for name in node.outputs if name in sizes}
            carried.update(dict.fromkeys(node.outputs, held | own))
            continue
        parameters = node.parameters_inside + sum(sizes[name] for name in held - counted)
        counted |= held
        for place, name in enumerate(node.outputs):
            row = _row(name, node, found.get(name), default)
            cost = {"parameters": parameters, "multiply_adds": _count(node, known)} if place == 0 else {}
            rows.append(NetworkLayer(**{**row, **cost}))
    return tuple(row for row in rows if row.is_worth_a_row), (height, width)


def _row(name: str, node: _Node, found: _Found | None, default: str) -> dict[str, Any]:
    shape = found.shape[1:] if found is not None and found.is_of_images else None
    return {
        "name": name,
        "kind": node.kind,
        "shape": shape,
        "parameters": 0,
        "multiply_adds": 0,
        "can_be_cut": shape is not None and is_one_name(name),
        "needs_pooling": shape is not None and len(shape) == 2,
        "is_default": name == default,
    }


def _kept(node: Any) -> _Node:
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    outputs = tuple(name for name in node.output if name)
    return _Node(node.op_type, node.domain, tuple(inputs_of(node)), outputs, transposed, _weights_inside(node))


def _weights_inside(node: Any) -> int:
    """The number of values of weights in the branches and bodies of a node."""
    total = 0
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            total += sum(_weights_in(graph).values()) + sum(map(_weights_inside, graph.node))
    return total


def _weights_in(graph: Any) -> dict[str, int]:
    """The number of values of each weight, those of nodes that are constants too; a single number, as of a limit, is none."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            tensors.update((node.output[0], attribute.t) for attribute in node.attribute if attribute.name == "value")
    return {
        name: math.prod(tensor.dims)
        for name, tensor in tensors.items()
        if tensor.dims and tensor.data_type in _WEIGHT_TYPES
    }


def _inputs_needed(nodes: Sequence[_Node], inputs: Sequence[str]) -> dict[str, frozenset[str]]:
    """The inputs of the network that each tensor depends on."""
    needed = {name: frozenset([name]) for name in inputs}
    for node in nodes:
        found = frozenset[str]().union(*(needed.get(name, frozenset()) for name in node.inputs))
        needed.update(dict.fromkeys(node.outputs, found))
    return needed


def _image_input(
    model: "onnx.ModelProto", needed: dict[str, frozenset[str]], *, origin: str
) -> "tuple[ImageInput, onnx.ModelProto]":
    """The first input that is an image, and the network of what depends on nothing else."""
    import onnx

    inputs = sorted(frozenset[str]().union(*needed.values()))
    for name in inputs:
        tensors = [tensor for tensor, those in needed.items() if those == {name} and tensor != name]
        if not tensors:
            continue
        part = model
        if len(inputs) > 1:
            part = onnx.ModelProto()
            part.CopyFrom(model)
        cut_at(part, [Part(tensor) for tensor in tensors], origin=origin)
        try:
            return find_image_input(part, origin=origin), part
        except UsageError:
            if len(inputs) == 1:
                raise
    cut_at(model, [Part(None)], origin=origin)  # whose error says what it needs
    return find_image_input(model, origin=origin), model


def _compute(
    model: "onnx.ModelProto", tensors: Sequence[str], given: ImageInput, images: NDArray[Any], *, origin: str
) -> dict[str, _Found]:
    """What ONNX Runtime computes for one image and for three; tensors that only one image gives are left out."""
    _give_out(model, tensors)
    session = open_session(model, origin=origin)
    compute(session, tensors[-1:], {given.name: images[:1]}, origin=origin)
    usable = (
        len(tensors) if _runs(session, tensors[-1], given, images) else _longest(model, tensors, given, images, origin)
    )
    if usable == 0:
        raise fixed_number(origin)
    if usable < len(tensors):
        part = _part_of(model, tensors[:usable], origin)
        session = open_session(part, origin=origin)
    found: dict[str, _Found] = {}
    for start in range(0, usable, _AT_ONCE):
        names = tensors[start : min(start + _AT_ONCE, usable)]
        alone = compute(session, names, {given.name: images[:1]}, origin=origin)
        together = compute(session, names, {given.name: images}, origin=origin)
        for name, one, many in zip(names, alone, together, strict=True):
            if isinstance(one, np.ndarray):
                is_number = one.dtype.kind in "fiub" and isinstance(many, np.ndarray)
                found[name] = _Found(one.shape, is_number and is_first_of(many, one))
    return found


def _longest(
    model: "onnx.ModelProto", tensors: Sequence[str], given: ImageInput, images: NDArray[Any], origin: str
) -> int:
    """How many of the first tensors can be computed for three images, by halving; the nodes are in the order of computation."""
    runs, fails = 0, len(tensors)
    while fails - runs > 1:
        middle = (runs + fails) // 2
        part = _part_of(model, tensors[:middle], origin)
        if _runs(open_session(part, origin=origin), tensors[middle - 1], given, images):
            runs = middle
        else:
            fails = middle
    return runs


def _part_of(model: "onnx.ModelProto", tensors: Sequence[str], origin: str) -> "onnx.ModelProto":
    import onnx

    part = onnx.ModelProto()
    part.CopyFrom(model)
    cut_at(part, [Part(name) for name in tensors], origin=origin)
    return part


def _give_out(model: "onnx.ModelProto", tensors: Sequence[str]) -> None:
    """Makes tensors the outputs of a model."""
    import onnx

    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)


def _runs(session: Any, tensor: str, given: ImageInput, images: NDArray[Any]) -> bool:
    try:
        session.run([tensor], {given.name: images})
    except Exception:  # ONNX Runtime's own errors share no other base
        return False
    return True


def _count(node: _Node, shapes: Shapes) -> int | None:
    """Multiplications, each with its addition, of a node for one image; None: not known.

    Counted are convolutions and products of matrices, those of what is computed from the image too; the rest counts as 0, as for
    Keras networks.
    """
    kind = node.kind

    def of(place: int) -> tuple[int, ...]:
        return shapes[node.inputs[place]]

    if node.domain not in ("", "ai.onnx") or kind in _UNKNOWN:
        return None
    try:
        if kind in ("Conv", "ConvInteger", "QLinearConv"):
            kernel = of(3 if kind == "QLinearConv" else 1)
            return _positions(shapes[node.outputs[0]]) * math.prod(kernel)
        if kind == "ConvTranspose":
            return _positions(of(0)) * math.prod(of(1))
        if kind == "Gemm":
            return math.prod(shapes[node.outputs[0]]) * of(0)[0 if node.is_first_transposed else -1]
        if kind in ("MatMul", "MatMulInteger", "QLinearMatMul"):
            return math.prod(shapes[node.outputs[0]]) * of(0)[-1]
    except KeyError:  # a shape that is not known
        return None
    return 0


def _positions(shape: tuple[int, ...]) -> int:
    """Where a kernel is applied: all positions of a feature map ``(n, channels, ...)``."""
    return shape[0] * math.prod(shape[2:])
