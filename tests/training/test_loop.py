"""Tests of finetune.training.loop: what is kept of a training, what stops it, and what it goes on from."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.models.heads import NOTHING, make_head, train_on
from helpers.tables.feature_sets import make_split
from hypothesis import given, settings
from hypothesis import strategies as st

from featurize.errors import JobError
from featurize.recipes.model_section import ModelSettings
from featurize.recipes.training_section import METRICS, EarlyStopping, TrainingSettings
from finetune.networks.build import build_model
from finetune.networks.forward import predict_probabilities
from finetune.rows.splits import SplitData
from finetune.training.loop import TIMES, InterruptedTrainingError
from finetune.training.state import TrainingState


def test_separable_data_is_learnt_perfectly_with_the_default_recipe() -> None:
    result = train_on(make_head(), make_split(300), make_split(90, seed=1), TrainingSettings(epochs=10))
    assert result.history[-1]["accuracy"] == 1.0
    assert result.history[-1]["validation_accuracy"] == 1.0
    assert [entry["epoch"] for entry in result.history] == list(range(1, 11))
    assert result.rows_per_second > 0


def test_loss_of_a_perfect_model_on_huge_logits_stays_finite() -> None:
    data = make_split(60)
    huge = replace(data, features=data.features * 1e4)
    result = train_on(make_head(), huge, huge, TrainingSettings(epochs=3, learning_rate=1.0))
    assert all(math.isfinite(entry["loss"]) for entry in result.history)
    assert result.history[-1]["accuracy"] == 1.0


@given(st.integers(0, 2**31), st.sampled_from(["sgd", "adam"]))
@settings(max_examples=4)
def test_same_seed_gives_the_same_weights_to_the_last_bit(seed: int, optimizer: Any) -> None:
    training = TrainingSettings(optimizer=optimizer, epochs=2, seed=seed)
    data, validation = make_split(130, spread=2.0), make_split(50, spread=2.0, seed=1)
    one, two = (train_on(make_head(seed=seed), data, validation, training) for _ in range(2))
    for first, second in zip(one.model.get_weights(), two.model.get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)
    assert without_seconds(one.history) == without_seconds(two.history)


def test_another_seed_gives_other_weights() -> None:
    data = make_split(130, spread=2.0)
    one, two = (
        train_on(make_head(), data, NOTHING, TrainingSettings(epochs=1, seed=seed)).model.get_weights()[0]
        for seed in (1, 2)
    )
    assert (one != two).any()


def without_seconds(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{key: value for key, value in entry.items() if "second" not in key} for entry in history]


def perfect_head(scale: float) -> Any:
    """A model that has `make_clusters` right before any training."""
    model = make_head()
    model.set_weights([scale * np.eye(6, 3, dtype=np.float32), np.zeros(3, np.float32)])
    return model


def unlearning(*, epochs: int, learning_rate: float) -> tuple[Any, SplitData, SplitData, TrainingSettings]:
    """A perfect model, training rows whose labels are all wrong, and a validation split with the right ones."""
    data = make_split(120)
    wrong = replace(data, label_index=((data.label_index + 1) % 3).astype(np.int32))
    training = TrainingSettings(
        epochs=epochs, learning_rate=learning_rate, momentum=0.0, nesterov=False, batch_size=120
    )
    return perfect_head(1.0), wrong, make_split(60, seed=1), training


def validation_scores(model: Any, validation: SplitData) -> tuple[float, float]:
    probabilities = predict_probabilities(model, validation.features)
    right = (probabilities.argmax(axis=1) == validation.label_index).mean()
    return -float(np.log(probabilities[np.arange(validation.rows), validation.label_index]).mean()), float(right)


def test_best_epoch_is_kept_when_later_ones_are_worse() -> None:
    model, wrong, validation, training = unlearning(epochs=8, learning_rate=0.2)
    result = train_on(model, wrong, validation, training)
    accuracies = [entry["validation_accuracy"] for entry in result.history]
    assert accuracies[0] == 1.0 > accuracies[-1]
    assert result.best_epoch == 8 - accuracies[::-1].index(1.0)
    loss, accuracy = validation_scores(result.model, validation)
    assert loss == pytest.approx(result.history[result.best_epoch - 1]["validation_loss"], rel=1e-5)
    assert accuracy == 1.0


def test_later_of_two_epochs_of_equal_accuracy_is_kept() -> None:
    model, wrong, validation, training = unlearning(epochs=4, learning_rate=0.001)
    result = train_on(model, wrong, validation, training)
    assert {entry["validation_accuracy"] for entry in result.history} == {1.0}
    assert result.best_epoch == 4
    loss, _ = validation_scores(result.model, validation)
    assert loss == pytest.approx(result.history[-1]["validation_loss"], rel=1e-5)


def test_best_epoch_in_the_middle_is_kept_under_noise() -> None:
    data, validation = make_split(90, spread=3.0), make_split(61, spread=3.0, seed=1)
    training = TrainingSettings(epochs=12, learning_rate=0.1, batch_size=8)
    result = train_on(make_head(), data, validation, training)
    accuracies = [entry["validation_accuracy"] for entry in result.history]
    assert result.best_epoch == 12 - accuracies[::-1].index(max(accuracies))
    assert 1 < result.best_epoch < 12
    loss, accuracy = validation_scores(result.model, validation)
    best = result.history[result.best_epoch - 1]
    assert (loss, accuracy) == pytest.approx((best["validation_loss"], best["validation_accuracy"]), rel=1e-4)


def test_validation_larger_than_one_slice_counts_every_row() -> None:
    validation = make_split(9001, spread=3.0, seed=1)
    result = train_on(make_head(), make_split(50, spread=3.0), validation, TrainingSettings(epochs=1))
    loss, accuracy = validation_scores(result.model, validation)
    assert result.history[0]["validation_loss"] == pytest.approx(loss, rel=1e-4)
    assert result.history[0]["validation_accuracy"] == pytest.approx(accuracy)


def test_each_epoch_is_reported_as_it_enters_the_history() -> None:
    reported: list[dict[str, float]] = []
    result = train_on(make_head(), make_split(40), NOTHING, TrainingSettings(epochs=3), on_epoch=reported.append)
    assert reported == result.history


def spoil(data: SplitData) -> SplitData:
    features = data.features.copy()
    features[7, 2] = np.nan
    return replace(data, features=features)


def test_loss_that_is_no_number_stops_the_training_with_advice() -> None:
    with pytest.raises(
        JobError, match=r"loss is nan in step \d of epoch 1.*`training.learning_rate`.*0.01.*features are finite"
    ):
        train_on(make_head(), spoil(make_split(60)), NOTHING, TrainingSettings(epochs=3))


def test_diverging_weights_stop_the_training_with_advice() -> None:
    data = make_split(60, spread=2.0)
    huge = replace(data, features=data.features * np.float32(1e30))
    with pytest.raises(JobError, match=r"training\.learning_rate"):
        train_on(make_head(), huge, NOTHING, TrainingSettings(epochs=5, learning_rate=1e20))


def test_weights_that_overflow_in_the_very_last_step_are_not_kept() -> None:
    """The loss of a step is taken before its update, so it alone does not show what the last update did."""
    data = make_split(60, spread=2.0)
    huge = replace(data, features=data.features * np.float32(1e20))
    training = TrainingSettings(epochs=1, learning_rate=1e25, batch_size=60)
    with pytest.raises(JobError, match=r"training\.learning_rate"):
        train_on(make_head(), huge, NOTHING, training)


def test_validation_features_that_are_not_finite_stop_the_training() -> None:
    with pytest.raises(JobError, match="finite"):
        train_on(make_head(), make_split(60), spoil(make_split(30, seed=1)), TrainingSettings(epochs=1))


def test_probabilities_of_no_rows_have_the_shape_of_some() -> None:
    model = make_head()
    assert predict_probabilities(model, NOTHING.features).shape == (0, 3)
    probabilities = predict_probabilities(model, make_split(5000).features)
    assert (probabilities.shape, probabilities.dtype) == ((5000, 3), np.dtype(np.float32))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adam", "rmsprop"])
def test_training_that_goes_on_ends_where_an_undisturbed_one_does(optimizer: Any) -> None:
    """To the last bit, with a schedule over all steps and dropout."""
    data, validation = make_split(130, spread=3.0), make_split(50, spread=3.0, seed=1)
    training = TrainingSettings(optimizer=optimizer, epochs=5, schedule="cosine", learning_rate=0.05)
    states: list[TrainingState] = []
    whole = train_on(make_network(), data, validation, training, keep=states.append)
    assert [state.epoch for state in states] == [1, 2, 3, 4, 5]
    for state in (states[1], states[4]):
        later = train_on(make_network(seed=9), data, validation, training, state=state)
        for found, wanted in zip(later.model.get_weights(), whole.model.get_weights(), strict=True):
            np.testing.assert_array_equal(found, wanted)
        for found, wanted in zip(later.last_weights, whole.last_weights, strict=True):
            np.testing.assert_array_equal(found, wanted)
        assert without_seconds(later.history) == without_seconds(whole.history)
        assert later.best_epoch == whole.best_epoch


def make_network(*, seed: int = 42) -> Any:
    settings = ModelSettings(url="unused", name="mlp_head", hidden=[8], dropout=0.4)
    return build_model(settings, feature_shape=[6], feature_dtype="float32", n_classes=3, seed=seed)


def test_state_that_cannot_be_kept_ends_the_training() -> None:
    def fail(state: TrainingState) -> None:
        raise JobError("the disk is full")

    with pytest.raises(JobError, match="the disk is full"):
        train_on(make_head(), make_split(40), NOTHING, TrainingSettings(epochs=3), keep=fail)


def test_training_that_is_asked_to_stop_keeps_the_epoch_first() -> None:
    states: list[TrainingState] = []
    with pytest.raises(InterruptedTrainingError, match="after epoch 2 of 4"):
        train_on(
            make_head(),
            make_split(40),
            NOTHING,
            TrainingSettings(epochs=4),
            keep=states.append,
            is_asked_to_stop=lambda: len(states) == 2,
        )
    assert [state.epoch for state in states] == [1, 2]


def test_training_asked_to_stop_in_its_last_epoch_is_finished() -> None:
    data = make_split(40)
    result = train_on(make_head(), data, NOTHING, TrainingSettings(epochs=1), is_asked_to_stop=lambda: True)
    assert len(result.history) == 1


@pytest.mark.parametrize("metric", METRICS)
def test_early_stopping_waits_for_any_metric(metric: Any) -> None:
    """Of rows whose labels are wrong, what validation says only gets worse; what training says gets better all the time."""
    model, wrong, validation, training = unlearning(epochs=12, learning_rate=0.2)
    stopping = EarlyStopping(metric=metric, patience=2, min_delta=0.001)
    result = train_on(model, wrong, validation, training.model_copy(update={"early_stopping": stopping}))
    values = [entry[metric] for entry in result.history]
    values = [-value for value in values] if metric.endswith("loss") else values
    assert result.is_stopped_early == (len(values) < 12)
    gains = [value > max(values[:number], default=-math.inf) + 0.001 for number, value in enumerate(values)]
    assert not any(gains[-2:]) if result.is_stopped_early else any(gains[-2:])
    if metric == "validation_loss":
        assert len(values) == 3


def test_best_epoch_is_that_of_the_metric_asked_for() -> None:
    model, wrong, validation, training = unlearning(epochs=4, learning_rate=0.05)
    result = train_on(model, wrong, validation, training.model_copy(update={"best_by": "validation_loss"}))
    losses = [entry["validation_loss"] for entry in result.history]
    assert result.best_epoch == 1 + losses.index(min(losses)) == 1


def test_both_the_best_and_the_last_weights_are_given() -> None:
    model, wrong, validation, training = unlearning(epochs=8, learning_rate=0.2)
    result = train_on(model, wrong, validation, training)
    assert result.best_epoch < 8
    states: list[TrainingState] = []
    again = unlearning(epochs=8, learning_rate=0.2)
    train_on(again[0], *again[1:], keep=states.append)
    for found, wanted in zip(result.last_weights, states[-1].weights, strict=True):
        np.testing.assert_array_equal(found, wanted)
    for found, wanted in zip(result.model.get_weights(), states[result.best_epoch - 1].weights, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_exploding_loss_stops_the_training_and_names_the_step() -> None:
    data = make_split(64, spread=2.0)
    training = TrainingSettings(epochs=50, learning_rate=1e7, batch_size=16)
    with pytest.raises(
        JobError, match=r"the loss is [\d.e+]+ in step [2-4] of epoch 1\. Lower `training\.learning_rate`"
    ):
        train_on(make_head(), data, NOTHING, training)


def test_times_add_up_to_no_more_than_the_epoch_took() -> None:
    result = train_on(make_head(), make_split(200), make_split(60, seed=1), TrainingSettings(epochs=2))
    for entry in result.history:
        assert 0 < sum(entry[name] for name in TIMES) <= entry["seconds"]
        assert entry["all_reduce_seconds"] == entry["idle_seconds"] == 0
    assert result.seconds_of_ranks == [
        {name: pytest.approx(sum(entry[name] for entry in result.history)) for name in TIMES}
    ]
