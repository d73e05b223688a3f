"""Recipes: every committed one parses, and a wrong one names all its faults."""

from pathlib import Path
from typing import Any

import pytest
from helpers.project import ROOT

from featurize.errors import UsageError
from featurize.recipes.recipe import FractionSplit, Recipe, lower_half, read_recipe, upper_half
from featurize.recipes.toml_settings import check_settings

RECIPES = sorted((ROOT / "configs").glob("*.toml"))

WHOLE = """
[images]
source = "hdfs:///data/256_ObjectCategories"
split = { train = 0.6, validation = 0.2, test = 0.2, seed = 7 }
[backbone]
name = "VGG16"
layer = "fc2"
weights = "imagenet"
precision = "auto"
[features]
url = "hdfs:///firn/caltech256/vgg16-fc2"
[model]
name = "softmax_head"
url = "hdfs:///firn/caltech256/models/head"
[training]
optimizer = "sgd"
learning_rate = 0.01
momentum = 0.8
nesterov = true
batch_size = 32
epochs = 30
seed = 42
"""
UPPER: dict[str, dict[str, Any]] = {
    "images": {"source": "photos"},
    "backbone": {"name": "VGG16"},
    "features": {"url": "out"},
}


def write(folder: Path, text: str) -> Path:
    path = folder / "my.toml"
    path.write_text(text, encoding="utf-8")
    return path


def check(**sections: dict[str, Any]) -> Recipe:
    return check_settings(Recipe, sections, origin="my.toml")


def faults(**sections: dict[str, Any]) -> str:
    with pytest.raises(UsageError) as raised:
        check(**sections)
    return str(raised.value)


def test_there_are_committed_recipes() -> None:
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_committed_recipe_parses_and_has_both_halves(path: Path) -> None:
    recipe = read_recipe(path)
    upper_half(recipe, origin=str(path))
    lower_half(recipe, origin=str(path))


def test_the_recipe_of_the_design_is_read_as_it_stands(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, WHOLE))
    assert upper_half(recipe, origin="x").images.split == FractionSplit(train=0.6, validation=0.2, test=0.2, seed=7)
    assert lower_half(recipe, origin="x").training.nesterov


def test_the_defaults_are_the_caltech_recipe() -> None:
    training = check().training
    assert (training.optimizer, training.learning_rate, training.momentum, training.nesterov) == (
        "sgd",
        0.01,
        0.8,
        True,
    )
    assert (training.batch_size, training.seed) == (32, 42)


def test_all_faults_of_all_sections_are_named_at_once_in_the_users_keys() -> None:
    message = faults(
        images={"sorce": "x", "split": {"trian": 0.6, "seed": "7"}},
        backbone={"name": 16, "precision": "float16", "batch_size": 0},
        feature={"url": "x"},
        features={},
        training={"learning_rate": -1, "epochs": 1.5, "optimizer": "sdg"},
    )
    for key in (
        "`images.sorce` is not a key; did you mean `source`?",
        "`images.source` is missing",
        "`images.split.trian` is not a key; did you mean `train`?",
        "`images.split.seed`",
        "`backbone.name`",
        "`backbone.precision`",
        "`backbone.batch_size`",
        "`feature` is not a key; did you mean `features`?",
        "`features.url` is missing",
        "`training.learning_rate`",
        "`training.epochs`",
        "`training.optimizer`",
    ):
        assert key in message
    assert "12 faults" in message
    for word in ("pydantic", "Input", "Traceback", "FractionSplit", "Literal"):
        assert word not in message


def test_a_fault_of_a_section_as_a_whole_is_named_beside_those_of_its_keys() -> None:
    message = faults(backbone={"name": "pixels", "height": 32, "precision": "float16"})
    assert "`backbone.precision`" in message
    assert "`width` is required" in message


def test_overrides_go_into_the_recipe_before_it_is_checked(tmp_path: Path) -> None:
    overrides = ["images.source=/data/two words", "backbone.batch_size=8", "images.split.seed=1", "training.epochs=2"]
    recipe = read_recipe(write(tmp_path, WHOLE), overrides)
    settings = upper_half(recipe, origin="x")
    assert settings.images.source == "/data/two words"
    assert settings.images.split == FractionSplit(seed=1)
    assert settings.columns[0].settings.batch_size == 8
    assert recipe.training.epochs == 2


def test_an_override_makes_a_missing_section(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, "[features]\nurl = 'x'\n"), ["model.url=models/head"])
    assert lower_half(recipe, origin="x").model.url == "models/head"


