"""A small vision transformer in the form in which Hugging Face hands them out: exported to ONNX, with its two configurations."""

import json
from pathlib import Path
from typing import Any

SIZE, PATCH, WIDTH, BLOCKS = 32, 8, 24, 2
TOKENS = (SIZE // PATCH) ** 2 + 1  # of the patches, and the class token before them


def write_transformer_folder(folder: Path, *, seed: int = 3) -> Path:
    """Two configurations, and `model.onnx`: pixel_values (n, 3, 32, 32) to last_hidden_state (n, 17, 24)."""
    folder.mkdir(parents=True)
    config = {"model_type": "vit", "image_size": SIZE, "patch_size": PATCH, "hidden_size": WIDTH}
    processor = {
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
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    _export(_make_network(seed), folder / "model.onnx")
    return folder


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
