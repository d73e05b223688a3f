"""An ONNX network that takes images as they were decoded: its inputs checked, cut at any tensor, its preparation put inside."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from featurize.engines.parts import Part, count_prefix_tokens
from featurize.errors import UsageError, first_line

if TYPE_CHECKING:
    import onnx

Layout = Literal["nhwc", "nchw"]
_IMAGES, _FEATURES = "firn_images", "firn_features"


@dataclass(frozen=True)
class Normalization:
    """How a network wants its input: ``(channel * scale - mean) / std`` for each channel, from RGB in [0, 255].

    Attributes:
        scale: factor, often 1 / 255.
        mean: three values, in the order in which the network takes the channels.
        std: three values, in the same order.
        channel_order: "rgb" or "bgr".
    """

    scale: float = 1.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    channel_order: Literal["rgb", "bgr"] = "rgb"

    def apply(self, images: Any) -> Any:
        """The input of a network for ``float32 (..., 3)`` in [0, 255], an array or a tensor."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        ordered = images[..., ::-1] if self.channel_order == "bgr" else images
        return (ordered * np.float32(self.scale) - mean) / std


@dataclass(frozen=True)
class ImageInput:
    """The input of a network.

    Attributes:
        name: of the tensor.
        layout: where the channels are.
        height: pixels; None: any.
        width: pixels; None: any.
        element_type: of ONNX's TensorProto.DataType: FLOAT, FLOAT16 or UINT8.
    """

    name: str
    layout: Layout
    height: int | None
    width: int | None
    element_type: int


def cut_at(model: "onnx.ModelProto", parts: Sequence[Part], *, origin: str) -> list[str]:
    """Cuts a model, in place, to what the tensors of `parts` need, which become its outputs; returns their names.

    Raises:
        UsageError: There is no such tensor.
    """
    graph: Any = model.graph
    outputs = [output.name for output in graph.output]
    producer = {name: node for node in graph.node for name in node.output if name}
    wanted = [part.name or outputs[0] for part in parts]
    for name in wanted:
        if name not in producer:
            raise UsageError(f"`backbone.layer`: {origin} has no tensor {name!r}. {_hint(name, outputs, producer)}")
    needed: set[int] = set()
    reached, stack = set(wanted), list(wanted)
    while stack:
        node = producer.get(stack.pop())
        if node is None or id(node) in needed:
            continue
        needed.add(id(node))
        new = [name for name in inputs_of(node) if name not in reached]
        reached.update(new)
        stack += new
    _keep(graph.node, [node for node in graph.node if id(node) in needed])
    _keep(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in reached])
    _keep(graph.input, [value for value in graph.input if value.name in reached])
    del graph.output[:]
    del graph.value_info[:]
    import onnx

    for name in dict.fromkeys(wanted):
        graph.output.append(onnx.ValueInfoProto(name=name))
    return wanted


def _keep(field: Any, kept: list[Any]) -> None:
    """Reduces a repeated field of a message to some of its items."""
    del field[:]
    field.extend(kept)


def _hint(name: str, outputs: list[str], producer: dict[str, Any]) -> str:
    import difflib

    close = difflib.get_close_matches(name, producer, n=3)
    return f"Did you mean {' or '.join(close)}?" if close else f"Its outputs are {', '.join(outputs[:8])}."


