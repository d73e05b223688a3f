"""From an upright picture of any shape to the height and width that a network takes: stretched, cropped or padded."""

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featurize.decoding.reasons import DecodeError

Interpolation = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
"""Pillow's filters for resampling, by the names of `PIL.Image.Resampling` in lower case."""

Way = Literal["crop", "pad"]
"""How the shape of a picture becomes that of the input, where no size is stated."""

MAX_PIXELS: int = 100_000_000
"""A larger image is refused after reading its header, before any pixel is decoded."""

MAX_SIDE: int = 1_000_000
"""Largest width and height, in pixels. Pillow's time per pixel grows with the width: at 4 million, 20 rows take 6 s."""

STRETCHED: Final = "stretched, Pillow bilinear"
"""What `describe_fit` says of no fit."""

PLAIN: Final = ("nearest", "bilinear", "bicubic")
"""The filters that can do without antialiasing."""

_KEYS_A = -0.5  # the parameter of the bicubic filter of Pillow, and of Keys (1981)


class Box(NamedTuple):
    """A part of a picture, in pixels, which may be fractions."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, slots=True)
class Fit:
    """How a picture of any shape becomes one of `height` x `width`, where it is not just stretched.

    With a size, it is resized to it and its central part taken: equal to Pillow's `resize` of the whole upright RGB picture and
    its central part. "crop" takes the largest central part with the shape of the input, "pad" puts the whole picture in the
    middle of the smallest black one with that shape, and both resize it then.
    Source of "crop" and "pad": `smart_resize` of Keras; `crop_to_aspect_ratio` and `pad_to_aspect_ratio` of its data sets.

    Attributes:
        resize: pixels of the shorter side, the longer one in proportion (rounded down); or height and width; or "crop" or "pad".
        interpolation: Pillow's filter.
        offset: how the offset of the central part is rounded where half a pixel remains: "floor" as Hugging Face's processors
            do, "round" (half to even) as torchvision's `CenterCrop`, and so timm, does.
        antialias: whether a picture that becomes smaller is averaged; otherwise a pixel is made of the 1, 4 or 16 next to its
            place, as TensorFlow and Keras do it by default.
        draft: whether a large JPEG may be decoded at a fraction of its size, see `decode_image`.
    """

    resize: int | tuple[int, int] | Way
    interpolation: Interpolation = "bilinear"
    offset: Literal["floor", "round"] = "floor"
    antialias: bool = True
    draft: bool = False

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels of a picture of `height` x `width` after resizing to a size, before the crop."""
        if isinstance(self.resize, str):
            raise ValueError(f"{self.resize!r} states no size.")
        if isinstance(self.resize, tuple):
            return self.resize
        short, long = sorted((height, width))
        longer = int(self.resize * long / short)
        return (self.resize, longer) if height <= width else (longer, self.resize)

    def start(self, length: int, cropped: int) -> int:
        """The first of `cropped` central pixels out of `length`."""
        return (length - cropped) // 2 if self.offset == "floor" else round((length - cropped) / 2)


def describe_fit(fit: Fit | None, *, height: int, width: int) -> str:
    """The resizing in words, for the manifest."""
    if fit is None:
        return STRETCHED
    part = f", central {height} x {width}"
    match fit.resize:
        case "crop":
            to, part = f"the largest central part with the shape of {height} x {width}", ""
        case "pad":
            to, part = f"black borders to the shape of {height} x {width}", ""
        case int(side):
            to = f"shorter side to {side}"
        case sizes:
            to = "stretched to {} x {}".format(*sizes)
    filter = f"Pillow {fit.interpolation}" if fit.antialias else f"{fit.interpolation} without antialiasing"
    return f"{to}, {filter}{part}" + (", JPEG at a fraction" if fit.draft else "")


def drafted_size(fit: Fit, *, width: int, height: int, to: tuple[int, int]) -> tuple[int, int] | None:
    """Width and height of a picture of `width` x `height` when its part for an input of height and width `to` has that size.

    None: it must be decoded whole.
    """
    if not fit.draft or fit.resize == "pad":
        return None
    box = _part(fit, width=width, height=height, to=to)
    part_width, part_height = box.right - box.left, box.bottom - box.top
    return max(1, int(width * to[1] / part_width)), max(1, int(height * to[0] / part_height))


def fitted(
    upright: Image.Image, fit: Fit, *, height: int, width: int, picture: Box, size: tuple[int, int]
) -> Image.Image:
    """An upright picture as RGB of `height` x `width`.

    Args:
        upright: RGB, perhaps decoded at a fraction of its size. It must be upright: Pillow rounds between rows and columns.
        fit: how.
        height: in pixels.
        width: in pixels.
        picture: the part of `upright` with the picture.
        size: width and height of the picture in its file, turned upright.

    Raises:
        DecodeError: it would be too small, or too large.
    """
    wide, high = size
    if fit.resize == "pad":
        return _sampled(_padded(upright, height=height, width=width), fit, None, height=height, width=width)
    box = _part(fit, width=wide, height=high, to=(height, width))
    is_reduced = upright.size != size
    if not isinstance(fit.resize, str) and fit.antialias and not is_reduced:
        tall, broad = fit.resized(high, wide)
        if not _is_too_large(broad, tall):
            left, top = fit.start(broad, width), fit.start(tall, height)
            resized = upright.resize((broad, tall), Image.Resampling[fit.interpolation.upper()])
            return resized.crop((left, top, left + width, top + height))
        if not fit.draft:
            raise _too_large(f"resized to {broad} x {tall}")
    if fit.resize == "crop" and not is_reduced:  # what is beyond the part has no share in it
        return _sampled(upright.crop(box), fit, None, height=height, width=width)
    across, down = (picture.right - picture.left) / wide, (picture.bottom - picture.top) / high
    part = Box(
        picture.left + box.left * across,
        picture.top + box.top * down,
        min(picture.left + box.right * across, upright.width),
        min(picture.top + box.bottom * down, upright.height),
    )
    return _sampled(upright, fit, part, height=height, width=width)


