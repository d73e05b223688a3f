"""Loaded images of every mode as RGB: transparency over white, samples of more than 8 bits scaled to 8."""

import io
import math
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFile, PngImagePlugin, TiffImagePlugin

from featurize.decoding.containers import Parts
from featurize.decoding.reasons import DecodeError

_ASSOCIATED, _UNASSOCIATED, _COREL = 1, 2, 999
"""TIFF's values of ExtraSamples that mean alpha: TIFF 6.0, page 31; the last one is what an old program wrote."""

_PNG_DEPTH: Final = 24
"""Where in a PNG the bit depth of its samples is."""


def to_rgb(image: ImageFile.ImageFile, parts: Parts) -> Image.Image:
    """A loaded image of any mode in mode "RGB", transparent parts over white."""
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_wide_grey_to_8_bit(image)).convert("RGB")
    if image.mode == "LAB":
        raise DecodeError("images in CIELAB colours are not supported")
    if parts.transparent is not None and image.mode != "P":
        return _over_white(image.convert("RGB"), _transparent_colour(image, parts))
    if image.has_transparency_data and not _is_alpha_unused(image):
        straight = (
            image.convert("LA") if image.mode == "La" else image
        )  # premultiplied grey has no direct conversion to RGBA
        rgba = straight.convert("RGBA")
        return _over_white(rgba.convert("RGB"), rgba.getchannel("A"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _over_white(rgb: Image.Image, alpha: Image.Image) -> Image.Image:
    """The results of Image.alpha_composite, for all 65,536 pairs of level and alpha, in half the time and memory."""
    white = Image.new("RGB", rgb.size, "white")
    white.paste(rgb, mask=alpha)
    return white


def _is_alpha_unused(image: ImageFile.ImageFile) -> bool:
    """Whether a fourth channel is no alpha: it is 0 in the whole of a BMP, or a TIFF does not say that it is alpha.

    Programs that take screenshots write 0, and every viewer shows them opaque. The fourth band of an aerial photograph is near
    infrared.
    """
    if image.mode != "RGBA":
        return False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        extra = image.tag_v2.get(TiffImagePlugin.EXTRASAMPLES, ())
        return not {_ASSOCIATED, _UNASSOCIATED, _COREL} & set(extra if isinstance(extra, tuple) else (extra,))
    return image.format == "BMP" and image.getchannel("A").getextrema() == (0, 0)


def _transparent_colour(image: ImageFile.ImageFile, parts: Parts) -> Image.Image:
    """0 where a PNG has the transparent colour, else 255. It is compared with samples as they are stored."""
    depth, wanted = parts.content[_PNG_DEPTH], parts.transparent or ()
    if depth < 16:
        most = (1 << depth) - 1
        levels = [(value & most) * 255 // most for value in wanted]
        return _unlike(image.convert("L") if len(levels) == 1 else image, levels)
    # 16-bit RGB: Pillow gives the high bytes, or the low ones if it is asked for the other order of bytes.
    low_bytes = PngImagePlugin.PngImageFile(io.BytesIO(parts.content))
    low_bytes.tile = [tile._replace(args="RGB;16L") for tile in low_bytes.tile]
    low_bytes.load()
    high = _unlike(image, [value >> 8 for value in wanted])
    return ImageChops.lighter(high, _unlike(low_bytes, [value & 255 for value in wanted]))


def _unlike(image: Image.Image, levels: list[int]) -> Image.Image:
    """255 where a pixel differs from `levels`, else 0."""
    differs = Image.new("L", image.size)
    for channel, level in zip(image.split(), levels, strict=True):
        differs = ImageChops.lighter(differs, channel.point([255 * (value != level) for value in range(256)]))
    return differs


def _wide_grey_to_8_bit(image: Image.Image) -> NDArray[np.uint8]:
    """Grey of more than 8 bits, scaled to 8; Pillow's own conversion would clip everything above 255 to white.

    - "I;16" and "I" (Pillow's mode for 16-bit PGM) hold 0 to 65535, a 12-bit TIFF 0 to 4095. An "I" image beyond that
      range has no known white and is refused.
    - "F": values within [0, 1] are scaled by 255, values within [0, 255] are rounded; other ranges have no
      known white and are refused, as are infinite and not-a-number values.

    Returns:
        uint8 ``(height, width)``; a PNG's transparent grey is white.
    """
    tiff_tags: Mapping[int, object] = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    samples = np.asarray(image)
    low, high = float(samples.min()), float(samples.max())
    if not math.isfinite(low) or not math.isfinite(high):
        raise DecodeError("the image has infinite or not-a-number values")
    if image.mode == "F":
        white = 1 if high <= 1 else 255
    else:
        white = 4095 if tiff_tags.get(TiffImagePlugin.BITSPERSAMPLE) == (12,) else 65535
    if low < 0 or high > white:
        raise DecodeError(f"grey values from {low:g} to {high:g} have no known scale")
    grey: NDArray[np.uint8] = np.rint(samples.astype(np.float32) * np.float32(255 / white)).astype(np.uint8)
    if tiff_tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:  # white is zero; Pillow inverts only 8 bits
        grey = np.invert(grey)
    if isinstance(transparent := image.info.get("transparency"), int):
        grey[samples == transparent] = 255
    return grey
