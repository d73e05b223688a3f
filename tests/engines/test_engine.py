"""Engines: the same features from each of them, from one file."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.models.networks import noise

from featurize.engines import engine as engines
from featurize.engines.engine import ENGINES, Engine, installed_engines, load_onnx, precisions_of, require_engine
from featurize.engines.keras_export import export_keras
from featurize.errors import JobError, UsageError

OTHERS: tuple[Engine, ...] = ("openvino", "onnxruntime")
LARGE = 1100  # units: so many that the weights go around tf2onnx


def make_network() -> Any:
    """Convolution, batch normalisation with a past, and a layer with a weight of more than 2**20 elements."""
    import keras

    keras.utils.set_random_seed(1)
    inputs = keras.Input((20, 20, 3))
    x = keras.layers.Conv2D(12, 3, activation="relu")(inputs)
    normalization = keras.layers.BatchNormalization()
    x = normalization(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(LARGE, activation="relu")(x)
    network = keras.Model(inputs, keras.layers.Dense(7)(x))
    normalization.moving_mean.assign(np.linspace(-1, 1, 12))
    normalization.moving_variance.assign(np.linspace(0.5, 2, 12))
    return network


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray[Any, Any]]:
    """An ONNX file, and what Keras computes for 5 images."""
    import tensorflow as tf

    network = make_network()
    path = tmp_path_factory.mktemp("exported") / "network.onnx"

    def forward(images: Any, apply: Any) -> Any:
        return apply(tf.cast(images, tf.float32) / 255.0)

    export_keras(network, forward, path, height=20, width=20)
    return path, np.asarray(network(noise(5, 20, 20).astype(np.float32) / 255.0))


@pytest.mark.parametrize("engine", OTHERS)
@pytest.mark.parametrize("batch_size", [None, 2, 5, 32])
def test_an_exported_network_computes_what_keras_does(
    exported: tuple[Path, Any], engine: Engine, batch_size: int | None
) -> None:
    path, expected = exported
    forward = load_onnx(path, engine, threads=1, batch_size=batch_size)
    features = forward(noise(5, 20, 20))
    assert (str(features.dtype), features.shape) == ("float32", (5, 7))
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("engine", OTHERS)
def test_batches_of_every_size_give_the_features_of_each_image(exported: tuple[Path, Any], engine: Engine) -> None:
    path, expected = exported
    forward = load_onnx(path, engine, batch_size=2)
    images = noise(5, 20, 20)
    for sizes in ((2, 2, 1), (1, 4), (3, 2)):
        starts = np.cumsum((0, *sizes))
        parts = [forward(images[start:end]) for start, end in pairwise(starts)]
        np.testing.assert_allclose(np.concatenate(parts), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("engine", OTHERS)
@pytest.mark.parametrize(("threads", "per_core"), [(1, 2), (2, 2), (3, 1), (2, 8)])
def test_cores_that_compute_alone_give_the_features_of_each_image(
    exported: tuple[Path, Any], engine: Engine, threads: int, per_core: int
) -> None:
    path, expected = exported
    forward = load_onnx(path, engine, threads=threads, batch_size=4, per_core=per_core)
    images = noise(5, 20, 20)
    with ThreadPoolExecutor(2) as callers:
        found = list(callers.map(forward, [images, images[:4], images[1:2]]))
    for features, rows in zip(found, (expected, expected[:4], expected[1:2]), strict=True):
        assert (str(features.dtype), features.shape) == ("float32", rows.shape)
        np.testing.assert_allclose(features, rows, rtol=1e-4, atol=1e-5)


_FIRST_CALLS_AT_ONCE = """
import sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from featurize.engines.engine import load_onnx
forward = load_onnx(sys.argv[1], sys.argv[2], threads=4, per_core=1)
with ThreadPoolExecutor(4) as threads:
    print(sum(len(made) for made in threads.map(forward, [np.zeros((9, 20, 20, 3), np.uint8)] * 20)))
"""


@pytest.mark.parametrize("engine", OTHERS)
def test_the_first_calls_of_a_process_may_come_at_once(exported: tuple[Path, Any], engine: Engine) -> None:
    command = [sys.executable, "-c", _FIRST_CALLS_AT_ONCE, str(exported[0]), engine]
    for _ in range(2):
        assert subprocess.run(command, capture_output=True, check=True, timeout=120, text=True).stdout == "180\n"


def test_short_batches_are_padded_until_a_network_for_any_size_pays(exported: tuple[Path, Any]) -> None:
    path, expected = exported
    forward = load_onnx(path, "openvino", batch_size=4)
    for _ in range(12):  # each spares three images of four
        np.testing.assert_allclose(forward(noise(5, 20, 20)[:1]), expected[:1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(forward(noise(5, 20, 20)), expected, rtol=1e-4, atol=1e-5)


def test_features_stay_as_they_were_when_the_next_batch_is_computed(exported: tuple[Path, Any]) -> None:
    for engine in OTHERS:
        forward = load_onnx(exported[0], engine, batch_size=2)
        first = forward(noise(2, 20, 20))
        before = first.copy()
        forward(noise(4, 20, 20)[2:])
        np.testing.assert_array_equal(first, before)


@pytest.mark.parametrize("engine", OTHERS)
def test_a_damaged_file_is_named(tmp_path: Path, engine: Engine) -> None:
    path = tmp_path / "damaged.onnx"
    path.write_bytes(b"no network")
    with pytest.raises(JobError, match=r"cannot load damaged\.onnx"):
        load_onnx(path, engine)


def test_an_engine_that_is_not_installed_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert installed_engines() == ENGINES
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    assert installed_engines() == ("tensorflow",)
    with pytest.raises(UsageError, match=r"`backbone.engine`: OpenVINO is not installed.*extra `engines`"):
        require_engine("openvino")


def test_every_engine_computes_in_float32_first() -> None:
    assert all(precisions_of(engine)[0] == "float32" for engine in ENGINES)
