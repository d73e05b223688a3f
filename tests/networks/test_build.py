"""Tests of networks.build and networks.convnets: architectures, initial weights, and logits and probabilities as one network."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurize.errors import UsageError
from featurize.recipes.model_section import PIXEL_MODELS, ModelSettings
from finetune.networks.build import LOGITS, build_model, layer_seeds, logits_of, model_faults
from finetune.networks.convnets import CONVNETS
from finetune.networks.inputs import Statistics

HEAD = ModelSettings(name="softmax_head", url="unused")


def settings_of(name: str, **changes: Any) -> ModelSettings:
    return ModelSettings(name=name, url="unused", **changes)


def build(name: str, shape: tuple[int, ...], *, n_classes: int = 10, seed: int = 1, **changes: Any) -> Any:
    """A model for pixels if `shape` has three sizes, standardised by mean 100 and deviation 50 if it is."""
    pixels = len(shape) == 3
    return build_model(
        settings_of(name, **changes),
        feature_shape=shape,
        feature_dtype="uint8" if pixels else "float32",
        n_classes=n_classes,
        seed=seed,
        statistics=Statistics(np.full(shape[-1], 100.0), np.full(shape[-1], 50.0)),
    )


def layers_of(model: Any) -> list[tuple[str, tuple[int, ...]]]:
    """The name of each layer and the shape of one row of what it gives."""
    return [(layer.name, tuple(layer.output.shape[1:])) for layer in model.layers]


def pixels(*shape: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_head_on_features_is_a_softmax_of_one_dense_layer() -> None:
    model = build_model(HEAD, feature_shape=[20], feature_dtype="float32", n_classes=5, seed=1)
    features = np.random.default_rng(0).normal(size=(7, 20)).astype(np.float32)
    kernel, bias = model.get_weights()
    logits = features @ kernel + bias
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.asarray(model(features)), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.asarray(logits_of(model)(features)), logits, rtol=1e-5, atol=1e-5)
    assert model.count_params() == 20 * 5 + 5


def test_head_takes_features_of_several_dimensions_flat() -> None:
    model = build_model(HEAD, feature_shape=[2, 3, 4], feature_dtype="float32", n_classes=2, seed=1)
    assert model.input_shape == (None, 24)


def test_head_on_pixels_sees_values_in_0_to_1() -> None:
    model = build_model(HEAD, feature_shape=[4, 5, 3], feature_dtype="uint8", n_classes=2, seed=1)
    images = pixels(6, 4, 5, 3)
    kernel, bias = model.get_weights()
    assert kernel.shape == (60, 2)
    expected = images.reshape(6, -1).astype(np.float64) / 255 @ kernel + bias
    np.testing.assert_allclose(np.asarray(logits_of(model)(images)), expected, rtol=1e-4, atol=1e-5)


def test_mlp_head_is_dense_layers_with_relu_each_followed_by_dropout() -> None:
    model = build("mlp_head", (20,), n_classes=5, hidden=[16, 8], dropout=0.5)
    assert layers_of(model) == [
        ("features", (20,)),
        ("hidden_1", (16,)),
        ("dropout_1", (16,)),
        ("hidden_2", (8,)),
        ("dropout_2", (8,)),
        (LOGITS, (5,)),
        ("probabilities", (5,)),
    ]
    assert [model.get_layer(f"dropout_{number}").rate for number in (1, 2)] == [0.5, 0.5]
    features = np.random.default_rng(0).normal(size=(7, 20)).astype(np.float32)
    values = features
    for kernel, bias in zip(model.get_weights()[:4:2], model.get_weights()[1:4:2], strict=True):
        values = np.maximum(values @ kernel + bias, 0)
    kernel, bias = model.get_weights()[4:]
    np.testing.assert_allclose(np.asarray(logits_of(model)(features)), values @ kernel + bias, rtol=1e-4, atol=1e-5)


def test_mlp_head_without_settings_has_256_units_and_no_dropout() -> None:
    model = build("mlp_head", (20,))
    assert [name for name, _ in layers_of(model)] == ["features", "hidden_1", LOGITS, "probabilities"]
    assert model.count_params() == 20 * 256 + 256 + 256 * 10 + 10


def test_mlp_head_takes_pixels_flat() -> None:
    model = build("mlp_head", (4, 4, 3), hidden=[7])
    assert model.count_params() == 48 * 7 + 7 + 7 * 10 + 10
    assert model(pixels(2, 4, 4, 3)).shape == (2, 10)


def test_mnist_mlp_is_784_500_100_10() -> None:
    model = build("mnist_mlp", (28, 28, 1))
    assert layers_of(model)[2:] == [
        ("flatten", (784,)),
        ("hidden_1", (500,)),
        ("hidden_2", (100,)),
        (LOGITS, (10,)),
        ("probabilities", (10,)),
    ]
    assert model.count_params() == (784 + 1) * 500 + (500 + 1) * 100 + (100 + 1) * 10 == 443_610


def test_mnist_convnet_is_two_convolutions_of_20_and_50_maps_and_500_units() -> None:
    model = build("mnist_convnet", (28, 28, 1))
    assert layers_of(model)[2:] == [
        ("convolution_1", (24, 24, 20)),
        ("pool_1", (12, 12, 20)),
        ("convolution_2", (8, 8, 50)),
        ("pool_2", (4, 4, 50)),
        ("flatten", (800,)),
        ("hidden_1", (500,)),
        (LOGITS, (10,)),
        ("probabilities", (10,)),
    ]
    assert model.count_params() == 26 * 20 + (500 + 1) * 50 + 801 * 500 + 501 * 10 == 431_080


def test_landscapes_convnet_is_three_convolutions_of_20_40_and_70_maps_and_200_units_with_dropout() -> None:
    model = build("landscapes_convnet", (75, 75, 3), n_classes=4)
    assert layers_of(model) == [
        ("pixels", (75, 75, 3)),
        ("standardize", (75, 75, 3)),
        ("convolution_1", (36, 36, 20)),
        ("pool_1", (18, 18, 20)),
        ("convolution_2", (14, 14, 40)),
        ("pool_2", (7, 7, 40)),
        ("convolution_3", (3, 3, 70)),
        ("pool_3", (1, 1, 70)),
        ("flatten", (70,)),
        ("hidden_1", (200,)),
        ("dropout_1", (200,)),
        (LOGITS, (4,)),
        ("probabilities", (4,)),
    ]
    assert model.get_layer("dropout_1").rate == 0.5
    convolutions = (4 * 4 * 3 + 1) * 20 + (5 * 5 * 20 + 1) * 40 + (5 * 5 * 40 + 1) * 70
    assert model.count_params() == convolutions + 71 * 200 + 201 * 4 == 106_094
    assert all(not layer.non_trainable_weights for layer in model.layers)


@pytest.mark.parametrize("name", CONVNETS)
def test_convolutions_have_relu_and_everything_else_in_between_too(name: str) -> None:
    model = build(name, (75, 75, 3))
    activations = {layer.name: layer.activation.__name__ for layer in model.layers if hasattr(layer, "activation")}
    assert activations.pop(LOGITS) == "linear"
    assert set(activations.values()) == {"relu"}
    assert len(activations) == len(CONVNETS[name].convolutions) + 1


@pytest.mark.parametrize(("name", "least"), [("mnist_convnet", 16), ("landscapes_convnet", 66)])
def test_convnets_take_images_down_to_the_least_that_is_left_by_the_last_pooling(name: str, least: int) -> None:
    last_pool = f"pool_{len(CONVNETS[name].convolutions)}"
    assert build(name, (least, least, 1)).get_layer(last_pool).output.shape[1:3] == (1, 1)
    for shape in ((least - 1, 200, 1), (200, least - 1, 1)):
        with pytest.raises(UsageError, match=f"{least} x {least} pixels or more. Got {shape[0]} x {shape[1]}"):
            build(name, shape)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("softmax_head", (300,)),
        ("mlp_head", (300,)),
        ("mnist_mlp", (28, 28, 1)),
        ("mnist_convnet", (28, 28, 1)),
        ("landscapes_convnet", (75, 75, 3)),
    ],
)
def test_initial_weights_are_glorot_uniform_and_follow_the_seed(name: str, shape: tuple[int, ...]) -> None:
    one, same, other = (build(name, shape, n_classes=50, seed=seed).get_weights() for seed in (1, 1, 2))
    for kernel, again, another in zip(one[::2], same[::2], other[::2], strict=True):
        np.testing.assert_array_equal(kernel, again)
        assert (kernel != another).mean() > 0.99
        field = int(np.prod(kernel.shape[:-2]))
        limit = np.sqrt(6 / (field * (kernel.shape[-2] + kernel.shape[-1])))  # Glorot and Bengio 2010, equation 16
        assert np.abs(kernel).max() <= limit
        assert kernel.std() == pytest.approx(limit / np.sqrt(3), rel=5 / np.sqrt(kernel.size))
    assert not any(bias.any() for bias in one[1::2])


def test_layers_of_equal_shape_begin_with_different_weights() -> None:
    model = build("mlp_head", (32,), hidden=[32, 32], n_classes=32)
    first, second, last = model.get_weights()[::2]
    for one, other in ((first, second), (second, last), (first, last)):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.1


def test_layer_seeds_of_neighbouring_seeds_and_layers_are_all_different() -> None:
    seeds = [next_seed for seed in range(100) for next_seed, _ in zip(layer_seeds(seed), range(20), strict=False)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)
    model = build("softmax_head", (20,), seed=2**32 - 1)
    assert model.get_weights()[0].any()


def test_logits_share_the_weights_of_the_model() -> None:
    model = build_model(HEAD, feature_shape=[3], feature_dtype="float32", n_classes=2, seed=1)
    logits = logits_of(model)
    model.get_layer(LOGITS).set_weights([np.zeros((3, 2)), np.array([1.0, -1.0])])
    np.testing.assert_array_equal(np.asarray(logits(np.ones((1, 3), np.float32))), [[1, -1]])


@pytest.mark.parametrize("name", PIXEL_MODELS)
def test_pixel_models_refuse_features(name: str) -> None:
    with pytest.raises(UsageError, match=rf'`model.name` {name} needs images, from the backbone "pixels". Got float32'):
        build(name, (784,))


def test_faults_are_found_together() -> None:
    features: dict[str, Any] = {"feature_shape": (784,), "feature_dtype": "float32"}
    assert len(model_faults(settings_of("mnist_convnet", pixels="scale"), **features)) == 2
    images: dict[str, Any] = {"feature_shape": (28, 28, 1), "feature_dtype": "uint8"}
    settings = settings_of("softmax_head", standardize=True, l2_normalize=True)
    assert [fault.split("`")[1] for fault in model_faults(settings, **images)] == [
        "model.standardize",
        "model.l2_normalize",
    ]
    assert model_faults(settings, **features) == []
    assert model_faults(settings_of("mnist_convnet", pixels="binarize"), **images) == []


def test_faults_are_found_without_tensorflow() -> None:
    """So that a wrong recipe is refused at once."""
    script = (
        "import sys; from featurize.recipes.model_section import ModelSettings; from finetune.networks.build import model_faults;"
        "settings = ModelSettings(name='mnist_mlp', url='u', pixels='scale');"
        "print(len(model_faults(settings, feature_shape=[9], feature_dtype='float32')), 'tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"]


def test_logits_of_a_loaded_model_are_those_of_the_model(tmp_path: Path) -> None:
    import keras

    model = build("mnist_convnet", (28, 28, 1))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    images = pixels(3, 28, 28, 1)
    np.testing.assert_array_equal(np.asarray(logits_of(loaded)(images)), np.asarray(logits_of(model)(images)))
