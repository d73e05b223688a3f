"""Tests of finetune.training.loop: whole trainings against softmax regression in NumPy."""

from typing import Any

import numpy as np
import pytest
from helpers.models.heads import NOTHING, make_head, train_on
from helpers.models.softmax_regression import train_by_numpy, train_by_numpy_adam
from helpers.tables.feature_sets import make_split

from featurize.recipes.training_section import TrainingSettings
from finetune.training.loop import TIMES


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("momentum", [0.8, 0.0])
def test_sgd_equals_softmax_regression_by_hand(momentum: float, nesterov: bool) -> None:
    data, model = make_split(103, spread=2.0), make_head()
    training = TrainingSettings(learning_rate=0.1, momentum=momentum, nesterov=nesterov, batch_size=16, epochs=3)
    expected = train_by_numpy(model.get_weights(), data, training)
    train_on(model, data, NOTHING, training)
    for found, wanted in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", [{"l2": 0.05}, {"schedule": "cosine"}], ids=["l2", "cosine"])
def test_penalty_and_schedule_equal_softmax_regression_by_hand(change: dict[str, Any]) -> None:
    data, model = make_split(103, spread=2.0), make_head()
    training = TrainingSettings.model_validate({"learning_rate": 0.1, "batch_size": 16, "epochs": 3, **change})
    expected = train_by_numpy(model.get_weights(), data, training)
    train_on(model, data, NOTHING, training)
    for found, wanted in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_adam_equals_softmax_regression_by_hand() -> None:
    data, model = make_split(103, spread=2.0), make_head()
    training = TrainingSettings(optimizer="adam", learning_rate=0.01, batch_size=16, epochs=3)
    expected = train_by_numpy_adam(model.get_weights(), data, training)
    train_on(model, data, NOTHING, training)
    for found, wanted in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


def test_without_validation_rows_the_last_epoch_is_kept() -> None:
    data = make_split(60)
    result = train_on(make_head(), data, NOTHING, TrainingSettings(epochs=3))
    assert result.best_epoch == 3
    assert all(
        set(entry) == {"epoch", "loss", "accuracy", "seconds", "rows_per_second", *TIMES} for entry in result.history
    )
    expected = train_by_numpy(make_head().get_weights(), data, TrainingSettings(epochs=3))
    np.testing.assert_allclose(result.model.get_weights()[0], expected[0], rtol=1e-4, atol=1e-5)
