"""Tests of finetune.models: shapes, initial weights, and that logits and probabilities are one network."""

from pathlib import Path

import numpy as np
import pytest

from featurize.recipe import ModelSettings
from finetune.models import LOGITS, build_model, logits_of

HEAD = ModelSettings(name="softmax_head", url="unused")


def test_head_on_features_is_a_softmax_of_one_dense_layer() -> None:
    model = build_model(HEAD, feature_shape=[20], feature_dtype="float32", n_classes=5, seed=1)
    features = np.random.default_rng(0).normal(size=(7, 20)).astype(np.float32)
    kernel, bias = model.get_weights()
    logits = features @ kernel + bias
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.asarray(model(features)), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.asarray(logits_of(model)(features)), logits, rtol=1e-5, atol=1e-5)
    assert model.count_params() == 20 * 5 + 5


def test_head_takes_features_of_several_dimensions_flat() -> None:
    model = build_model(HEAD, feature_shape=[2, 3, 4], feature_dtype="float32", n_classes=2, seed=1)
    assert model.input_shape == (None, 24)


def test_head_on_pixels_sees_values_in_0_to_1() -> None:
    model = build_model(HEAD, feature_shape=[4, 5, 3], feature_dtype="uint8", n_classes=2, seed=1)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3)).astype(np.uint8)
    kernel, bias = model.get_weights()
    assert kernel.shape == (60, 2)
    expected = pixels.reshape(6, -1).astype(np.float64) / 255 @ kernel + bias
    np.testing.assert_allclose(np.asarray(logits_of(model)(pixels)), expected, rtol=1e-4, atol=1e-5)


def test_initial_weights_are_glorot_uniform_and_follow_the_seed() -> None:
    one, same, other = (
        build_model(HEAD, feature_shape=[300], feature_dtype="float32", n_classes=50, seed=seed).get_weights()
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one[0], same[0])
    assert (one[0] != other[0]).mean() > 0.99
    limit = np.sqrt(6 / 350)  # Glorot and Bengio 2010, equation 16
    assert np.abs(one[0]).max() <= limit
    assert one[0].std() == pytest.approx(limit / np.sqrt(3), rel=0.02)
    assert not one[1].any()


def test_logits_share_the_weights_of_the_model() -> None:
    model = build_model(HEAD, feature_shape=[3], feature_dtype="float32", n_classes=2, seed=1)
    logits = logits_of(model)
    model.get_layer(LOGITS).set_weights([np.zeros((3, 2)), np.array([1.0, -1.0])])
    np.testing.assert_array_equal(np.asarray(logits(np.ones((1, 3), np.float32))), [[1, -1]])


def test_model_is_saved_and_loaded_in_safe_mode(tmp_path: Path) -> None:
    import keras

    model = build_model(HEAD, feature_shape=[4, 4, 1], feature_dtype="uint8", n_classes=3, seed=1)
    model.save(f"{tmp_path}/model.keras")
    loaded = keras.saving.load_model(f"{tmp_path}/model.keras", compile=False, safe_mode=True)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 1)).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(model(pixels)), np.asarray(loaded(pixels)))