def test_a_wrong_override_is_a_fault_like_any_other(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"`training\.momentun` is not a key; did you mean `momentum`"):
        read_recipe(write(tmp_path, WHOLE), ["training.momentun=0.9"])


@pytest.mark.parametrize(
    "missing", [("images",), ("backbone",), ("images", "features"), ("images", "backbone", "features")]
)
def test_the_upper_half_names_every_section_it_misses(missing: tuple[str, ...]) -> None:
    recipe = check(**{name: section for name, section in UPPER.items() if name not in missing})
    with pytest.raises(UsageError) as raised:
        upper_half(recipe, origin="my.toml")
    named = {name for name in UPPER if f"[{name}]" in str(raised.value)}
    assert named == set(missing)
    assert "my.toml" in str(raised.value)


def test_the_lower_half_names_every_section_it_misses_and_no_other() -> None:
    with pytest.raises(UsageError) as raised:
        lower_half(check(images={"source": "x"}), origin="my.toml")
    assert "[features], [model]" in str(raised.value)
    assert "[training]" not in str(raised.value)


def test_each_half_goes_without_the_other() -> None:
    upper_half(check(**UPPER), origin="x")
    lower_half(check(features={"url": "x"}, model={"url": "y"}), origin="x")


@pytest.mark.parametrize("split", ["folder", "hash", 0.6, ["train"], True])
def test_a_split_is_folders_or_fractions(split: Any) -> None:
    message = faults(**{**UPPER, "images": {"source": "x", "split": split}})
    assert "`images.split`" in message
    assert "folders" in message
    assert repr(split) in message


@pytest.mark.parametrize(
    "split",
    [
        {"train": 0.6, "validation": 0.2, "test": 0.3},
        {"train": 0.5},
        {"train": 0.0, "validation": 0.5, "test": 0.5},
        {"train": -0.2, "validation": 0.6, "test": 0.6},
        {"train": float("nan"), "validation": 0.2, "test": 0.2},
    ],
)
def test_fractions_that_are_no_division_are_refused(split: dict[str, float]) -> None:
    assert "`images.split" in faults(**{**UPPER, "images": {"source": "x", "split": split}})


def test_fractions_may_add_up_to_one_but_for_rounding() -> None:
    split = {"train": 0.7, "validation": 0.2, "test": 0.1}
    assert sum(split.values()) != 1.0
    check(**{**UPPER, "images": {"source": "x", "split": split}})


def test_pixels_need_a_size_and_nothing_else() -> None:
    message = faults(backbone={"name": "pixels", "layer": "fc2", "weights": "random"})
    for part in ("`height` is required", "`width` is required", "`layer` cannot be used", "`weights` cannot be used"):
        assert part in message
    check(backbone={"name": "pixels", "height": 28, "width": 28, "channels": 1})


def test_a_keras_file_must_say_how_its_input_was_prepared() -> None:
    message = faults(backbone={"name": "my.keras", "weights": "imagenet", "channels": 3})
    for part in ("`preprocessing` is required", "`weights` cannot be used", "`channels` is for `pixels`"):
        assert part in message
    check(backbone={"name": "my.keras", "preprocessing": "tf", "weights_sha256": "0" * 64})


def test_what_is_known_of_a_network_is_not_to_be_given() -> None:
    message = faults(backbone={"name": "VGG16", "preprocessing": "tf", "weights_sha256": "0" * 64})
    assert "`preprocessing` of VGG16 is known" in message
    assert "`weights_sha256` needs `weights` to be a path" in message


@pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 65, "A" * 64, "sha256:" + "0" * 64, "0" * 64 + "\n"])
def test_a_digest_is_64_small_hexadecimal_digits(digest: str) -> None:
    assert "`backbone.weights_sha256`" in faults(
        backbone={"name": "my.keras", "preprocessing": "tf", "weights_sha256": digest}
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -0.1])
def test_a_learning_rate_is_finite_and_positive(value: float) -> None:
    assert "`training.learning_rate`" in faults(training={"learning_rate": value})


def test_momentum_goes_with_sgd_only() -> None:
    message = faults(training={"optimizer": "adam", "momentum": 0.9, "nesterov": False})
    assert "`momentum` and `nesterov` need the optimizer sgd" in message
    check(training={"optimizer": "adam", "learning_rate": 0.001})


@pytest.mark.parametrize("section", ["images", "backbone", "features", "model", "training"])
def test_a_section_that_is_a_value_is_a_fault_with_its_name(section: str) -> None:
    with pytest.raises(UsageError, match=f"`{section}`"):
        check_settings(Recipe, {section: "x"}, origin="x")
