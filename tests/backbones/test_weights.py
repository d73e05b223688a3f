"""Weights of networks by name: ImageNet's, random ones by their seed, and files of them in every format."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.models.networks import load, noise, settings

from featurize.backbones.backbone import prepare_backbone
from featurize.backbones.keras_network import digest_of_weights
from featurize.digests import sha256_file
from featurize.errors import JobError, UsageError


def test_random_weights_are_those_of_their_seed(tmp_path: Path) -> None:
    one, again, other = (
        prepare_backbone(settings("MobileNet", weights="random", layer="conv_pw_1_relu", seed=seed), tmp_path)
        for seed in (1, 1, 2)
    )
    assert one.spec.weights_digest == again.spec.weights_digest != other.spec.weights_digest
    assert one.spec.preparation_id == again.spec.preparation_id != other.spec.preparation_id
    assert one.spec.weights == "random, seed 1"
    assert one.spec.preprocessing == "tf"


def test_a_file_of_weights_that_is_missing_or_no_file_of_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no file .*none\.h5"):
        prepare_backbone(settings("MobileNet", weights=str(tmp_path / "none.h5")), tmp_path)
    with pytest.raises(UsageError, match=r"ending in \.h5 or \.keras. Got 'imagnet'"):
        prepare_backbone(settings("MobileNet", weights="imagnet"), tmp_path)
    for name in ("bad.h5", "bad.weights.h5", "bad.keras"):
        (tmp_path / name).write_bytes(b"no weights")
        with pytest.raises(UsageError, match="does not fit MobileNet"):
            prepare_backbone(settings("MobileNet", weights=str(tmp_path / name)), tmp_path)


def test_weights_of_another_network_do_not_fit(small_backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not fit MobileNet"):
        prepare_backbone(settings("MobileNet", weights=str(small_backbone)), tmp_path)


def test_a_file_of_weights_is_checked_by_its_digest(small_backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        prepare_backbone(settings("MobileNet", weights=str(small_backbone), weights_sha256="0" * 64), tmp_path)
    assert "0" * 64 in str(raised.value)
    assert sha256_file(small_backbone) in str(raised.value)


def test_imagenet_weights_that_cannot_be_had_end_in_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from keras.src.utils import file_utils

    monkeypatch.setattr(file_utils.config, "keras_home", lambda: str(tmp_path))
    monkeypatch.setattr("featurize.backbones.weights.DOWNLOAD_TIMEOUT_S", 5.0)
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
