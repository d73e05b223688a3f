"""Tests of finetune.evaluation.evaluate: scores against scikit-learn on the saved model, the files, and what is refused."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
from helpers.tables.feature_sets import make_clusters, spec_of, write_feature_set
from PIL import Image
from rich.console import Console
from sklearn import metrics as reference

from featurize.errors import UsageError
from featurize.recipes.model_section import ModelSettings
from featurize.recipes.recipe import FeaturesSettings, FinetuneRecipe
from featurize.recipes.training_section import TrainingSettings
from finetune.evaluation.evaluate import confusion_csv, evaluate_model, print_evaluation
from finetune.ranks.communicator import SingleRank
from finetune.scores.metrics import evaluate_probabilities
from finetune.training.plan import plan_training
from finetune.training.train import train

CLASSES = ("ant", "bee, wild", 'cat "tom"', "dog", "eel", "fox", "grün")
DESIGNED = {"accuracy", "top5_accuracy", "precision", "recall", "f1", "log_loss", "rows", "confusion_matrix", "classes"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`set`, seven classes that overlap, and `model`, trained on it."""
    folder = tmp_path_factory.mktemp("evaluate")
    features, label_index = make_clusters(500, dim=9, n_classes=7, spread=3.0)
    write_feature_set(folder / "set", features, label_index, classes=CLASSES)
    recipe = FinetuneRecipe(
        features=FeaturesSettings(url=str(folder / "set")),
        model=ModelSettings(url=str(folder / "model")),
        training=TrainingSettings(epochs=5),
    )
    train(plan_training(recipe, ranks=1), SingleRank())
    return folder


@pytest.mark.parametrize("split", ["test", "train"])
def test_scores_equal_scikit_learn_on_the_saved_model(folder: Path, tmp_path: Path, split: str) -> None:
    result = evaluate_model(str(folder / "model"), None, split, str(tmp_path))
    table = pd.read_parquet(folder / "set" / "data" / f"split={split}")
    network = keras.saving.load_model(folder / "model" / "model.keras", compile=False)
    probabilities = np.asarray(network(np.stack(table["features"].tolist()).astype(np.float32)))
    true, predicted, labels = table["label_index"], probabilities.argmax(axis=1), list(range(7))
    double = probabilities.astype(np.float64)
    double /= double.sum(axis=1, keepdims=True)
    macro = reference.precision_recall_fscore_support(true, predicted, average="macro", zero_division=0)
    assert 0.3 < result["accuracy"] < 0.99
    assert result["accuracy"] == pytest.approx(reference.accuracy_score(true, predicted))
    assert (result["precision"], result["recall"], result["f1"]) == pytest.approx(macro[:3])
    assert result["top5_accuracy"] == pytest.approx(reference.top_k_accuracy_score(true, double, k=5, labels=labels))
    assert result["log_loss"] == pytest.approx(reference.log_loss(true, double, labels=labels), rel=1e-4)
    assert result["confusion_matrix"] == reference.confusion_matrix(true, predicted, labels=labels).tolist()
    assert (result["rows"], result["split"]) == (len(table), split)
    assert tuple(result["classes"]) == CLASSES
    assert set(result) >= DESIGNED
    each = reference.precision_recall_fscore_support(true, predicted, labels=labels, zero_division=0)
    for position, name in enumerate(("precision", "recall", "f1", "support")):
        assert [row[name] for row in result["per_class"]] == pytest.approx(each[position].tolist()), name
    assert [row["class"] for row in result["per_class"]] == list(CLASSES)
    assert result["f1_of_means"] == pytest.approx(2 * macro[0] * macro[1] / (macro[0] + macro[1]))
    assert result["without_rows"] == []


def test_files_lie_beside_the_model_and_say_the_same(folder: Path) -> None:
    result = evaluate_model(str(folder / "model"), None, "validation", None)
    model = folder / "model"
    assert result["files"] == {
        "evaluation": f"file://{model}/evaluation-validation.json",
        "table": f"file://{model}/confusion-validation.csv",
        "plot": f"file://{model}/confusion-validation.png",
    }
    document = json.loads((model / "evaluation-validation.json").read_text())
    assert document == {key: value for key, value in result.items() if key != "files"}
    rows = list(csv.reader(io.StringIO((model / "confusion-validation.csv").read_text())))
    assert rows[0][1:] == list(CLASSES)
    assert [row[0] for row in rows[1:]] == list(CLASSES)
    assert [[int(count) for count in row[1:]] for row in rows[1:]] == result["confusion_matrix"]
    with Image.open(model / "confusion-validation.png") as image:
        image.load()
        assert image.format == "PNG"
        assert min(image.size) > 200


def test_confused_pairs_are_the_largest_counts_off_the_diagonal(folder: Path, tmp_path: Path) -> None:
    result = evaluate_model(str(folder / "model"), None, "train", str(tmp_path))
    off = np.array(result["confusion_matrix"])
    np.fill_diagonal(off, 0)
    counts = [pair["count"] for pair in result["most_confused"]]
    assert counts == sorted(off[off > 0].tolist(), reverse=True)[: len(counts)]
    assert 0 < len(counts) <= 10
    for pair in result["most_confused"]:
        assert off[CLASSES.index(pair["true"]), CLASSES.index(pair["predicted"])] == pair["count"]


