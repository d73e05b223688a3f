"""Cuts by the graph: models in models, layers that are called twice, several outputs; right, or refused with the choices."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.models.networks import noise, settings
from numpy.typing import NDArray

from featurize.backbones import keras_network
from featurize.errors import UsageError


def nested() -> Any:
    """A rescaling, then the model `base` of two convolutions, which holds no layer of the outer one."""
    import keras
    from keras import layers

    inside = keras.Input((16, 16, 3))
    base = keras.Model(
        inside, layers.Conv2D(6, 3, name="conv_out")(layers.Conv2D(4, 3, name="conv_in")(inside)), name="base"
    )
    outside = keras.Input((16, 16, 3))
    return keras.Model(outside, base(layers.Rescaling(1 / 255, name="scaled")(outside)))


def reused() -> Any:
    """The activation `act` is called twice, at the end for the second time."""
    import keras
    from keras import layers

    act, image = layers.Activation("relu", name="act"), keras.Input((16, 16, 3))
    return keras.Model(image, act(layers.Conv2D(4, 3, name="second")(act(layers.Conv2D(4, 3, name="first")(image)))))


def sequential() -> Any:
    import keras
    from keras import layers

    base = keras.Sequential(
        [keras.Input((16, 16, 3)), layers.Conv2D(4, 3, name="conv"), layers.ReLU(name="relu")], name="base"
    )
    return keras.Sequential([keras.Input((16, 16, 3)), base, layers.GlobalAveragePooling2D(name="pool")])


def several_outputs() -> Any:
    import keras
    from keras import layers

    image = keras.Input((16, 16, 3))
    lstm = layers.LSTM(5, return_state=True, name="lstm")
    first, state, cell = lstm(layers.Reshape((16, 48), name="rows")(image))
    return keras.Model(image, [first, layers.Add(name="sum")([state, cell])])


def values(network: Any, layer: str | None) -> NDArray[np.float32]:
    cut = keras_network.cut_network(network, settings("x.keras", layer=layer, preprocessing="none"))
    return np.asarray(cut(noise(2, 16, 16).astype(np.float32)))


def test_a_model_in_a_model_is_the_last_layer_or_is_cut_inside() -> None:
    network = nested()
    images = noise(2, 16, 16).astype(np.float32)
    base = network.get_layer("base")
    np.testing.assert_allclose(values(network, None), network(images), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(values(network, "base"), network(images), rtol=1e-5, atol=1e-6)
    wanted = base.get_layer("conv_in")(images / 255)
    np.testing.assert_allclose(values(network, "base/conv_in"), wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(values(network, "scaled"), images / 255, rtol=1e-6)


def test_in_sequential_models_too() -> None:
    network, images = sequential(), noise(2, 16, 16).astype(np.float32)
    conv = network.get_layer("base").get_layer("conv")
    np.testing.assert_allclose(values(network, "base/conv"), conv(images), rtol=1e-5)
    np.testing.assert_allclose(values(network, None), network(images), rtol=1e-5)


def test_the_output_is_the_models_own_where_its_layer_is_called_twice() -> None:
    network, images = reused(), noise(2, 16, 16).astype(np.float32)
    assert values(network, None).shape == (2, 12, 12, 4)
    np.testing.assert_allclose(values(network, None), network(images), rtol=1e-5)
    np.testing.assert_allclose(values(network, "act#2"), network(images), rtol=1e-5)
    first = np.maximum(network.get_layer("first")(images), 0)
    np.testing.assert_allclose(values(network, "act#1"), first, rtol=1e-5)


def test_one_of_several_outputs_is_chosen() -> None:
    network, images = several_outputs(), noise(2, 16, 16).astype(np.float32)
    outputs = network.get_layer("lstm")(images.reshape(2, 16, 48))
    for number in range(3):
        np.testing.assert_allclose(values(network, f"lstm[{number}]"), outputs[number], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "layer", "message"),
    [
        (reused, "act", "act of x.keras is called 2 times. Choose one: act#1, act#2."),
        (reused, "act#3", "is called 2 times. Got 'act#3'"),
        (several_outputs, "lstm", r"has 3 outputs. Choose one: lstm\[0\], lstm\[1\], lstm\[2\]."),
        (several_outputs, "lstm[3]", "has 3 outputs, counted from 0"),
        (several_outputs, None, "`backbone.layer` is required: x.keras has 2 outputs, of the layers lstm, sum."),
        (nested, "base/conv_inn", "has no layer 'conv_inn'. Did you mean conv_in"),
        (nested, "conv_in", "has no layer 'conv_in'. Did you mean base/conv_in"),
        (nested, "scaled/x", "scaled of x.keras is a layer, not a model"),
    ],
)
def test_what_is_not_one_place_is_refused_with_the_choices(
    make: Callable[[], Any], layer: str | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        values(make(), layer)


def test_a_cut_inside_of_a_model_travels_as_a_file(tmp_path: Path) -> None:
    import keras

    network = nested()
    cut = keras_network.cut_network(network, settings("x.keras", layer="base/conv_in", preprocessing="none"))
    cut.save(tmp_path / "cut.keras")
    images = noise(2, 16, 16).astype(np.float32)
    loaded = keras.saving.load_model(tmp_path / "cut.keras")
    np.testing.assert_allclose(loaded(images), cut(images), rtol=1e-6)
    name = keras_network.name_of_layer(cut, settings("x.keras", layer="base/conv_in", preprocessing="none"))
    assert name == "base/conv_in"
