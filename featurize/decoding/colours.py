"""Loaded images of every mode as RGB: transparency over white, samples of more than 8 bits scaled to 8."""

import io
import math
from collections.abc import Mapping
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import GifImagePlugin, Image, ImageChops, ImageFile, PngImagePlugin, TiffImagePlugin

from featurize.decoding.containers import Parts
from featurize.decoding.profiles import to_srgb
from featurize.decoding.reasons import DecodeError

_ASSOCIATED, _UNASSOCIATED, _COREL = 1, 2, 999
"""TIFF's values of ExtraSamples that mean alpha: TIFF 6.0, page 31; the last one is what an old program wrote."""

_LEAST_VALUE, _MOST_VALUE = 340, 341
"""TIFF's SMinSampleValue and SMaxSampleValue."""

_PNG_DEPTH: Final = 24
"""Where in a PNG the bit depth of its samples is."""


Color = Literal["srgb", "raw"]
"""Whether pictures with a colour profile are converted to sRGB, or profiles are ignored."""


class UnknownScaleError(DecodeError):
    """Nothing says which value of a grey image of more than 8 bits is white."""


def to_rgb(
    image: ImageFile.ImageFile, parts: Parts, *, color: Color = "srgb", white: float | None = None
) -> Image.Image:
    """A loaded image of any mode in mode "RGB", transparent parts over white.

    Args:
        image: The image.
        parts: The parts of its file.
        color: As for `decode_image`.
        white: As for `decode_image`.

    Raises:
        DecodeError: The colours are of a kind that is not supported.
        UnknownScaleError: Nothing says which value is white.
    """
    profile = image.info.get("icc_profile") if color == "srgb" else None

    def opaque(picture: Image.Image) -> Image.Image:
        return to_srgb(picture, profile, parts.notes) if profile else picture.convert("RGB")

    if image.mode.startswith("I") or image.mode == "F":
        grey, transparent = _wide_grey_to_8_bit(image, white)
        rgb = opaque(Image.fromarray(grey))
        return rgb if transparent is None else _over_white(rgb, Image.fromarray(transparent))
    if image.mode == "LAB":
        raise DecodeError("images in CIELAB colours are not supported")
    if parts.transparent is not None and image.mode != "P":
        return _over_white(opaque(image), _transparent_colour(image, parts))
    if image.has_transparency_data and not _is_alpha_unused(image):
        straight = image.convert("LA") if image.mode == "La" else image  # premultiplied grey has no conversion to RGBA
        alpha = straight.convert("RGBA").getchannel("A")
        return _over_white(
            opaque(straight.getchannel("L") if straight.mode == "LA" else straight.convert("RGBA")), alpha
        )
    if isinstance(image, GifImagePlugin.GifImageFile):
        return _on_its_screen(opaque(image), image.dispose_extent)
    return image if image.mode == "RGB" and not profile else opaque(image)


def _on_its_screen(rgb: Image.Image, covered: tuple[int, int, int, int] | None) -> Image.Image:
    """White where the picture of a GIF does not cover its screen: browsers show what is behind; Pillow has the first colour."""
    if covered in (None, (0, 0, *rgb.size)):
        return rgb
    white = Image.new("RGB", rgb.size, "white")
    white.paste(rgb.crop(covered), covered)
    return white


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


def _wide_grey_to_8_bit(
    image: Image.Image, asked_white: float | None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Grey of more than 8 bits, scaled to 8; Pillow's own conversion would clip everything above 255 to white.

    White is what the recipe says; else what the format says: 65535 for 16 bits, 4095 for a TIFF of 12; for floats 1 in a JPEG XL,
    and in a TIFF what its tags SMinSampleValue and SMaxSampleValue say (TIFF 6.0, page 80). Values beyond black and white are
    clipped where white is given, by tags, JPEG XL or the recipe. It is never guessed from the values.

    Returns:
        uint8 ``(height, width)``; and an alpha of that shape, 0 where a PNG has its transparent grey; None: it has none.

    Raises:
        UnknownScaleError: Neither says it.
    """
    tags: Mapping[int, object] = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    samples = np.asarray(image)
    if not np.isfinite(samples.astype(np.float32) if samples.dtype.kind == "f" else 0).all():
        raise DecodeError("the image has infinite or not-a-number values")
    low, high = float(samples.min()), float(samples.max())
    black, white, is_given = _black_and_white(image, tags, asked_white)
    if not is_given and (low < black or high > white):
        raise UnknownScaleError(_unknown(f"grey values from {low:g} to {high:g} have no known scale"))
    scaled = (samples.astype(np.float32) - np.float32(black)) * np.float32(255 / (white - black))
    grey: NDArray[np.uint8] = np.rint(scaled.clip(0, 255)).astype(np.uint8)
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:  # white is zero; Pillow inverts only 8 bits
        grey = np.invert(grey)
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return grey, None
    return grey, np.where(samples == transparent, 0, 255).astype(np.uint8)


def _black_and_white(
    image: Image.Image, tags: Mapping[int, object], asked_white: float | None
) -> tuple[float, float, bool]:
    """The values that are black and white, and whether somebody has said so for this image or its set."""
    if asked_white is not None:
        return 0.0, asked_white, True
    if image.format == "JXL" and image.mode == "F":
        return 0.0, 1.0, True
    if image.mode != "F":
        return 0.0, 4095.0 if tags.get(TiffImagePlugin.BITSPERSAMPLE) == (12,) else 65535.0, False
    least, most = (_first_number(tags.get(tag)) for tag in (_LEAST_VALUE, _MOST_VALUE))
    if most is None or most <= (least or 0.0):
        raise UnknownScaleError(_unknown("an image of floats has no known scale"))
    return least or 0.0, most, True


def _first_number(value: object) -> float | None:
    first = value[0] if isinstance(value, tuple) and value else value
    return float(first) if isinstance(first, int | float) and math.isfinite(first) else None


def _unknown(what: str) -> str:
    return f"{what}: `images.white` says which value is white, such as 1, 255 or 65535"
