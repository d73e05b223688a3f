"""Post-training quantisation of a network's ONNX file to 8-bit integers, by ONNX Runtime's tools.

Nodes that quantise and dequantise are put around the products and what belongs to them; ONNX Runtime and OpenVINO both compute
such a file in integers. The scales of activations come from calibration images.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featurize.engines.engine import require_engine
from featurize.errors import JobError, UsageError, first_line

if TYPE_CHECKING:
    import onnx

CALIBRATION_IMAGES = 96
_PRODUCTS = ("Conv", "Gemm", "MatMul")
_QUANTIZED = (*_PRODUCTS, "Add", "AveragePool", "Clip", "Concat", "GlobalAveragePool", "MaxPool", "Relu")
_BATCH = 8  # images at a time; calibration keeps all activations of a batch
_MADE_FROM = "firn.quantized_from"


def quantize_onnx(source: str | Path, target: str | Path, images: NDArray[np.uint8], *, made_from: str) -> None:
    """Writes the 8-bit form of an ONNX network with one input for images.

    Weights have a scale for each channel, and 7 bits: with 8, processors without VNNI overflow where they add two products, and
    the features of an image would depend on the processor. The preparation of the images stays in float32.

    Args:
        source: the network's file, ``uint8 (n, height, width, 3)`` to features.
        target: the file to write.
        images: what to calibrate with, ``uint8 (n, height, width, 3)``.
        made_from: what the network is; `read_origin` finds it again.

    Raises:
        JobError: the network cannot be quantised.
        UsageError: the extra `engines` is not installed.
    """
    require_engine("onnxruntime")
    try:
        import onnx
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise UsageError(
            "`backbone.precision`: int8 needs the extra `engines` of Firn, which is not installed."
        ) from error
    with tempfile.TemporaryDirectory(prefix="firn-") as folder, _silenced():
        simplified, quantized = Path(folder) / "simplified.onnx", Path(folder) / "quantized.onnx"
        try:
            quant_pre_process(str(source), str(simplified), skip_symbolic_shape=True)
            model = onnx.load(str(simplified))
            _name_nodes(model)
            onnx.save(model, str(simplified))
            quantize_static(
                str(simplified),
                str(quantized),
                _CalibrationImages(images, model.graph.input[0].name),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(_QUANTIZED),
                nodes_to_exclude=_before_products(model),
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options={"MatMulConstBOnly": True},
            )
        except Exception as error:  # of many kinds, and some of no other base
            raise JobError(f"{Path(source).name} cannot be quantised to int8: {first_line(error)}") from error
        made = onnx.load(str(quantized))
        if not any(node.op_type == "QuantizeLinear" for node in made.graph.node):
            raise JobError(f"{Path(source).name} cannot be quantised to int8: it has no products that can be.")
        onnx.helper.set_model_props(made, {_MADE_FROM: made_from})
        onnx.save(made, str(target))


def read_origin(path: str | Path) -> str | None:
    """What `quantize_onnx` was told that a network was made from; None if it did not make the file."""
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception:  # of Protocol Buffers, which names its errors by its version
        return None
    found: Mapping[str, str] = {entry.key: entry.value for entry in model.metadata_props}
    return found.get(_MADE_FROM)


class _CalibrationImages:
    """Batches of images as ONNX Runtime's tools take them."""

    def __init__(self, images: NDArray[np.uint8], name: str) -> None:
        self._batches = ({name: images[start : start + _BATCH]} for start in range(0, len(images), _BATCH))

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """The next batch; None after the last."""
        return next(self._batches, None)


def _name_nodes(model: "onnx.ModelProto") -> None:
    """Gives every node a name of its own, by which it can be left out."""
    for number, node in enumerate(model.graph.node):
        node.name = f"{number}_{node.op_type}"


def _before_products(model: "onnx.ModelProto") -> list[str]:
    """The names of the nodes that come before all products: the preparation of the images, which must stay exact."""
    after: set[str] = set()  # tensors
    names = []
    for node in model.graph.node:  # in the order of computation
        if node.op_type in _PRODUCTS or any(name in after for name in node.input):
            after.update(node.output)
        else:
            names.append(node.name)
    return names


@contextmanager
def _silenced() -> Iterator[None]:
    """Keeps the tools' advice, which goes to the root of all loggers, from standard error and from the program's handlers."""
    root = logging.getLogger()
    level, handler = root.level, logging.NullHandler()  # without any handler, they would add one
    root.addHandler(handler)
    root.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
