"""Tests of networks.unfrozen: a backbone and its head in one network, trained from a layer on, through real feature sets."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.models.unfrozen_place import (
    TRAINED,
    Workplace,
    layered_network,
    make_recipe,
    read_history,
    train_alone,
    weights_by_name,
)
from helpers.tables.feature_sets import write_feature_set
from helpers.tables.publishing import write_manifest
from helpers.toml_files import write_toml
from numpy.typing import NDArray

from featurize.backbones.backbone import load_backbone, prepare_backbone
from featurize.recipes.backbone_section import BackboneSettings
from featurize.recipes.recipe import RegistrySettings
from featurize.recipes.toml_settings import check_settings
from finetune.evaluation.evaluate import evaluate_model
from finetune.models.folder import load_model, read_model_card
from finetune.networks.build import logits_of
from finetune.networks.forward import predict_probabilities
from finetune.networks.keyed_dropout import with_keyed_dropout
from finetune.networks.row_random import row_keys
from finetune.registry.log_model import log_fit
from finetune.training.loop import InterruptedTrainingError
from finetune.training.plan import plan_training
from finetune.training.steps import is_compiled

TIMEOUT_S = 150


def test_a_head_is_named_by_its_folder_or_its_run(place: Workplace, tmp_path: Path) -> None:
    registry = RegistrySettings(url=f"sqlite:///{tmp_path}/mlflow.db", backbone=False)
    logged = log_fit(str(place.head), registry)
    assert logged is not None
    by_folder = plan_training(place.recipe(tmp_path / "model"), ranks=1)
    settings = place.recipe(tmp_path / "model", changes={"head": logged.run_id})
    by_run = plan_training(settings.model_copy(update={"registry": registry}), ranks=1)
    assert by_run.model_id == by_folder.model_id
    assert by_run.head == by_folder.head
    (place.head / "registry.json").unlink()


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_before_training_it_predicts_what_the_head_does_on_features(place: Workplace, split: str) -> None:
    head, _ = load_model(str(place.head))
    pixels, features = place.read(place.pixels, split), place.read(place.features, split)
    assert pixels.paths.equals(features.paths)
    wanted = predict_probabilities(head, features.features)
    np.testing.assert_allclose(predict_probabilities(place.build(), pixels.features), wanted, atol=1e-5, rtol=0)
    assert wanted.std(axis=0).max() > 0.05


@pytest.mark.spark
@pytest.mark.slow
def test_training_that_changes_nothing_keeps_the_accuracy_of_the_head(place: Workplace) -> None:
    train_alone(place.recipe(place.folder / "unchanged", learning_rate=1e-12, epochs=1))
    unchanged, head = (
        evaluate_model(str(place.folder / name), None, "test", str(place.folder / f"{name}-evaluation"))
        for name in ("unchanged", "head")
    )
    assert unchanged["confusion_matrix"] == head["confusion_matrix"]
    assert unchanged["log_loss"] == pytest.approx(head["log_loss"], abs=1e-5)


@pytest.mark.spark
@pytest.mark.slow
def test_training_changes_all_from_the_layer_on_and_nothing_before_it(place: Workplace, undisturbed: Path) -> None:
    before, after = weights_by_name(place.build()), weights_by_name(load_model(str(undisturbed))[0])
    assert list(before) == list(after)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {*TRAINED, "hidden_1/kernel", "hidden_1/bias", "logits/kernel", "logits/bias"}
    history = read_history(undisturbed)
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]


@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "trained"),
    [
        ("rescale", ["conv_1/kernel", "conv_1/bias", *TRAINED]),
        ("conv_1", ["conv_1/kernel", "conv_1/bias", *TRAINED]),
        ("early_drop", TRAINED),
        ("norm_1", TRAINED),
        ("norm_2", TRAINED[2:]),
        ("inner", TRAINED[2:]),
        ("inner_conv", TRAINED[2:]),
    ],
)
def test_any_layer_can_be_the_first_one_trained_be_it_in_an_inner_model(
    place: Workplace, first: str, trained: list[str]
) -> None:
    paths = [variable.path for variable in place.build(first).trainable_variables]
    assert [path for path in paths if not path.startswith(("hidden_1", "logits"))] == trained
    assert len(paths) == len(trained) + 4


@pytest.mark.spark
@pytest.mark.slow
def test_only_dropout_behind_the_frozen_layers_drops_and_norms_keep_their_statistics(place: Workplace) -> None:
    network = place.build()
    before = weights_by_name(network)
    training, dropout = with_keyed_dropout(logits_of(network))
    pixels = place.read(place.pixels).features[:8]

    def logits(epoch: int, *, rows: slice = slice(None)) -> NDArray[np.float32]:
        with dropout.keyed(row_keys(1, epoch, np.arange(8)[rows])):
            return np.asarray(training(pixels[rows], training=True))

    assert not np.allclose(logits(1), logits(2), atol=1e-3)
    np.testing.assert_allclose(logits(1, rows=slice(2, 5)), logits(1)[2:5], atol=1e-5)
    names = {layer.name for layer in network.get_layer("backbone").layers if "Dropout" in type(layer).__name__}
    assert names == {"late_drop"}
    after = weights_by_name(network)
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.spark
@pytest.mark.slow
def test_convolutions_are_not_compiled_by_xla(place: Workplace) -> None:
    assert not is_compiled(place.build())


@pytest.mark.spark
@pytest.mark.slow
def test_the_same_training_twice_gives_the_same_bits(place: Workplace, undisturbed: Path) -> None:
    train_alone(place.recipe(place.folder / "again"))
    one, two = (load_model(str(url))[0].get_weights() for url in (undisturbed, place.folder / "again"))
    assert all(np.array_equal(first, second) for first, second in zip(one, two, strict=True))


@pytest.mark.spark
@pytest.mark.slow
def test_an_interrupted_training_goes_on_to_the_undisturbed_model(place: Workplace, undisturbed: Path) -> None:
    settings = place.recipe(place.folder / "resumed")
    with pytest.raises(InterruptedTrainingError):
        train_alone(settings, is_asked_to_stop=lambda: True)
    with np.load(place.folder / "resumed" / "checkpoint.npz", allow_pickle=False) as checkpoint:
        kept = sum(checkpoint[name].nbytes for name in checkpoint.files if name.startswith("weights"))
    network, _ = load_model(str(undisturbed))
    assert kept == sum(weight.nbytes for name, weight in weights_by_name(network).items() if is_trained(name))
    card = train_alone(settings, resume=True)
    assert [entry["loss"] for entry in card.history] == [entry["loss"] for entry in read_history(undisturbed)]
    resumed = weights_by_name(load_model(str(place.folder / "resumed"))[0])
    for name, weight in weights_by_name(network).items():
        np.testing.assert_array_equal(resumed[name], weight)


def is_trained(name: str) -> bool:
    return name in TRAINED or name.startswith(("hidden_1", "logits"))


@pytest.mark.horovod
@pytest.mark.spark
@pytest.mark.slow
def test_two_ranks_give_the_model_of_one_rank_with_twice_the_batch(place: Workplace, undisturbed: Path) -> None:
    settings = place.recipe(place.folder / "two", batch_size=8)
    document = {"features": {"url": str(place.pixels)}, "model": settings.model.model_dump(exclude_defaults=True)}
    training = settings.training.model_dump(exclude_unset=True)
    write_toml(place.folder / "two.toml", {**document, "training": training})
    program = [sys.executable, str(Path(sys.executable).with_name("horovodrun")), "-np", "2", "--gloo"]
    command = [*program, sys.executable, "-m", "finetune", "fit", "two.toml", "--json"]
    done = subprocess.run(command, cwd=place.folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    two, one = (read_model_card(str(url)) for url in (place.folder / "two", undisturbed))
    assert two is not None
    assert one is not None
    assert (two.ranks, one.ranks) == (2, 1)
    assert two.model_id == one.model_id
    for found, wanted in zip(two.history, one.history, strict=True):
        assert found["loss"] == pytest.approx(wanted["loss"], abs=1e-5)
        assert found["validation_loss"] == pytest.approx(wanted["validation_loss"], abs=1e-4)
    of_two, of_one = (load_model(str(url))[0].get_weights() for url in (place.folder / "two", undisturbed))
    for first, second in zip(of_two, of_one, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-4, rtol=0)


@pytest.mark.spark
@pytest.mark.slow
def test_saved_model_is_loaded_without_firn_and_gives_the_same(place: Workplace, undisturbed: Path) -> None:
    pixels = place.read(place.pixels, "test").features
    np.save(place.folder / "pixels.npy", pixels)
    script = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
sys.modules["featurize"] = sys.modules["finetune"] = None  # an import of them raises
import keras, numpy
model = keras.saving.load_model(sys.argv[1], compile=False, safe_mode=True)
numpy.save(sys.argv[3], numpy.asarray(model(numpy.load(sys.argv[2]))))
"""
    files = [undisturbed / "model.keras", place.folder / "pixels.npy", place.folder / "elsewhere.npy"]
    done = subprocess.run([sys.executable, "-I", "-c", script, *map(str, files)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    here = predict_probabilities(load_model(str(undisturbed))[0], pixels)
    np.testing.assert_array_equal(np.load(place.folder / "elsewhere.npy"), here)


@pytest.mark.spark
@pytest.mark.slow
def test_evaluation_on_the_pixels_is_that_of_the_history(place: Workplace, undisturbed: Path) -> None:
    result = evaluate_model(str(undisturbed), None, "validation", str(place.folder / "evaluation"))
    card = read_model_card(str(undisturbed))
    assert card is not None
    assert result["accuracy"] == pytest.approx(card.metrics["validation_accuracy"])
    assert result["log_loss"] == pytest.approx(card.metrics["validation_loss"], abs=1e-5)


@pytest.mark.spark
@pytest.mark.slow
def test_model_id_follows_head_and_layer_and_not_places(place: Workplace, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(place.head, tmp_path / "moved")
    shutil.copytree(place.head, tmp_path / "other")
    card = json.loads((tmp_path / "other" / "model.json").read_text())
    (tmp_path / "other" / "model.json").write_text(json.dumps(card | {"model_id": "0" * 64}))

    def model_id(**changes: Any) -> str:
        return plan_training(place.recipe(tmp_path / "model", changes=changes), ranks=1).model_id

    assert model_id() == model_id(head=str(tmp_path / "moved"), url=str(tmp_path / "elsewhere"))
    assert len({model_id(), model_id(head=str(tmp_path / "other")), model_id(unfreeze_from="conv_1")}) == 3


@pytest.mark.parametrize("mode", ["none", "caffe", "tf", "torch"])
@pytest.mark.parametrize("size", [12, None])
def test_every_preprocessing_and_networks_for_any_size_do_what_featurizing_did(
    tmp_path: Path, mode: str, size: int | None
) -> None:
    """Without Spark: features by the forward pass that its workers run."""
    place = Workplace(tmp_path)
    backbone = {"name": str(layered_network(place.backbone, size=size)), "preprocessing": mode, "precision": "float32"}
    settings = check_settings(BackboneSettings, {**backbone, "height": 12, "width": 12}, origin="test")
    prepared = prepare_backbone(settings, tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 12, 12, 3), dtype=np.uint8)
    features = load_backbone(prepared.spec, prepared.path, sha256=prepared.sha256)(pixels)
    label_index = (np.arange(60) % 3).astype(np.int32)
    manifest = write_feature_set(place.features, features, label_index, spec=prepared.spec)
    written = manifest.model_copy(update={"recipe": {"backbone": settings.model_dump(exclude_none=True)}})
    write_manifest(str(place.features), written)
    write_feature_set(place.pixels, pixels, label_index)
    train_alone(make_recipe(place.features, {"url": str(place.head)}, epochs=2))
    network = place.build()
    wanted = predict_probabilities(load_model(str(place.head))[0], features)
    np.testing.assert_allclose(predict_probabilities(network, pixels), wanted, atol=1e-5, rtol=0)
    train_alone(place.recipe(tmp_path / "model", epochs=1))
    trained, _ = load_model(str(tmp_path / "model"))
    assert np.abs(predict_probabilities(trained, pixels) - wanted).max() > 1e-4
