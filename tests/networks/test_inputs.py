"""Tests of finetune.networks.inputs: what the layers do to features is what NumPy does."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from featurize.errors import UsageError
from featurize.recipes.model_section import ModelSettings
from finetune.networks.build import build_model, logits_of
from finetune.networks.input_statistics import collect_statistics, needs_statistics
from finetune.networks.inputs import Statistics, prepare_input

IMAGES = np.random.default_rng(0).integers(0, 256, (9, 6, 5, 3), dtype=np.uint8)
IMAGES[0, ...] = np.arange(90, dtype=np.uint8).reshape(6, 5, 3)  # all values on either side of 30 are in it
FEATURES = (np.random.default_rng(1).gamma(0.5, 3, (40, 12)) - 1).astype(np.float32)


def settings_of(**changes: Any) -> ModelSettings:
    return ModelSettings(url="unused", **changes)


def prepared(features: NDArray[Any], settings: ModelSettings, statistics: Statistics | None = None) -> NDArray[Any]:
    """What the network sees of `features`."""
    import keras

    inputs, output = prepare_input(
        settings, feature_shape=features.shape[1:], feature_dtype=str(features.dtype), statistics=statistics
    )
    assert output.dtype == "float32"
    return np.asarray(keras.Model(inputs, output)(features))


def test_scaled_pixels_are_divided_by_255() -> None:
    for settings in (settings_of(pixels="scale"), settings_of(), settings_of(name="mnist_convnet")):
        np.testing.assert_allclose(prepared(IMAGES, settings), IMAGES / 255, rtol=1e-6)


def test_binarized_pixels_are_1_above_30_and_0_else() -> None:
    result = prepared(IMAGES, settings_of(pixels="binarize"))
    np.testing.assert_array_equal(result, IMAGES > 30)
    assert {30, 31} <= set(IMAGES.ravel().tolist())


@pytest.mark.parametrize("settings", [settings_of(pixels="standardize"), settings_of(name="landscapes_convnet")])
def test_standardized_pixels_have_mean_0_and_deviation_1_in_each_channel(settings: ModelSettings) -> None:
    result = prepared(IMAGES, settings, collect_statistics([IMAGES], settings))
    values = IMAGES.astype(np.float64)
    expected = (values - values.mean(axis=(0, 1, 2))) / values.std(axis=(0, 1, 2))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_default_of_landscapes_may_be_overridden() -> None:
    settings = settings_of(name="landscapes_convnet", pixels="scale")
    assert not needs_statistics(settings, "uint8")
    np.testing.assert_allclose(prepared(IMAGES, settings), IMAGES / 255, rtol=1e-6)


def test_l2_normalized_rows_have_length_1() -> None:
    expected = FEATURES / np.linalg.norm(FEATURES.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(prepared(FEATURES, settings_of(l2_normalize=True)), expected, rtol=1e-5, atol=1e-7)


def test_rows_of_zeros_stay_zeros() -> None:
    assert not prepared(np.zeros((2, 4), np.float32), settings_of(l2_normalize=True)).any()


def test_standardized_features_have_mean_0_and_deviation_1() -> None:
    settings = settings_of(standardize=True)
    result = prepared(FEATURES, settings, collect_statistics([FEATURES], settings))
    values = FEATURES.astype(np.float64)
    np.testing.assert_allclose(result, (values - values.mean(axis=0)) / values.std(axis=0), rtol=1e-4, atol=1e-5)


def test_features_are_standardized_after_they_are_normalized() -> None:
    settings = settings_of(standardize=True, l2_normalize=True)
    result = prepared(FEATURES, settings, collect_statistics([FEATURES], settings))
    values = FEATURES / np.linalg.norm(FEATURES.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(result, (values - values.mean(axis=0)) / values.std(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(result.std(axis=0), 1, rtol=1e-4)


def test_constant_features_become_zeros_and_change_no_other() -> None:
    settings = settings_of(standardize=True)
    features = FEATURES.copy()
    features[:, 3] = 0.1
    features[:, 5] = 0
    result = prepared(features, settings, collect_statistics([features], settings))
    np.testing.assert_allclose(result[:, [3, 5]], 0, atol=1e-7)
    np.testing.assert_allclose(np.delete(result.std(axis=0), [3, 5]), 1, rtol=1e-4)


def test_plain_features_are_left_as_they_are() -> None:
    np.testing.assert_array_equal(prepared(FEATURES, settings_of()), FEATURES)


def test_a_model_sees_what_was_prepared() -> None:
    settings = settings_of(standardize=True, l2_normalize=True)
    statistics = collect_statistics([FEATURES], settings)
    model = build_model(
        settings, feature_shape=[12], feature_dtype="float32", n_classes=3, seed=1, statistics=statistics
    )
    kernel, bias = model.get_weights()
    expected = prepared(FEATURES, settings, statistics) @ kernel + bias
    np.testing.assert_allclose(np.asarray(logits_of(model)(FEATURES)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "dtype", "needed"),
    [
        ({}, "float32", False),
        ({"standardize": True}, "float32", True),
        ({"l2_normalize": True}, "float32", False),
        ({}, "uint8", False),
        ({"pixels": "standardize"}, "uint8", True),
        ({"pixels": "binarize"}, "uint8", False),
        ({"name": "landscapes_convnet"}, "uint8", True),
        ({"name": "landscapes_convnet", "pixels": "binarize"}, "uint8", False),
        ({"name": "mnist_mlp"}, "uint8", False),
    ],
)
def test_statistics_are_needed_where_something_is_standardized(
    changes: dict[str, Any], dtype: str, needed: bool
) -> None:
    assert needs_statistics(settings_of(**changes), dtype) is needed


@pytest.mark.parametrize("statistics", [None, Statistics(np.zeros(5), np.ones(5))])
def test_missing_and_foreign_statistics_are_no_silent_default(statistics: Statistics | None) -> None:
    for features, settings in ((FEATURES, settings_of(standardize=True)), (IMAGES, settings_of(pixels="standardize"))):
        with pytest.raises(ValueError, match=f"`statistics` must be of {features.shape[-1]} "):
            prepared(features, settings, statistics)


@pytest.mark.parametrize(
    ("features", "changes", "key"),
    [
        (FEATURES, {"pixels": "scale"}, "model.pixels"),
        (IMAGES, {"standardize": True}, "model.standardize"),
        (IMAGES, {"l2_normalize": True}, "model.l2_normalize"),
    ],
)
def test_preparation_of_other_features_is_refused(features: NDArray[Any], changes: dict[str, Any], key: str) -> None:
    with pytest.raises(UsageError, match=f"`{key}` is for"):
        build_model(
            settings_of(**changes),
            feature_shape=features.shape[1:],
            feature_dtype=str(features.dtype),
            n_classes=3,
            seed=1,
        )
