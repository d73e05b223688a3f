"""Tests of finetune.sweeps.stacked_fit: every network of a stack is the one that `fit` trains alone."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.tables.feature_sets import empty_split, make_split
from numpy.typing import NDArray

from featurize.errors import FirnError
from featurize.recipes.model_section import ModelSettings
from featurize.recipes.training_section import TrainingSettings
from finetune.networks.build import build_model
from finetune.rows.loader import MemoryData
from finetune.sweeps.stacked_fit import fit_stack
from finetune.sweeps.stacks import Stacks, find_chain, stack_key
from finetune.training.loop import FitResult, fit

if TYPE_CHECKING:
    import keras

N_CLASSES = 5
DIM = 12
HEAD: dict[str, Any] = {"name": "softmax_head"}
MLP: dict[str, Any] = {"name": "mlp_head", "hidden": [9, 4]}


def make_data(rows: int, *, seed: int = 0) -> MemoryData:
    return MemoryData(
        make_split(rows, dim=DIM, n_classes=N_CLASSES, spread=4.0, seed=seed) if rows else empty_split(DIM)
    )


def make_model(model: dict[str, Any], *, seed: int = 3, n_classes: int = N_CLASSES) -> "keras.Model":
    settings = ModelSettings(url="unused", **model)
    return build_model(settings, feature_shape=[DIM], feature_dtype="float32", n_classes=n_classes, seed=seed)


def make_settings(**changes: Any) -> TrainingSettings:
    return TrainingSettings(**{"epochs": 4, "batch_size": 16, "seed": 5, **changes})


def train_both_ways(
    model: dict[str, Any], settings: Sequence[TrainingSettings], *, rows: int = 150, **options: Any
) -> tuple[list[FitResult], list[FitResult]]:
    train, validation = make_data(rows), make_data(67, seed=1)
    alone = [fit(make_model(model), train, validation, own, **options) for own in settings]
    stacked = fit_stack([make_model(model) for _ in settings], train, validation, settings, **options)
    assert all(isinstance(result, FitResult) for result in stacked)
    return alone, [result for result in stacked if isinstance(result, FitResult)]


def assert_equal(found: FitResult, wanted: FitResult) -> None:
    assert found.best_epoch == wanted.best_epoch
    assert found.is_stopped_early == wanted.is_stopped_early
    for got, expected in ((found.last_weights, wanted.last_weights), (best_weights(found), best_weights(wanted))):
        for one, other in zip(got, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5, rtol=1e-4)
    assert len(found.history) == len(wanted.history)
    for entry, expected_entry in zip(found.history, wanted.history, strict=True):
        assert entry.keys() == expected_entry.keys()
        for key in entry:
            if not key.endswith(("seconds", "per_second")):
                assert entry[key] == pytest.approx(expected_entry[key], rel=1e-4, abs=1e-5), key


def best_weights(result: FitResult) -> list[NDArray[Any]]:
    weights: list[NDArray[Any]] = result.model.get_weights()
    return weights


@pytest.mark.parametrize("model", [HEAD, MLP], ids=["head", "mlp"])
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adam", "rmsprop"])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_each_is_the_network_trained_alone(model: dict[str, Any], optimizer: str, schedule: str) -> None:
    settings = [
        make_settings(optimizer=optimizer, schedule=schedule, learning_rate=rate, l2=l2)
        for rate in (0.002, 0.02, 0.1)
        for l2 in (0.0, 0.01)
    ]
    alone, stacked = train_both_ways(model, settings)
    for found, wanted in zip(stacked, alone, strict=True):
        assert_equal(found, wanted)
    first = [result.last_weights[0] for result in stacked]
    assert min(np.abs(one - other).max() for one, other in pairwise(first)) > 1e-4


@pytest.mark.parametrize("model", [HEAD, MLP], ids=["head", "mlp"])
def test_settings_that_a_stack_shares_hold_for_each(model: dict[str, Any]) -> None:
    shared: dict[str, Any] = {"label_smoothing": 0.1, "momentum": 0.6, "nesterov": False}
    settings = [make_settings(learning_rate=rate, **shared) for rate in (0.01, 0.05)]
    alone, stacked = train_both_ways(model, settings, class_weights=[1.0, 0.2, 3.0, 0.0, 1.0])
    for found, wanted in zip(stacked, alone, strict=True):
        assert_equal(found, wanted)


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 33])
def test_short_batches_count_by_their_rows(rows: int) -> None:
    alone, stacked = train_both_ways(HEAD, [make_settings(learning_rate=rate) for rate in (0.01, 0.1)], rows=rows)
    for found, wanted in zip(stacked, alone, strict=True):
        assert_equal(found, wanted)


def test_each_stops_early_and_finds_its_best_epoch_by_its_own_rule() -> None:
    rule = {"metric": "validation_loss", "patience": 1}
    settings = [
        make_settings(epochs=12, learning_rate=1.0, early_stopping=rule),
        make_settings(epochs=12, learning_rate=0.01),
        make_settings(epochs=12, learning_rate=0.3, best_by="validation_loss", early_stopping=rule),
    ]
    alone, stacked = train_both_ways(HEAD, settings)
    for found, wanted in zip(stacked, alone, strict=True):
        assert_equal(found, wanted)
    assert [result.is_stopped_early for result in stacked] == [True, False, True]


def test_one_that_diverges_fails_with_its_own_error_and_harms_no_other() -> None:
    train, validation = make_data(150), make_data(67, seed=1)
    settings = [make_settings(learning_rate=0.01), make_settings(learning_rate=1e30), make_settings(learning_rate=0.05)]
    fine, failed, fine_too = fit_stack([make_model(MLP) for _ in settings], train, validation, settings)
    with pytest.raises(FirnError) as alone:
        fit(make_model(MLP), train, validation, settings[1])
    assert isinstance(failed, FirnError)
    assert "epoch 1. Lower `training.learning_rate` (now 1e+30)" in str(failed)
    assert str(failed) == str(alone.value)
    for found, own in ((fine, settings[0]), (fine_too, settings[2])):
        assert isinstance(found, FitResult)
        assert_equal(found, fit(make_model(MLP), train, validation, own))


def test_without_validation_rows_the_last_epoch_is_the_best() -> None:
    train = make_data(60)
    settings = [make_settings(learning_rate=0.01), make_settings(learning_rate=0.1)]
    stacked = fit_stack([make_model(HEAD) for _ in settings], train, make_data(0), settings)
    assert [result.best_epoch for result in stacked if isinstance(result, FitResult)] == [4, 4]


def test_input_layers_are_shared_and_kept() -> None:
    model = {"name": "mlp_head", "hidden": [6], "l2_normalize": True}
    alone, stacked = train_both_ways(model, [make_settings(learning_rate=rate) for rate in (0.05, 0.5)])
    for found, wanted in zip(stacked, alone, strict=True):
        assert_equal(found, wanted)


def test_only_chains_of_dense_layers_are_stacked() -> None:
    assert find_chain(make_model(HEAD)) is not None
    assert find_chain(make_model(MLP)) is not None
    assert find_chain(make_model({"name": "mlp_head", "dropout": 0.2})) is None
    convnet = build_model(
        ModelSettings(url="unused", name="mnist_convnet"),
        feature_shape=[28, 28, 1],
        feature_dtype="uint8",
        n_classes=N_CLASSES,
        seed=1,
    )
    assert find_chain(convnet) is None


def test_a_network_that_is_none_is_refused() -> None:
    models = [make_model({"name": "mlp_head", "dropout": 0.2})]
    with pytest.raises(ValueError, match="chains of dense layers"):
        fit_stack(models, make_data(20), make_data(0), [make_settings()])


def test_trainings_are_stacked_that_differ_in_rate_penalty_and_choice_alone() -> None:
    key = stack_key(make_settings())
    own: list[dict[str, Any]] = [
        {"learning_rate": 0.3},
        {"l2": 0.1},
        {"best_by": "validation_f1"},
        {"early_stopping": {"metric": "loss"}},
    ]
    assert {stack_key(make_settings(**changes)) for changes in own} == {key}
    shared: list[dict[str, Any]] = [
        {"seed": 6},
        {"batch_size": 8},
        {"epochs": 9},
        {"momentum": 0.1},
        {"optimizer": "adam"},
    ]
    assert key not in {stack_key(make_settings(**changes)) for changes in shared}
    assert stack_key(make_settings(gradient_normalization="layer")) is None
    assert stack_key(make_settings(augmentation={"flip": "both"})) is None


def test_a_stack_that_is_used_again_has_forgotten_the_networks_before() -> None:
    train, validation, stacks = make_data(150), make_data(67, seed=1), Stacks()
    for seed, model_seed in ((5, 3), (6, 4)):
        settings = [
            make_settings(optimizer="adam", learning_rate=rate, l2=l2, seed=seed)
            for rate, l2 in ((0.01 * seed, 0.01 * (seed - 5)), (0.05, 0.0))
        ]
        models = [make_model(MLP, seed=model_seed) for _ in settings]
        stacked = fit_stack(models, train, validation, settings, stacks=stacks)
        for found, own in zip(stacked, settings, strict=True):
            assert isinstance(found, FitResult)
            assert_equal(found, fit(make_model(MLP, seed=model_seed), train, validation, own))
    assert stacks.count == 1
