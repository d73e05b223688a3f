"""The main job on real photographs, with the committed recipes: is the head as good as a tuned logistic regression?"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from pyspark.sql import SparkSession
from sklearn.linear_model import LogisticRegression

from featurize.features import featurize
from featurize.recipe import Recipe, lower_half, read_recipe, upper_half
from finetune.evaluate import evaluate_model
from finetune.fit import SingleRank
from finetune.loader import read_split
from finetune.training import plan_training, train

pytestmark = [pytest.mark.realdata, pytest.mark.spark, pytest.mark.slow]


def run_recipe(spark: SparkSession, name: str, images: Path, folder: Path) -> tuple[Recipe, dict[str, Any]]:
    """Featurizes, trains and evaluates with a recipe of configs/; returns the recipe as it ran and the scores on test."""
    backbone = images.parent.parent / "backbones" / "mobilenet_v1_imagenet.keras"
    places = {
        "images.source": images,
        "backbone.name": backbone,
        "features.url": folder / "features",
        "model.url": folder / "model",
    }
    path = ROOT / "configs" / name
    recipe = read_recipe(path, [f"{key}={place}" for key, place in places.items()])
    result, _ = featurize(spark, upper_half(recipe, origin=name))
    assert result.added == sum(1 for file in images.rglob("*") if file.is_file())
    train(plan_training(lower_half(recipe, origin=name), ranks=1), SingleRank())
    return recipe, evaluate_model(str(folder / "model"), None, "test", None)


def tuned_regression_accuracy(url: str) -> float:
    """Test accuracy of scikit-learn's LogisticRegression, its C chosen on the validation split."""
    from featurize.manifests import read_features_manifest

    manifest = read_features_manifest(url)
    learn, choose, test = (read_split(url, manifest, split) for split in ("train", "validation", "test"))
    models = [
        LogisticRegression(C=c, max_iter=1000).fit(learn.features, learn.label_index) for c in (0.03, 0.1, 0.3, 1)
    ]
    best = max(models, key=lambda model: float(model.score(choose.features, choose.label_index)))
    return float(best.score(test.features, test.label_index))


def test_the_head_on_objects_is_as_good_as_tuned_logistic_regression(
    spark: SparkSession, real_data: Path, tmp_path: Path
) -> None:
    recipe, scores = run_recipe(spark, "objects_mobilenet.toml", real_data / "objects", tmp_path)
    assert len(scores["classes"]) == 102
    assert recipe.features is not None
    assert scores["accuracy"] >= tuned_regression_accuracy(recipe.features.url) - 0.01
    assert np.sum(scores["confusion_matrix"]) == scores["rows"]
    assert (tmp_path / "model" / "confusion-test.png").stat().st_size > 10_000


def test_the_head_on_landscapes_reaches_98_percent(spark: SparkSession, real_data: Path, tmp_path: Path) -> None:
    _, scores = run_recipe(spark, "landscapes_mobilenet.toml", real_data / "landscapes", tmp_path)
    assert scores["accuracy"] >= 0.98
