"""Tests of finetune.networks.augmentation: pixels against plain NumPy, the spread of what is drawn, independence of the batch."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from featurize.errors import UsageError
from featurize.recipes.training_section import AugmentationSettings
from finetune.networks.augmentation import augment
from finetune.networks.row_random import row_keys, uniforms

Pixels = NDArray[np.uint8]
EVERYTHING = AugmentationSettings(flip="both", shift=0.2, rotation=40, brightness=0.4)


def make_images(count: int, height: int = 9, width: int = 12, channels: int = 3) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def keys_of(count: int, *, epoch: int = 1) -> Any:
    return row_keys(42, epoch, tf.range(count, dtype=tf.int64))


def changed(images: Pixels, settings: AugmentationSettings, *, epoch: int = 1) -> Pixels:
    result: Pixels = augment(tf.constant(images), keys_of(len(images), epoch=epoch), settings).numpy()
    return result


def draws_of(count: int) -> NDArray[Any]:
    """What `changed` draws for each image, in [0, 1): flip across, flip down, shift across, shift down, angle, brightness."""
    result: NDArray[Any] = uniforms(keys_of(count), stream=0, count=6).numpy().astype(np.float64)
    return result


def reflected(position: NDArray[Any], size: int) -> NDArray[Any]:
    """Points of a line that goes on beyond its ends as its mirror image, between 0 and size - 1."""
    position = np.mod(position + 0.5, 2 * size)
    return np.clip(np.where(position > size, 2 * size - position, position) - 0.5, 0, size - 1)


def interpolated(image: Pixels, y: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
    """The image at points between its pixels, bilinear, in float64."""
    y, x = reflected(y, image.shape[0]), reflected(x, image.shape[1])
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    bottom, right = np.minimum(top + 1, image.shape[0] - 1), np.minimum(left + 1, image.shape[1] - 1)
    down, across = (y - top)[..., None], (x - left)[..., None]
    upper = image[top, left] * (1 - across) + image[top, right] * across
    lower = image[bottom, left] * (1 - across) + image[bottom, right] * across
    result: NDArray[Any] = upper * (1 - down) + lower * down
    return result


def by_numpy(image: Pixels, draws: NDArray[Any], settings: AugmentationSettings) -> NDArray[Any]:
    """The changed image in float64: each new pixel is moved back by the shift, turned back, flipped back, and looked up."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width].astype(float)
    x = x - (width - 1) / 2 - settings.shift * width * (2 * draws[2] - 1)
    y = y - (height - 1) / 2 - settings.shift * height * (2 * draws[3] - 1)
    angle = np.radians(settings.rotation) * (2 * np.floor(draws[4] * 4096) / 4095 - 1)
    x, y = np.cos(angle) * x + np.sin(angle) * y, -np.sin(angle) * x + np.cos(angle) * y
    x = -x if settings.flip in ("horizontal", "both") and draws[0] < 0.5 else x
    y = -y if settings.flip in ("vertical", "both") and draws[1] < 0.5 else y
    bright = 1 + settings.brightness * (2 * draws[5] - 1)
    pixels: NDArray[Any] = np.clip(interpolated(image, y + (height - 1) / 2, x + (width - 1) / 2) * bright, 0, 255)
    return pixels


@pytest.mark.parametrize(
    "chosen",
    [
        AugmentationSettings(shift=0.5),
        AugmentationSettings(rotation=180),
        AugmentationSettings(rotation=15, shift=0.1),
        AugmentationSettings(brightness=0.9),
        EVERYTHING,
    ],
    ids=["shift", "rotation", "both", "brightness", "everything"],
)
def test_pixels_against_numpy(chosen: AugmentationSettings) -> None:
    images = make_images(200)
    expected = np.stack([by_numpy(*pair, chosen) for pair in zip(images, draws_of(200), strict=True)])
    difference = np.abs(changed(images, chosen) - expected)
    assert difference.max() < 0.51  # rounded to whole numbers, and float32 on the way
    assert (changed(images, chosen) != images).any(axis=(1, 2, 3)).mean() > 0.99


def test_flips_are_exact_and_each_is_made_in_half_of_the_images() -> None:
    images = make_images(2000, 5, 4, 1)
    across, down = draws_of(2000)[:, 0] < 0.5, draws_of(2000)[:, 1] < 0.5
    mirrored = np.where(across[:, None, None, None], images[:, :, ::-1], images)
    turned_over = np.where(down[:, None, None, None], images[:, ::-1], images)
    both = np.where(down[:, None, None, None], mirrored[:, ::-1], mirrored)
    assert np.array_equal(changed(images, AugmentationSettings(flip="horizontal")), mirrored)
    assert np.array_equal(changed(images, AugmentationSettings(flip="vertical")), turned_over)
    assert np.array_equal(changed(images, AugmentationSettings(flip="both")), both)
    for first, second in ((across, down), (across, ~down)):
        assert abs(np.mean(first) - 0.5) < 5 * 0.5 / np.sqrt(2000)
        assert abs(np.mean(first & second) - 0.25) < 5 * 0.44 / np.sqrt(2000)


