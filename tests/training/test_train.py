"""Tests of finetune.training.train: what is checked first, what makes a model another one, what is in its place already."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tables.claim_files import hold_claim
from helpers.tables.feature_sets import make_clusters, spec_of, write_feature_set
from sklearn.utils.class_weight import compute_class_weight

from featurize.errors import JobError, UsageError
from featurize.memory import peak_memory_bytes
from featurize.recipes.model_section import ModelSettings
from featurize.recipes.recipe import FeaturesSettings, FinetuneRecipe
from featurize.recipes.training_section import METRICS, TrainingSettings
from featurize.storage.claims import CLAIM_NAME
from featurize.tables.manifests import read_features_manifest
from finetune.models.folder import ModelCard, load_model, read_model_card
from finetune.networks.forward import predict_probabilities
from finetune.ranks.communicator import SingleRank
from finetune.rows.disk_rows import StreamData
from finetune.rows.splits import read_split
from finetune.training.plan import find_trained, plan_training, weights_of_classes
from finetune.training.train import train

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # Petastorm reads by the legacy interface of pyarrow


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A feature set of 200 rows in three classes; do not change it."""
    folder = tmp_path_factory.mktemp("features") / "set"
    values, label_index = make_clusters(200, spread=2.0)
    write_feature_set(folder, values, label_index)
    return folder


@pytest.fixture
def model_url(tmp_path: Path) -> Path:
    return tmp_path / "model"


