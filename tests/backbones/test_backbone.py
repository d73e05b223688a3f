"""Backbones: the networks they are named after, cut where asked, prepared as they were trained, told apart by digest."""

import importlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.models.networks import load, noise, settings, small_network

from featurize.backbones.backbone import prepare_backbone
from featurize.backbones.keras_network import PREPROCESSING_OF_MODULE, application_names, make_forward, preprocess
from featurize.backbones.spec import PreparedBackbone
from featurize.decoding.decode import decode_image
from featurize.digests import sha256_file
from featurize.engines.precision import MIN_COSINE, has_bfloat16, mean_cosine
from featurize.errors import UsageError
from featurize.recipes.backbone_section import BackboneSettings


def run_in_bfloat16(prepared: PreparedBackbone) -> Any:
    """The forward pass in bfloat16, whether or not this processor has it: where it has not, TensorFlow stays in float32."""
    from keras import saving

    return make_forward(saving.load_model(prepared.path), replace(prepared.spec, precision="bfloat16"))


# Preprocessing


def test_every_network_of_keras_applications_is_known() -> None:
    names = application_names()
    assert {"VGG16", "ResNet50", "MobileNetV3Small", "ConvNeXtTiny", "EfficientNetV2B0", "NASNetMobile"} <= set(names)
    assert set(names.values()) <= set(PREPROCESSING_OF_MODULE)


def test_preprocessing_is_that_of_each_networks_own_module() -> None:
    images = noise(2, 5, 4).astype(np.float32)
    for name, module in application_names().items():
        own = importlib.import_module(f"keras.applications.{module}").preprocess_input(images.copy())
        ours = preprocess(images.copy(), PREPROCESSING_OF_MODULE[module])
        np.testing.assert_allclose(ours, own, rtol=1e-5, atol=1e-5, err_msg=name)


# .keras files and cuts


@pytest.mark.parametrize(
    ("layer", "shape", "weights"),
    [("conv", (10, 10, 8), 2), ("pool", (5, 5, 8), 2), ("mean", (8,), 2), (None, (5,), 4)],
)
def test_a_cut_gives_what_the_whole_network_computes_there(
    small_backbone: Path, tmp_path: Path, layer: str | None, shape: tuple[int, ...], weights: int
) -> None:
    import keras

    prepared = prepare_backbone(settings(small_backbone, preprocessing="tf", layer=layer), tmp_path)
    assert prepared.path is not None
    assert prepared.spec.layer == (layer or "scores")
    assert prepared.spec.feature_shape == shape
    whole = keras.saving.load_model(small_backbone)
    images = noise(3, 12, 12)
    expected = keras.Model(whole.input, whole.get_layer(layer or "scores").output)(images / np.float32(127.5) - 1)
    np.testing.assert_allclose(load(prepared)(images), np.reshape(expected, (3, -1)), rtol=1e-4, atol=1e-5)
    cut = keras.saving.load_model(prepared.path)
    assert len(cut.weights) == weights
    assert cut.layers[-1].name == (layer or "scores")


def test_features_are_float32_and_do_not_depend_on_the_batch(small_backbone: Path, tmp_path: Path) -> None:
    forward = load(prepare_backbone(settings(small_backbone, preprocessing="none", layer="mean"), tmp_path))
    images = noise(7, 12, 12)
    together = forward(images)
    assert (together.dtype, together.shape) == (np.float32, (7, 8))
    one_by_one = np.concatenate([forward(images[index : index + 1]) for index in range(7)])
    np.testing.assert_allclose(one_by_one, together, rtol=1e-5, atol=1e-4)


def test_a_sequential_model_is_cut_too(tmp_path: Path) -> None:
    import keras

    layers = [
        keras.layers.Conv2D(2, 3, name="conv"),
        keras.layers.Flatten(name="flat"),
        keras.layers.Dense(4, name="out"),
    ]
    keras.Sequential([keras.Input((6, 6, 3)), *layers]).save(tmp_path / "s.keras")
    prepared = prepare_backbone(settings(tmp_path / "s.keras", preprocessing="none", layer="flat"), tmp_path)
    assert prepared.spec.feature_shape == (32,)
    assert load(prepared)(noise(2, 6, 6)).shape == (2, 32)


def test_a_network_for_images_of_any_size_needs_one_in_the_recipe(tmp_path: Path) -> None:
    path = small_network(tmp_path, size=None)
    with pytest.raises(UsageError, match=r"`backbone\.height` is required"):
        prepare_backbone(settings(path, preprocessing="none", layer="pool"), tmp_path)
    prepared = prepare_backbone(settings(path, preprocessing="none", layer="pool", height=8, width=10), tmp_path)
    assert prepared.spec.feature_shape == (3, 4, 8)
    assert load(prepared)(noise(2, 8, 10)).shape == (2, 96)


def test_another_size_than_the_networks_own_is_refused(small_backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"`backbone\.width` must be 12.*Got 13"):
        prepare_backbone(settings(small_backbone, preprocessing="none", height=12, width=13), tmp_path)


