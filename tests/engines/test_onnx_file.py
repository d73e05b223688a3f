"""ONNX files that cannot be used: each is refused in one sentence that names the file."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.images.pictures import encode, quadrants
from helpers.models.networks import noise
from helpers.models.onnx_networks import (
    Graph,
    conv_network,
    convolve,
    features_of,
    onnx_settings,
    save,
    vision_transformer,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from featurize.backbones.backbone import prepare_backbone
from featurize.engines.onnx_file import OLDEST_OPSET, digests_of, read_onnx
from featurize.errors import UsageError

NEWEST_OPSET = onnx.defs.onnx_opset_version()


@pytest.fixture(autouse=True)
def _silent(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """No library prints beside the one sentence."""
    yield
    assert tuple(capfd.readouterr()) == ("", "")


def refusal(path: Path, folder: Path, **changes: Any) -> str:
    """The one sentence with which preparing a file is refused."""
    with pytest.raises(UsageError) as raised:
        prepare_backbone(onnx_settings(path, **changes), folder)
    message = str(raised.value)
    assert path.name in message
    assert "\n" not in message
    assert len(message) < 500
    assert not list(folder.glob("backbone*"))  # nothing was left behind
    return message


def in_opset(version: int) -> onnx.ModelProto:
    model = conv_network()
    model.opset_import[0].version = version
    return model


# Not such a file


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 100,
        b"no network at all",
        encode(quadrants(), "JPEG"),
        encode(quadrants(), "PNG"),
        b"PK\3\4" + bytes(200),
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        vision_transformer().SerializeToString()[:-20],
        vision_transformer().SerializeToString()[:1000],
        vision_transformer().SerializeToString().replace(b"last_hidden", b"last\xffhidden"),
        vision_transformer().SerializeToString().replace(b"Softmax", b"Softm\xc3x"),
        vision_transformer().graph.SerializeToString(),
        onnx.ModelProto(ir_version=8).SerializeToString(),
    ],
)
def test_what_is_not_an_onnx_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    message = refusal(path, tmp_path)
    assert message == f"`backbone.name`: {path} is not an ONNX file, or it is damaged."


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    assert refusal(path, tmp_path) == f"`backbone.name`: there is no file {path}."
    path.mkdir()
    assert refusal(path, tmp_path) == f"`backbone.name`: there is no file {path}."
    path.rmdir()
    path.symlink_to(tmp_path / "nowhere")
    assert refusal(path, tmp_path) == f"`backbone.name`: there is no file {path}."


WHOLE = vision_transformer().SerializeToString()


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_damaged_file_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(WHOLE)
    for position, value in changes:
        content[position] = value
    folder = tmp_path_factory.mktemp("damaged")
    path = folder / "net.onnx"
    path.write_bytes(content)
    try:
        assert read_onnx(str(path), folder).graph.output
    except UsageError as error:
        assert str(path) in str(error)


# Versions and operators


@pytest.mark.parametrize("version", [1, 7, OLDEST_OPSET - 1, NEWEST_OPSET + 1, 1000])
def test_an_opset_that_is_too_old_or_too_new_is_refused(tmp_path: Path, version: int) -> None:
    path = save(in_opset(version), tmp_path / "net.onnx")
    assert refusal(path, tmp_path) == (
        f"`backbone.name`: {path} is of ONNX opset {version}; {OLDEST_OPSET} to {NEWEST_OPSET} can be read. Export it again."
    )


@pytest.mark.parametrize("version", [OLDEST_OPSET, 11, 13, 17, 18, 21])
def test_every_usual_opset_computes(tmp_path: Path, version: int) -> None:
    model = in_opset(version)
    images = noise(3, 10, 12)
    features = features_of(save(model, tmp_path / "net.onnx"), images, tmp_path, preprocessing="tf")
    expected = convolve(model, images.astype(np.float32) / np.float32(127.5) - 1).mean((1, 2))
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4)


def test_a_file_without_an_opset_is_refused(tmp_path: Path) -> None:
    model = conv_network()
    model.opset_import[0].domain = "com.example"
    path = save(model, tmp_path / "net.onnx")
    assert refusal(path, tmp_path) == f"`backbone.name`: {path} does not say of which ONNX opset it is."


def test_an_operator_of_an_unknown_domain_is_refused(tmp_path: Path) -> None:
    model = conv_network()
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    model.graph.node.append(helper.make_node("Sharpen", ["features"], ["sharp"], domain="com.example"))
    model.graph.output.insert(0, onnx.ValueInfoProto(name="sharp"))
    path = save(model, tmp_path / "net.onnx")
    message = refusal(path, tmp_path)
    assert message.startswith(f"`backbone.name`: ONNX Runtime cannot load {path}: ")
    assert "Sharpen" in message
    prepare_backbone(onnx_settings(path, layer="features"), tmp_path)  # which does not need it


def test_an_operator_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    model = conv_network()
    model.graph.node[1].op_type = "Rellu"
    assert "Rellu" in refusal(save(model, tmp_path / "net.onnx"), tmp_path)


def test_a_network_that_does_not_compute_is_refused(tmp_path: Path) -> None:
    path = save(vision_transformer(("n", 3, "h", "w")), tmp_path / "net.onnx")
    message = refusal(path, tmp_path, layer=":cls", height=4, width=4)  # less than one patch
    assert message.startswith("`backbone.name`: ")


# Inputs


def one_input(kind: int, *shape: Any) -> onnx.ModelProto:
    graph = Graph()
    graph.add("Cast", ["given"], "as_float", to=TensorProto.FLOAT)
    graph.add("Flatten", ["as_float"], "features", axis=1)
    return graph.model({"given": shape}, ["features"], kind=kind)


@pytest.mark.parametrize(
    ("kind", "shape", "shown"),
    [
        (TensorProto.INT64, ("n", 77), "given (any, 77)"),
        (TensorProto.FLOAT, ("n", 1, 28, 28), "given (any, 1, 28, 28)"),
        (TensorProto.FLOAT, (1, 28, 28, 1), "given (1, 28, 28, 1)"),
        (TensorProto.FLOAT, ("n", 4, 28, 28), "given (any, 4, 28, 28)"),
        (TensorProto.FLOAT, (3, 28, 28), "given (3, 28, 28)"),
        (TensorProto.FLOAT, ("n", 8, 3, 28, 28), "given (any, 8, 3, 28, 28)"),
        (TensorProto.INT64, ("n", 3, 28, 28), "given (any, 3, 28, 28)"),
        (TensorProto.DOUBLE, ("n", 3, 28, 28), "given (any, 3, 28, 28)"),
    ],
)
def test_a_network_that_takes_no_rgb_images_is_refused(
    tmp_path: Path, kind: int, shape: tuple[Any, ...], shown: str
) -> None:
    path = save(one_input(kind, *shape), tmp_path / "net.onnx")
    assert refusal(path, tmp_path) == (
        f"`backbone.name`: {path} has no input for RGB images, (n, 3, h, w) or (n, h, w, 3): {shown}."
    )


def two_towers() -> onnx.ModelProto:
    """Images and text in one space, as CLIP has them."""
    model = conv_network()
    model.graph.input.append(helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n", 7]))
    model.graph.initializer.append(numpy_helper.from_array(np.ones((7, 6), np.float32), "embedding"))
    for kind, inputs, output, attributes in (
        ("Cast", ["input_ids"], "ids", {"to": TensorProto.FLOAT}),
        ("MatMul", ["ids", "embedding"], "text", {}),
        ("Mul", ["features", "text"], "similarity", {}),
    ):
        model.graph.node.append(helper.make_node(kind, inputs, [output], **attributes))
    model.graph.output.insert(0, onnx.ValueInfoProto(name="similarity"))
    return model


def test_a_network_with_several_inputs_is_refused_but_not_where_the_layer_needs_the_image_alone(
    tmp_path: Path,
) -> None:
    path = save(two_towers(), tmp_path / "clip.onnx")
    message = refusal(path, tmp_path)
    assert "must take one image and nothing else" in message
    assert "images (any, 3, 10, 12), input_ids (any, 7)" in message
    assert "has no input for RGB images" in refusal(path, tmp_path, layer="text")
    images = noise(2, 10, 12)
    features = features_of(path, images, tmp_path, layer="features")
    np.testing.assert_allclose(features, convolve(two_towers(), images.astype(np.float32)).mean((1, 2)), rtol=1e-4)


def test_a_network_without_an_input_is_refused(tmp_path: Path) -> None:
    graph = Graph()
    graph.add("Abs", [graph.constant("weights", np.ones((1, 4), np.float32))], "features")
    path = save(graph.model({}, ["features"]), tmp_path / "net.onnx")
    assert "Its inputs are none." in refusal(path, tmp_path)


def test_weights_that_are_listed_as_inputs_are_none(tmp_path: Path) -> None:
    model = conv_network()
    model.graph.input.append(helper.make_tensor_value_info("kernel", TensorProto.FLOAT, [6, 3, 3, 3]))
    images = noise(2, 10, 12)
    features = features_of(save(model, tmp_path / "net.onnx"), images, tmp_path)
    np.testing.assert_allclose(features, convolve(model, images.astype(np.float32)).mean((1, 2)), rtol=1e-4)


def test_a_size_that_nobody_says_is_asked_for(tmp_path: Path) -> None:
    path = save(conv_network(("n", 3, "h", "w")), tmp_path / "net.onnx")
    assert refusal(path, tmp_path) == f"`backbone.height` is required: {path} takes images of any size."
    assert refusal(path, tmp_path, height=9) == f"`backbone.width` is required: {path} takes images of any size."
    prepare_backbone(onnx_settings(path, resize=12, crop=[10, 11]), tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"height": 11}, "`backbone.height` must be 10, the input of "),
        ({"width": 10}, "`backbone.width` must be 12, the input of "),
        ({"resize": 20, "crop": 12}, "`backbone.crop` must be 10, the input of "),
    ],
)
def test_another_size_than_the_networks_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = save(conv_network(), tmp_path / "net.onnx")
    assert refusal(path, tmp_path, **changes).startswith(words)


# Weights beside the file


def with_data(folder: Path, location: str = "weights.bin") -> Path:
    """A network whose weights lie in another file."""
    path = folder / "net.onnx"
    folder.mkdir(exist_ok=True)
    onnx.save(conv_network(), str(path), save_as_external_data=True, location=location, size_threshold=0)
    return path


def pointed_at(path: Path, location: str) -> Path:
    """The file with another name for its external data."""
    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())
    return path


def test_missing_external_data_is_named(tmp_path: Path) -> None:
    path = with_data(tmp_path / "net")
    (tmp_path / "net" / "weights.bin").unlink()
    expected = f"`backbone.name`: {path} needs the file weights.bin beside it, which is missing."
    assert refusal(path, tmp_path) == expected
    (tmp_path / "net" / "weights.bin").mkdir()
    assert refusal(path, tmp_path) == expected
    (tmp_path / "net" / "weights.bin").rmdir()
    (tmp_path / "net" / "weights.bin").symlink_to(tmp_path / "nowhere")
    assert refusal(path, tmp_path) == expected


@pytest.mark.parametrize(
    "location",
    ["../secret", "{folder}/secret", "a/../../secret", "..", ".", "", "/", "..\\secret", "net/\0", "\\\\host\\secret"],
)
def test_external_data_outside_the_folder_is_not_read(tmp_path: Path, location: str) -> None:
    path = with_data(tmp_path / "net")
    (tmp_path / "net" / "weights.bin").rename(tmp_path / "secret")
    pointed_at(path, location.format(folder=tmp_path))
    message = refusal(path, tmp_path)
    assert message.startswith(f"`backbone.name`: {path} asks for external data outside its own folder: ")


def test_external_data_that_is_too_short_is_refused(tmp_path: Path) -> None:
    path = with_data(tmp_path / "net")
    data = tmp_path / "net" / "weights.bin"
    for content in (data.read_bytes()[:-8], b""):
        data.write_bytes(content)
        refusal(path, tmp_path)


def test_external_data_inside_a_branch_is_read(tmp_path: Path) -> None:
    model = conv_network()
    kernel = numpy_helper.from_array(np.full((6, 6), 2, np.float32), "inner")
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["features", "inner"], ["chosen"])],
        "branch",
        [],
        [helper.make_tensor_value_info("chosen", TensorProto.FLOAT, None)],
        [kernel],
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    node = helper.make_node("If", ["always"], ["result"], then_branch=branch, else_branch=branch)
    model.graph.node.append(node)
    model.graph.output.insert(0, onnx.ValueInfoProto(name="result"))
    path = tmp_path / "net.onnx"
    onnx.save(model, str(path), save_as_external_data=True, location="data", size_threshold=0)
    copy = tmp_path / "copy"
    copy.mkdir()
    inner = [
        tensor
        for node in read_onnx(str(path), copy).graph.node
        for attribute in node.attribute
        for tensor in attribute.g.initializer
    ]
    assert [numpy_helper.to_array(tensor).tolist() for tensor in inner] == [[[2.0] * 6] * 6] * 2


@pytest.mark.parametrize("change", [lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: data + b"\0"])
def test_the_digest_of_the_files_beside_it_follows_their_content(
    tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    path = with_data(tmp_path / "net")
    data = tmp_path / "net" / "weights.bin"

    def digests(name: str) -> tuple[str, str | None]:
        copy = tmp_path / name
        copy.mkdir()
        read_onnx(str(path), copy)
        return digests_of(copy)

    first, again = digests("first"), digests("again")
    data.write_bytes(change(data.read_bytes()))
    changed = digests("changed")
    assert first == again
    assert first[0] == changed[0]
    assert first[1] != changed[1]
    alone = tmp_path / "alone"
    alone.mkdir()
    read_onnx(str(save(conv_network(), tmp_path / "one.onnx")), alone)
    assert digests_of(alone)[1] is None


# Tokens


def test_tokens_without_pooling_are_refused(tmp_path: Path) -> None:
    path = save(vision_transformer(), tmp_path / "vit.onnx")
    with pytest.raises(UsageError) as raised:
        prepare_backbone(onnx_settings(path), tmp_path)
    assert str(raised.value) == (
        "`backbone.layer`: last_hidden_state gives 10 tokens of 16 features. Add `:cls` for the first token or `:mean` for the "
        "mean of the patches."
    )


def test_an_unknown_layer_is_refused_with_those_that_look_like_it(tmp_path: Path) -> None:
    path = save(conv_network(), tmp_path / "net.onnx")
    assert refusal(path, tmp_path, layer="feature") == (
        f"`backbone.layer`: {path} has no tensor 'feature'. Did you mean features?"
    )
