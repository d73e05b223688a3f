"""Heads and their recipes for small feature sets, and their training without Horovod."""

from pathlib import Path
from typing import Any

from featurize.recipes.model_section import ModelSettings
from featurize.recipes.recipe import FeaturesSettings, FinetuneRecipe
from featurize.recipes.training_section import TrainingSettings
from finetune.models.folder import ModelCard
from finetune.networks.build import build_model
from finetune.ranks.communicator import SingleRank
from finetune.rows.loader import MemoryData
from finetune.rows.splits import SplitData
from finetune.training.loop import FitResult, fit
from finetune.training.plan import plan_training
from finetune.training.train import train
from helpers.tables.feature_sets import empty_split

NOTHING = empty_split()


def make_recipe(
    features: Path, model: Path, *, network: dict[str, Any] | None = None, **training: Any
) -> FinetuneRecipe:
    return FinetuneRecipe(
        features=FeaturesSettings(url=str(features)),
        model=ModelSettings.model_validate({"url": str(model), **(network or {})}),
        training=TrainingSettings.model_validate({"epochs": 3, **training}),
    )


def train_alone(recipe: FinetuneRecipe) -> ModelCard:
    card = train(plan_training(recipe, ranks=1), SingleRank())
    assert card is not None
    return card


def train_on(
    model: Any, train: SplitData, validation: SplitData, training: TrainingSettings, **options: Any
) -> FitResult:
    return fit(model, MemoryData(train), MemoryData(validation), training, **options)


def make_head(n_classes: int = 3, *, dim: int = 6, seed: int = 42) -> Any:
    settings = ModelSettings(url="unused")
    return build_model(settings, feature_shape=[dim], feature_dtype="float32", n_classes=n_classes, seed=seed)
