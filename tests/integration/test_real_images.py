"""The main job on real photographs, with the committed recipes: is the head as good as a tuned logistic regression?"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.project import ROOT
from helpers.tables.building import read_rows
from helpers.tables.predictions import read_predictions
from pyspark.sql import SparkSession
from sklearn.linear_model import LogisticRegression

from featurize.engines.precision import MIN_COSINE, has_bfloat16, mean_cosine
from featurize.errors import JobError
from featurize.jobs.run import featurize
from featurize.recipes.recipe import SPLITS, Recipe, lower_half, read_recipe, upper_half
from featurize.tables.readable import read_features_manifest
from finetune.evaluation.evaluate import evaluate_model
from finetune.prediction.predict import plan_prediction, predict
from finetune.ranks.communicator import SingleRank
from finetune.rows.splits import read_split
from finetune.training.plan import plan_training
from finetune.training.train import train

pytestmark = [pytest.mark.realdata, pytest.mark.spark, pytest.mark.slow]


def featurize_recipe(spark: SparkSession, name: str, images: Path, folder: Path, **changes: Any) -> Recipe:
    """Featurizes with a recipe of configs/; returns the recipe as it ran. In the keys of `changes` a dot is two underscores."""
    places = {
        "images.source": images,
        "backbone.name": images.parent.parent / "backbones" / "mobilenet_v1_imagenet.keras",
        "features.url": folder / "features",
        "model.url": folder / "model",
    }
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    recipe = read_recipe(ROOT / "configs" / name, [f"{key}={value}" for key, value in (places | changes).items()])
    result, _ = featurize(spark, upper_half(recipe, origin=name))
    assert result.added == sum(1 for file in images.rglob("*") if file.is_file())
    return recipe


def evaluate_head(recipe: Recipe) -> dict[str, Any]:
    """Trains the head of a recipe; returns its scores on the test split."""
    plan = plan_training(lower_half(recipe, origin="recipe"), ranks=1)
    train(plan, SingleRank())
    return evaluate_model(plan.recipe.model.url, None, "test", None)


@pytest.fixture(scope="module")
def objects(spark: SparkSession, real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """The recipe of the objects, featurized in the precision that "auto" comes to: float32."""
    return featurize_recipe(spark, "objects_mobilenet.toml", real_data / "objects", tmp_path_factory.mktemp("objects"))


def tuned_regression_accuracy(url: str) -> float:
    """Test accuracy of scikit-learn's LogisticRegression, its C chosen on the validation split."""
    manifest = read_features_manifest(url)
    learn, choose, test = (read_split(url, manifest, split) for split in ("train", "validation", "test"))
    models = [
        LogisticRegression(C=c, max_iter=1000).fit(learn.features, learn.label_index) for c in (0.03, 0.1, 0.3, 1)
    ]
    best = max(models, key=lambda model: float(model.score(choose.features, choose.label_index)))
    return float(best.score(test.features, test.label_index))


def test_the_head_on_objects_is_as_good_as_tuned_logistic_regression(objects: Recipe) -> None:
    scores = evaluate_head(objects)
    assert objects.features is not None
    assert objects.model is not None
    assert len(scores["classes"]) == 102
    assert scores["accuracy"] >= tuned_regression_accuracy(objects.features.url) - 0.01
    assert np.sum(scores["confusion_matrix"]) == scores["rows"]
    assert (Path(objects.model.url) / "confusion-test.png").stat().st_size > 10_000


def test_features_in_bfloat16_are_those_in_float32_and_so_is_the_head(
    spark: SparkSession, real_data: Path, objects: Recipe, tmp_path: Path
) -> None:
    """MobileNetV1 loses more than VGG16 does. The accuracy is over validation and test, on which nothing was chosen here."""
    name = "objects_mobilenet.toml"
    if not has_bfloat16():
        with pytest.raises(JobError, match="does not support"):
            featurize_recipe(spark, name, real_data / "objects", tmp_path, backbone__precision="bfloat16")
        return
    recipe = featurize_recipe(spark, name, real_data / "objects", tmp_path, backbone__precision="bfloat16")
    accuracies = []
    splits = []
    for made in (objects, recipe):
        assert made.features is not None
        manifest = read_features_manifest(made.features.url)
        learn, choose, test = (read_split(made.features.url, manifest, name) for name in SPLITS)
        splits.append(learn)
        head = LogisticRegression(C=0.1, max_iter=1000).fit(learn.features, learn.label_index)
        accuracies.append(
            np.mean(np.concatenate([head.predict(part.features) == part.label_index for part in (choose, test)]))
        )
    assert splits[0].paths.tolist() == splits[1].paths.tolist()
    assert mean_cosine(splits[0].features, splits[1].features) >= MIN_COSINE
    assert abs(accuracies[0] - accuracies[1]) <= 0.005


def test_the_head_on_landscapes_reaches_98_percent(spark: SparkSession, real_data: Path, tmp_path: Path) -> None:
    recipe = featurize_recipe(spark, "landscapes_mobilenet.toml", real_data / "landscapes", tmp_path)
    assert evaluate_head(recipe)["accuracy"] >= 0.98


def test_predictions_of_the_objects_reach_the_accuracy_of_evaluate_to_the_digit(
    spark: SparkSession, objects: Recipe, tmp_path: Path
) -> None:
    scores = evaluate_head(objects)
    assert objects.images is not None
    assert objects.model is not None
    assert objects.features is not None
    plan = plan_prediction(objects.model.url, str(tmp_path / "out"), images=objects.images.source)
    made = predict(spark, plan)
    assert made.result.rejected == 0
    rows = read_predictions(tmp_path / "out")
    truth = read_rows(Path(objects.features.url))
    test = truth[truth["split"] == "test"]
    right = int((rows.loc[test.index, "label"] == test["label"]).sum())
    assert right / len(test) == scores["accuracy"]
    in_top = [true in top for true, top in zip(test["label"], rows.loc[test.index, "top_labels"], strict=True)]
    assert sum(in_top) / len(test) == scores["top5_accuracy"]
