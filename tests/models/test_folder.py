"""Tests of finetune.models.folder: nothing damaged, foreign or dangerous is loaded."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tables.feature_sets import make_clusters, spec_of, write_feature_set

from featurize.digests import sha256_file
from featurize.errors import FirnError, JobError, UsageError
from featurize.recipes.model_section import ModelSettings
from featurize.recipes.recipe import FeaturesSettings, FinetuneRecipe
from featurize.recipes.training_section import TrainingSettings
from finetune.models.folder import CARD_NAME, NETWORK_NAME, check_features, load_model, read_model_card
from finetune.ranks.communicator import SingleRank
from finetune.training.plan import plan_training
from finetune.training.train import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has been trained for one epoch; do not change it."""
    folder = tmp_path_factory.mktemp("trained")
    write_feature_set(folder / "set", *make_clusters(60))
    recipe = FinetuneRecipe(
        features=FeaturesSettings(url=str(folder / "set")),
        model=ModelSettings(url=str(folder / "model")),
        training=TrainingSettings(epochs=1),
    )
    train(plan_training(recipe, ranks=1), SingleRank())
    return folder / "model"


@pytest.fixture
def model(trained: Path, tmp_path: Path) -> Path:
    """A copy of `trained` to be changed."""
    return Path(shutil.copytree(trained, tmp_path / "model"))


def change_card(folder: Path, **fields: Any) -> None:
    card = json.loads((folder / CARD_NAME).read_text())
    (folder / CARD_NAME).write_text(json.dumps(card | fields))


def test_loaded_network_gives_probabilities(model: Path) -> None:
    network, card = load_model(str(model))
    features, _ = make_clusters(30, seed=5)
    probabilities = np.asarray(network(features))
    assert probabilities.shape == (30, len(card.classes))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


def test_model_can_be_moved(trained: Path, model: Path) -> None:
    assert load_model(str(model))[1] == load_model(str(trained))[1]


def test_place_without_a_model_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path, tmp_path / "none", tmp_path / "file"):
        assert read_model_card(str(place)) is None
        with pytest.raises(UsageError, match="is not a model"):
            load_model(str(place))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '"text"', "null", '{"model_id": 7}', "\x00"])
def test_damaged_card_is_reported_by_its_place(model: Path, text: str) -> None:
    (model / CARD_NAME).write_text(text)
    with pytest.raises(JobError, match=r"model\.json is damaged"):
        load_model(str(model))


def test_card_of_a_newer_firn_is_reported(model: Path) -> None:
    change_card(model, schema_version=2)
    with pytest.raises(JobError, match="schema version 2; this Firn reads 1"):
        load_model(str(model))


def test_newer_card_with_unknown_fields_is_reported_as_newer(model: Path) -> None:
    (model / CARD_NAME).write_text(json.dumps({"schema_version": 2, "everything": "new"}))
    with pytest.raises(JobError, match="schema version 2"):
        load_model(str(model))


def test_network_with_one_other_byte_is_refused(model: Path) -> None:
    content = bytearray((model / NETWORK_NAME).read_bytes())
    content[len(content) // 2] ^= 1
    (model / NETWORK_NAME).write_bytes(bytes(content))
    with pytest.raises(JobError, match="SHA-256 differs"):
        load_model(str(model))


def test_missing_network_is_refused(model: Path) -> None:
    (model / NETWORK_NAME).unlink()
    with pytest.raises(JobError, match=r"model\.keras is missing"):
        load_model(str(model))


def test_network_that_is_not_keras_is_refused(model: Path) -> None:
    (model / NETWORK_NAME).write_bytes(b"PK\x05\x06" + 18 * b"\0")
    change_card(model, network_sha256=sha256_file(model / NETWORK_NAME))
    with pytest.raises(FirnError, match=r"model\.keras"):
        load_model(str(model))


def test_network_that_brings_code_is_refused_and_the_code_is_not_run(model: Path, tmp_path: Path) -> None:
    import keras

    mark = tmp_path / "run"
    inputs = keras.Input((6,))
    layer = keras.layers.Lambda(lambda x, place=str(mark): [open(place, "w").close(), x][1])  # type: ignore[func-returns-value]
    keras.Model(inputs, layer(inputs)).save(model / NETWORK_NAME)
    mark.unlink()
    change_card(model, network_sha256=sha256_file(model / NETWORK_NAME))
    with pytest.raises(FirnError, match=r"model\.keras"):
        load_model(str(model))
    assert not mark.exists()


def test_features_of_the_same_preparation_are_accepted(model: Path, tmp_path: Path) -> None:
    _, card = load_model(str(model))
    features, label_index = make_clusters(20, seed=9)
    same = write_feature_set(tmp_path / "same", features, label_index)
    check_features(card, "same", same)
    renamed = write_feature_set(
        tmp_path / "renamed", features, label_index, spec=spec_of(features, weights="/a/file.h5")
    )
    check_features(card, "renamed", renamed)


@pytest.mark.parametrize(
    "change",
    [
        {"layer": "fc1"},
        {"weights_digest": "1" * 64},
        {"preprocessing": "caffe"},
        {"width": 64},
        {"precision": "bfloat16"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_features_of_another_backbone_are_refused_by_what_differs(
    model: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    card = read_model_card(str(model))
    assert card is not None
    features, label_index = make_clusters(20)
    other = write_feature_set(tmp_path / "other", features, label_index, spec=spec_of(features, **change))
    (key, value) = next(iter(change.items()))
    with pytest.raises(UsageError, match=f"another backbone(.|\n)*- {key}: model .*, features {value!r}"):
        check_features(card, "other", other)


@pytest.mark.parametrize("classes", [("ant", "bee", "dog"), ("ant", "bee", "cat", "dog"), ("bee", "ant", "cat")])
def test_other_classes_are_refused_by_what_differs(model: Path, tmp_path: Path, classes: tuple[str, ...]) -> None:
    card = read_model_card(str(model))
    assert card is not None
    other = write_feature_set(tmp_path / "other", *make_clusters(20), classes=classes)
    with pytest.raises(UsageError, match=r"other classes|order") as raised:
        check_features(card, "other", other)
    if set(classes) == set(card.classes):
        assert "order" in str(raised.value)
    else:
        assert "dog" in str(raised.value)
