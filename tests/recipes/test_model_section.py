"""Tests of featurize.recipes.model_section: which settings of a model go together, and that all faults are named."""

from typing import Any

import pytest

from featurize.errors import UsageError
from featurize.recipes.model_section import HEADS, MODEL_NAMES, PIXEL_MODELS, ModelSettings
from featurize.recipes.toml_settings import check_settings


def check(**settings: Any) -> ModelSettings:
    return check_settings(ModelSettings, {"url": "models/one", **settings}, origin="my.toml")


def faults(**settings: Any) -> str:
    with pytest.raises(UsageError) as raised:
        check(**settings)
    return str(raised.value)


def test_the_default_is_a_softmax_head_that_changes_nothing() -> None:
    settings = check()
    assert settings.name == "softmax_head"
    assert settings.pixels is None
    assert (settings.standardize, settings.l2_normalize, settings.options) == (False, False, {})
    assert not settings.is_own_function


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_every_network_needs_no_more_than_its_name(name: str) -> None:
    assert check(name=name).name == name


@pytest.mark.parametrize("name", ["softmax", "SOFTMAX_HEAD", "", "vgg16"])
def test_an_unknown_name_is_refused_with_those_that_are_known(name: str) -> None:
    message = faults(name=name)
    assert repr(name) in message
    assert all(known in message for known in (*MODEL_NAMES, "module:function"))


@pytest.mark.parametrize("name", ["nets:build", "my.nets.small:build_2", "_n:_f"])
def test_a_users_own_function_is_module_and_function(name: str) -> None:
    assert check(name=name, options={"units": 3, "sizes": [1, 2]}).is_own_function


@pytest.mark.parametrize(
    "name", [":", "nets:", ":build", "nets.py:build:", "my nets:build", "../nets:build", "nets:build()", ".nets:build"]
)
def test_what_is_no_module_and_function_is_refused(name: str) -> None:
    message = faults(name=name)
    assert "module:function" in message
    assert repr(name) in message


@pytest.mark.parametrize("hidden", [[], [0], [16, -1]])
def test_hidden_layers_have_units(hidden: list[int]) -> None:
    message = faults(name="mlp_head", hidden=hidden)
    assert "`hidden`" in message
    assert str(hidden) in message


@pytest.mark.parametrize("value", [1.0, -0.1, 1.5, float("nan")])
def test_dropout_is_a_part_of_the_units(value: float) -> None:
    assert "`dropout`" in faults(name="mlp_head", dropout=value)


def test_hidden_and_dropout_go_with_the_mlp_head() -> None:
    settings = check(name="mlp_head", hidden=[64, 32], dropout=0.0)
    assert (settings.hidden, settings.dropout) == ([64, 32], 0.0)
    for name in ("softmax_head", *PIXEL_MODELS, "nets:build"):
        message = faults(name=name, hidden=[64], dropout=0.0)
        assert "`hidden` is for mlp_head only" in message
        assert "`dropout` is for mlp_head only" in message


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_options_are_for_a_users_own_function(name: str) -> None:
    assert "`options`" in faults(name=name, options={"units": 3})


@pytest.mark.parametrize("key", ["standardize", "l2_normalize"])
def test_preparation_of_features_is_not_for_pixel_models(key: str) -> None:
    for name in PIXEL_MODELS:
        message = faults(name=name, **{key: True})
        assert f"`{key}` is for features" in message
        assert "`pixels`" in message
    for name in (*HEADS, "nets:build"):
        assert getattr(check(name=name, **{key: True}), key)


@pytest.mark.parametrize("value", ["none", "whiten", "", 1])
def test_pixels_are_prepared_in_one_of_three_ways(value: Any) -> None:
    assert "`pixels`" in faults(pixels=value)
    assert [check(pixels=way).pixels for way in ("scale", "standardize", "binarize")]


def test_faults_are_named_together() -> None:
    message = faults(name="mnist_mlp", hidden=[0], standardize=True, options={"a": 1})
    for part in ("`hidden` must list", "`hidden` is for mlp_head", "`options`", "`standardize`"):
        assert part in message


def test_a_model_needs_a_place() -> None:
    assert "`url`" in faults(url="")
