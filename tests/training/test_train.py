"""Tests of finetune.training.train: what it leaves in the model's folder, and what a failure leaves."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from helpers.models.heads import make_recipe, train_alone
from helpers.tables.claim_files import hold_claim
from helpers.tables.feature_sets import make_clusters, write_feature_set

from featurize.errors import JobError
from featurize.memory import peak_memory_bytes
from featurize.recipes.training_section import METRICS
from featurize.storage.claims import CLAIM_NAME
from featurize.tables.readable import read_features_manifest
from finetune.models.folder import ModelCard, load_model, read_model_card
from finetune.networks.forward import predict_probabilities
from finetune.rows.disk_rows import StreamData
from finetune.rows.splits import read_split
from finetune.training.plan import find_trained, plan_training


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
