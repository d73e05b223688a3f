"""Every kind of model is loaded in safe mode by a process that has neither Firn nor the user's code, and gives the same."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurize.recipes.model_section import ModelSettings
from finetune.networks.build import build_model
from finetune.networks.input_statistics import collect_statistics, needs_statistics

_IMAGES = np.random.default_rng(0).integers(0, 256, (5, 75, 75, 3), dtype=np.uint8)
_FEATURES = np.random.default_rng(1).gamma(0.5, 3, (5, 48)).astype(np.float32)
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "head": (_FEATURES, {}),
    "head_standardized": (_FEATURES, {"standardize": True, "l2_normalize": True}),
    "head_on_pixels": (_IMAGES, {"pixels": "standardize"}),
    "mlp_head": (_FEATURES, {"name": "mlp_head", "hidden": [20, 10], "dropout": 0.4}),
    "mnist_mlp": (_IMAGES[:, :28, :28, :1], {"name": "mnist_mlp", "pixels": "binarize"}),
    "mnist_convnet": (_IMAGES[:, :28, :28, :1], {"name": "mnist_convnet"}),
    "landscapes_convnet": (_IMAGES, {"name": "landscapes_convnet"}),
    "own_softmax": (
        _FEATURES,
        {"name": "user_networks:dense_softmax", "options": {"dropout": 0.5}, "standardize": True},
    ),
    "own_inner": (_FEATURES, {"name": "user_networks:softmax_layer"}),
    "own_branches": (_IMAGES, {"name": "user_networks:branches", "pixels": "binarize"}),
}
_SCRIPT = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
for name in ("featurize", "finetune", "user_networks"):
    sys.modules[name] = None  # an import of it raises
import keras, numpy
folder = sys.argv[1]
for name in sys.argv[2:]:
    model = keras.saving.load_model(f"{folder}/{name}.keras", compile=False, safe_mode=True)
    numpy.save(f"{folder}/{name}-elsewhere.npy", numpy.asarray(model(numpy.load(f"{folder}/{name}-features.npy"))))
"""


@pytest.fixture(scope="module")
def loaded_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the probabilities of each of `MODELS` here and in another process."""
    folder = tmp_path_factory.mktemp("saved")
    for name, (features, changes) in MODELS.items():
        settings = ModelSettings(url="unused", **changes)
        dtype = str(features.dtype)
        statistics = collect_statistics([features], settings) if needs_statistics(settings, dtype) else None
        model = build_model(
            settings, feature_shape=features.shape[1:], feature_dtype=dtype, n_classes=4, seed=3, statistics=statistics
        )
        model.save(folder / f"{name}.keras")
        np.save(folder / f"{name}-features.npy", features)
        np.save(folder / f"{name}-here.npy", np.asarray(model(features)))
    done = subprocess.run([sys.executable, "-I", "-c", _SCRIPT, str(folder), *MODELS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_saved_model_gives_the_same_probabilities_without_firn(loaded_elsewhere: Path, name: str) -> None:
    here, elsewhere = (np.load(loaded_elsewhere / f"{name}-{place}.npy") for place in ("here", "elsewhere"))
    np.testing.assert_array_equal(here, elsewhere)
    assert here.shape == (5, 4)
    np.testing.assert_allclose(here.sum(axis=1), 1, rtol=1e-5)
    assert here.std(axis=0).max() > 1e-4