def test_output_elsewhere_leaves_the_model_folder_alone(folder: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in (folder / "model").iterdir())
    evaluate_model(str(folder / "model"), None, "test", str(tmp_path / "new" / "scores"))
    names = sorted(path.name for path in (tmp_path / "new" / "scores").iterdir())
    assert names == ["confusion-test.csv", "confusion-test.png", "evaluation-test.json"]
    assert sorted(path.name for path in (folder / "model").iterdir()) == before


def test_other_images_of_the_same_backbone_are_evaluated(folder: Path, tmp_path: Path) -> None:
    features, label_index = make_clusters(70, dim=9, n_classes=7, spread=0.1, seed=4)
    write_feature_set(tmp_path / "new", features, label_index, classes=CLASSES, splits=["test"] * 70)
    result = evaluate_model(str(folder / "model"), str(tmp_path / "new"), "test", str(tmp_path / "out"))
    assert (result["rows"], result["features"]) == (70, f"file://{tmp_path}/new")
    assert result["accuracy"] > 0.9


def refused(folder: Path, tmp_path: Path, split: str = "test", **options: Any) -> str:
    """The message with which another feature set is refused; nothing must have been written."""
    features, label_index = make_clusters(70, dim=9, n_classes=7)
    write_feature_set(tmp_path / "other", features, label_index, **{"classes": CLASSES, **options})
    with pytest.raises(UsageError) as raised:
        evaluate_model(str(folder / "model"), str(tmp_path / "other"), split, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    return str(raised.value)


def test_features_of_another_backbone_are_refused_naming_what_differs(folder: Path, tmp_path: Path) -> None:
    spec = spec_of(make_clusters(1, dim=9)[0], name="VGG16", layer="fc2", weights_digest="f" * 64)
    message = refused(folder, tmp_path, spec=spec)
    assert "another backbone" in message
    for difference in (
        "layer: model 'pool', features 'fc2'",
        "name: model 'Invented', features 'VGG16'",
        "weights_digest",
    ):
        assert difference in message
    assert "height" not in message


def test_other_classes_are_refused(folder: Path, tmp_path: Path) -> None:
    message = refused(folder, tmp_path, classes=("owl", *CLASSES[1:]))
    assert "'ant'" in message
    assert "'owl'" in message


@pytest.mark.parametrize("split", ["test", "tset"])
def test_split_without_rows_is_refused_naming_those_with_rows(folder: Path, tmp_path: Path, split: str) -> None:
    message = refused(folder, tmp_path, split=split, splits=["train"] * 50 + ["validation"] * 20)
    assert f"split {split!r} has no rows. Splits with rows: train, validation." in message


def test_missing_model_and_missing_features_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a model"):
        evaluate_model(str(tmp_path / "none"), None, "test", None)
    with pytest.raises(UsageError, match="is not a feature set"):
        evaluate_model(str(folder / "model"), str(tmp_path / "none"), "test", None)
    with pytest.raises(UsageError, match="is not a feature set"):
        evaluate_model(str(folder / "model"), str(folder / "model"), "test", None)


def test_table_on_screen_names_scores_classes_and_files(folder: Path, tmp_path: Path) -> None:
    result = evaluate_model(str(folder / "model"), None, "test", str(tmp_path))
    screen = io.StringIO()
    print_evaluation(result, Console(file=screen, width=200))
    text = screen.getvalue()
    assert f"{result['accuracy']:.4f}" in text
    assert result["files"]["plot"] in text
    for label in CLASSES:
        assert label in text


def test_classes_that_a_split_lacks_are_named(tmp_path: Path) -> None:
    features, label_index = make_clusters(120, dim=9, n_classes=3)
    splits = ["train" if index == 2 or row % 3 else "test" for row, index in enumerate(label_index)]
    write_feature_set(tmp_path / "set", features, label_index, splits=splits, classes=("ant", "bee", "cat"))
    recipe = FinetuneRecipe(
        features=FeaturesSettings(url=str(tmp_path / "set")),
        model=ModelSettings(url=str(tmp_path / "model")),
        training=TrainingSettings(epochs=2),
    )
    train(plan_training(recipe, ranks=1), SingleRank())
    result = evaluate_model(str(tmp_path / "model"), None, "test", None)
    assert result["without_rows"] == ["cat"]
    assert result["per_class"][2]["support"] == 0
    text = io.StringIO()
    print_evaluation(result, Console(file=text, width=200))
    assert "test has no rows of cat: precision, recall and F1 are means over the classes that occur." in text.getvalue()


def test_class_names_with_brackets_are_printed_as_they_are(folder: Path, tmp_path: Path) -> None:
    result = evaluate_model(str(folder / "model"), None, "test", str(tmp_path))
    result = {**result, "classes": ["[red]ant", "[/b]", *CLASSES[2:]]}
    screen = io.StringIO()
    print_evaluation(result, Console(file=screen, width=200))
    assert "[red]ant" in screen.getvalue()
    assert "[/b]" in screen.getvalue()


def test_confusion_csv_quotes_what_needs_it() -> None:
    evaluation = evaluate_probabilities(np.eye(2), np.array([0, 1]), ["a,b", 'c"d'])
    assert confusion_csv(evaluation) == 'true \\ predicted,"a,b","c""d"\n"a,b",1,0\n"c""d",0,1\n'
