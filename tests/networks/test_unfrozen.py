"""Tests of networks.unfrozen: a backbone and its head in one network, trained from a layer on, through real feature sets."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.tables.building import SPLIT, recipe
from helpers.tables.feature_sets import make_clusters, write_feature_set
from helpers.toml_files import write_toml
from numpy.typing import NDArray
from pyspark.sql import SparkSession

from featurize.backbones.backbone import load_backbone, prepare_backbone
from featurize.errors import JobError, UsageError
from featurize.jobs.run import featurize
from featurize.recipes.model_section import ModelSettings
from featurize.recipes.recipe import BackboneSettings, FinetuneRecipe, RegistrySettings
from featurize.recipes.toml_settings import check_settings
from featurize.tables.manifests import read_features_manifest, write_manifest
from finetune.evaluation.evaluate import evaluate_model
from finetune.models.folder import ModelCard, load_model, read_model_card
from finetune.networks.build import build_model, logits_of
from finetune.networks.forward import predict_probabilities
from finetune.networks.keyed_dropout import with_keyed_dropout
from finetune.networks.row_random import row_keys
from finetune.networks.unfrozen import build_unfrozen, find_head
from finetune.ranks.communicator import SingleRank
from finetune.registry.log_model import log_fit
from finetune.rows.splits import SplitData, read_split
from finetune.training.loop import InterruptedTrainingError
from finetune.training.plan import plan_training
from finetune.training.steps import is_compiled
from finetune.training.train import train

if TYPE_CHECKING:
    import keras

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # Petastorm reads by the legacy interface of pyarrow
TIMEOUT_S = 150
FROM = "conv_2"
TRAINED = ["conv_2/kernel", "conv_2/bias", "inner_conv/kernel", "inner_conv/bias"]


def layered_network(path: Path, *, size: int | None = 12) -> Path:
    """A .keras file with what backbones have: branches, dropout, batch normalisation, a model within; ends in `maps`."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(3)
    inputs = keras.Input((size, size, 3))
    x = layers.Rescaling(1 / 128, offset=-1.0, name="rescale")(inputs)
    x = layers.Dropout(0.3, name="early_drop")(layers.Conv2D(6, 3, activation="relu", name="conv_1")(x))
    x = branch = layers.BatchNormalization(name="norm_1")(x)
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="conv_2")(x)
    x = layers.SpatialDropout2D(0.2, name="late_drop")(layers.BatchNormalization(name="norm_2")(x))
    x = layers.Add(name="sum")([x, branch])
    inner = [keras.Input((None, None, 6)), layers.Conv2D(4, 3, name="inner_conv"), layers.ReLU(name="inner_relu")]
    x = keras.Sequential(inner, name="inner")(x)
    x = layers.AveragePooling2D(2, name="maps")(x)
    network = keras.Model(inputs, layers.Dense(7, name="scores")(layers.GlobalAveragePooling2D()(x)))
    random = np.random.default_rng(0)
    for name in ("norm_1", "norm_2"):
        values = [random.uniform(0.5, 1.5, weight.shape) for weight in network.get_layer(name).get_weights()]
        network.get_layer(name).set_weights(values)
    network.save(path)
    return path


class Workplace:
    """A backbone, the features it gave, the pixels of the same images, and a head trained on the features."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.backbone = folder / "layered.keras"
        self.features, self.pixels, self.head = folder / "features", folder / "pixels", folder / "head"

    def recipe(self, url: Path, *, changes: dict[str, Any] | None = None, **training: Any) -> FinetuneRecipe:
        """Of the unfrozen network at `url`; `changes` are those of its `[model]`."""
        model = {"name": "unfrozen", "url": str(url), "head": str(self.head), "unfreeze_from": FROM, **(changes or {})}
        return make_recipe(self.pixels, model, **training)

    def build(self, unfreeze_from: str = FROM) -> "keras.Model":
        settings = ModelSettings(url="unused", name="unfrozen", head=str(self.head), unfreeze_from=unfreeze_from)
        head = find_head(settings, read_features_manifest(str(self.pixels)))
        return build_unfrozen(head, unfreeze_from=unfreeze_from)

    def read(self, url: Path, split: str = "train") -> SplitData:
        return read_split(str(url), read_features_manifest(str(url)), split)


def make_recipe(features: Path, model: dict[str, Any], **training: Any) -> FinetuneRecipe:
    defaults = {"epochs": 4, "batch_size": 16, "optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.002}
    settings = {**defaults, "best_by": "loss", **training}
    document = {"features": {"url": str(features)}, "model": model, "training": settings}
    return check_settings(FinetuneRecipe, document, origin="test")


def train_alone(settings: FinetuneRecipe, **options: Any) -> ModelCard:
    card = train(plan_training(settings, ranks=1), SingleRank(), **options)
    assert card is not None
    return card


@pytest.fixture(scope="module")
def place(spark: SparkSession, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """Do not change what is in it, but for models beside the head."""
    place = Workplace(tmp_path_factory.mktemp("unfreezing"))
    layered_network(place.backbone)
    featurize(spark, recipe(photos, place.features, place.backbone, layer="maps"))
    featurize(spark, recipe(photos, place.pixels, "pixels", height=12, width=12))
    head = {"name": "mlp_head", "hidden": [8], "dropout": 0.2, "standardize": True, "url": str(place.head)}
    train_alone(make_recipe(place.features, head, epochs=6, learning_rate=0.01))
    return place


@pytest.fixture(scope="module")
def undisturbed(place: Workplace) -> Path:
    """The folder of an unfrozen network, trained in one go; do not change it."""
    train_alone(place.recipe(place.folder / "undisturbed"))
    return place.folder / "undisturbed"


def weights_by_name(network: "keras.Model") -> dict[str, NDArray[Any]]:
    return {variable.path: variable.numpy() for variable in network.weights}


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


def read_history(url: Path) -> list[dict[str, float]]:
    card = read_model_card(str(url))
    assert card is not None
    return card.history


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
        ({"feature_shape": [16, 12, 3]}, "takes images of 12 x 12 x 3 (height, width, channels). Got 16 x 12 x 3."),
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
