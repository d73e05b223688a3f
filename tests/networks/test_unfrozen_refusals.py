"""Tests of networks.unfrozen: the heads, backbones, layers, pixels and settings that it refuses."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.models.unfrozen_place import FROM, Workplace, make_recipe, train_alone
from helpers.tables.building import SPLIT
from helpers.tables.feature_sets import make_clusters, write_feature_set

from featurize.errors import JobError, UsageError
from featurize.recipes.model_section import ModelSettings
from featurize.recipes.toml_settings import check_settings
from featurize.tables.readable import read_features_manifest
from finetune.networks.build import build_model
from finetune.networks.unfrozen import build_unfrozen, find_head
from finetune.training.plan import plan_training


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "words"),
    [
        ("conv_3", "has no layer 'conv_3' before its features. Did you mean"),
        ("CONVOLUTION", "There are conv_1, conv_2, inner_conv."),
        ("scores", "has no layer 'scores' before its features"),
        ("maps", "nothing to train between layer 'maps' and its features. Name an earlier layer: conv_1, conv_2"),
        ("inner_relu", "nothing to train"),
    ],
)
def test_a_layer_that_cannot_be_trained_from_is_refused_with_others_to_choose(
    place: Workplace, first: str, words: str
) -> None:
    with pytest.raises(UsageError) as raised:
        place.build(first)
    assert "`model.unfreeze_from`" in str(raised.value)
    assert words in str(raised.value)


@pytest.mark.spark
@pytest.mark.slow
def test_a_fault_that_is_found_by_a_rank_ends_the_training_and_leaves_nothing(place: Workplace, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="no layer 'nonsense'"):
        train_alone(place.recipe(tmp_path / "model", changes={"unfreeze_from": "nonsense"}))
    assert not (tmp_path / "model").exists()


def test_the_head_must_be_there(tmp_path: Path) -> None:
    pixels = np.zeros((30, 12, 12, 3), np.uint8)
    write_feature_set(tmp_path / "pixels", pixels, np.arange(30) % 3)
    place = Workplace(tmp_path)
    with pytest.raises(UsageError, match=f"there is no model at file://{tmp_path}/head"):
        plan_training(place.recipe(tmp_path / "model"), ranks=1)


def test_a_head_on_pixels_has_no_backbone(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 12, 12, 3), dtype=np.uint8)
    write_feature_set(tmp_path / "pixels", pixels, np.arange(30) % 3)
    place = Workplace(tmp_path)
    train_alone(make_recipe(place.pixels, {"url": str(place.head)}, epochs=1))
    with pytest.raises(UsageError, match=r"features of a network.*uint8 \(12, 12, 3\), which no backbone made"):
        plan_training(place.recipe(tmp_path / "model"), ranks=1)


def test_features_of_which_nobody_knows_the_backbone_are_refused(tmp_path: Path) -> None:
    features, label_index = make_clusters(30)
    write_feature_set(tmp_path / "features", features, label_index)
    write_feature_set(tmp_path / "pixels", np.zeros((30, 32, 32, 3), np.uint8), label_index)
    place = Workplace(tmp_path)
    train_alone(make_recipe(place.features, {"url": str(place.head)}, epochs=1))
    with pytest.raises(UsageError, match="does not say how the backbone was made"):
        plan_training(place.recipe(tmp_path / "model"), ranks=1)


@pytest.mark.spark
@pytest.mark.slow
def test_features_are_no_images(place: Workplace) -> None:
    settings = place.recipe(place.folder / "model").model
    with pytest.raises(UsageError, match=r"`features\.url` must be images"):
        find_head(settings, read_features_manifest(str(place.features)))


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"feature_shape": [16, 12, 3]}, "needs images of 12 x 12 x 3 (height, width, channels). Got 16 x 12 x 3."),
        ({"feature_shape": [12, 12, 1]}, "Got 12 x 12 x 1."),
        ({"classes": ["blue", "red", "green"]}, "classes of the head are blue, green, red. Got blue, red, green."),
        (
            {"settings": {"source": {"split": SPLIT | {"seed": 8}}}},
            "images that count as unseen now must not have been",
        ),
        ({"classes": ["a"], "feature_shape": [1, 1, 3]}, "Got a."),
        ({"classes": ["a"], "feature_shape": [1, 1, 3]}, "Got 1 x 1 x 3."),
    ],
)
def test_pixels_that_do_not_go_with_the_head_are_refused(place: Workplace, changes: dict[str, Any], words: str) -> None:
    manifest = read_features_manifest(str(place.pixels)).model_copy(update=changes)
    with pytest.raises(UsageError) as raised:
        find_head(place.recipe(place.folder / "model").model, manifest)
    assert words in str(raised.value)


def change_file(place: Workplace) -> None:
    import keras

    network = keras.saving.load_model(place.backbone)
    network.get_layer("conv_1").set_weights([weight + 1e-3 for weight in network.get_layer("conv_1").get_weights()])
    network.save(place.backbone)


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.parametrize(
    ("disturb", "words"),
    [
        (lambda place: place.backbone.unlink(), "cannot be rebuilt: `backbone.name`: there is no file"),
        (lambda place: place.backbone.write_text("no network"), "cannot be loaded as a Keras model"),
        (
            change_file,
            "has changed since it made the features of `model.head`: its network_sha256, weights_digest",
        ),
    ],
)
def test_a_backbone_that_is_not_what_it_was_is_refused(
    place: Workplace, tmp_path: Path, disturb: Callable[[Workplace], None], words: str
) -> None:
    moved = Workplace(tmp_path)
    moved.backbone.write_bytes(place.backbone.read_bytes())
    settings = place.recipe(tmp_path / "model").model
    head = find_head(settings, read_features_manifest(str(place.pixels)))
    head = replace(head, backbone=head.backbone.model_copy(update={"name": f"file://{moved.backbone}"}))
    assert build_unfrozen(head, unfreeze_from=FROM).name == "unfrozen"
    disturb(moved)
    with pytest.raises(UsageError) as raised:
        build_unfrozen(head, unfreeze_from=FROM)
    assert words in str(raised.value)


@pytest.mark.spark
@pytest.mark.slow
def test_a_head_that_was_replaced_meanwhile_is_refused(place: Workplace) -> None:
    head = find_head(place.recipe(place.folder / "model").model, read_features_manifest(str(place.pixels)))
    head = replace(head, card=head.card.model_copy(update={"model_id": "0" * 64}))
    with pytest.raises(JobError, match="was replaced by another model"):
        build_unfrozen(head, unfreeze_from=FROM)


def test_settings_need_head_and_layer() -> None:
    with pytest.raises(UsageError) as raised:
        check_settings(ModelSettings, {"url": "m", "name": "unfrozen", "pixels": "scale"}, origin="my.toml")
    for words in ("`head` is required", "`unfreeze_from` is required", "`pixels` cannot be used with unfrozen"):
        assert words in str(raised.value)


@pytest.mark.parametrize("name", ["softmax_head", "landscapes_convnet", "nets:build"])
@pytest.mark.parametrize("key", ["head", "unfreeze_from"])
def test_settings_of_other_models_have_neither(name: str, key: str) -> None:
    with pytest.raises(UsageError, match=f"`{key}` is for unfrozen only"):
        check_settings(ModelSettings, {"url": "m", "name": name, key: "x"}, origin="my.toml")


def test_it_is_not_built_without_a_head() -> None:
    settings = ModelSettings(url="m", name="unfrozen", head="h", unfreeze_from="x")
    with pytest.raises(ValueError, match="build_unfrozen"):
        build_model(settings, feature_shape=[12, 12, 3], feature_dtype="uint8", n_classes=3, seed=1)
