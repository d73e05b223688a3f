"""Tests of finetune.training.plan: what is checked first, what makes a model another one, what is in its place already."""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.models.heads import make_recipe, train_alone
from helpers.tables.feature_sets import make_clusters, spec_of, write_feature_set
from sklearn.utils.class_weight import compute_class_weight

from featurize.errors import UsageError
from featurize.recipes.model_section import ModelSettings
from featurize.recipes.recipe import FeaturesSettings, FinetuneRecipe
from featurize.recipes.training_section import TrainingSettings
from featurize.tables.readable import read_features_manifest
from finetune.models.folder import load_model
from finetune.ranks.communicator import SingleRank
from finetune.training.plan import find_trained, plan_training, weights_of_classes
from finetune.training.train import train


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_trained_model_is_found_again(features: Path, model_url: Path) -> None:
    plan = plan_training(make_recipe(features, model_url), ranks=1)
    assert find_trained(plan) is None
    card = train(plan, SingleRank())
    assert find_trained(plan) == card
    halved = make_recipe(features, model_url, batch_size=16)
    assert find_trained(plan_training(halved, ranks=2)) == card


def test_another_model_in_the_same_place_is_refused(features: Path, model_url: Path) -> None:
    train_alone(make_recipe(features, model_url))
    before = contents(model_url)
    with pytest.raises(UsageError, match=r"holds another model.*--overwrite"):
        find_trained(plan_training(make_recipe(features, model_url, seed=1), ranks=1))
    assert contents(model_url) == before


def test_foreign_folder_is_refused_and_left_alone(features: Path, model_url: Path) -> None:
    (model_url / "inner").mkdir(parents=True)
    (model_url / "inner" / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="is not empty and holds no model"):
        find_trained(plan_training(make_recipe(features, model_url), ranks=1))
    assert [path.name for path in model_url.rglob("*")] == ["inner", "thesis.tex"]


def test_file_in_the_place_of_the_model_is_refused(features: Path, model_url: Path) -> None:
    model_url.write_text("years of work")
    with pytest.raises(UsageError):
        find_trained(plan_training(make_recipe(features, model_url), ranks=1))
    assert model_url.read_text() == "years of work"


def test_feature_set_in_the_place_of_the_model_is_refused(features: Path) -> None:
    with pytest.raises(UsageError, match="holds no model"):
        find_trained(plan_training(make_recipe(features, features), ranks=1))


def test_empty_folder_and_what_a_killed_training_left_are_no_hindrance(features: Path, model_url: Path) -> None:
    plan = plan_training(make_recipe(features, model_url), ranks=1)
    model_url.mkdir()
    assert find_trained(plan) is None
    (model_url / "model.keras").write_bytes(b"half")
    (model_url / "_claim.json").write_text("{")
    assert find_trained(plan) is None
    card = train(plan, SingleRank())
    assert card is not None
    assert load_model(str(model_url))[1] == card


def test_missing_feature_set_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a feature set"):
        plan_training(make_recipe(tmp_path / "none", tmp_path / "model"), ranks=1)


@pytest.mark.parametrize(("label_index", "found"), [([1] * 10, "only bee"), ([], "none")])
def test_fewer_than_two_classes_with_training_rows_are_refused(
    tmp_path: Path, label_index: list[int], found: str
) -> None:
    labels = np.array([*label_index, 0, 2], np.int32)
    splits = ["train"] * len(label_index) + ["test", "test"]
    write_feature_set(tmp_path / "set", np.ones((len(labels), 4), np.float32), labels, splits=splits)
    with pytest.raises(UsageError, match=f"two classes at least must have training rows. Got {found}"):
        plan_training(make_recipe(tmp_path / "set", tmp_path / "model"), ranks=1)


CHANGES: list[dict[str, Any]] = [
    {"seed": 43},
    {"learning_rate": 0.02},
    {"epochs": 4},
    {"optimizer": "adam"},
    {"momentum": 0.7},
    {"nesterov": False},
    {"batch_size": 64},
    {"schedule": "cosine"},
    {"l2": 0.001},
    {"gradient_normalization": "layer"},
    {"label_smoothing": 0.1},
    {"class_weights": "balanced"},
    {"class_weights": {"bee": 2.0}},
    {"early_stopping": {"patience": 3}},
    {"best_by": "validation_loss"},
    {"cache": "stream"},
]