def inputs_of(node: Any) -> list[str]:
    """The tensors that a node reads, also inside the branches of an `If` or the body of a `Loop`."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            names += [name for inner in graph.node for name in inputs_of(inner)]
    return names


def find_image_input(model: "onnx.ModelProto", *, origin: str) -> ImageInput:
    """The one input of a model.

    Raises:
        UsageError: It has none, or more than one, or it is not an RGB image.
    """
    import onnx

    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    shapes = {value.name: _shape_of(value) for value in inputs}
    listed = ", ".join(f"{name} {_text(shape)}" for name, shape in shapes.items()) or "none"
    if len(inputs) != 1:
        raise UsageError(
            f"`backbone.name`: {origin} must take one image and nothing else up to the layer that is asked for. Its inputs are "
            f"{listed}. Name an output that needs the image alone in `backbone.layer`."
        )
    shape = shapes[inputs[0].name]
    usable = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.UINT8)
    element_type = inputs[0].type.tensor_type.elem_type
    layout = _layout_of(inputs[0], shape)
    if layout is None or element_type not in usable:
        raise UsageError(
            f"`backbone.name`: {origin} has no input for RGB images, (n, 3, h, w) or (n, h, w, 3): {listed}."
        )
    height, width = shape[2:4] if layout == "nchw" else shape[1:3]
    return ImageInput(inputs[0].name, layout, height, width, element_type)


def _layout_of(value: Any, shape: Sequence[int | None]) -> Layout | None:
    """Where the channels are; where no dimension says 3, first, as in the networks that Optimum exports from PyTorch."""
    if len(shape) != 4:
        return None
    if shape[1] == 3 or shape[3] == 3:
        return "nchw" if shape[1] == 3 else "nhwc"
    names = [dimension.dim_param.lower() for dimension in value.type.tensor_type.shape.dim]
    if shape[3] is None and "channel" in names[3]:
        return "nhwc"
    return "nchw" if shape[1] is None else None


def _shape_of(value: Any) -> list[int | None]:
    dimensions = value.type.tensor_type.shape.dim
    return [dimension.dim_value if dimension.dim_value > 0 else None for dimension in dimensions]


def _text(shape: Sequence[int | None]) -> str:
    return f"({', '.join('any' if length is None else str(length) for length in shape)})"


def take_images(
    model: "onnx.ModelProto",
    parts: Sequence[Part],
    tensors: Sequence[str],
    given: ImageInput,
    *,
    height: int,
    width: int,
    normalization: Normalization,
    patch_size: int | None,
    origin: str,
) -> None:
    """Puts the preparation of images before a cut model and the pooling of `parts` behind it, in place.

    Afterwards its one input is ``uint8 (n, height, width, 3)`` and its one output ``float32 (n, feature_dim)``.

    Raises:
        UsageError: The network does not compute, or not for any number of images; or a layer cannot be pooled as asked.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    if given.element_type == TensorProto.UINT8 and replace(normalization, channel_order="rgb") != Normalization():
        raise UsageError(
            f"`backbone.name`: {origin} takes pixels as whole numbers from 0 to 255, so it prepares them itself: set "
            '`backbone.preprocessing` to "none".'
        )
    free_batch(model, given, height=height, width=width)
    shapes = _shapes_of(model, tensors, given, height=height, width=width, origin=origin)
    before: list[Any] = []

    def constant(name: str, values: NDArray[Any]) -> str:
        graph.initializer.append(numpy_helper.from_array(values, f"firn_constant_{name}"))
        return f"firn_constant_{name}"

    def add(nodes: list[Any], kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    current = add(before, "Cast", [_IMAGES], "firn_float", to=TensorProto.FLOAT)
    if normalization.channel_order == "bgr":
        current = add(before, "Gather", [current, constant("order", np.array([2, 1, 0], np.int64))], "firn_bgr", axis=3)
    if normalization.scale != 1:
        factor = constant("scale", np.array(normalization.scale, np.float32))
        current = add(before, "Mul", [current, factor], "firn_scaled")
    if any(normalization.mean):
        mean = constant("mean", np.array(normalization.mean, np.float32))
        current = add(before, "Sub", [current, mean], "firn_centred")
    if any(value != 1 for value in normalization.std):
        std = constant("std", np.array(normalization.std, np.float32))
        current = add(before, "Div", [current, std], "firn_normalized")
    if given.layout == "nchw":
        current = add(before, "Transpose", [current], "firn_nchw", perm=[0, 3, 1, 2])
    add(before, "Cast", [current], given.name, to=given.element_type)

    after: list[Any] = []
    rows = [
        _pooled(part, tensor, shapes[tensor], index, given, (height, width), patch_size, constant, after, add)
        for index, (part, tensor) in enumerate(zip(parts, tensors, strict=True))
    ]
    joined = rows[0] if len(rows) == 1 else add(after, "Concat", rows, "firn_joined", axis=1)
    add(after, "Cast", [joined], _FEATURES, to=TensorProto.FLOAT)

    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.input[:]
    del graph.output[:]
    graph.input.append(helper.make_tensor_value_info(_IMAGES, TensorProto.UINT8, ["n", height, width, 3]))
    graph.output.append(helper.make_tensor_value_info(_FEATURES, TensorProto.FLOAT, ["n", None]))
    try:
        onnx.checker.check_model(model, full_check=False)
    except Exception as error:  # the checker's own and others
        raise UsageError(f"`backbone.name`: {origin} is not a valid ONNX network: {first_line(error)}") from error


def free_batch(model: "onnx.ModelProto", given: ImageInput, *, height: int, width: int) -> None:
    """Gives the input its size, and any number of images, which many exports fix to one."""
    value = next(value for value in model.graph.input if value.name == given.name)
    sizes = (3, height, width) if given.layout == "nchw" else (height, width, 3)
    dimensions = value.type.tensor_type.shape.dim
    dimensions[0].ClearField("dim_value")
    dimensions[0].dim_param = "n"
    for dimension, size in zip(dimensions[1:], sizes, strict=True):
        dimension.ClearField("dim_param")
        dimension.dim_value = size


def _shapes_of(
    model: "onnx.ModelProto", tensors: Sequence[str], given: ImageInput, *, height: int, width: int, origin: str
) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor without its first dimension. Three images together must give what the first of them does alone."""
    images = make_images(given, height=height, width=width)
    session = open_session(model, origin=origin)
    alone = compute(session, tensors, {given.name: images[:1]}, origin=origin)
    try:
        together = session.run(list(tensors), {given.name: images})
    except Exception:  # ONNX Runtime's own errors share no other base
        together = None
    if together is None or not all(is_first_of(many, one) for many, one in zip(together, alone, strict=True)):
        raise fixed_number(origin)
    return {name: tuple(values.shape[1:]) for name, values in zip(tensors, alone, strict=True)}


def make_images(given: ImageInput, *, height: int, width: int) -> NDArray[Any]:
    """Three images of noise in the layout and type of an input."""
    sizes = (3, height, width) if given.layout == "nchw" else (height, width, 3)
    return np.random.default_rng(0).integers(0, 256, (3, *sizes)).astype(_NUMPY_TYPES[given.element_type])


def open_session(model: "onnx.ModelProto", *, origin: str) -> Any:
    """ONNX Runtime's session of a model.

    Raises:
        UsageError: ONNX Runtime cannot load it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(  # without its second try, which prints
            model.SerializeToString(), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime's own errors share no other base
        raise UsageError(f"`backbone.name`: ONNX Runtime cannot load {origin}: {_reason(error)}") from error


def compute(session: Any, tensors: Sequence[str], given: dict[str, NDArray[Any]], *, origin: str) -> list[Any]:
    """The values of tensors.

    Raises:
        UsageError: the network does not compute.
    """
    try:
        return list(session.run(list(tensors), given))
    except Exception as error:
        raise UsageError(f"`backbone.name`: {origin} does not compute: {_reason(error)}") from error


def fixed_number(origin: str) -> UsageError:
    """The error of a network that does not take any number of images."""
    return UsageError(
        f"`backbone.name`: {origin} takes a fixed number of images. Export it with a dynamic first dimension."
    )


def is_first_of(three: NDArray[Any], one: NDArray[Any]) -> bool:
    """Whether `three` has a row for each of three images, and its first is that of the first image alone."""
    if one.ndim == 0 or len(one) != 1 or three.shape != (3, *one.shape[1:]):
        return False
    first, alone = three[:1].astype(np.float64), one.astype(np.float64)
    largest = np.abs(alone).max(initial=0, where=np.isfinite(alone))
    return np.allclose(first, alone, rtol=0.01, atol=0.01 * float(largest), equal_nan=True)


_NUMPY_TYPES: dict[int, Any] = {1: np.float32, 10: np.float16, 2: np.uint8}  # of TensorProto.DataType


def _reason(error: Exception) -> str:
    """ONNX Runtime's message without its own prefix of codes and C++ names."""
    return first_line(error).rpartition(" : ")[2] or first_line(error)


def _pooled(
    part: Part,
    tensor: str,
    shape: tuple[int, ...],
    index: int,
    given: ImageInput,
    size: tuple[int, int],
    patch_size: int | None,
    constant: Any,
    nodes: list[Any],
    add: Any,
) -> str:
    """Adds the nodes that make one row per image of a tensor ``(n, *shape)``; returns the name of their output."""
    if part.pooling is None and len(shape) == 2:
        raise UsageError(
            f"`backbone.layer`: {tensor} gives {shape[0]} tokens of {shape[1]} features. Add `:cls` for the first token or "
            "`:mean` for the mean of the patches."
        )
    current = add(nodes, "Cast", [tensor], f"firn_part_{index}", to=1)
    if part.pooling is not None:
        if part.pooling == "cls" and len(shape) != 2:
            raise UsageError(f"`backbone.layer`: {tensor} has no tokens, so `:cls` cannot be used.")
        if len(shape) == 2:
            height, width = size
            first = 0
            if part.pooling == "mean":
                first = count_prefix_tokens(shape[0], height=height, width=width, patch_size=patch_size, name=tensor)
            tokens = np.arange(first, shape[0] if part.pooling == "mean" else 1)
            current = add(
                nodes, "Gather", [current, constant(f"tokens_{index}", tokens)], f"firn_tokens_{index}", axis=1
            )
            current = add(nodes, "Transpose", [current], f"firn_channels_{index}", perm=[0, 2, 1])
        elif len(shape) == 3:
            if _has_channels_last(shape, given, tensor):
                current = add(nodes, "Transpose", [current], f"firn_channels_{index}", perm=[0, 3, 1, 2])
        else:
            raise UsageError(f"`backbone.layer`: {tensor} is neither a feature map nor tokens: remove `:mean`.")
        current = add(nodes, "GlobalAveragePool", [current], f"firn_pooled_{index}")
    return str(add(nodes, "Flatten", [current], f"firn_row_{index}", axis=1))


def _has_channels_last(shape: tuple[int, ...], given: ImageInput, tensor: str) -> bool:
    """Whether a feature map is ``(n, h, w, channels)``, which a network with such an input need not keep inside."""
    if given.layout == "nchw":
        return False
    if (shape[0] == shape[1]) == (shape[1] == shape[2]):
        raise UsageError(
            f"`backbone.layer`: which dimension of {tensor} {shape} is its channels is not known: remove `:mean`."
        )
    return shape[0] == shape[1]
