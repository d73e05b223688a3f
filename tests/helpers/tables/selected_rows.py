"""A feature set of 180 rows in three splits and files, and the rows that a query leaves of it."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurize.recipes.model_section import ModelSettings
from featurize.recipes.recipe import FeaturesSettings, FinetuneRecipe
from featurize.recipes.training_section import TrainingSettings
from featurize.tables.manifests import FeaturesManifest
from finetune.models.folder import load_model
from finetune.ranks.communicator import SingleRank
from finetune.rows.row_query import read_selected
from finetune.rows.splits import read_split
from finetune.training.plan import plan_training
from finetune.training.train import train
from helpers.tables.feature_sets import image_ids, make_clusters, uneven_shards, write_feature_set

ROWS = 180
CLASSES = ("ant", "bee", "cat")
IDS = image_ids(ROWS)
SPLITS = [("train", "train", "train", "validation", "test")[row % 5] for row in range(ROWS)]
SHARDS = uneven_shards(ROWS, 3)
KEPT = [row for row in range(ROWS) if row % 4]
WHERE = f"path NOT IN ({', '.join(repr(f'photos/{row:05d}.png') for row in range(0, ROWS, 4))})"


def label_indices() -> NDArray[np.int32]:
    return make_clusters(ROWS, spread=2.0)[1]


def write_rows(folder: Path, kept: list[int]) -> Path:
    """The feature set of `folder` with these rows alone, in the same files and row groups as far as they last."""
    features, label_index = make_clusters(ROWS, spread=2.0)
    shards = [[row for row in shard if row in set(kept)] for shard in SHARDS]
    write_feature_set(folder, features, label_index, splits=SPLITS, shards=shards)
    return folder


def recipe_of(features: dict[str, Any], model: Path, **training: Any) -> FinetuneRecipe:
    return FinetuneRecipe(
        features=FeaturesSettings.model_validate(features),
        model=ModelSettings(url=str(model)),
        training=TrainingSettings.model_validate({"epochs": 3, "class_weights": "balanced", **training}),
    )


def fit_alone(features: dict[str, Any], model: Path, **training: Any) -> list[NDArray[Any]]:
    train(plan_training(recipe_of(features, model, **training), ranks=1), SingleRank())
    weights: list[NDArray[Any]] = load_model(str(model))[0].get_weights()
    return weights


def select(folder: Path, where: str, **tables: Any) -> FeaturesManifest:
    return read_selected(FeaturesSettings(url=str(folder), where=where, **tables))


def selected_rows(folder: Path, where: str, **tables: Any) -> set[int]:
    """The numbers of the rows that a query selects."""
    manifest = select(folder, where, **tables)
    paths = [path for split in manifest.rows for path in read_split(str(folder), manifest, split).paths.to_pylist()]
    assert len(paths) == manifest.row_count
    return {int(path[7:12]) for path in paths}