MODEL_CHANGES: list[dict[str, Any]] = [
    {"standardize": True},
    {"l2_normalize": True},
    {"name": "mlp_head"},
    {"name": "mlp_head", "hidden": [8]},
    {"name": "mlp_head", "dropout": 0.5},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_each_setting_makes_another_model_id(features: Path, change: dict[str, Any]) -> None:
    model_ids = {
        plan_training(make_recipe(features, Path("m"), **training), ranks=1).model_id for training in ({}, change)
    }
    assert len(model_ids) == 2


def test_each_setting_of_the_model_makes_another_model_id(features: Path) -> None:
    networks: list[dict[str, Any]] = [{}, *MODEL_CHANGES]
    recipes = [make_recipe(features, Path("m"), network=network) for network in networks]
    assert len({plan_training(recipe, ranks=1).model_id for recipe in recipes}) == len(networks)


@pytest.mark.parametrize("change", [{"timeout_s": 99.0}, {"cache_gb": 3.0}, {"cache": "memory"}, {"shuffle_rows": 7}])
def test_settings_that_change_no_result_make_no_other_model_id(features: Path, change: dict[str, Any]) -> None:
    recipes = [make_recipe(features, Path("m"), **training) for training in ({}, change)]
    assert len({plan_training(recipe, ranks=1).model_id for recipe in recipes}) == 1


def test_streams_depend_on_the_buffer_and_on_the_shards(features: Path, tmp_path: Path) -> None:
    values, label_index = make_clusters(200, spread=2.0)
    write_feature_set(tmp_path / "resharded", values, label_index, shards=[list(range(200))])
    recipes = [
        make_recipe(features, Path("m"), cache="stream"),
        make_recipe(features, Path("m"), cache_gb=1e-9),
        make_recipe(features, Path("m"), cache="stream", shuffle_rows=50),
        make_recipe(tmp_path / "resharded", Path("m"), cache="stream"),
    ]
    model_ids = [plan_training(recipe, ranks=1).model_id for recipe in recipes]
    assert model_ids[0] == model_ids[1]
    assert len(set(model_ids)) == 3


def test_own_network_that_was_changed_makes_another_model_id(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    recipe = make_recipe(features, Path("m"), network={"name": "own_nets:make"})
    model_ids = []
    for units in (3, 4):
        (tmp_path / "own_nets.py").write_text(f"def make(feature_shape, n_classes, seed): return {units}\n")
        sys.modules.pop("own_nets", None)
        model_ids.append(plan_training(recipe, ranks=1).model_id)
    assert model_ids[0] != model_ids[1]


def test_all_that_does_not_go_with_the_features_is_named_at_once(features: Path) -> None:
    recipe = make_recipe(
        features,
        Path("m"),
        network={"name": "landscapes_convnet", "pixels": "scale"},
        augmentation={"flip": "both"},
        class_weights={"bee": 1.0, "wasp": 2.0, "cat": -1.0},
    )
    with pytest.raises(UsageError) as raised:
        plan_training(recipe, ranks=1)
    for part in ("landscapes_convnet", "model.pixels", "training.augmentation", "'wasp'", "'cat' must weigh 0 or more"):
        assert part in str(raised.value), part
    assert "'bee'" not in str(raised.value)


def test_early_stopping_without_validation_rows_is_refused(tmp_path: Path) -> None:
    values, label_index = make_clusters(30)
    write_feature_set(tmp_path / "set", values, label_index, splits=["train"] * 30)
    recipe = make_recipe(tmp_path / "set", Path("m"), early_stopping={})
    with pytest.raises(UsageError, match="no validation rows for validation_loss"):
        plan_training(recipe, ranks=1)


def test_balanced_weights_are_those_of_scikit_learn(features: Path) -> None:
    manifest = read_features_manifest(str(features))
    rows = manifest.rows["train"]
    label_index = np.repeat(np.arange(3), [rows[label] for label in manifest.classes])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=label_index)
    found = weights_of_classes(TrainingSettings(class_weights="balanced"), manifest)
    np.testing.assert_allclose(np.asarray(found), expected)


def test_weights_by_name_leave_the_others_at_1(features: Path) -> None:
    manifest = read_features_manifest(str(features))
    assert weights_of_classes(TrainingSettings(class_weights={"bee": 2.5}), manifest) == [1.0, 2.5, 1.0]
    assert weights_of_classes(TrainingSettings(), manifest) is None


@pytest.mark.parametrize("changed", ["labels", "splits", "backbone", "row"])
def test_content_of_the_features_makes_another_model_id(features: Path, tmp_path: Path, changed: str) -> None:
    """Values need no case: they follow from images and backbone."""
    values, label_index = make_clusters(200, spread=2.0)
    options: dict[str, Any] = {}
    if changed == "labels":
        label_index[0] = (label_index[0] + 1) % 3
    if changed == "splits":
        options["splits"] = [
            "test" if row == 0 else ("train", "train", "train", "validation", "test")[row % 5] for row in range(200)
        ]
    if changed == "backbone":
        options["spec"] = spec_of(values, weights_digest="1" * 64)
    if changed == "row":
        values, label_index = values[:-1], label_index[:-1]
    write_feature_set(tmp_path / "other", values, label_index, **options)
    one, two = (plan_training(make_recipe(url, Path("m")), ranks=1).model_id for url in (features, tmp_path / "other"))
    assert one != two


def test_model_id_does_not_depend_on_places_ranks_or_shards(features: Path, tmp_path: Path) -> None:
    wanted = plan_training(make_recipe(features, Path("m"), batch_size=64), ranks=1).model_id
    shutil.copytree(features, tmp_path / "copy")
    values, label_index = make_clusters(200, spread=2.0)
    write_feature_set(
        tmp_path / "resharded", values, label_index, shards=[list(range(0, 200, 2)), list(range(1, 200, 2))]
    )
    recipes = [
        (make_recipe(features, Path("elsewhere"), batch_size=64), 1),
        (make_recipe(tmp_path / "copy", Path("m"), batch_size=64), 1),
        (make_recipe(tmp_path / "resharded", Path("m"), batch_size=64), 1),
        (make_recipe(features, Path("m"), batch_size=32), 2),
        (make_recipe(features, Path("m"), batch_size=8), 8),
        (make_recipe(features, Path("m"), batch_size=64, momentum=0.8, nesterov=True), 1),
    ]
    assert {plan_training(recipe, ranks=ranks).model_id for recipe, ranks in recipes} == {wanted}


def test_a_plan_means_the_same_in_another_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features, label_index = make_clusters(30)
    write_feature_set(tmp_path / "set", features, label_index)
    monkeypatch.chdir(tmp_path)
    settings = FinetuneRecipe(features=FeaturesSettings(url="set"), model=ModelSettings(url="models/head"))
    plan = plan_training(settings, ranks=1)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert plan.recipe.features.url == f"file://{tmp_path}/set"
    assert plan.recipe.model.url == f"file://{tmp_path}/models/head"
