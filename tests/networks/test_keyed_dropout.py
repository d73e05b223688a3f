"""Tests of networks.keyed_dropout: masks of a row in any batch, weights shared, what is saved, and what cannot be keyed."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from numpy.typing import NDArray

from featurize.errors import UsageError
from finetune.networks.keyed_dropout import with_keyed_dropout
from finetune.networks.row_random import random_words, row_keys

Values = NDArray[Any]


def ones_through(*stack: Any, shape: tuple[int | None, ...] = (400,)) -> keras.Model:
    """A model of nothing but `stack`: ones in show the mask, scaled."""
    return keras.Sequential([keras.Input(shape), *stack])


def run(model: keras.Model, features: Values, *, epoch: int = 1, row_ids: Values | None = None) -> Values:
    """What the training model of `model` gives in training, in a graph."""
    training_model, dropout = with_keyed_dropout(model)

    @tf.function(autograph=False)
    def step(features: Any, row_ids: Any) -> Any:
        with dropout.keyed(row_keys(42, epoch, row_ids)):
            return training_model(features, training=True)

    ids = np.arange(len(features)) if row_ids is None else row_ids
    result: Values = step(tf.constant(features), tf.constant(ids, tf.int64)).numpy()
    return result


def masks(model: keras.Model, count: int = 300, **changes: Any) -> Values:
    return run(model, np.ones((count, *model.input_shape[1:]), np.float32), **changes)


def make_mlp() -> keras.Model:
    inputs = keras.Input((20,), name="features")
    hidden = layers.Dropout(0.5)(layers.Dense(32, activation="relu")(inputs))
    hidden = layers.Dropout(0.25)(layers.Dense(32, activation="relu")(hidden))
    return keras.Model(inputs, layers.Dense(4, name="logits")(hidden))


def noise(rows: int = 24, *shape: int) -> Values:
    return np.random.default_rng(1).normal(size=(rows, *(shape or (20,)))).astype(np.float32)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.75])
def test_as_many_are_dropped_as_the_rate_says_and_the_mean_is_kept(rate: float) -> None:
    values = masks(ones_through(layers.Dropout(rate)))
    assert set(np.unique(values)) == {np.float32(0), np.float32(1 / (1 - rate))}
    spread = np.sqrt(rate * (1 - rate))
    assert abs((values == 0).mean() - rate) < 5 * spread / np.sqrt(values.size)
    assert np.abs((values == 0).mean(axis=0) - rate).max() < 5 * spread / np.sqrt(len(values))  # of each unit
    assert np.abs((values == 0).mean(axis=1) - rate).max() < 5 * spread / np.sqrt(values.shape[1])  # of each row


def test_a_rate_of_one_drops_all() -> None:
    assert not masks(ones_through(layers.Dropout(1.0))).any()


def test_infinite_values_can_be_dropped() -> None:
    values = run(ones_through(layers.Dropout(0.5)), np.full((8, 400), np.inf, np.float32))
    assert set(np.unique(values)) == {0, np.inf}


def test_the_mask_is_of_the_rows_key_and_the_layers_stream() -> None:
    words = random_words(row_keys(42, 3, tf.range(300, dtype=tf.int64)), stream=1, count=400).numpy()
    expected = np.where(words < 0.25 * 2**32, 0, 1 / 0.75).astype(np.float32)
    assert np.array_equal(masks(ones_through(layers.Dropout(0.25)), epoch=3), expected)


def test_masks_of_epochs_rows_and_layers_are_independent() -> None:
    model = ones_through(layers.Dropout(0.5))
    first, second = (masks(model, epoch=epoch) == 0 for epoch in (1, 2))
    twice = masks(ones_through(layers.Dropout(0.5), layers.Dropout(0.5))) != 0  # kept by both layers
    bound = 5 / np.sqrt(first.size)
    assert np.array_equal(first, masks(model) == 0)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < bound
    assert abs(np.corrcoef(first[1:].ravel(), first[:-1].ravel())[0, 1]) < bound
    assert abs(twice.mean() - 0.25) < bound
    assert not (twice & first).any()  # the first layer is keyed alike, with or without a second


def test_a_layer_that_is_called_twice_drops_others_each_time() -> None:
    shared, inputs = layers.Dropout(0.5), keras.Input((400,))
    model = keras.Model(inputs, layers.Concatenate()([shared(inputs), shared(inputs)]))
    first, second = np.split(masks(model) == 0, 2, axis=1)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 5 / np.sqrt(first.size)


@pytest.mark.parametrize(
    ("layer", "shape", "equal"),
    [
        (layers.SpatialDropout1D(0.5), (6, 50), (1,)),
        (layers.SpatialDropout2D(0.5), (3, 4, 50), (1, 2)),
        (layers.SpatialDropout2D(0.5, data_format="channels_first"), (50, 3, 4), (2, 3)),
        (layers.SpatialDropout3D(0.5), (2, 3, 2, 50), (1, 2, 3)),
        (layers.Dropout(0.5, noise_shape=(None, 1, None)), (6, 50), (1,)),
        (layers.Dropout(0.5, noise_shape=(None, 50, 1)), (50, 6), (2,)),
    ],
    ids=["1d", "2d", "2d channels first", "3d", "noise shape", "noise shape with a number"],
)
def test_spatial_dropout_drops_whole_maps(layer: Any, shape: tuple[int, ...], equal: tuple[int, ...]) -> None:
    values = masks(ones_through(layer, shape=shape))
    assert np.array_equal(values.min(axis=equal), values.max(axis=equal))
    maps = values.min(axis=equal)
    assert maps.shape == (300, 50)
    assert abs((maps == 0).mean() - 0.5) < 5 * 0.5 / np.sqrt(maps.size)
    assert np.corrcoef(maps)[np.triu_indices(300, 1)].max() < 0.9  # no two rows alike


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_gradients_of_any_number_of_ranks_add_up_to_those_of_one(ranks: int) -> None:
    model, features, labels = make_mlp(), noise(), np.arange(24) % 4
    training_model, dropout = with_keyed_dropout(model)

    def gradients(rows: slice) -> list[Values]:
        with tf.GradientTape() as tape:
            with dropout.keyed(row_keys(42, 1, tf.range(24, dtype=tf.int64)[rows])):
                logits = training_model(features[rows], training=True)
            loss = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(labels[rows], logits))
        variables = [variable.value for variable in model.trainable_variables]
        return [gradient.numpy() for gradient in tape.gradient(loss, variables)]

    whole = gradients(slice(None))
    parts = [gradients(slice(rank, None, ranks)) for rank in range(ranks)]
    for one, *others in zip(whole, *parts, strict=True):
        np.testing.assert_allclose(np.sum(others, axis=0), one, rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_the_mask() -> None:
    model = ones_through(layers.Dropout(0.5))
    training_model, dropout = with_keyed_dropout(model)
    features = tf.constant(noise(5, 400))
    with tf.GradientTape() as tape, dropout.keyed(row_keys(42, 1, tf.range(5, dtype=tf.int64))):
        tape.watch(features)
        total = tf.reduce_sum(training_model(features, training=True))
    assert np.array_equal(tape.gradient(total, features).numpy(), masks(model, 5))


def test_compiled_by_xla_the_same_units_are_dropped_in_one_graph_of_all_epochs() -> None:
    model = ones_through(layers.Dropout(0.5))
    training_model, dropout = with_keyed_dropout(model)

    @tf.function(jit_compile=True, autograph=False)
    def step(features: Any, row_ids: Any, epoch: Any) -> Any:
        with dropout.keyed(row_keys(42, epoch, row_ids)):
            return training_model(features, training=True)

    for epoch in (1, 2, 3):
        values = step(tf.ones((30, 400)), tf.range(30, dtype=tf.int64), tf.constant(epoch)).numpy()
        assert np.array_equal(values, masks(model, 30, epoch=epoch))
    assert step.experimental_get_tracing_count() == 1


def test_bfloat16_stays_bfloat16() -> None:
    model = ones_through(layers.Dropout(0.5, dtype="bfloat16"))
    training_model, dropout = with_keyed_dropout(model)
    with dropout.keyed(row_keys(42, 1, tf.range(3, dtype=tf.int64))):
        values = training_model(tf.ones((3, 400)), training=True)
    assert values.dtype == tf.bfloat16
    assert np.array_equal(tf.cast(values, tf.float32).numpy(), masks(ones_through(layers.Dropout(0.5)), 3))


def test_weights_are_shared_and_nothing_is_dropped_out_of_training() -> None:
    model = make_mlp()
    training_model, _ = with_keyed_dropout(model)
    assert [id(weight) for weight in training_model.weights] == [id(weight) for weight in model.weights]
    assert np.array_equal(training_model(noise(), training=False), model(noise(), training=False))
    model.get_layer("logits").bias.assign([1.0, 2.0, 3.0, 4.0])
    assert np.array_equal(training_model(noise()), model(noise()))


def nested_model() -> keras.Model:
    """Dropout in a Sequential in a Functional model that is called twice, and in a branch."""
    block = keras.Sequential([keras.Input((20,)), layers.Dense(20), layers.Dropout(0.5)])
    inner_inputs = keras.Input((20,))
    inner = keras.Model(inner_inputs, layers.Dropout(0.2)(block(inner_inputs)))
    inputs = keras.Input((20,), name="features")
    joined = layers.Add()([inner(inner(inputs)), layers.Dropout(0.1)(inputs)])
    return keras.Model(inputs, layers.Dense(4)(joined))


def test_dropout_in_models_within_the_model() -> None:
    model = nested_model()
    one, other = run(model, noise()), run(model, noise(), epoch=2)
    assert not np.allclose(one, other)
    assert np.array_equal(one, run(model, noise()))
    backwards = np.arange(24)[::-1]
    np.testing.assert_allclose(run(model, noise()[::-1], row_ids=backwards), one[::-1], rtol=1e-5, atol=1e-6)
    training_model, _ = with_keyed_dropout(model)
    assert {id(weight) for weight in training_model.weights} == {id(weight) for weight in model.weights}
    assert len(training_model.variables) == len(training_model.weights)  # no seed is left in it


@pytest.mark.parametrize("make", [make_mlp, nested_model])
def test_the_model_that_is_saved_is_the_one_given(make: Any, tmp_path: Path) -> None:
    model = make()
    before = model.to_json()
    run(model, noise())
    assert model.to_json() == before
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    assert np.array_equal(loaded(noise()), model(noise()))
    assert "KeyedDropout" not in loaded.to_json()


def step_with_keys_that_fail(model: keras.Model) -> Any:
    """A training step whose keys cannot be computed; TensorFlow leaves out what nobody needs."""
    training_model, dropout = with_keyed_dropout(model)

    @tf.function(autograph=False)
    def step(features: Any, row_ids: Any, places: Any) -> Any:
        with dropout.keyed(row_keys(42, 1, tf.gather(row_ids, places))):
            return training_model(features, training=True)

    return step(tf.ones((2, 400)), tf.range(2, dtype=tf.int64), tf.constant([0, 5]))


def test_a_model_without_dropout_is_itself_and_its_keys_are_never_computed() -> None:
    model = ones_through(layers.Dense(3), layers.Dropout(0.0))
    assert with_keyed_dropout(model)[0] is model
    assert np.array_equal(step_with_keys_that_fail(model), model(tf.ones((2, 400))))
    with pytest.raises(tf.errors.InvalidArgumentError):
        step_with_keys_that_fail(ones_through(layers.Dropout(0.5)))


def test_training_without_keys_is_an_error() -> None:
    training_model, dropout = with_keyed_dropout(make_mlp())
    with dropout.keyed(row_keys(42, 1, tf.range(24, dtype=tf.int64))):
        training_model(noise(), training=True)
    with pytest.raises(RuntimeError, match=r"outside of KeyedDropout\.keyed"):
        training_model(noise(), training=True)


def test_keys_of_another_number_of_rows_are_an_error() -> None:
    training_model, dropout = with_keyed_dropout(make_mlp())
    with (
        dropout.keyed(row_keys(42, 1, tf.range(1, dtype=tf.int64))),
        pytest.raises(tf.errors.InvalidArgumentError),
    ):
        training_model(noise(), training=True)


class OwnDropout(layers.Dropout):  # type: ignore[misc, unused-ignore]
    """A user's own: it may do anything."""


