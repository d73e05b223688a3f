"""Backbones: the networks they are named after, cut where asked, prepared as they were trained, told apart by digest."""

import importlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from featurize.backbones import (
    PREPROCESSING_OF_MODULE,
    PreparedBackbone,
    application_names,
    digest_of_weights,
    load_backbone,
    make_forward,
    prepare_backbone,
    preprocess,
)
from featurize.decode import decode_image
from featurize.digests import sha256_file
from featurize.errors import JobError, UsageError
from featurize.precision import MIN_COSINE, has_bfloat16, mean_cosine
from featurize.recipe import BackboneSettings


def settings(name: str | Path, **changes: Any) -> BackboneSettings:
    return BackboneSettings(name=str(name), **{"precision": "float32", **changes})


def run_in_bfloat16(prepared: PreparedBackbone) -> Any:
    """The forward pass in bfloat16, whether or not this processor has it: where it has not, TensorFlow stays in float32."""
    from keras import saving

    return make_forward(saving.load_model(prepared.path), replace(prepared.spec, precision="bfloat16"))


def load(prepared: PreparedBackbone) -> Any:
    return load_backbone(prepared.spec, prepared.path, sha256=prepared.sha256)


def noise(count: int, height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def small_network(folder: Path, *, size: int | None = 12, seed: int = 0) -> Path:
    """A .keras file of a small ConvNet with the layers conv, pool, mean and scores."""
    import keras

    keras.utils.set_random_seed(seed)
    inputs = keras.Input((size, size, 3))
    x = keras.layers.Conv2D(8, 3, activation="relu", name="conv")(inputs)
    x = keras.layers.MaxPooling2D(name="pool")(x)
    x = keras.layers.GlobalAveragePooling2D(name="mean")(x)
    path = folder / "small.keras"
    keras.Model(inputs, keras.layers.Dense(5, name="scores")(x)).save(path)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_network(tmp_path_factory.mktemp("small"))


@pytest.fixture
def float32_afterwards() -> Iterator[None]:
    """bfloat16 is switched on for a whole process: what comes after must not find it so."""
    import tensorflow as tf

    yield
    tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": False})


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
    small: Path, tmp_path: Path, layer: str | None, shape: tuple[int, ...], weights: int
) -> None:
    import keras

    prepared = prepare_backbone(settings(small, preprocessing="tf", layer=layer), tmp_path)
    assert prepared.path is not None
    assert prepared.spec.layer == (layer or "scores")
    assert prepared.spec.feature_shape == shape
    whole = keras.saving.load_model(small)
    images = noise(3, 12, 12)
    expected = keras.Model(whole.input, whole.get_layer(layer or "scores").output)(images / np.float32(127.5) - 1)
    np.testing.assert_allclose(load(prepared)(images), np.reshape(expected, (3, -1)), rtol=1e-4, atol=1e-5)
    cut = keras.saving.load_model(prepared.path)
    assert len(cut.weights) == weights
    assert cut.layers[-1].name == (layer or "scores")


def test_features_are_float32_and_do_not_depend_on_the_batch(small: Path, tmp_path: Path) -> None:
    forward = load(prepare_backbone(settings(small, preprocessing="none", layer="mean"), tmp_path))
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
    with pytest.raises(UsageError, match=r"`backbone\.height` is needed"):
        prepare_backbone(settings(path, preprocessing="none", layer="pool"), tmp_path)
    prepared = prepare_backbone(settings(path, preprocessing="none", layer="pool", height=8, width=10), tmp_path)
    assert prepared.spec.feature_shape == (3, 4, 8)
    assert load(prepared)(noise(2, 8, 10)).shape == (2, 96)


def test_another_size_than_the_networks_own_is_refused(small: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"`backbone\.width` must be 12.*Got 13"):
        prepare_backbone(settings(small, preprocessing="none", height=12, width=13), tmp_path)


