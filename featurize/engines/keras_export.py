"""Keras networks as ONNX files. TensorFlow and tf2onnx are needed here, and not where the file is used."""

from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras

_OPSET = 17  # the newest that OpenVINO and ONNX Runtime both know in all the versions that Firn was run with
_LARGE = 1 << 20  # elements; larger weights go around tf2onnx, which copies constants so often that VGG16 takes minutes


def export_keras(
    network: "keras.Model",
    forward: Callable[[Any, Callable[[Any], Any]], Any],
    path: str | Path,
    *,
    height: int,
    width: int,
    channels: int = 3,
) -> None:
    """Writes a Keras network as an ONNX file that takes images, ``uint8 (n, height, width, channels)``.

    Args:
        network: a functional or sequential model.
        forward: what the file computes: a function of the images, as a tensor, and of the network, as a function of tensors; it
            returns one tensor.
        path: a local file.
        height: of the images, in pixels.
        width: of the images, in pixels.
        channels: of the images.
    """
    import numpy as np
    import onnx
    import tensorflow as tf
    import tf2onnx
    from onnx import numpy_helper

    trainable, frozen = network.trainable_variables, network.non_trainable_variables
    values = [variable.numpy() for variable in (*trainable, *frozen)]
    large = [index for index, value in enumerate(values) if value.size >= _LARGE]
    names = [f"firn_weight_{index}" for index in large]

    def compute(images: Any, *weights: Any) -> Any:
        given = dict(zip(large, weights, strict=True))
        tensors = [given.get(index) for index in range(len(values))]
        tensors = [
            tf.constant(value) if tensor is None else tensor for tensor, value in zip(tensors, values, strict=True)
        ]

        def apply(prepared: Any) -> Any:
            outputs, _ = network.stateless_call(
                tensors[: len(trainable)], tensors[len(trainable) :], prepared, training=False
            )
            return outputs

        return forward(images, apply)

    signature = [tf.TensorSpec((None, height, width, channels), tf.uint8, name="images")]
    signature += [
        tf.TensorSpec(values[i].shape, values[i].dtype, name=name) for i, name in zip(large, names, strict=True)
    ]
    with redirect_stderr(StringIO()):  # its progress
        model, _ = tf2onnx.convert.from_function(
            tf.function(compute, autograph=False), input_signature=signature, opset=_OPSET
        )
    used = {
        name for node in model.graph.node for name in node.input
    }  # constants that were folded stay behind as inputs
    given = [one for one in model.graph.input if one.name in used and one.name.partition(":")[0] not in names]
    by_name = {value.name.partition(":")[0]: value.name for value in model.graph.input}
    for index, name in zip(large, names, strict=True):
        if name in by_name:  # one that is not used is left out
            tensor = numpy_helper.from_array(np.ascontiguousarray(values[index]), by_name[name])
            model.graph.initializer.append(tensor)
    del model.graph.input[:]
    model.graph.input.extend(given)
    onnx.save(model, str(path))