def test_an_unknown_layer_is_named_with_those_like_it(small_backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no layer 'scoers'. Did you mean scores"):
        prepare_backbone(settings(small_backbone, preprocessing="none", layer="scoers"), tmp_path)
    with pytest.raises(UsageError, match=r"conv, pool, mean, scores"):
        prepare_backbone(settings(small_backbone, preprocessing="none", layer="zzz"), tmp_path)


@pytest.mark.parametrize(
    ("name", "hint"), [("VGG61", "VGG1"), ("vgg16", "VGG16"), ("ResNet-50", "ResNet50"), ("???", "Known")]
)
def test_an_unknown_network_is_named_with_one_like_it(tmp_path: Path, name: str, hint: str) -> None:
    with pytest.raises(UsageError) as raised:
        prepare_backbone(settings(name), tmp_path)
    assert name in str(raised.value)
    assert hint in str(raised.value)


def test_a_keras_file_is_checked_by_its_digest(small_backbone: Path, tmp_path: Path) -> None:
    prepare_backbone(
        settings(small_backbone, preprocessing="none", weights_sha256=sha256_file(small_backbone)), tmp_path
    )
    with pytest.raises(UsageError) as raised:
        prepare_backbone(settings(small_backbone, preprocessing="none", weights_sha256="0" * 64), tmp_path)
    assert sha256_file(small_backbone) in str(raised.value)


@pytest.mark.parametrize("content", [None, b"", b"no zip"])
def test_a_keras_file_that_is_missing_or_damaged_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bad.keras"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"`backbone\.name`.*bad\.keras"):
        prepare_backbone(settings(path, preprocessing="none"), tmp_path)


def test_a_network_that_takes_no_rgb_images_is_refused(tmp_path: Path) -> None:
    import keras

    inputs = keras.Input((8, 8, 1))
    keras.Model(inputs, keras.layers.Flatten()(inputs)).save(tmp_path / "grey.keras")
    with pytest.raises(UsageError, match="one RGB image"):
        prepare_backbone(settings(tmp_path / "grey.keras", preprocessing="none"), tmp_path)


def test_code_inside_a_keras_file_is_not_run(tmp_path: Path) -> None:
    import keras

    inputs = keras.Input((8, 8, 3))
    keras.Model(inputs, keras.layers.Lambda(lambda x: x + 1)(inputs)).save(tmp_path / "code.keras")
    with pytest.raises(UsageError, match=r"code\.keras cannot be loaded"):
        prepare_backbone(settings(tmp_path / "code.keras", preprocessing="none"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "shape", "parameters"), [("block5_pool", (7, 7, 512), 14_714_688), ("fc1", (4096,), 117_479_232)]
)
def test_what_lies_behind_the_cut_of_vgg16_is_neither_built_nor_saved(
    tmp_path: Path, layer: str, shape: tuple[int, ...], parameters: int
) -> None:
    """Source of the parameters: 14,714,688 in the convolutions, and 25,088 x 4,096 + 4,096 in fc1."""
    import keras

    prepared = prepare_backbone(settings("VGG16", weights="random", layer=layer), tmp_path)
    assert prepared.path is not None
    assert prepared.spec.feature_shape == shape
    cut = keras.saving.load_model(prepared.path)
    assert cut.count_params() == parameters
    assert cut.layers[-1].name == layer
    assert not {"fc2", "predictions"} & {part.name for part in cut.layers}
    assert prepared.path.stat().st_size < parameters * 4 * 1.02


# Digests


def test_the_preparation_is_known_by_the_values_of_the_weights_not_by_their_file(
    small_backbone: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "renamed.keras"
    shutil.copy(small_backbone, copy)
    one = prepare_backbone(settings(small_backbone, preprocessing="none"), tmp_path).spec
    assert prepare_backbone(settings(copy, preprocessing="none"), tmp_path).spec.preparation_id == one.preparation_id
    other = small_network(tmp_path, seed=1)
    assert prepare_backbone(settings(other, preprocessing="none"), tmp_path).spec.preparation_id != one.preparation_id
    for change in (
        {"preprocessing": "tf"},
        {"precision": "bfloat16"},
        {"layer": "conv"},
        {"height": 13},
        {"resizing": "x"},
    ):
        assert replace(one, **change).preparation_id != one.preparation_id


def test_the_same_preparation_may_be_saved_twice_to_one_place_that_knows_files_by_name(
    small_backbone: Path, tmp_path: Path
) -> None:
    """Spark hands files to workers by name, and refuses a second one of the same name and other bytes."""
    import time

    folders = [tmp_path / "1", tmp_path / "2"]
    prepared = []
    for folder in folders:
        folder.mkdir()
        prepared.append(prepare_backbone(settings(small_backbone, preprocessing="none"), folder))
        time.sleep(2)
    assert (prepared[0].path.name == prepared[1].path.name) == (prepared[0].sha256 == prepared[1].sha256)  # type: ignore[union-attr]


# Pixels


@pytest.mark.parametrize(("channels", "expected"), [(None, 3), (1, 1), (3, 3)])
def test_pixels_are_the_images_themselves(tmp_path: Path, channels: int | None, expected: int) -> None:
    prepared = prepare_backbone(BackboneSettings(name="pixels", height=5, width=4, channels=channels), tmp_path)  # type: ignore[arg-type]
    assert prepared.path is None
    assert prepared.spec.feature_shape == (5, 4, expected)
    assert prepared.spec.feature_dtype == "uint8"
    images = noise(2, 5, 4)[..., :expected]
    np.testing.assert_array_equal(load(prepared)(images), images)


# Precision


def test_float32_after_bfloat16_in_one_process_is_float32(small_backbone: Path, tmp_path: Path) -> None:
    """A Python worker lives on from job to job, and TensorFlow's switch is for the whole process."""
    images = noise(64, 12, 12)
    exact = prepare_backbone(settings(small_backbone, preprocessing="tf", layer="conv"), tmp_path)
    first = load(exact)(images)
    coarse = run_in_bfloat16(exact)(images)
    assert has_bfloat16() == (not np.array_equal(coarse, first))
    np.testing.assert_allclose(load(exact)(images), first, rtol=1e-5, atol=1e-6)


def test_bfloat16_is_for_the_backbone_alone(small_backbone: Path, tmp_path: Path) -> None:
    """A head that runs after it in the same process, and the one of before, stay in float32."""
    import tensorflow as tf

    @tf.function
    def head(features: Any, weights: Any) -> Any:
        return tf.nn.softmax(tf.matmul(features, weights))

    images = noise(64, 12, 12)
    in_bfloat16 = run_in_bfloat16(
        prepare_backbone(settings(small_backbone, preprocessing="tf", layer="conv"), tmp_path)
    )
    features = in_bfloat16(images)
    weights = np.random.default_rng(0).normal(0, 0.05, (features.shape[1], 10)).astype(np.float32)
    products = features.astype(np.float64) @ weights.astype(np.float64)
    wanted = np.exp(products) / np.exp(products).sum(axis=1, keepdims=True)
    for _ in range(2):
        np.testing.assert_allclose(head(features, weights), wanted, rtol=1e-5)
        np.testing.assert_array_equal(in_bfloat16(images), features)


@pytest.mark.realdata
def test_auto_keeps_the_features_of_a_real_network_on_real_images(real_data: Path, tmp_path: Path) -> None:
    mobilenet = real_data.parent / "backbones" / "mobilenet_v1_imagenet.keras"
    photos = sorted((real_data / "landscapes").rglob("*.jpg"))[::60]
    exact, auto = (
        prepare_backbone(settings(mobilenet, preprocessing="none", precision=precision), tmp_path)
        for precision in ("float32", "auto")
    )
    images = np.stack([decode_image(path.read_bytes(), height=224, width=224) for path in photos])
    assert mean_cosine(load(exact)(images), load(auto)(images)) >= MIN_COSINE


# Every network by name


def test_a_network_that_takes_any_size_has_its_usual_one_or_the_recipes(tmp_path: Path) -> None:
    usual = prepare_backbone(BackboneSettings(name="MobileNetV3Small", weights="random"), tmp_path)
    assert (usual.spec.height, usual.spec.width) == (224, 224)
    asked = BackboneSettings(name="MobileNetV3Small", weights="random", precision="float32", height=96, width=64)
    prepared = prepare_backbone(asked, tmp_path)
    assert (prepared.spec.height, prepared.spec.width) == (96, 64)
    assert load(prepared)(noise(2, 96, 64)).shape == (2, *prepared.spec.feature_shape)


def test_a_network_of_its_own_size_takes_no_other(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"`backbone.height` must be 224, the input of MobileNet. Got 96"):
        prepare_backbone(BackboneSettings(name="MobileNet", weights="random", height=96, width=96), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ConvNeXtTiny", "EfficientNetB0", "ResNet50V2", "DenseNet121"])
def test_networks_with_layers_of_their_own_kind_travel_as_a_file(name: str, tmp_path: Path) -> None:
    prepared = prepare_backbone(BackboneSettings(name=name, weights="random", precision="float32"), tmp_path)
    images = noise(2, prepared.spec.height, prepared.spec.width)
    assert load(prepared)(images).shape == (2, *prepared.spec.feature_shape)


def test_a_model_without_a_fixed_input_is_refused(tmp_path: Path) -> None:
    import keras

    path = tmp_path / "unbuilt.keras"
    keras.Sequential([keras.layers.Flatten()]).save(path)
    with pytest.raises(UsageError, match=r"unbuilt.keras (must be a functional|cannot be loaded)"):
        prepare_backbone(settings(path, preprocessing="none"), tmp_path)


def test_a_layer_that_keras_named_is_found_however_many_networks_were_built_before(tmp_path: Path) -> None:
    asked = settings("MobileNetV3Small", weights="random", layer="global_average_pooling2d", height=64, width=64)
    one, other = (prepare_backbone(asked, tmp_path).spec for _ in range(2))
    assert (one.layer, one.preparation_id) == ("global_average_pooling2d", other.preparation_id)
    assert one.feature_shape == (1, 1, 576)