def _part(fit: Fit, *, width: int, height: int, to: tuple[int, int]) -> Box:
    """The part of a picture that becomes the input of height and width `to`.

    Raises:
        DecodeError: the picture, resized, is smaller than it.
    """
    if isinstance(fit.resize, str):
        part_height, part_width = min(height, _shaped(width, to[0], to[1])), min(width, _shaped(height, to[1], to[0]))
        left, top = (width - part_width) // 2, (height - part_height) // 2
        return Box(left, top, left + part_width, top + part_height)
    tall, wide = fit.resized(height, width)
    if tall < to[0] or wide < to[1]:
        raise DecodeError(f"the image, resized to {wide} x {tall}, does not fit {to[1]} x {to[0]} pixels")
    left, top = fit.start(wide, to[1]), fit.start(tall, to[0])
    across, down = width / wide, height / tall
    return Box(left * across, top * down, (left + to[1]) * across, (top + to[0]) * down)


def _is_too_large(width: int, height: int) -> bool:
    return width * height > MAX_PIXELS or max(width, height) > MAX_SIDE


def _too_large(how: str) -> DecodeError:
    return DecodeError(f"the image, {how}, has more than {MAX_PIXELS} pixels, or {MAX_SIDE} on a side")


def _shaped(length: int, this: int, other: int) -> int:
    """The side that goes with `length` in the shape `this` : `other`, at least a pixel."""
    return max(1, int(length * this / other))


def _padded(upright: Image.Image, *, height: int, width: int) -> Image.Image:
    """The picture between two equal black borders, which give it the shape of the input but for a pixel."""
    above = max(0, _shaped(upright.width, height, width) - upright.height) // 2
    beside = max(0, _shaped(upright.height, width, height) - upright.width) // 2
    if not (above or beside):
        return upright
    wide, tall = upright.width + 2 * beside, upright.height + 2 * above
    if _is_too_large(wide, tall):
        raise _too_large(f"padded to {wide} x {tall}")
    whole = Image.new("RGB", (wide, tall))
    whole.paste(upright, (beside, above))
    return whole


def _sampled(image: Image.Image, fit: Fit, part: Box | None, *, height: int, width: int) -> Image.Image:
    if fit.antialias or fit.interpolation == "nearest":
        return image.resize((width, height), Image.Resampling[fit.interpolation.upper()], box=part)
    part = part or Box(0, 0, *image.size)
    rows, across = _neighbours(fit.interpolation, part.top, part.bottom, height, image.height)
    columns, along = _neighbours(fit.interpolation, part.left, part.right, width, image.width)
    pixels = np.asarray(image)
    wide = np.zeros((height, image.width, 3), np.float32)
    for row, weight in zip(rows, across, strict=True):
        wide += weight[:, None, None] * pixels[row]
    values = np.zeros((height, width, 3), np.float32)
    for column, weight in zip(columns, along, strict=True):
        values += weight[None, :, None] * wide[:, column]
    return Image.fromarray(np.rint(values).clip(0, 255).astype(np.uint8))


def _neighbours(
    interpolation: Interpolation, start: float, end: float, length: int, whole: int
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """The pixels that each of `length` is made of, which lie from `start` to `end` in a line of `whole`, and their weights.

    Source: TensorFlow, `tf.image.resize` without antialiasing: centres of pixels are half-way, and weights beyond the picture are
    given to those within.

    Returns:
        ``(2 or 4, length)`` indices, and float32 weights of that shape, whose sum is 1 for each pixel.
    """
    places = start + (np.arange(length) + 0.5) * (end - start) / length - 0.5
    first = np.floor(places).astype(np.intp)
    if interpolation == "bilinear":
        indices = first + np.arange(2)[:, None]
        weights = 1 - np.abs(places - indices)
        return indices.clip(0, whole - 1), weights.astype(np.float32)
    indices = first + np.arange(-1, 3)[:, None]
    far = np.abs(places - indices)
    near = ((_KEYS_A + 2) * far - (_KEYS_A + 3)) * far**2 + 1
    beyond = ((far - 5) * far + 8) * far * _KEYS_A - 4 * _KEYS_A
    weights = np.where(far <= 1, near, beyond) * ((indices >= 0) & (indices < whole))
    return indices.clip(0, whole - 1), (weights / weights.sum(axis=0)).astype(np.float32)
