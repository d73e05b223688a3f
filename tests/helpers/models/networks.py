"""Small networks, and what the tests of backbones and of weights do with any of them."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurize.backbones.backbone import load_backbone
from featurize.backbones.spec import PreparedBackbone
from featurize.recipes.backbone_section import BackboneSettings


def settings(name: str | Path, **changes: Any) -> BackboneSettings:
    """Backbone settings in float32, if `changes` do not say otherwise."""
    return BackboneSettings(name=str(name), **{"precision": "float32", "engine": "tensorflow", **changes})


def load(prepared: PreparedBackbone) -> Any:
    """The forward pass of a prepared backbone, as a worker loads it."""
    return load_backbone(prepared.spec, prepared.path, sha256=prepared.sha256)


def noise(count: int, height: int, width: int) -> NDArray[np.uint8]:
    """Random images: uint8 (count, height, width, 3) in [0, 255]."""
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


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
