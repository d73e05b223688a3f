"""A backbone with all that backbones have, the features and pixels of some photos, and a head to unfreeze under."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featurize.recipes.model_section import ModelSettings
from featurize.recipes.recipe import FinetuneRecipe
from featurize.recipes.toml_settings import check_settings
from featurize.tables.readable import read_features_manifest
from finetune.models.folder import ModelCard, read_model_card
from finetune.networks.unfrozen import build_unfrozen, find_head
from finetune.ranks.communicator import SingleRank
from finetune.rows.splits import SplitData, read_split
from finetune.training.plan import plan_training
from finetune.training.train import train

if TYPE_CHECKING:
    import keras

FROM = "conv_2"
TRAINED = ["conv_2/kernel", "conv_2/bias", "inner_conv/kernel", "inner_conv/bias"]


def layered_network(path: Path, *, size: int | None = 12) -> Path:
    """A .keras file with what backbones have: branches, dropout, batch normalisation, a model within; ends in `maps`."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(3)
    inputs = keras.Input((size, size, 3))
    x = layers.Rescaling(1 / 128, offset=-1.0, name="rescale")(inputs)
    x = layers.Dropout(0.3, name="early_drop")(layers.Conv2D(6, 3, activation="relu", name="conv_1")(x))
    x = branch = layers.BatchNormalization(name="norm_1")(x)
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="conv_2")(x)
    x = layers.SpatialDropout2D(0.2, name="late_drop")(layers.BatchNormalization(name="norm_2")(x))
    x = layers.Add(name="sum")([x, branch])
    inner = [keras.Input((None, None, 6)), layers.Conv2D(4, 3, name="inner_conv"), layers.ReLU(name="inner_relu")]
    x = keras.Sequential(inner, name="inner")(x)
    x = layers.AveragePooling2D(2, name="maps")(x)
    network = keras.Model(inputs, layers.Dense(7, name="scores")(layers.GlobalAveragePooling2D()(x)))
    random = np.random.default_rng(0)
    for name in ("norm_1", "norm_2"):
        values = [random.uniform(0.5, 1.5, weight.shape) for weight in network.get_layer(name).get_weights()]
        network.get_layer(name).set_weights(values)
    network.save(path)
    return path


class Workplace:
    """A backbone, the features it gave, the pixels of the same images, and a head trained on the features."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.backbone = folder / "layered.keras"
        self.features, self.pixels, self.head = folder / "features", folder / "pixels", folder / "head"

    def recipe(self, url: Path, *, changes: dict[str, Any] | None = None, **training: Any) -> FinetuneRecipe:
        """Of the unfrozen network at `url`; `changes` are those of its `[model]`."""
        model = {"name": "unfrozen", "url": str(url), "head": str(self.head), "unfreeze_from": FROM, **(changes or {})}
        return make_recipe(self.pixels, model, **training)

    def build(self, unfreeze_from: str = FROM) -> "keras.Model":
        settings = ModelSettings(url="unused", name="unfrozen", head=str(self.head), unfreeze_from=unfreeze_from)
        head = find_head(settings, read_features_manifest(str(self.pixels)))
        return build_unfrozen(head, unfreeze_from=unfreeze_from)

    def read(self, url: Path, split: str = "train") -> SplitData:
        return read_split(str(url), read_features_manifest(str(url)), split)


def make_recipe(features: Path, model: dict[str, Any], **training: Any) -> FinetuneRecipe:
    defaults = {"epochs": 4, "batch_size": 16, "optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.002}
    settings = {**defaults, "best_by": "loss", **training}
    document = {"features": {"url": str(features)}, "model": model, "training": settings}
    return check_settings(FinetuneRecipe, document, origin="test")


def train_alone(settings: FinetuneRecipe, **options: Any) -> ModelCard:
    card = train(plan_training(settings, ranks=1), SingleRank(), **options)
    assert card is not None
    return card


def weights_by_name(network: "keras.Model") -> dict[str, NDArray[Any]]:
    return {variable.path: variable.numpy() for variable in network.weights}


def read_history(url: Path) -> list[dict[str, float]]:
    card = read_model_card(str(url))
    assert card is not None
    return card.history
