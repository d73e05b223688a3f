"""Tests of finetune.training.steps and finetune.training.optimizers: what one step does, against NumPy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from helpers.tables.feature_sets import make_split
from numpy.typing import NDArray

from featurize.recipes.model_section import ModelSettings
from featurize.recipes.training_section import TrainingSettings
from finetune.networks.build import build_model
from finetune.ranks.communicator import SingleRank
from finetune.rows.batches import PADDING
from finetune.rows.splits import SplitData
from finetune.training import steps
from finetune.training.optimizers import group_by_layer, make_optimizer, normalize_gradients
from finetune.training.steps import COLUMNS, is_compiled, make_evaluation, make_train_steps, n_threads

PLAIN = {"learning_rate": 0.5, "momentum": 0.0, "nesterov": False}


def make_model(
    name: str = "softmax_head", *, shape: tuple[int, ...] = (6,), dtype: str = "float32", **more: Any
) -> Any:
    settings = ModelSettings.model_validate({"url": "unused", "name": name, **more})
    return build_model(settings, feature_shape=shape, feature_dtype=dtype, n_classes=3, seed=42)


def take_step(
    model: Any, data: SplitData, training: dict[str, Any], *, padding: int = 0, weights: list[float] | None = None
) -> dict[str, float]:
    """One step on all rows of `data`, and on rows that only fill it up; what the step says of itself."""
    import tensorflow as tf

    settings = TrainingSettings.model_validate(PLAIN | training)
    optimizer = make_optimizer(settings, steps=1)
    take_steps = make_train_steps(model, optimizer, settings, SingleRank(), class_weights=weights)
    features = np.concatenate([data.features, np.repeat(data.features[:1], padding, axis=0)])
    labels = np.concatenate([data.label_index, np.full(padding, PADDING, np.int32)])
    row_ids = np.concatenate([data.row_ids, np.zeros(padding, np.int64)])
    batches = tf.data.Dataset.from_tensors((features, labels, row_ids, np.float32(data.rows)))
    row = take_steps(iter(batches), tf.constant(0), tf.constant(1), tf.constant(1, tf.int64)).numpy()[0]
    return dict(zip(COLUMNS, row.tolist(), strict=True))


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)  # type: ignore[no-any-return, unused-ignore]


def expected_step(
    model: Any, data: SplitData, *, smoothing: float = 0.0, weights: list[float] | None = None, l2: float = 0.0
) -> tuple[float, NDArray[Any], NDArray[Any]]:
    """The summed loss, and kernel and bias after the step, of softmax regression."""
    kernel, bias = (weight.astype(np.float64) for weight in model.get_weights())
    targets = np.eye(3)[data.label_index] * (1 - smoothing) + smoothing / 3
    of_rows = np.ones(3) if weights is None else np.asarray(weights)
    row_weights = of_rows[data.label_index][:, None]
    probabilities = softmax(data.features @ kernel + bias)
    loss = -float((row_weights * targets * np.log(probabilities)).sum())
    error = row_weights * (probabilities - targets) / data.rows
    rate = PLAIN["learning_rate"]
    return loss, kernel - rate * (data.features.T @ error + 2 * l2 * kernel), bias - rate * error.sum(axis=0)


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({}, {}),
        ({"label_smoothing": 0.3}, {"smoothing": 0.3}),
        ({"l2": 0.1}, {"l2": 0.1}),
        ({}, {"weights": [0.5, 0.0, 3.0]}),
        ({"label_smoothing": 0.2, "l2": 0.01}, {"smoothing": 0.2, "l2": 0.01, "weights": [2.0, 1.0, 0.5]}),
    ],
    ids=["plain", "smoothed", "penalty", "weighted", "all"],
)
def test_step_equals_softmax_regression_by_hand(
    training: dict[str, Any], expected: dict[str, Any], padding: int
) -> None:
    data, model = make_split(20, spread=2.0), make_model()
    logits = data.features @ model.get_weights()[0] + model.get_weights()[1]
    loss, kernel, bias = expected_step(model, data, **expected)
    found = take_step(model, data, training, padding=padding, weights=expected.get("weights"))
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["right"] == (logits.argmax(axis=1) == data.label_index).sum()
    assert found["rows"] == 20
    np.testing.assert_allclose(model.get_weights()[0], kernel, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.get_weights()[1], bias, rtol=1e-5, atol=1e-6)


def test_step_of_padding_alone_changes_nothing() -> None:
    model, data = make_model(), make_split(3)
    before = model.get_weights()
    nothing = SplitData(data.features, np.full(3, PADDING, np.int32), data.paths, data.row_ids)
    found = take_step(model, nothing, {})
    assert (found["loss"], found["right"]) == (0, 0)
    for weights, wanted in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weights, wanted)


def test_times_of_a_step_are_measured() -> None:
    found = take_step(make_model(), make_split(3), {})
    assert 0 < found["compute_seconds"] < 60
    assert 0 <= found["data_seconds"] < 60
    assert found["all_reduce_seconds"] == 0


def test_normalized_gradients_have_length_1_in_each_layer() -> None:
    import tensorflow as tf

    model = make_model("mlp_head", hidden=[5, 4])
    layers = group_by_layer(model)
    assert sorted(place for places in layers for place in places) == list(range(len(model.trainable_variables)))
    assert len(layers) == 3
    random = np.random.default_rng(0)
    gradients = [tf.constant(random.normal(size=v.shape).astype(np.float32)) for v in model.trainable_variables]
    gradients[layers[1][0]], gradients[layers[1][1]] = (tf.zeros_like(gradients[place]) for place in layers[1])
    normalized = normalize_gradients(gradients, layers)
    lengths = [np.sqrt(sum(np.square(normalized[place]).sum() for place in places)) for places in layers]
    np.testing.assert_allclose(lengths, [1, 0, 1], rtol=1e-5)
    for places in (layers[0], layers[2]):
        ratios = {float(np.ravel(normalized[place] / gradients[place])[0]) for place in places}
        assert max(ratios) == pytest.approx(min(ratios), rel=1e-5)


def test_step_with_normalized_gradients_moves_every_layer_by_the_learning_rate() -> None:
    model, data = make_model("mlp_head", hidden=[5]), make_split(30, spread=2.0)
    before = model.get_weights()
    take_step(model, data, {"gradient_normalization": "layer"})
    moved = [after - first for after, first in zip(model.get_weights(), before, strict=True)]
    lengths = [np.sqrt(np.square(moved[i]).sum() + np.square(moved[i + 1]).sum()) for i in (0, 2)]
    np.testing.assert_allclose(lengths, PLAIN["learning_rate"], rtol=1e-4)


def test_dense_networks_are_compiled_for_several_threads_and_convolutions_are_not() -> None:
    dense = make_model("mlp_head", hidden=[5], dropout=0.5, standardize=False, l2_normalize=True)
    assert is_compiled(dense) == (n_threads() > 1)
    assert not is_compiled(make_model("mnist_convnet", shape=(28, 28, 1), dtype="uint8"))


@pytest.mark.parametrize(("own", "others", "wanted"), [(True, 1, True), (True, 0, False), (False, 1, False)])
def test_all_ranks_are_compiled_or_none(monkeypatch: pytest.MonkeyPatch, own: bool, others: int, wanted: bool) -> None:
    """As a host with fewer cores for each rank would not be."""
    import tensorflow as tf

    class Ranks(SingleRank):
        def minimum(self, tensors: Sequence[Any]) -> list[Any]:
            return [tf.minimum(tensor, others) for tensor in tensors]

    found: list[bool] = []
    function = tf.function

    def watched(*parts: Any, **options: Any) -> Any:
        if "jit_compile" in options:
            found.append(options["jit_compile"])
        return function(*parts, **options)

    monkeypatch.setattr(steps, "is_compiled", lambda model: own)
    monkeypatch.setattr(tf, "function", watched)
    settings = TrainingSettings()
    make_train_steps(make_model(), make_optimizer(settings, steps=1), settings, Ranks())
    assert set(found) == {wanted}


def test_evaluation_gives_the_summed_loss_and_the_predictions() -> None:
    model, data = make_model(), make_split(50, spread=3.0)
    loss, predicted = make_evaluation(model)(data.features, data.label_index)
    probabilities = softmax(data.features @ model.get_weights()[0] + model.get_weights()[1])
    assert float(loss) == pytest.approx(-np.log(probabilities[np.arange(50), data.label_index]).sum(), rel=1e-5)
    np.testing.assert_array_equal(predicted, probabilities.argmax(axis=1))
