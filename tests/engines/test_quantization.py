"""Networks in int8: the same in both engines, near the network in float32, its preparation left alone."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.models.networks import noise
from helpers.models.onnx_networks import conv_network, prepare, save, vision_transformer

from featurize.engines.engine import ENGINES, can_compute, load_onnx
from featurize.engines.precision import mean_cosine
from featurize.engines.quantization import quantize_onnx, read_origin
from featurize.errors import JobError

SIZE = (24, 24)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A network that prepares its images, and the same in int8."""
    folder = tmp_path_factory.mktemp("pair")
    path = save(conv_network(("n", 3, *SIZE), layout="nchw"), folder / "net.onnx")
    exact = prepare(path, folder, preprocessing="torch").path
    assert exact is not None
    quantize_onnx(exact, folder / "int8.onnx", noise(20, *SIZE), made_from="this network")
    return exact, folder / "int8.onnx"


def features(path: Path, engine: Any, images: Any) -> Any:
    return load_onnx(path, engine, precision="int8", threads=1)(images)


def test_both_engines_compute_the_file_and_are_near_float32(pair: tuple[Path, Path]) -> None:
    exact, int8 = pair
    images = noise(7, *SIZE)
    reference = features(exact, "onnxruntime", images)
    ours, theirs = (features(int8, engine, images) for engine in ("onnxruntime", "openvino"))
    assert ours.shape == reference.shape
    assert mean_cosine(reference, ours) > 0.99
    assert mean_cosine(ours, theirs) > 0.999
    assert not np.array_equal(ours, reference)


def test_any_number_of_images_is_computed_and_each_alone_gives_the_same(pair: tuple[Path, Path]) -> None:
    images = noise(5, *SIZE)
    together = features(pair[1], "onnxruntime", images)
    alone = np.concatenate([features(pair[1], "onnxruntime", images[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_weights_have_seven_bits_and_a_scale_for_each_channel(pair: tuple[Path, Path]) -> None:
    model = onnx.load(str(pair[1]))
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    kernels = [values for values in weights.values() if values.dtype == np.int8 and values.ndim == 4]
    assert kernels
    assert all(np.abs(values.astype(int)).max() <= 64 for values in kernels)
    assert any(
        len(values) == len(kernels[0]) for name, values in weights.items() if "scale" in name and values.ndim == 1
    )


def test_the_preparation_stays_in_float32(pair: tuple[Path, Path]) -> None:
    nodes = onnx.load(str(pair[1])).graph.node
    first = next(number for number, node in enumerate(nodes) if node.op_type == "QuantizeLinear")
    assert {"Cast", "Sub", "Mul"} & {node.op_type for node in nodes[:first]}
    assert all(node.op_type != "DequantizeLinear" or node.input[0] in weight_names(pair[1]) for node in nodes[:first])


def weight_names(path: Path) -> set[str]:
    return {tensor.name for tensor in onnx.load(str(path)).graph.initializer}


def test_a_file_says_what_it_was_made_from(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert read_origin(pair[1]) == "this network"
    assert read_origin(pair[0]) is None
    (tmp_path / "text.onnx").write_text("no network")
    assert read_origin(tmp_path / "text.onnx") is None


def test_a_transformer_is_quantised_too(tmp_path: Path) -> None:
    exact = prepare(save(vision_transformer(), tmp_path / "vit.onnx"), tmp_path, layer="last_hidden_state:mean").path
    assert exact is not None
    images = noise(20, *SIZE)
    quantize_onnx(exact, tmp_path / "int8.onnx", images, made_from="x")
    ours, reference = features(tmp_path / "int8.onnx", "onnxruntime", images), features(exact, "onnxruntime", images)
    assert ours.shape == reference.shape
    assert np.isfinite(ours).all()


def test_what_cannot_be_quantised_is_a_sentence(pair: tuple[Path, Path], tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(pair[0].read_bytes()[:50])
    with pytest.raises(JobError, match=r"damaged\.onnx cannot be quantised to int8"):
        quantize_onnx(damaged, tmp_path / "out.onnx", noise(2, *SIZE), made_from="x")
    assert not (tmp_path / "out.onnx").exists()


def test_all_engines_but_tensorflow_compute_in_int8() -> None:
    assert [engine for engine in ENGINES if can_compute(engine, "int8")] == ["openvino", "onnxruntime"]
