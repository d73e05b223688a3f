"""A small vision transformer in the form in which Hugging Face hands them out: exported to ONNX, with its two configurations."""

import json
from collections.abc import Mapping
from math import erf
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

SIZE, PATCH, WIDTH, BLOCKS, HEADS = 32, 8, 24, 2, 3
TOKENS = (SIZE // PATCH) ** 2 + 1  # of the patches, and the class token before them
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": SIZE, "width": SIZE},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def write_transformer_folder(folder: Path, *, seed: int = 3) -> Path:
    """Two configurations, and `model.onnx`: pixel_values (n, 3, 32, 32) to last_hidden_state (n, 17, 24)."""
    folder.mkdir(parents=True)
    config = {"model_type": "vit", "image_size": SIZE, "patch_size": PATCH, "hidden_size": WIDTH}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    _export(_make_network(seed), folder / "model.onnx")
    return folder


def write_safetensors_folder(folder: Path, *, seed: int = 3) -> dict[str, NDArray[np.float32]]:
    """The configurations of a ViT and its weights in safetensors, by Hugging Face's names; returns the weights."""
    folder.mkdir(parents=True)
    numbers = {"image_size": SIZE, "patch_size": PATCH, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH}
    layers = {"num_hidden_layers": BLOCKS, "num_attention_heads": HEADS, "qkv_bias": True}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = {"model_type": "vit", "architectures": ["ViTModel"], **numbers, **layers, **dropout}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    weights = _random_weights(np.random.default_rng(seed))
    save_file(weights, folder / "model.safetensors")
    return weights


def _random_weights(random: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    def draw(*shape: int, around: float = 0.0) -> NDArray[np.float32]:
        return (around + random.normal(scale=0.2, size=shape)).astype(np.float32)

    embeddings = "vit.embeddings."
    weights = {
        f"{embeddings}patch_embeddings.projection.weight": draw(WIDTH, 3, PATCH, PATCH),
        f"{embeddings}patch_embeddings.projection.bias": draw(WIDTH),
        f"{embeddings}cls_token": draw(1, 1, WIDTH),
        f"{embeddings}position_embeddings": draw(1, TOKENS, WIDTH),
    }
    norms, dense = ["vit.layernorm"], dict[str, tuple[int, int]]()
    for block in range(BLOCKS):
        name = f"vit.encoder.layer.{block}."
        norms += [f"{name}layernorm_before", f"{name}layernorm_after"]
        dense |= {f"{name}attention.attention.{part}": (WIDTH, WIDTH) for part in ("query", "key", "value")}
        dense |= {f"{name}attention.output.dense": (WIDTH, WIDTH)}
        dense |= {f"{name}intermediate.dense": (2 * WIDTH, WIDTH), f"{name}output.dense": (WIDTH, 2 * WIDTH)}
    for name in norms:
        weights |= {f"{name}.weight": draw(WIDTH, around=1.0), f"{name}.bias": draw(WIDTH)}
    for name, shape in dense.items():
        weights |= {f"{name}.weight": draw(*shape), f"{name}.bias": draw(shape[0])}
    return weights


def compute_vit(weights: Mapping[str, NDArray[np.float32]], images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The last hidden state, ``(n, 17, 24)``, of ``uint8 (n, 32, 32, 3)``: the formulas of A. Dosovitskiy et al.: An Image is
    Worth 16x16 Words, 2021, in NumPy.
    """
    w = {name: value.astype(np.float64) for name, value in weights.items()}

    def dense(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return np.asarray(scaled * w[f"{name}.weight"] + w[f"{name}.bias"])

    def heads(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return x.reshape(len(x), TOKENS, HEADS, -1).transpose(0, 2, 1, 3)

    pixels = (images / 255 - 0.5) / 0.5
    side = SIZE // PATCH
    patches = pixels.reshape(len(images), side, PATCH, side, PATCH, 3).transpose(0, 1, 3, 5, 2, 4)
    kernel = w["vit.embeddings.patch_embeddings.projection.weight"].reshape(WIDTH, -1)
    x = patches.reshape(len(images), side * side, -1) @ kernel.T + w["vit.embeddings.patch_embeddings.projection.bias"]
    first = np.repeat(w["vit.embeddings.cls_token"], len(images), axis=0)
    x = np.concatenate([first, x], axis=1) + w["vit.embeddings.position_embeddings"]
    for block in range(BLOCKS):
        name = f"vit.encoder.layer.{block}."
        y = norm(x, f"{name}layernorm_before")
        query, key, value = (heads(dense(y, f"{name}attention.attention.{part}")) for part in ("query", "key", "value"))
        scores = query @ key.transpose(0, 1, 3, 2) / np.sqrt(WIDTH / HEADS)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        seen = (scores / scores.sum(-1, keepdims=True)) @ value
        x = x + dense(seen.transpose(0, 2, 1, 3).reshape(x.shape), f"{name}attention.output.dense")
        y = dense(norm(x, f"{name}layernorm_after"), f"{name}intermediate.dense")
        y = y * 0.5 * (1 + np.vectorize(erf)(y / np.sqrt(2)))
        x = x + dense(y, f"{name}output.dense")
    return norm(x, "vit.layernorm")


def _make_network(seed: int) -> Any:
    import keras
    from keras import layers

    class AddClassToken(layers.Layer):  # type: ignore[misc]
        def build(self, shape: Any) -> None:
            self.token = self.add_weight(shape=(1, 1, WIDTH), initializer="random_normal", name="token")
            self.positions = self.add_weight(shape=(1, TOKENS, WIDTH), initializer="random_normal", name="positions")

        def call(self, patches: Any) -> Any:
            first = keras.ops.zeros_like(patches[:, :1]) + self.token
            return keras.ops.concatenate([first, patches], axis=1) + self.positions

    keras.utils.set_random_seed(seed)
    inputs = keras.Input((3, SIZE, SIZE))
    x = layers.Permute((2, 3, 1))(inputs)
    x = layers.Conv2D(WIDTH, PATCH, strides=PATCH)(x)
    x = AddClassToken()(layers.Reshape((TOKENS - 1, WIDTH))(x))
    for _ in range(BLOCKS):
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        x = x + layers.MultiHeadAttention(3, WIDTH // 3)(y, y)
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        x = x + layers.Dense(WIDTH)(layers.Dense(2 * WIDTH, activation="gelu")(y))
    return keras.Model(inputs, layers.LayerNormalization(epsilon=1e-6)(x))


def _export(network: Any, path: Path) -> None:
    import onnx
    import tensorflow as tf
    import tf2onnx
    from onnx import helper

    values = [variable.numpy() for variable in network.variables]
    trainable = len(network.trainable_variables)

    def forward(pixel_values: Any) -> Any:
        weights = [tf.constant(value) for value in values]  # made in the graph: those from outside would be inputs
        return network.stateless_call(weights[:trainable], weights[trainable:], pixel_values, training=False)[0]

    signature = [tf.TensorSpec((None, 3, SIZE, SIZE), tf.float32, name="pixel_values")]
    model, _ = tf2onnx.convert.from_function(tf.function(forward, autograph=False), input_signature=signature, opset=17)
    graph = model.graph
    graph.node.append(helper.make_node("Identity", [graph.output[0].name], ["last_hidden_state"]))
    del graph.output[:]
    shape = ["n", TOKENS, WIDTH]
    graph.output.append(helper.make_tensor_value_info("last_hidden_state", onnx.TensorProto.FLOAT, shape))
    onnx.save(model, str(path))
