"""What is listed of a network's layers: every name is taken by the code that cuts, and gives the shape that is listed."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import pytest
from helpers.models.networks import noise, settings, small_network
from helpers.models.onnx_networks import DIM, Graph, conv_network, prepare, save, vision_transformer
from helpers.models.transformers import SIZE, write_safetensors_folder

from featurize.backbones import keras_network
from featurize.backbones.backbone import open_backbone, prepare_backbone
from featurize.backbones.known import count_multiply_adds, find_backbones
from featurize.engines.keras_layers import list_keras_layers
from featurize.engines.parts import NetworkLayer
from featurize.errors import UsageError
from featurize.jobs.backbones_listing import LayersOfBackbone, list_layers

layers = keras.layers


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRN_CACHE", str(tmp_path / "cache"))


def base(size: int | None = 16) -> Any:
    inside = keras.Input((size, size, 3))
    return keras.Model(inside, layers.Conv2D(6, 3, name="out")(layers.Conv2D(4, 3, name="in")(inside)), name="base")


def nested() -> Any:
    image = keras.Input((16, 16, 3))
    return keras.Model(image, base()(layers.Rescaling(1 / 255, name="scaled")(image)))


def nested_of_any_size() -> Any:
    """The inner network was built for any size, so that its own graph knows no shapes."""
    image = keras.Input((16, 16, 3))
    return keras.Model(image, layers.GlobalAveragePooling2D(name="mean")(base(None)(image)))


def nested_twice() -> Any:
    image, both = keras.Input((16, 16, 3)), base(None)
    deep = keras.Sequential([keras.Input((16, 16, 3)), both, layers.ReLU(name="relu")], name="deep")
    return keras.Model(image, layers.Add(name="sum")([deep(image), both(layers.ReLU(name="first")(image))]))


def reused() -> Any:
    act, image = layers.Activation("relu", name="act"), keras.Input((16, 16, 3))
    return keras.Model(image, act(layers.Conv2D(4, 3, name="second")(act(layers.Conv2D(4, 3, name="first")(image)))))


def several_outputs() -> Any:
    image = keras.Input((16, 16, 3))
    first, state, cell = layers.LSTM(5, return_state=True, name="lstm")(layers.Reshape((16, 48), name="rows")(image))
    return keras.Model(image, [first, layers.Add(name="sum")([state, cell])])


def odd_names() -> Any:
    """Names that `backbone.layer` would read as something else, and an operation that is no layer."""
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3, name="act#2")(image)
    x = layers.Conv2D(4, 3, name="map:mean")(layers.ReLU(name="a + b")(x))
    x = layers.Conv2D(4, 3, name="split[1]")(x)
    products = keras.ops.matmul(x, keras.ops.transpose(x, (0, 1, 3, 2))) * 2.0
    return keras.Model(image, layers.Conv2D(2, 3, name="plain")(products))


def two_inputs_inside() -> Any:
    one, two = keras.Input((16, 16, 3)), keras.Input((16, 16, 3))
    inner = keras.Model([one, two], layers.Conv2D(2, 3, name="conv")(layers.Add(name="add")([one, two])), name="pair")
    image = keras.Input((16, 16, 3))
    return keras.Model(image, inner([image, layers.ReLU(name="relu")(image)]))


NETWORKS = [nested, nested_of_any_size, nested_twice, reused, several_outputs, odd_names, two_inputs_inside]


def rows_of(network: Any) -> dict[str, NetworkLayer]:
    rows = list_keras_layers(network, settings("x.keras", preprocessing="none"), height=16, width=16)
    assert len({row.name for row in rows}) == len(rows)
    return {row.name: row for row in rows}


@pytest.mark.parametrize("make", NETWORKS)
def test_every_name_that_is_listed_is_cut_and_gives_the_listed_shape(make: Callable[[], Any]) -> None:
    network, images = make(), noise(2, 16, 16).astype(np.float32)
    cuttable = [row for row in rows_of(network).values() if row.can_be_cut]
    assert cuttable
    for row in cuttable:
        cut = keras_network.cut_network(network, settings("x.keras", layer=row.name, preprocessing="none"))
        assert np.asarray(cut(images)).shape == (2, *(row.shape or ()))
        assert row.features == math.prod(np.asarray(cut(images)).shape[1:])


@pytest.mark.parametrize("make", NETWORKS)
def test_parameters_add_up_to_those_of_the_network(make: Callable[[], Any]) -> None:
    network = make()
    assert sum(row.parameters for row in rows_of(network).values()) == network.count_params()


@pytest.mark.parametrize("make", NETWORKS)
def test_the_default_is_what_no_layer_gives(make: Callable[[], Any]) -> None:
    network = make()
    defaults = [row for row in rows_of(network).values() if row.is_default]
    assert len(defaults) == (len(network.outputs) == 1)
    for default in defaults:
        images = noise(2, 16, 16).astype(np.float32)
        named = keras_network.cut_network(network, settings("x.keras", layer=default.name, preprocessing="none"))
        np.testing.assert_allclose(named(images), network(images), rtol=1e-5, atol=1e-6)


def test_names_are_those_of_models_in_models_of_calls_and_of_outputs() -> None:
    assert list(rows_of(nested())) == ["scaled", "base/in", "base/out", "base"]
    assert list(rows_of(reused())) == ["first", "act#1", "second", "act#2"]
    assert list(rows_of(several_outputs())) == ["rows", "lstm[0]", "lstm[1]", "lstm[2]", "sum"]
    assert {"deep/base/in", "deep/relu", "deep", "base/in", "base"} <= set(rows_of(nested_twice()))


def test_what_cannot_be_named_is_marked_if_it_costs_something_and_else_left_out() -> None:
    rows = rows_of(odd_names())
    assert [row.kind for row in rows.values()] == ["Conv2D", "Conv2D", "Conv2D", "Matmul", "Conv2D"]
    assert [name for name, row in rows.items() if row.can_be_cut] == ["plain"]
    rows = rows_of(two_inputs_inside())
    assert {name: row.can_be_cut for name, row in rows.items()} == {"relu": True, "pair/conv": False, "pair": True}


def test_a_layer_that_is_called_twice_computes_twice_and_has_its_weights_once() -> None:
    rows = rows_of(nested_twice())
    assert rows["base/in"].multiply_adds == rows["deep/base/in"].multiply_adds == 14 * 14 * 4 * 27
    assert sorted((rows["base/in"].parameters, rows["deep/base/in"].parameters)) == [0, 4 * 27 + 4]


def test_what_is_not_known_is_none_and_has_no_share() -> None:
    listed = LayersOfBackbone("x.keras", 16, 16, tuple(rows_of(several_outputs()).values()))
    (unknown,) = [layer.name for layer in listed.layers if layer.multiply_adds is None]
    assert unknown == "lstm[0]"
    assert (listed.multiply_adds, listed.known_multiply_adds) == (None, 0)
    assert listed.share_of(listed.layers[0]) is None
    assert listed.as_dict()["flops"] is None
    assert any(row.multiply_adds is None for row in rows_of(odd_names()).values())


@pytest.mark.parametrize("name", ["MobileNetV3Small", "NASNetMobile", "EfficientNetLite0"])
def test_operations_add_up_to_those_of_the_table(name: str) -> None:
    """Among them networks of any size, of separable convolutions, and of layers that Keras names by numbers."""
    keras.applications.MobileNetV3Small(weights=None)  # so that Keras would give the layers other numbers
    (known,) = find_backbones([name])
    listed = list_layers(name)
    assert (listed.height, listed.width) == (known.height, known.width)
    assert listed.multiply_adds == known.whole_multiply_adds
    assert listed.parameters == known.whole_parameters
    assert [layer.features for layer in listed.layers if layer.name == listed.usual_layer] == [known.features]


def test_channels_first_is_counted_at_its_positions() -> None:
    image = keras.Input((3, 8, 10))
    network = keras.Model(image, layers.Conv2D(4, 3, data_format="channels_first")(image))
    assert count_multiply_adds(network) == 6 * 8 * 4 * 27


def test_a_size_that_the_network_cannot_take_is_refused() -> None:
    any_size = settings("x.keras", preprocessing="none")
    with pytest.raises(UsageError, match=r"x\.keras does not take images of 4 x 4: "):
        list_keras_layers(base(None), any_size, height=4, width=4)


def test_a_network_that_keras_hub_reads_is_listed_with_what_is_not_known(tmp_path: Path) -> None:
    write_safetensors_folder(tmp_path / "vit")
    listed = list_layers(f"{tmp_path}/vit")
    assert (listed.height, listed.width) == (SIZE, SIZE)
    for row in listed.layers:
        spec = open_backbone(settings(f"{tmp_path}/vit", layer=row.name, engine="onnxruntime"), tmp_path).spec
        assert spec.feature_shape == row.shape
    assert listed.multiply_adds is None


def test_an_exported_network_costs_what_the_keras_network_costs(tmp_path: Path) -> None:
    path = small_network(tmp_path)
    network = keras.saving.load_model(path)
    network.set_weights([weight + 0.1 for weight in network.get_weights()])  # biases of zero would not be exported
    network.save(path)
    exported = prepare_backbone(settings(path, engine="onnxruntime", preprocessing="none"), tmp_path).path
    assert exported is not None
    (listed, other) = (list_layers(str(path)), list_layers(str(exported)))
    assert other.parameters == listed.parameters
    assert other.multiply_adds == listed.multiply_adds


# ONNX


def split_network() -> onnx.ModelProto:
    """A weight that a node makes of another, two outputs of a node, and a node whose operations are not known."""
    graph = Graph()
    graph.add("Transpose", [graph.weight("kernel", 3, 6, 3, 3)], "turned", perm=[1, 0, 2, 3])
    graph.add("Conv", ["images", "turned"], "conv")
    graph.nodes.append(onnx.helper.make_node("Split", ["conv"], ["left", "right"], axis=1, num_outputs=2))
    graph.add("Einsum", ["left"], "pooled", equation="nchw->nc")
    graph.add("Gemm", ["pooled", graph.weight("dense", 3, 7), graph.weight("bias", 7)], "features")
    graph.add("Shape", ["right"], "shape")
    return graph.model({"images": ("n", 3, 10, 12)}, ["features", "shape"], opset=18)


def fixed_at_the_end() -> onnx.ModelProto:
    """Its last node takes one image, as some exports do."""
    graph = Graph()
    graph.add("Conv", ["images", graph.weight("kernel", 6, 3, 3, 3)], "conv")
    graph.add("GlobalAveragePool", ["conv"], "pooled")
    graph.add("Reshape", ["pooled", graph.constant("one", np.array([1, 6]))], "fixed")
    graph.add("Relu", ["fixed"], "features")
    return graph.model({"images": (1, 3, 10, 12)}, ["features"])


def with_a_text() -> onnx.ModelProto:
    """A second input, which some tensors need."""
    graph = Graph()
    graph.add("Conv", ["images", graph.weight("kernel", 6, 3, 3, 3)], "conv")
    graph.add("GlobalAveragePool", ["conv"], "pooled")
    graph.add("Flatten", ["pooled"], "image_features", axis=1)
    graph.add("MatMul", ["text", graph.weight("embedding", 5, 6)], "text_features")
    graph.add("Mul", ["image_features", "text_features"], "similarity")
    return graph.model({"text": ("n", 5), "images": ("n", 3, 10, 12)}, ["similarity"])


@pytest.mark.parametrize("make", [conv_network, vision_transformer, split_network, fixed_at_the_end, with_a_text])
def test_every_tensor_that_is_listed_is_cut_and_gives_the_listed_shape(
    make: Callable[[], onnx.ModelProto], tmp_path: Path
) -> None:
    path = save(make(), tmp_path / "network.onnx")
    cuttable = [row for row in list_layers(str(path)).layers if row.can_be_cut]
    assert cuttable
    for row in cuttable:
        assert row.shape is not None
        layer = f"{row.name}:cls" if row.needs_pooling else row.name
        spec = prepare(path, tmp_path, layer=layer).spec
        assert spec.feature_shape == (row.features,)
        if row.needs_pooling:
            with pytest.raises(UsageError, match="Add `:cls`"):
                prepare(path, tmp_path, layer=row.name)
        else:
            assert row.features == np.prod(np.array(row.shape, int))


def test_tensors_are_listed_with_the_cost_of_their_nodes(tmp_path: Path) -> None:
    listed = list_layers(str(save(split_network(), tmp_path / "split.onnx")))
    rows = {row.name: row for row in listed.layers}
    assert list(rows) == ["conv", "left", "right", "pooled", "features"]
    assert (rows["conv"].parameters, rows["conv"].multiply_adds) == (6 * 27, 8 * 10 * 6 * 27)
    assert (rows["features"].parameters, rows["features"].multiply_adds) == (21 + 7, 21)
    assert (rows["pooled"].kind, rows["pooled"].multiply_adds) == ("Einsum", None)
    assert [row.name for row in listed.layers if row.is_default] == ["features"]
    assert listed.parameters == 6 * 27 + 28
    assert listed.multiply_adds is None


def test_products_of_what_the_image_gives_are_counted(tmp_path: Path) -> None:
    rows = {row.name: row for row in list_layers(str(save(vision_transformer(), tmp_path / "vit.onnx"))).layers}
    assert rows["query"].multiply_adds == 10 * DIM * DIM
    assert rows["products"].multiply_adds == 10 * 10 * DIM
    assert rows["patches"].multiply_adds == 9 * DIM * 3 * 8 * 8
    assert rows["last_hidden_state"].needs_pooling
    assert rows["last_hidden_state"].features == DIM


def test_what_takes_one_image_or_another_input_is_not_listed_as_cuttable(tmp_path: Path) -> None:
    listed = list_layers(str(save(fixed_at_the_end(), tmp_path / "fixed.onnx"))).layers
    assert [row.name for row in listed] == ["conv", "pooled"]
    listed = list_layers(str(save(with_a_text(), tmp_path / "text.onnx"))).layers
    assert {row.name: row.can_be_cut for row in listed} == {
        "conv": True,
        "pooled": True,
        "image_features": True,
        "text_features": False,
    }


def test_a_folder_says_its_size_or_is_asked_for_it(tmp_path: Path) -> None:
    save(conv_network(("n", 3, "h", "w")), tmp_path / "folder" / "model.onnx")
    with pytest.raises(UsageError, match="has no config"):
        list_layers(str(tmp_path / "folder"))
    listed = list_layers(str(tmp_path / "folder"), height=10, width=12)
    assert listed.layers[0].shape == (6, 8, 10)
