"""Tests of drift: a ConvNet on drawn shapes, and shapes that are as those it learned from, or are not."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.tables.drift_sets import CLASSES, Known, draw_many, grey, rotated, train_on_shapes

from featurize.errors import UsageError
from finetune.drift.projection import Projection, embedding_model, median_distance
from finetune.drift.window import CONFIDENCE, FEATURES, LABELS, Window, check_window, images_needed
from finetune.models.folder import load_model
from finetune.networks.build import logits_of
from finetune.networks.forward import predict_probabilities

pytestmark = [pytest.mark.slow]
WINDOW = 400


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    """A model that is right mostly, not always; do not change it."""
    known = train_on_shapes(tmp_path_factory.mktemp("drift"))
    assert 0.85 < known.card.metrics["validation_accuracy"] < 1
    return known


def test_there_is_no_alarm_in_19_of_20_windows_of_the_same_kind(known: Known) -> None:
    results = [check_window(known.reference, known.window(draw_many(WINDOW, seed=100 + n)), seed=n) for n in range(20)]
    assert sum(result.alarm for result in results) <= 1
    assert not any(result.retrain for result in results)
    assert all(set(result.tests) == {LABELS, CONFIDENCE, FEATURES} for result in results)
    assert np.mean([result.stability_index for result in results]) < 0.05


@pytest.mark.parametrize("seed", range(3))
def test_a_new_class_gives_alarm(known: Known, seed: int) -> None:
    result = check_window(known.reference, known.window(draw_many(WINDOW, seed=seed, new=0.25)))
    assert FEATURES in result.fired
    assert result.confidence < result.reference_confidence


@pytest.mark.parametrize("seed", range(3))
def test_grey_images_give_alarm_and_call_for_training(known: Known, seed: int) -> None:
    result = check_window(known.reference, known.window(grey(draw_many(WINDOW, seed=seed))))
    assert result.fired == (LABELS, CONFIDENCE, FEATURES)
    assert result.retrain


@pytest.mark.parametrize("seed", range(3))
def test_rotated_images_give_alarm(known: Known, seed: int) -> None:
    result = check_window(known.reference, known.window(rotated(draw_many(WINDOW, seed=seed))))
    assert FEATURES in result.fired
    assert result.alarm


@pytest.mark.parametrize("seed", range(3))
def test_another_mix_of_classes_gives_alarm_and_calls_for_no_training(known: Known, seed: int) -> None:
    result = check_window(known.reference, known.window(draw_many(WINDOW, seed=seed, shares=(0.45, 0.25, 0.2, 0.1))))
    assert LABELS in result.fired
    assert result.stability_index > 0.1 > result.stability_index_without_drift
    assert not result.retrain


def test_windows_without_projections_are_tested_by_the_rest(known: Known) -> None:
    window = replace(known.window(grey(draw_many(WINDOW, seed=0))), projections=np.empty((0, 0), np.float32))
    result = check_window(known.reference, window)
    assert result.fired == (LABELS, CONFIDENCE)
    assert result.projected == 0


def test_probabilities_that_differ_by_rounding_alone_give_no_alarm(known: Known) -> None:
    """A very sure model gives 1 on one processor and the number before 1 on another."""
    sure = replace(known.reference, probabilities=np.ones(known.reference.rows, np.float32))
    almost = np.full(WINDOW, np.nextafter(np.float32(1), np.float32(0)))
    window = replace(known.window(draw_many(WINDOW, seed=101)), probabilities=almost)
    result = check_window(sure, window)
    assert result.tests[CONFIDENCE].p == 1
    assert CONFIDENCE not in result.fired


def test_the_size_that_is_needed_is_within_500_images(known: Known) -> None:
    needed = images_needed(known.reference)
    assert all(size is not None and size < 500 for size in (needed[LABELS], needed[CONFIDENCE], needed[FEATURES]))


def test_the_lower_the_rate_the_fewer_alarms(known: Known) -> None:
    window = known.window(draw_many(WINDOW, seed=5, shares=(0.32, 0.25, 0.23, 0.2)))
    p = min(test.corrected for test in check_window(known.reference, window).tests.values())
    assert 0.001 < p < 0.2
    assert check_window(known.reference, window, false_alarm_rate=0.2).alarm
    assert not check_window(known.reference, window, false_alarm_rate=0.001).alarm


@pytest.mark.parametrize("rate", [0, 0.0001, 0.5, -1, float("nan")])
def test_a_rate_that_cannot_be_kept_is_refused(known: Known, rate: float) -> None:
    with pytest.raises(UsageError, match=r"`false_alarm_rate` must be in \[0.001, 0.2\]"):
        check_window(known.reference, known.window(draw_many(30, seed=0)), false_alarm_rate=rate)


def test_a_window_of_a_few_images_is_refused(known: Known) -> None:
    with pytest.raises(UsageError, match=r"a window needs at least 20 images\. Got 3\."):
        check_window(known.reference, Window(["ant"] * 3, np.ones(3), np.empty((0, 0))))


def test_the_reference_is_what_the_model_says_of_its_validation_split(known: Known) -> None:
    reference = known.reference
    assert reference.rows == 400
    assert set(reference.counts) == set(CLASSES)
    assert reference.origin["split"] == "validation"
    assert reference.projections.shape == (400, 64)
    np.testing.assert_allclose(np.linalg.norm(reference.projections, axis=1), 1, atol=1e-5)


def test_embeddings_are_what_goes_into_the_last_layer_and_probabilities_stay_the_same(known: Known) -> None:
    network, _ = load_model(str(known.folder))
    pixels = draw_many(50, seed=1)
    probabilities, embeddings = (np.asarray(output) for output in embedding_model(network)(pixels, training=False))
    np.testing.assert_array_equal(probabilities, predict_probabilities(network, pixels))
    kernel, bias = network.get_layer("logits").get_weights()
    np.testing.assert_allclose(embeddings @ kernel + bias, logits_of(network)(pixels), rtol=1e-4, atol=1e-4)


def test_an_unfrozen_head_gives_the_features_of_its_backbone() -> None:
    import keras

    inner = keras.Input((6,))
    head = keras.Model(inner, keras.layers.Dense(3, name="logits")(keras.layers.Dense(4)(inner)), name="head")
    pixels = keras.Input((4, 4, 3), dtype="uint8", name="pixels")
    features = keras.layers.Dense(6)(keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(pixels)))
    model = keras.Model(pixels, keras.layers.Softmax(name="probabilities")(head(features)))
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    probabilities, embeddings = embedding_model(model)(images)
    np.testing.assert_array_equal(probabilities, model(images))
    np.testing.assert_allclose(embeddings, keras.Model(pixels, features)(images), rtol=1e-5)


def test_distances_of_projections_are_those_of_the_kernel() -> None:
    rows = np.random.default_rng(2).normal(size=(30, 5)).astype(np.float32)
    bandwidth = median_distance(rows)
    projections = Projection(seed=3, size=20_000, bandwidth=bandwidth).apply(rows)
    distances = ((rows[:, None] - rows[None]) ** 2).sum(axis=-1)
    np.testing.assert_allclose(projections @ projections.T, np.exp(-distances / (2 * bandwidth**2)), atol=0.04)
    assert bandwidth == pytest.approx(np.sqrt(np.median(distances[np.triu_indices(30, 1)])), rel=1e-5)


def test_projections_are_the_same_in_every_version_of_numpy() -> None:
    normal = np.array(
        [[1.69052570, -0.46593737], [0.03282016, 0.40751628]]
    )  # what RandomState(7) has always begun with
    found = Projection(seed=7, size=4, bandwidth=2.0).apply(np.eye(2, dtype=np.float32))
    wanted = np.concatenate([np.cos(normal / 2), np.sin(normal / 2)], axis=1) / np.sqrt(2)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_images_that_are_all_alike_have_a_bandwidth() -> None:
    assert median_distance(np.ones((5, 3), np.float32)) == 1.0
    assert median_distance(np.ones((1, 3), np.float32)) == 1.0