def make_recipe(
    features: Path, model: Path, *, network: dict[str, Any] | None = None, **training: Any
) -> FinetuneRecipe:
    return FinetuneRecipe(
        features=FeaturesSettings(url=str(features)),
        model=ModelSettings.model_validate({"url": str(model), **(network or {})}),
        training=TrainingSettings.model_validate({"epochs": 3, **training}),
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def train_alone(recipe: FinetuneRecipe) -> ModelCard:
    card = train(plan_training(recipe, ranks=1), SingleRank())
    assert card is not None
    return card


def test_model_folder_holds_all_that_is_needed_to_use_and_repeat_it(features: Path, model_url: Path) -> None:
    recipe = make_recipe(features, model_url, learning_rate=0.05, seed=7)
    card = train_alone(recipe)
    manifest = read_features_manifest(str(features))
    document = json.loads((model_url / "model.json").read_text())
    assert ModelCard.model_validate(document) == card == read_model_card(str(model_url))
    assert document["features"]["identity"] == manifest.identity
    assert document["features"]["url"] == f"file://{features}"
    assert document["classes"] == manifest.classes
    assert document["recipe"]["training"] == recipe.training.model_dump()
    assert (document["seed"], document["ranks"], document["global_batch_size"]) == (7, 1, 32)
    assert document["rows"] == {"train": 120, "validation": 40}
    assert [entry["epoch"] for entry in document["history"]] == [1, 2, 3]
    best = document["history"][document["best_epoch"] - 1]
    assert document["metrics"] == {key: best[key] for key in METRICS}
    assert {"firn", "keras", "numpy"} <= set(document["versions"])
    left = {path.name for path in model_url.iterdir()}
    assert left == {"model.keras", "last.keras", "model.json", "history.png", "tensorboard"}


def test_memory_of_a_rank_is_stated_and_measured(features: Path, model_url: Path) -> None:
    manifest = read_features_manifest(str(features))
    stream = StreamData(str(features), manifest, "train", shuffle_rows=64)
    rows = manifest.split_rows("train") + manifest.split_rows("validation")
    expected = {"memory": rows * manifest.feature_shape[0] * 4, "stream": stream.memory_bytes()}
    for cache, feature_bytes in expected.items():
        card = train_alone(make_recipe(features, model_url / cache, cache=cache, shuffle_rows=64))
        (memory,) = card.memory_of_ranks
        assert memory["feature_bytes"] == feature_bytes
        assert memory["feature_bytes"] < memory["peak_bytes"] <= peak_memory_bytes()


def test_metrics_are_those_of_the_saved_network(features: Path, model_url: Path) -> None:
    card = train_alone(make_recipe(features, model_url))
    network, _ = load_model(str(model_url))
    validation = read_split(str(features), read_features_manifest(str(features)), "validation")
    probabilities = predict_probabilities(network, validation.features)
    accuracy = (probabilities.argmax(axis=1) == validation.label_index).mean()
    loss = -np.log(probabilities[np.arange(validation.rows), validation.label_index]).mean()
    assert card.metrics["validation_accuracy"] == pytest.approx(accuracy)
    assert card.metrics["validation_loss"] == pytest.approx(float(loss), rel=1e-4)


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


def test_standardised_model_keeps_the_statistics_of_the_training_split(features: Path, model_url: Path) -> None:
    """Of its training rows it sees mean 0 and deviation 1, and the same whether they are streamed."""
    networks = []
    for cache in ("memory", "stream"):
        train_alone(make_recipe(features, model_url / cache, network={"standardize": True}, cache=cache))
        networks.append(load_model(str(model_url / cache))[0])
    data = read_split(str(features), read_features_manifest(str(features)), "train")
    for network in networks:
        seen = np.asarray(network.get_layer("standardize")(data.features))
        np.testing.assert_allclose(seen.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(seen.std(axis=0), 1, rtol=1e-4)


def test_event_files_hold_the_history(features: Path, model_url: Path) -> None:
    import tensorflow as tf

    card = train_alone(make_recipe(features, model_url))
    (file,) = (model_url / "tensorboard").iterdir()
    found: dict[int, dict[str, float]] = {}
    for event in tf.compat.v1.train.summary_iterator(str(file)):
        for value in event.summary.value:
            found.setdefault(event.step, {})[value.tag] = float(tf.make_ndarray(value.tensor))
    assert sorted(found) == [1, 2, 3]
    for entry in card.history:
        values = found[int(entry["epoch"])]
        assert values["loss/training"] == pytest.approx(entry["loss"])
        assert values["accuracy/validation"] == pytest.approx(entry["validation_accuracy"])
        assert values["speed/rows_per_second"] == pytest.approx(entry["rows_per_second"])


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


def test_resharded_features_give_the_same_weights(features: Path, tmp_path: Path) -> None:
    values, label_index = make_clusters(200, spread=2.0)
    write_feature_set(tmp_path / "resharded", values, label_index, shards=[list(range(199, -1, -1))], rows_per_group=16)
    train_alone(make_recipe(features, tmp_path / "one"))
    train_alone(make_recipe(tmp_path / "resharded", tmp_path / "two"))
    one, two = (load_model(str(tmp_path / name))[0].get_weights() for name in ("one", "two"))
    for first, second in zip(one, two, strict=True):
        np.testing.assert_array_equal(first, second)


def test_failed_training_leaves_no_model(tmp_path: Path) -> None:
    values, label_index = make_clusters(60)
    values[:, 0] = np.nan
    write_feature_set(tmp_path / "set", values, label_index)
    recipe = make_recipe(tmp_path / "set", tmp_path / "model")
    with pytest.raises(JobError, match="loss is nan"):
        train_alone(recipe)
    assert not (tmp_path / "model").exists()
    assert find_trained(plan_training(recipe, ranks=1)) is None


def test_failed_training_keeps_the_model_that_was_there(features: Path, model_url: Path) -> None:
    card = train_alone(make_recipe(features, model_url))
    with pytest.raises(JobError):
        train_alone(make_recipe(features, model_url, learning_rate=1e38))
    assert load_model(str(model_url))[1] == card


def test_place_that_a_living_job_writes_to_is_refused(features: Path, model_url: Path) -> None:
    hold_claim(model_url)
    with pytest.raises(JobError, match=f"is being written by process {os.getpid()}"):
        train_alone(make_recipe(features, model_url))
    assert (model_url / CLAIM_NAME).exists()


def test_training_on_pixels_learns(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    label_index = (np.arange(90) % 3).astype(np.int32)
    pixels = random.integers(0, 60, (90, 4, 4, 3))
    pixels[np.arange(90), ..., label_index] += 150
    write_feature_set(tmp_path / "set", pixels.astype(np.uint8), label_index)
    card = train_alone(make_recipe(tmp_path / "set", tmp_path / "model", epochs=15, learning_rate=0.1))
    assert card.metrics["validation_accuracy"] == 1.0


@pytest.mark.realdata
def test_softmax_on_real_digits_is_as_good_as_linear_models_are(real_data: Path, tmp_path: Path) -> None:
    """MNIST; a linear classifier reaches 88 % and more: LeCun et al., 1998, table of section III.C."""
    from featurize.sources.idx import read_idx

    pixels = read_idx(str(real_data / "mnist" / "t10k-images-idx3-ubyte.gz"))[..., None][:6000]
    label_index = read_idx(str(real_data / "mnist" / "t10k-labels-idx1-ubyte.gz"))[:6000].astype(np.int32)
    splits = [("train", "train", "train", "train", "validation")[row % 5] for row in range(6000)]
    classes = [str(digit) for digit in range(10)]
    write_feature_set(tmp_path / "set", pixels, label_index, splits=splits, classes=classes, rows_per_group=512)
    card = train_alone(make_recipe(tmp_path / "set", tmp_path / "model", epochs=6))
    assert card.metrics["validation_accuracy"] >= 0.88


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
