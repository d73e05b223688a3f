"""Random changes to training images. Each depends only on the seed, the epoch and the image; see `row_random`."""

import math
from typing import TYPE_CHECKING

import numpy as np

from featurize.errors import UsageError
from featurize.recipes.training_section import AugmentationSettings
from finetune.networks.row_random import uniforms

if TYPE_CHECKING:
    import tensorflow as tf

_STREAM = 0  # dropout uses the other streams
_DRAWS = 6
_ANGLES = 4096


def augment(images: "tf.Tensor", keys: "tf.Tensor", settings: AugmentationSettings) -> "tf.Tensor":
    """`images`, each randomly flipped, then rotated, then shifted, then made brighter or darker.

    Pixels from beyond an edge are the image reflected there. Turning one change off does not alter the others.

    Args:
        images: ``uint8 (n_images, height, width, channels)``.
        keys: Keys of the images from `row_random.row_keys`: ``uint64 (n_images,)``.
        settings: The changes. Flips have probability 1/2 each; shift, rotation and brightness are uniform within their limits.

    Returns:
        ``uint8``, of the shape of `images`.

    Raises:
        UsageError: `images` are not images.
    """
    import tensorflow as tf

    if images.dtype != tf.uint8 or images.shape.rank != 4:
        received = f"{images.dtype.name} {tuple(images.shape)}"
        raise UsageError(
            f"`training.augmentation` is for pixels: uint8 (images, height, width, channels). Got {received}."
        )
    draws = tf.unstack(uniforms(keys, stream=_STREAM, count=_DRAWS), axis=1)
    if settings.flip in ("horizontal", "both"):
        images = _flipped(images, draws[0], axis=2)
    if settings.flip in ("vertical", "both"):
        images = _flipped(images, draws[1], axis=1)
    if not (settings.shift or settings.rotation or settings.brightness):
        return images
    pixels = tf.cast(images, tf.float32)
    if settings.shift or settings.rotation:
        pixels = _moved(pixels, draws[2:5], settings)
    if settings.brightness:
        pixels *= tf.reshape(1 + settings.brightness * _signed(draws[5]), [-1, 1, 1, 1])
    return tf.saturate_cast(tf.round(pixels), tf.uint8)


def _flipped(images: "tf.Tensor", draws: "tf.Tensor", *, axis: int) -> "tf.Tensor":
    """`images`, half of them reversed along an axis."""
    import tensorflow as tf

    # `select` copies whole images; tf.where, which broadcasts, goes pixel by pixel.
    return tf.raw_ops.Select(condition=draws < 0.5, x=tf.reverse(images, [axis]), y=images)


def _moved(pixels: "tf.Tensor", draws: list["tf.Tensor"], settings: AugmentationSettings) -> "tf.Tensor":
    """``float32`` images, rotated and shifted in one step, so that they are interpolated once, bilinearly.

    A point p of the new image is taken from c + R^-1 (p - c - s) of the old one: c the centre, R the rotation, s the shift.
    """
    import tensorflow as tf

    height, width = pixels.shape[1:3]
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    from_x = centre_x + settings.shift * width * _signed(draws[0])
    from_y = centre_y + settings.shift * height * _signed(draws[1])
    cosine, sine = _direction(draws[2], settings.rotation)
    x_offset = centre_x - cosine * from_x - sine * from_y
    y_offset = centre_y + sine * from_x - cosine * from_y
    nothing = tf.zeros_like(x_offset)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=pixels,
        transforms=tf.stack([cosine, sine, x_offset, -sine, cosine, y_offset, nothing, nothing], axis=1),
        output_shape=[height, width],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="REFLECT",
    )


def _signed(draws: "tf.Tensor") -> "tf.Tensor":
    """Numbers in [0, 1) mapped to [-1, 1)."""
    return 2 * draws - 1


def _direction(draws: "tf.Tensor", degrees: float) -> tuple["tf.Tensor", "tf.Tensor"]:
    """Cosine and sine of one of 4,096 angles, evenly spaced from -`degrees` to `degrees`.

    They are read from a table: TensorFlow's own functions may differ in the last bit with an image's position in a batch, as
    the last ones are not computed in vectors.
    """
    import tensorflow as tf

    angles = math.radians(degrees) * np.linspace(-1, 1, _ANGLES)
    places = tf.cast(draws * _ANGLES, tf.int32)
    cosines, sines = (tf.gather(tf.constant(of(angles), tf.float32), places) for of in (np.cos, np.sin))
    return cosines, sines