def test_an_unknown_layer_is_named_with_those_like_it(small: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no layer 'scoers'. Did you mean scores"):
        prepare_backbone(settings(small, preprocessing="none", layer="scoers"), tmp_path)
    with pytest.raises(UsageError, match=r"conv, pool, mean, scores"):
        prepare_backbone(settings(small, preprocessing="none", layer="zzz"), tmp_path)


@pytest.mark.parametrize(
    ("name", "hint"), [("VGG61", "VGG1"), ("vgg16", "VGG16"), ("ResNet-50", "ResNet50"), ("???", "Known")]
)
def test_an_unknown_network_is_named_with_one_like_it(tmp_path: Path, name: str, hint: str) -> None:
    with pytest.raises(UsageError) as raised:
        prepare_backbone(settings(name), tmp_path)
    assert name in str(raised.value)
    assert hint in str(raised.value)


def test_a_keras_file_is_checked_by_its_digest(small: Path, tmp_path: Path) -> None:
    prepare_backbone(settings(small, preprocessing="none", weights_sha256=sha256_file(small)), tmp_path)
    with pytest.raises(UsageError) as raised:
        prepare_backbone(settings(small, preprocessing="none", weights_sha256="0" * 64), tmp_path)
    assert sha256_file(small) in str(raised.value)


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


# Digests


def test_the_preparation_is_known_by_the_values_of_the_weights_not_by_their_file(small: Path, tmp_path: Path) -> None:
    copy = tmp_path / "renamed.keras"
    shutil.copy(small, copy)
    one = prepare_backbone(settings(small, preprocessing="none"), tmp_path).spec
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
        assert replace(one, **change).preparation_id != one.preparation_id  # type: ignore[arg-type]


def test_random_weights_are_those_of_their_seed(tmp_path: Path) -> None:
    one, again, other = (
        prepare_backbone(settings("MobileNet", weights="random", layer="conv_pw_1_relu", seed=seed), tmp_path)
        for seed in (1, 1, 2)
    )
    assert one.spec.weights_digest == again.spec.weights_digest != other.spec.weights_digest
    assert one.spec.preparation_id == again.spec.preparation_id != other.spec.preparation_id
    assert one.spec.weights == "random, seed 1"
    assert one.spec.preprocessing == "tf"


def test_the_same_preparation_may_be_saved_twice_to_one_place_that_knows_files_by_name(
    small: Path, tmp_path: Path
) -> None:
    """Spark hands files to workers by name, and refuses a second one of the same name and other bytes."""
    import time

    folders = [tmp_path / "1", tmp_path / "2"]
    prepared = []
    for folder in folders:
        folder.mkdir()
        prepared.append(prepare_backbone(settings(small, preprocessing="none"), folder))
        time.sleep(2)
    assert (prepared[0].path.name == prepared[1].path.name) == (prepared[0].sha256 == prepared[1].sha256)  # type: ignore[union-attr]


# Weights


def test_a_file_of_weights_that_is_missing_or_no_file_of_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no file .*none\.h5"):
        prepare_backbone(settings("MobileNet", weights=str(tmp_path / "none.h5")), tmp_path)
    with pytest.raises(UsageError, match=r"ending in \.h5 or \.keras. Got 'imagnet'"):
        prepare_backbone(settings("MobileNet", weights="imagnet"), tmp_path)
    for name in ("bad.h5", "bad.weights.h5", "bad.keras"):
        (tmp_path / name).write_bytes(b"no weights")
        with pytest.raises(UsageError, match="does not fit MobileNet"):
            prepare_backbone(settings("MobileNet", weights=str(tmp_path / name)), tmp_path)


def test_weights_of_another_network_do_not_fit(small: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not fit MobileNet"):
        prepare_backbone(settings("MobileNet", weights=str(small)), tmp_path)


def test_a_file_of_weights_is_checked_by_its_digest(small: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        prepare_backbone(settings("MobileNet", weights=str(small), weights_sha256="0" * 64), tmp_path)
    assert "0" * 64 in str(raised.value)
    assert sha256_file(small) in str(raised.value)


def test_imagenet_weights_that_cannot_be_had_end_in_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from keras.src.utils import file_utils

    monkeypatch.setattr(file_utils.config, "keras_home", lambda: str(tmp_path))
    monkeypatch.setattr("featurize.weights._DOWNLOAD_TIMEOUT_S", 5.0)
    try:
        prepared = prepare_backbone(settings("MobileNet"), tmp_path)
    except JobError as error:
        for part in ("MobileNet", "could not be downloaded", "`backbone.weights`", "`backbone.weights_sha256`"):
            assert part in str(error)
        assert "\n" not in str(error)
        fallback = prepare_backbone(settings("MobileNet", weights="imagenet_or_random", seed=3), tmp_path)
        assert fallback.spec.weights == "random, seed 3"
        assert fallback.report is not None
        assert "RANDOM" in str(fallback.report.notice)
    else:
        assert prepared.spec.weights == "imagenet"


@pytest.fixture(scope="module")
def vgg16_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, dict[str, Path]]]:
    """VGG16 with seeded random weights, and files of them in every format."""
    import h5py
    import keras
    from keras.src.legacy.saving import legacy_h5_format

    keras.utils.set_random_seed(5)
    network = keras.applications.VGG16(weights=None)
    folder = tmp_path_factory.mktemp("vgg16")
    files = {name: folder / name for name in ("vgg16.weights.h5", "legacy.h5", "notop.h5")}
    network.save_weights(files["vgg16.weights.h5"])
    with h5py.File(files["legacy.h5"], "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, network)
    with h5py.File(files["notop.h5"], "w") as file:
        bottom = keras.applications.VGG16(weights=None, include_top=False)
        bottom.set_weights(network.get_weights()[: len(bottom.weights)])
        legacy_h5_format.save_weights_to_hdf5_group(file, bottom)
    yield network, files
    shutil.rmtree(folder)  # 1.2 GB


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16.weights.h5", "legacy.h5"])
def test_vgg16_with_weights_from_a_file_is_keras_own_vgg16(
    vgg16_files: tuple[Any, dict[str, Path]], tmp_path: Path, name: str
) -> None:
    import keras

    network, files = vgg16_files
    digest = sha256_file(files[name])
    prepared = prepare_backbone(
        settings("VGG16", layer="fc2", weights=str(files[name]), weights_sha256=digest), tmp_path
    )
    assert prepared.spec.feature_shape == (4096,)
    assert digest in str(prepared.spec.weights)
    images = noise(2, 224, 224)
    inner = keras.Model(network.input, network.get_layer("fc2").output)
    own = inner(keras.applications.vgg16.preprocess_input(images.astype(np.float32)))
    np.testing.assert_allclose(load(prepared)(images), np.asarray(own), rtol=1e-4, atol=1e-5)


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


@pytest.mark.slow
def test_keras_own_files_without_the_classifier_go_as_far_as_they_reach(
    vgg16_files: tuple[Any, dict[str, Path]], tmp_path: Path
) -> None:
    import keras

    network, files = vgg16_files
    bottom = prepare_backbone(settings("VGG16", layer="block5_pool", weights=str(files["notop.h5"])), tmp_path)
    cut = keras.Model(network.input, network.get_layer("block5_pool").output)
    assert bottom.spec.weights_digest == digest_of_weights(cut)
    assert bottom.spec.feature_shape == (7, 7, 512)


def test_weights_in_a_keras_file_are_those_of_the_network_in_it(tmp_path: Path) -> None:
    import keras

    keras.utils.set_random_seed(5)
    network = keras.applications.MobileNet(weights=None)
    network.save(tmp_path / "mobilenet.keras")
    prepared = prepare_backbone(
        settings("MobileNet", layer="conv_pw_2_relu", weights=str(tmp_path / "mobilenet.keras")), tmp_path
    )
    inner = keras.Model(network.input, network.get_layer("conv_pw_2_relu").output)
    images = noise(2, 224, 224)
    own = inner(keras.applications.mobilenet.preprocess_input(images.astype(np.float32)))
    np.testing.assert_allclose(load(prepared)(images), np.reshape(own, (2, -1)), rtol=1e-3, atol=1e-4)


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


def test_float32_after_bfloat16_in_one_process_is_float32(
    small: Path, tmp_path: Path, float32_afterwards: None
) -> None:
    """A Python worker lives on from job to job, and TensorFlow's switch is for the whole process."""
    images = noise(64, 12, 12)
    exact = prepare_backbone(settings(small, preprocessing="tf", layer="conv"), tmp_path)
    first = load(exact)(images)
    coarse = run_in_bfloat16(exact)(images)
    assert has_bfloat16() == (not np.array_equal(coarse, first))
    np.testing.assert_allclose(load(exact)(images), first, rtol=1e-5, atol=1e-6)


@pytest.mark.realdata
def test_auto_keeps_the_features_of_a_real_network_on_real_images(
    real_data: Path, tmp_path: Path, float32_afterwards: None
) -> None:
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
