"""ONNX networks as backbones: cut at any tensor, pooled, prepared inside, and the same in either engine."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers.models.networks import noise
from helpers.models.onnx_networks import (
    DIM,
    ENGINES,
    PROCESSOR,
    TORCH,
    Floats,
    attend,
    conv_network,
    convolve,
    features_of,
    prepare,
    run_whole,
    same,
    save,
    vision_transformer,
    write_json,
)

from featurize.backbones.backbone import load_backbone
from featurize.backbones.spec import BackboneSpec
from featurize.digests import sha256_file
from featurize.engines.onnx_graph import Normalization
from featurize.errors import JobError, UsageError


def nchw(images: Any) -> Floats:
    return np.ascontiguousarray(np.transpose(np.asarray(images, np.float32), (0, 3, 1, 2)))


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, onnx.ModelProto]:
    model = vision_transformer()
    return save(model, tmp_path_factory.mktemp("transformer") / "vit.onnx"), model


# Layers

POOLED: dict[str, Callable[[Floats], Floats]] = {
    "last_hidden_state:cls": lambda tokens: tokens[:, 0],
    "last_hidden_state:mean": lambda tokens: tokens[:, 1:].mean(1),
    ":cls": lambda tokens: tokens[:, 0],
    ":mean": lambda tokens: tokens[:, 1:].mean(1),
    ":cls + :mean": lambda tokens: np.concatenate([tokens[:, 0], tokens[:, 1:].mean(1)], 1),
    "last_hidden_state:mean + last_hidden_state:cls": lambda tokens: np.concatenate(
        [tokens[:, 1:].mean(1), tokens[:, 0]], 1
    ),
}


@pytest.mark.parametrize("layer", POOLED)
def test_tokens_are_pooled_as_numpy_pools_them(
    transformer: tuple[Path, onnx.ModelProto], tmp_path: Path, layer: str
) -> None:
    path, model = transformer
    images = noise(5, 24, 24)
    features = features_of(path, images, tmp_path, layer=layer, preprocessing="torch")
    same(features, POOLED[layer](attend(model, TORCH.apply(images.astype(np.float32)))))


@pytest.mark.parametrize(
    ("layer", "first"),
    [
        ("/block/sum:0:cls", 0),
        ("/block/attended:cls", 0),
        ("normal:mean", 1),
        ("patch_tokens:mean", 0),
        ("pooler_output", None),
        ("class", None),
        ("patches", None),
    ],
)
def test_any_tensor_inside_gives_what_the_whole_network_computes_there(
    transformer: tuple[Path, onnx.ModelProto], tmp_path: Path, layer: str, first: int | None
) -> None:
    path, model = transformer
    images = noise(4, 24, 24)
    name, _, pooling = layer.rpartition(":") if first is not None else (layer, "", "")
    expected = run_whole(model, name, {"pixel_values": nchw(TORCH.apply(images.astype(np.float32)))})
    if first is not None:
        expected = expected[:, 0] if pooling == "cls" else expected[:, first:].mean(1)
    same(features_of(path, images, tmp_path, layer=layer, preprocessing="torch"), expected)


def test_parts_of_different_kinds_are_joined_in_order(
    transformer: tuple[Path, onnx.ModelProto], tmp_path: Path
) -> None:
    path, _ = transformer
    images = noise(3, 24, 24)
    layers = ("pooler_output", "tokens:mean", "patches:mean", "last_hidden_state:cls")
    joined = features_of(path, images, tmp_path, layer=" + ".join(layers), preprocessing="torch")
    parts = [features_of(path, images, tmp_path, layer=layer, preprocessing="torch") for layer in layers]
    assert joined.shape == (3, 4 * DIM)
    same(joined, np.concatenate(parts, 1))


def test_what_the_layer_does_not_need_is_cut_off(transformer: tuple[Path, onnx.ModelProto], tmp_path: Path) -> None:
    path, model = transformer
    prepared = prepare(path, tmp_path, layer="patches")
    cut = onnx.load(str(prepared.path))
    names = {tensor.name for tensor in cut.graph.initializer}
    assert "kernel" in names
    assert not names & {"query_weight", "pooler", "special"}
    assert (prepared.spec.layer, prepared.spec.feature_shape) == ("patches", (9 * DIM,))
    assert (prepared.spec.height, prepared.spec.width, prepared.spec.channels) == (24, 24, 3)
    assert prepare(path, tmp_path, layer=":cls").spec.feature_shape == (DIM,)
    assert model.graph.output[0].name == "last_hidden_state"


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("size", [(24, 24), (32, 48)])
def test_registers_are_no_patches_where_the_folder_says_the_size_of_a_patch(
    tmp_path: Path, registers: int, size: tuple[int, int]
) -> None:
    model = vision_transformer(("batch", 3, *size), registers=registers)
    save(model, tmp_path / "dinov2" / "model.onnx")
    crop = {"height": size[0], "width": size[1]}
    write_json(
        tmp_path / "dinov2",
        config={"patch_size": 8},
        preprocessor_config={**PROCESSOR, "crop_size": crop, "size": {"shortest_edge": 48}},
    )
    images = noise(3, *size)
    tokens = attend(model, TORCH.apply(images.astype(np.float32)))
    same(
        features_of(tmp_path / "dinov2", images, tmp_path, layer="last_hidden_state:mean"),
        tokens[:, 1 + registers :].mean(1),
    )


def test_registers_are_no_patches_of_a_square_input_either(tmp_path: Path) -> None:
    model = vision_transformer(("batch", 3, 32, 32), registers=4)
    images = noise(3, 32, 32)
    features = features_of(save(model, tmp_path / "vit.onnx"), images, tmp_path, layer=":mean")
    same(features, attend(model, images.astype(np.float32))[:, 5:].mean(1))


@pytest.mark.parametrize(
    ("layer", "shape", "words"),
    [
        (None, (24, 24), "gives 10 tokens of 16 features. Add `:cls`"),
        ("tokens", (24, 24), "gives 10 tokens of 16 features. Add `:cls`"),
        (":mean", (24, 32), "which of the 13 tokens of last_hidden_state are patches is not known"),
        ("pooler_output:mean", (24, 24), "pooler_output is neither a feature map nor tokens: remove `:mean`"),
        ("pooler_output:cls", (24, 24), "pooler_output has no tokens, so `:cls` cannot be used"),
        ("patches:cls", (24, 24), "patches has no tokens, so `:cls` cannot be used"),
        ("last_hidden_stat:cls", (24, 24), "no tensor 'last_hidden_stat'. Did you mean last_hidden_state"),
        ("encoder", (24, 24), "no tensor 'encoder'. Its outputs are last_hidden_state, pooler_output."),
        ("pixel_values", (24, 24), "no tensor 'pixel_values'"),
        ("class +  + class", (24, 24), "a part of 'class +  + class' is empty"),
    ],
)
def test_a_layer_that_gives_no_features_is_refused(
    tmp_path: Path, layer: str | None, shape: tuple[int, int], words: str
) -> None:
    path = save(vision_transformer(("n", 3, *shape)), tmp_path / "vit.onnx")
    with pytest.raises(UsageError) as raised:
        prepare(path, tmp_path, layer=layer)
    assert str(raised.value).startswith("`backbone.layer`: ")
    assert words in str(raised.value)


# Inputs


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("layer", ["features", "map", "map:mean"])
def test_channels_are_where_the_network_takes_them(tmp_path: Path, layout: str, layer: str) -> None:
    model = conv_network(("n", 3, 10, 12) if layout == "nchw" else ("n", 10, 12, 3), layout=layout)
    if layout == "nhwc" and layer == "map:mean":
        model = conv_network(("n", 12, 12, 3), layout=layout)  # a map whose channels can be told from its sides
    path = save(model, tmp_path / "net.onnx")
    images = noise(4, 12 if layout == "nhwc" and layer == "map:mean" else 10, 12)
    maps = convolve(model, images.astype(np.float32))
    expected = maps.mean((1, 2))
    if layer == "map":
        expected = maps if layout == "nhwc" else maps.transpose(0, 3, 1, 2)
    same(features_of(path, images, tmp_path, layer=layer), expected)


def test_a_map_whose_channels_cannot_be_told_from_its_sides_is_refused(tmp_path: Path) -> None:
    path = save(conv_network(("n", 10, 12, 3), layout="nhwc"), tmp_path / "net.onnx")
    with pytest.raises(UsageError, match=r"^`backbone\.layer`: which dimension of map \(8, 10, 6\) is its channels"):
        prepare(path, tmp_path, layer="map:mean")


@pytest.mark.parametrize(
    ("changes", "normalization"),
    [
        ({"preprocessing": "none"}, Normalization()),
        ({"preprocessing": "torch"}, TORCH),
        ({"preprocessing": "tf"}, Normalization(1 / 127.5, (1.0, 1.0, 1.0))),
        ({"preprocessing": "caffe"}, Normalization(1.0, (103.939, 116.779, 123.68), channel_order="bgr")),
        ({"scale": 0.01}, Normalization(0.01)),
        ({"channel_order": "bgr"}, Normalization(channel_order="bgr")),
        (
            {"scale": 1 / 255, "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "channel_order": "bgr"},
            Normalization(1 / 255, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), "bgr"),
        ),
    ],
)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_values_are_prepared_inside_the_network(
    tmp_path: Path, layout: str, changes: dict[str, Any], normalization: Normalization
) -> None:
    model = conv_network(("n", 3, 10, 12) if layout == "nchw" else ("n", 10, 12, 3), layout=layout)
    path = save(model, tmp_path / "net.onnx")
    images = noise(3, 10, 12)
    expected = convolve(model, normalization.apply(images.astype(np.float32))).mean((1, 2))
    same(features_of(path, images, tmp_path, **changes), expected)
    spec = prepare(path, tmp_path, **changes).spec
    assert (spec.preprocessing, spec.normalization) == ("stated", normalization)
    assert BackboneSpec.from_dict(spec.as_dict()) == spec


@pytest.mark.parametrize(
    "shape",
    [
        (1, 3, 24, 24),
        ("n", 3, "h", "w"),
        ("n", "num_channels", "height", "width"),
        (1, 3, None, None),
        (None, None, None, None),
        (7, 3, 24, 24),
    ],
)
def test_inputs_of_any_size_or_of_one_image_compute_for_any_number_of_the_recipes_size(
    tmp_path: Path, shape: tuple[Any, ...]
) -> None:
    model = vision_transformer(shape)
    path = save(model, tmp_path / "vit.onnx")
    images = noise(5, 24, 24)
    features = features_of(path, images, tmp_path, layer=":cls", height=24, width=24)
    same(features, attend(model, images.astype(np.float32))[:, 0])


def test_a_dynamic_last_dimension_that_is_called_channels_comes_last(tmp_path: Path) -> None:
    model = conv_network(("batch", "height", "width", "num_channels"), layout="nhwc")
    images = noise(2, 9, 11)
    features = features_of(save(model, tmp_path / "net.onnx"), images, tmp_path, height=9, width=11)
    same(features, convolve(model, images.astype(np.float32)).mean((1, 2)))


def test_a_network_of_whole_numbers_takes_the_pixels_as_they_are(tmp_path: Path) -> None:
    model = conv_network(("n", 10, 12, 3), layout="nhwc", kind=onnx.TensorProto.UINT8)
    path = save(model, tmp_path / "net.onnx")
    images = noise(3, 10, 12)
    same(features_of(path, images, tmp_path), convolve(model, images.astype(np.float32)).mean((1, 2)))
    reverse = images[..., ::-1].astype(np.float32)
    same(features_of(path, images, tmp_path, channel_order="bgr"), convolve(model, reverse).mean((1, 2)))
    for changes in ({"preprocessing": "torch"}, {"scale": 1 / 255}, {"mean": [1.0, 1.0, 1.0]}):
        with pytest.raises(UsageError, match=r'net.onnx takes pixels .* set `backbone\.preprocessing` to "none"'):
            prepare(path, tmp_path, **changes)


def test_a_network_of_half_precision_gives_float32(tmp_path: Path) -> None:
    model = conv_network(("n", 3, 10, 12), kind=onnx.TensorProto.FLOAT16)
    images = noise(3, 10, 12)
    features = features_of(save(model, tmp_path / "net.onnx"), images, tmp_path)
    same(features, convolve(model, images.astype(np.float32)).mean((1, 2)))


def test_a_number_of_images_that_is_built_in_is_refused(tmp_path: Path) -> None:
    for count in (1, 4):
        path = save(vision_transformer((count, 3, 24, 24), batch_of_tokens=count), tmp_path / f"vit{count}.onnx")
        with pytest.raises(UsageError, match=rf"^`backbone\.name`: .*vit{count}\.onnx "):
            prepare(path, tmp_path, layer=":cls")


def test_a_network_in_which_images_change_each_other_is_refused(tmp_path: Path) -> None:
    model = conv_network()
    model.graph.node.append(onnx.helper.make_node("ReduceMax", ["features"], ["brightest"], axes=[0], keepdims=1))
    model.graph.node.append(onnx.helper.make_node("Sub", ["features", "brightest"], ["relative"]))
    path = save(model, tmp_path / "net.onnx")
    with pytest.raises(UsageError, match="takes a fixed number of images"):
        prepare(path, tmp_path, layer="relative")
    prepare(path, tmp_path, layer="features")


# Digests and engines


def test_another_digest_than_the_recipes_is_refused(transformer: tuple[Path, onnx.ModelProto], tmp_path: Path) -> None:
    path, _ = transformer
    digest = sha256_file(path)
    assert prepare(path, tmp_path, layer=":cls", weights_sha256=digest).report is not None
    with pytest.raises(UsageError, match=rf"^`backbone\.weights_sha256`: .*vit\.onnx has SHA-256 {digest}\."):
        prepare(path, tmp_path, layer=":cls", weights_sha256="0" * 64)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_worker_loads_only_the_file_that_was_prepared(
    transformer: tuple[Path, onnx.ModelProto], tmp_path: Path, engine: str
) -> None:
    prepared = prepare(transformer[0], tmp_path, layer=":cls", engine=engine)
    assert prepared.path is not None
    assert prepared.sha256 == sha256_file(prepared.path)
    assert prepared.spec.engine == engine
    with pytest.raises(JobError, match="not the one that this job prepared"):
        load_backbone(prepared.spec, prepared.path, sha256="0" * 64)
    prepared.path.write_bytes(prepared.path.read_bytes()[:-1])
    with pytest.raises(JobError, match="not the one that this job prepared"):
        load_backbone(prepared.spec, prepared.path, sha256=prepared.sha256)


def test_features_have_one_identity_whatever_computes_them(
    transformer: tuple[Path, onnx.ModelProto], tmp_path: Path
) -> None:
    specs = [prepare(transformer[0], tmp_path, layer=":cls", engine=engine).spec for engine in ENGINES]
    assert specs[0] == replace(specs[1], engine="openvino")
    assert specs[0].preparation_id == specs[1].preparation_id
    other = prepare(transformer[0], tmp_path, layer=":mean").spec
    scaled = prepare(transformer[0], tmp_path, layer=":cls", scale=0.5).spec
    assert len({specs[0].preparation_id, other.preparation_id, scaled.preparation_id}) == 3