@pytest.mark.parametrize(
    "layer",
    [
        layers.GaussianNoise(0.1, name="it"),
        layers.AlphaDropout(0.1, name="it"),
        layers.TimeDistributed(layers.Dropout(0.5), name="it"),
        layers.LSTM(3, dropout=0.5, name="it"),
        OwnDropout(0.5, name="it"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_that_draw_otherwise_are_refused(layer: Any) -> None:
    with pytest.raises(UsageError, match=f"layer 'it' .{type(layer).__name__}. draws random numbers"):
        with_keyed_dropout(ones_through(layer, shape=(5, 4)))


@pytest.mark.parametrize("noise_shape", [(1, 5, 4), (8, 5, 4), (None, 4)])
def test_masks_that_are_not_one_for_each_row_are_refused(noise_shape: tuple[int | None, ...]) -> None:
    layer = layers.Dropout(0.5, noise_shape=noise_shape, name="it")
    with pytest.raises(UsageError, match=r"`noise_shape` of layer 'it' must start with None.*2 axes"):
        with_keyed_dropout(ones_through(layer, shape=(5, 4)))


def test_shapes_that_are_not_fixed_are_refused() -> None:
    with pytest.raises(UsageError, match=r"the input of layer 'it' must have a fixed shape. Got \(None, None, 4\)"):
        with_keyed_dropout(ones_through(layers.Dropout(0.5, name="it"), shape=(None, 4)))
