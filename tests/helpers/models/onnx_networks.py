"""Small ONNX networks of the usual kinds, written node by node, and what they compute in NumPy."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from featurize.backbones.backbone import load_backbone, prepare_backbone
from featurize.backbones.spec import PreparedBackbone
from featurize.engines.engine import Engine
from featurize.engines.onnx_graph import Normalization
from featurize.recipes.backbone_section import BackboneSettings

Floats = NDArray[np.float32]
DIM, PATCH, CHANNELS = 16, 8, 6
ENGINES: tuple[Engine, ...] = ("openvino", "onnxruntime")
TORCH = Normalization(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "do_center_crop": True,
    "crop_size": {"height": 24, "width": 24},
    "image_mean": list(TORCH.mean),
    "image_std": list(TORCH.std),
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 32},
}
"""A `preprocessor_config.json` for images of 24 x 24, prepared as `TORCH` says."""


class Graph:
    """Nodes and weights that are added one by one."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[Any] = []
        self.weights: dict[str, NDArray[Any]] = {}
        self._random = np.random.default_rng(seed)

    def weight(self, name: str, *shape: int) -> str:
        fan_in = int(np.prod(shape[1:])) if len(shape) == 4 else shape[0]
        return self.constant(name, self._random.normal(0, fan_in**-0.5, shape).astype(np.float32))

    def constant(self, name: str, values: Any) -> str:
        self.weights[name] = np.asarray(values)
        return name

    def add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def model(
        self,
        inputs: dict[str, Sequence[Any]],
        outputs: Sequence[str],
        *,
        opset: int = 17,
        kind: int = TensorProto.FLOAT,
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info(name, kind, list(shape)) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(values, name) for name, values in self.weights.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def save(model: onnx.ModelProto, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path


def vision_transformer(
    shape: Sequence[Any] = ("batch", 3, 24, 24),
    *,
    registers: int = 0,
    batch_of_tokens: int | None = None,
    seed: int = 0,
) -> onnx.ModelProto:
    """One block: convolution to patches of 8 x 8 pixels, class token and registers, attention, normalization.

    Outputs: `last_hidden_state` (n, 1 + registers + patches, 16) and `pooler_output` (n, 16).

    Args:
        shape: of its input, `pixel_values`.
        registers: number of tokens between the class token and the patches.
        batch_of_tokens: how many images its class token is for; None: any.
        seed: of its weights.
    """
    graph = Graph(seed)
    graph.weight("kernel", DIM, 3, PATCH, PATCH)
    graph.add("Conv", ["pixel_values", "kernel"], "patches", strides=[PATCH, PATCH])
    graph.add("Reshape", ["patches", graph.constant("flat", np.array([0, DIM, -1]))], "rows")
    graph.add("Transpose", ["rows"], "patch_tokens", perm=[0, 2, 1])
    graph.weight("special", 1, 1 + registers, DIM)
    graph.weights["special"] *= 3
    graph.add("Shape", ["pixel_values"], "shape", start=0, end=1)
    rest = graph.constant("rest", np.array([1 + registers, DIM]))
    count = "shape" if batch_of_tokens is None else graph.constant("count", np.array([batch_of_tokens]))
    graph.add("Expand", ["special", graph.add("Concat", [count, rest], "wanted", axis=0)], "special_tokens")
    graph.add("Concat", ["special_tokens", "patch_tokens"], "tokens", axis=1)
    graph.add("LayerNormalization", ["tokens", graph.constant("one", np.ones(DIM, np.float32))], "normal", axis=-1)
    for name in ("query", "key", "value"):
        graph.add("MatMul", ["normal", graph.weight(f"{name}_weight", DIM, DIM)], name)
    graph.add("MatMul", ["query", graph.add("Transpose", ["key"], "key_t", perm=[0, 2, 1])], "products")
    graph.add("Mul", ["products", graph.constant("factor", np.float32(DIM**-0.5))], "scores")
    graph.add("Softmax", ["scores"], "attention", axis=-1)
    graph.add("MatMul", ["attention", "value"], "/block/attended")
    graph.add("Add", ["tokens", "/block/attended"], "/block/sum:0")
    graph.add("LayerNormalization", ["/block/sum:0", "one"], "last_hidden_state", axis=-1)
    graph.add("Gather", ["last_hidden_state", graph.constant("first", np.array(0))], "class", axis=1)
    graph.add("MatMul", ["class", graph.weight("pooler", DIM, DIM)], "linear")
    graph.add("Tanh", ["linear"], "pooler_output")
    return graph.model({"pixel_values": shape}, ["last_hidden_state", "pooler_output"])


def _normalized(values: Floats) -> Floats:
    centred = values - values.mean(-1, keepdims=True)
    return np.asarray(centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-5), np.float32)


def attend(model: onnx.ModelProto, images: Floats) -> Floats:
    """The `last_hidden_state` of `vision_transformer` in NumPy, of prepared images ``(n, h, w, 3)``."""
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    count, height, width, _ = images.shape
    squares = images.reshape(count, height // PATCH, PATCH, width // PATCH, PATCH, 3)
    patches = np.einsum("nyixjc,dcij->nyxd", squares, weights["kernel"]).reshape(count, -1, DIM)
    tokens = np.concatenate([np.repeat(weights["special"], count, 0), patches], 1)
    query, key, value = (_normalized(tokens) @ weights[f"{name}_weight"] for name in ("query", "key", "value"))
    scores = query @ key.transpose(0, 2, 1) * DIM**-0.5
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    return _normalized(tokens + exponentials / exponentials.sum(-1, keepdims=True) @ value)


def conv_network(
    shape: Sequence[Any] = ("n", 3, 10, 12), *, layout: str = "nchw", kind: int = TensorProto.FLOAT, seed: int = 0
) -> onnx.ModelProto:
    """Convolution 3 x 3 and ReLU `map`, in the layout of its input `images`, and its mean `features` (n, 6)."""
    graph = Graph(seed)
    current = "images"
    if kind != TensorProto.FLOAT:
        current = graph.add("Cast", [current], "as_float", to=TensorProto.FLOAT)
    if layout == "nhwc":
        current = graph.add("Transpose", [current], "channels_first", perm=[0, 3, 1, 2])
    graph.weight("kernel", CHANNELS, 3, 3, 3)
    graph.add("Conv", [current, "kernel"], "conv")
    relu = graph.add("Relu", ["conv"], "map" if layout == "nchw" else "map_first")
    if layout == "nhwc":
        graph.add("Transpose", [relu], "map", perm=[0, 2, 3, 1])
    graph.add("GlobalAveragePool", [relu], "pooled")
    graph.add("Flatten", ["pooled"], "features", axis=1)
    return graph.model({"images": shape}, ["features"], kind=kind)


def convolve(model: onnx.ModelProto, images: Floats) -> Floats:
    """The `map` of `conv_network` in NumPy, ``(n, h, w, 6)``, of prepared images ``(n, h, w, 3)``."""
    kernel = next(numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == "kernel")
    height, width = images.shape[1] - 2, images.shape[2] - 2
    shifted = [images[:, i : i + height, j : j + width] @ kernel[:, :, i, j].T for i in range(3) for j in range(3)]
    return np.asarray(np.maximum(np.sum(shifted, axis=0), 0), np.float32)


def run_whole(model: onnx.ModelProto, name: str, inputs: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """Any tensor of an uncut model, as ONNX Runtime computes it."""
    import onnxruntime

    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    if name not in {output.name for output in whole.graph.output}:
        whole.graph.output.append(onnx.ValueInfoProto(name=name))
    session = onnxruntime.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run([name], inputs)[0])


def onnx_settings(name: str | Path, **changes: Any) -> BackboneSettings:
    """Settings in float32, unprepared where neither `changes` nor a folder's own files say it."""
    own = {"precision": "float32", "engine": "onnxruntime", **changes}
    states = {"preprocessing", "scale", "mean", "std", "channel_order"} & set(own)
    if str(name).endswith(".onnx") and not states:
        own["preprocessing"] = "none"
    return BackboneSettings(name=str(name), **own)


def prepare(name: str | Path, folder: Path, **changes: Any) -> PreparedBackbone:
    """A prepared backbone, of ONNX Runtime where `changes` do not say another engine."""
    return prepare_backbone(onnx_settings(name, **changes), folder)


def same(features: Floats, expected: Any) -> None:
    """Whether features are those expected, flattened, to 1e-4 of the largest."""
    expected = np.reshape(expected, (len(features), -1))
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4 * max(1.0, float(np.abs(expected).max())))


def features_of(name: str | Path, images: NDArray[np.uint8], folder: Path, **changes: Any) -> Floats:
    """The features of images in a backbone that is prepared and loaded with either engine, which must agree."""
    found = []
    for engine in ENGINES:
        prepared = prepare_backbone(onnx_settings(name, **{**changes, "engine": engine}), folder)
        forward = load_backbone(prepared.spec, prepared.path, sha256=prepared.sha256, threads=1)
        features = forward(images)
        assert (features.dtype.name, features.shape[1:]) == ("float32", prepared.spec.feature_shape)
        found.append(features)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-4 * max(1, float(np.abs(found[1]).max())))
    return np.asarray(found[1], np.float32)


def write_json(folder: Path, **files: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