def test_rotation_against_pillow() -> None:
    y, x = np.mgrid[:40, :40]
    image = (128 + 60 * np.sin(x / 7) + 60 * np.cos(y / 5)).astype(np.uint8)
    turned = changed(np.repeat(image[None, :, :, None], 20, axis=0), AugmentationSettings(rotation=90))[..., 0]
    inner = np.hypot(x - 19.5, y - 19.5) < 18  # Pillow fills what comes in from beyond an edge with black
    for draw, pixels in zip(draws_of(20)[:, 4], turned, strict=True):
        angle = 90 * (2 * np.floor(draw * 4096) / 4095 - 1)
        by_pillow = np.asarray(Image.fromarray(image).rotate(-angle, Image.Resampling.BILINEAR))
        assert np.abs(pixels.astype(int) - by_pillow)[inner].max() <= 1


def test_shifts_and_brightness_fill_their_ranges_evenly() -> None:
    """Measured in the pixels: a ramp shows how far it was shifted, a grey image how bright it was made."""
    ramp = np.broadcast_to(np.arange(101, dtype=np.uint8)[None, None, :, None] * 2, (2000, 3, 101, 1))
    shifts = 100 - changed(ramp, AugmentationSettings(shift=0.2))[:, 1, 50, 0].astype(float)
    factors = changed(np.full((2000, 2, 2, 1), 100, np.uint8), AugmentationSettings(brightness=0.3)).mean(
        axis=(1, 2, 3)
    )
    for values, middle, radius in ((shifts, 0, 40.4), (factors, 100, 30)):
        counts = np.histogram((values - middle) / radius, bins=4, range=(-1.02, 1.02))[0]
        assert counts.sum() == 2000
        assert np.abs(counts - 500).max() < 5 * np.sqrt(2000 * 0.25 * 0.75)
    assert abs(np.corrcoef(shifts, factors)[0, 1]) < 5 / np.sqrt(2000)


def test_a_change_that_is_off_alters_nothing_of_the_others() -> None:
    images = make_images(50)
    bright = changed(images, AugmentationSettings(brightness=0.4))
    ratio = bright.astype(float).sum(axis=(1, 2, 3)) / images.astype(float).sum(axis=(1, 2, 3))
    grey = changed(np.full_like(images, 100), EVERYTHING).mean(axis=(1, 2, 3)) / 100
    assert np.abs(ratio - grey)[grey < 1].max() < 0.01  # brighter ones are cut off at 255


def test_nothing_asked_for_changes_nothing() -> None:
    images = make_images(20)
    assert np.array_equal(changed(images, AugmentationSettings()), images)


def test_epochs_differ_and_repeat() -> None:
    images = make_images(20)
    first, again, second = (changed(images, EVERYTHING, epoch=epoch) for epoch in (1, 1, 2))
    assert np.array_equal(first, again)
    assert (first != second).any(axis=(1, 2, 3)).all()


@given(st.lists(st.integers(0, 59), max_size=20), st.sampled_from([(9, 12, 3), (28, 28, 1), (1, 1, 1), (2, 5, 4)]))
@settings(max_examples=40)
def test_any_split_of_the_rows_gives_the_same_pixels(rows: list[int], shape: tuple[int, int, int]) -> None:
    images = make_images(60, *shape)
    whole = changed(images, EVERYTHING)
    keys = tf.gather(keys_of(60), tf.constant(rows, tf.int32))
    part = augment(tf.constant(images[np.array(rows, int)]), keys, EVERYTHING).numpy()
    assert part.shape == (len(rows), *shape)
    assert np.array_equal(part, whole[np.array(rows, int)])


def test_in_tf_data_with_many_threads() -> None:
    images = make_images(200)
    row_ids = np.arange(200)
    data = tf.data.Dataset.from_tensor_slices((images, row_ids)).batch(7)
    data = data.map(lambda x, ids: augment(x, row_keys(42, 1, ids), EVERYTHING), num_parallel_calls=4)
    assert np.array_equal(np.concatenate(list(data.as_numpy_iterator())), changed(images, EVERYTHING))


@pytest.mark.parametrize("features", [np.zeros((2, 6), np.float32), np.zeros((2, 4, 4, 3), np.float32)])
def test_features_that_are_no_pixels_are_refused(features: NDArray[Any]) -> None:
    with pytest.raises(UsageError, match=r"`training.augmentation` is for pixels.*Got float32"):
        augment(tf.constant(features), keys_of(2), EVERYTHING)
