"""Image bytes to pixels: every usual format and colour mode becomes uint8 RGB or grey, every fault a `DecodeError`.

All functions may be called from several threads.
"""

import json
from dataclasses import asdict, dataclass
from typing import Final, NotRequired, Self, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, JpegImagePlugin, TiffImagePlugin

from featurize.decoding.colours import Color, UnknownScaleError, to_rgb
from featurize.decoding.containers import Parts, take_apart
from featurize.decoding.exif import ExifSummary, defuse_exif, read_exif, read_orientation
from featurize.decoding.fitting import MAX_PIXELS, MAX_SIDE, Box, Fit, Interpolation, Way, drafted_size, fitted
from featurize.decoding.jpeg_xl import JxlFile
from featurize.decoding.reasons import (
    FORMATS,
    DecodeError,
    claimed_format,
    faults_as_decode_errors,
    open_file,
    unknown_format,
)

__all__ = [
    "FORMATS",
    "Color",
    "DecodeError",
    "DecodingOptions",
    "Fit",
    "ImageInfo",
    "Interpolation",
    "Way",
    "decode_image",
    "decode_sized",
    "inspect_image",
]

_TRANSPOSE_OF_ORIENTATION: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition for each EXIF orientation that turns the picture upright. Source: Exif 2.32, tag 0x0112; Pillow's
exif_transpose."""

_EXIF_SIGNATURE: Final = b"Exif\0\0"
_SIDEWAYS: Final = (5, 6, 7, 8)  # the orientations that swap width and height


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """The description of an image file.

    Attributes:
        format: Pillow's format name: "JPEG", "PNG", ...
        mode: Pillow's mode of the source, before conversion: "RGB", "L", "P", "CMYK", "I;16", ...
        width: Pixels, after EXIF orientation is applied.
        height: Pixels, after EXIF orientation is applied.
        exif: EXIF tag name -> text, of the main, the Exif and the GPS directory; no binary values, no MakerNote.
        metadata: Camera, exposure, time and place, from EXIF.
        colour_mean: Per RGB channel, in [0, 255], over all pixels as converted by `decode_image`; None: their scale is unknown.
        colour_std: Per RGB channel, population standard deviation, in [0, 127.5]; None: their scale is unknown.
        notes: What could not be read of the metadata, which costs no picture: a line each.
    """

    format: str
    mode: str
    width: int
    height: int
    exif: dict[str, str]
    metadata: ExifSummary
    colour_mean: tuple[float, float, float] | None
    colour_std: tuple[float, float, float] | None
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The description as one line of JSON, for another process; `from_json` gives an equal object."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads what `to_json` wrote."""
        fields = json.loads(text)
        fields["metadata"] = ExifSummary(**fields["metadata"])
        for name in ("colour_mean", "colour_std", "notes"):
            fields[name] = None if fields[name] is None else tuple(fields[name])
        return cls(**fields)


class DecodingOptions(TypedDict):
    """How an image becomes pixels: the keyword arguments of `decode_image`."""

    height: int
    width: int
    channels: NotRequired[int]
    fit: NotRequired[Fit | None]
    color: NotRequired[Color]
    white: NotRequired[float | None]


def decode_image(content: bytes, **options: Unpack[DecodingOptions]) -> NDArray[np.uint8]:
    """Decodes an image, turns it upright and stretches it to the requested size.

    The first frame or page is used. Alpha, in a channel, a palette or a transparent colour, is composited over white.
    Grey of more than 8 bits is scaled by what its format says, see `colours`, or by `white`. CMYK without a profile becomes RGB
    by Pillow's formula. Resampling is Pillow's antialiased bilinear filter on the
    RGB image; an image that has the requested size already keeps its pixels.

    A JPEG at least four times the requested size is decoded at 1/2, 1/4 or 1/8 (libjpeg's scaled DCT), which leaves at least
    twice the requested size for resampling. Compared with a full decode, the mean absolute difference over an image stays
    under 3 of 255 levels (900 decodes of photographs to 32, 64 and 96 pixels: 0.4 on average, 2.1 at most).

    Args:
        content: The file's bytes.
        height: Pixels, at least 1.
        width: Pixels, at least 1.
        channels: 3 for RGB, 1 for grey (ITU-R 601 luma of the resized RGB image).
        fit: how the picture is resized, cropped or padded; None: it is stretched, as above.
        color: "srgb": a picture with a colour profile is converted to sRGB; "raw": profiles are ignored.
        white: The value that is white in grey images of more than 8 bits; None: what the format says.

    Returns:
        uint8 ``(height, width, channels)`` in [0, 255], writable.

    Raises:
        DecodeError: The bytes are empty, truncated, damaged, too large an image, or in none of `FORMATS`.
        ValueError: The size or the number of channels is invalid.
    """
    return decode_sized(content, **options)[0]


def decode_sized(
    content: bytes,
    *,
    height: int,
    width: int,
    channels: int = 3,
    fit: Fit | None = None,
    color: Color = "srgb",
    white: float | None = None,
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Decodes like `decode_image`, and also returns the width and height in pixels of the upright image in its file."""
    if height < 1 or width < 1:
        raise ValueError(f"`height` and `width` must be at least 1. Got {height} and {width}.")
    if channels not in (1, 3):
        raise ValueError(f"`channels` must be 1 or 3. Got {channels}.")
    with faults_as_decode_errors(content):
        image, parts = _open(content)
        size = image.size
        box = draft(image, fit, height=height, width=width)
        image.load()
        orientation = read_orientation(image)
        if box is None:
            size = image.size  # loading turns a TIFF upright
        is_sideways = orientation in _SIDEWAYS
        upright_size = size[::-1] if is_sideways else size
        rgb = to_rgb(image, parts, color=color, white=white)
        if fit is not None:
            part = _turned_box(box or Box(0, 0, *rgb.size), rgb.size, orientation)
            rgb = fitted(_turned(rgb, orientation), fit, height=height, width=width, picture=part, size=upright_size)
        else:  # turned after resizing, as there are fewer pixels to move
            rgb = rgb.resize((height, width) if is_sideways else (width, height), Image.Resampling.BILINEAR, box=box)
            rgb = _turned(rgb, orientation)
        pixels = np.array(rgb if channels == 3 else rgb.convert("L"), dtype=np.uint8)
    return pixels.reshape(height, width, channels), upright_size


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image if orientation == 1 else image.transpose(_TRANSPOSE_OF_ORIENTATION[orientation])


def _turned_box(box: Box, size: tuple[int, int], orientation: int) -> Box:
    """Where a part of a picture of width and height `size` is after turning it upright."""
    left, top, right, bottom = box
    width, height = size
    match orientation:
        case 2:
            return Box(width - right, top, width - left, bottom)
        case 3:
            return Box(width - right, height - bottom, width - left, height - top)
        case 4:
            return Box(left, height - bottom, right, height - top)
        case 5:
            return Box(top, left, bottom, right)
        case 6:
            return Box(height - bottom, left, height - top, right)
        case 7:
            return Box(height - bottom, width - right, height - top, width - left)
        case 8:
            return Box(top, width - right, bottom, width - left)
    return box


def inspect_image(content: bytes) -> ImageInfo:
    """Decodes an image completely, at full size, so that every fault shows, and describes it.

    Raises:
        DecodeError: Raised by `decode_image` for the same reasons.
    """
    with faults_as_decode_errors(content):
        image, parts = _open(content)
        mode = image.mode
        image.load()
        width, height = image.size[::-1] if read_orientation(image) in _SIDEWAYS else image.size
        mean, std = _statistics_if_known(image, parts)
        exif, metadata = read_exif(image)
        notes = tuple(parts.notes)
        return ImageInfo(str(image.format), mode, width, height, exif, metadata, mean, std, notes)


def _open(content: bytes) -> tuple[ImageFile.ImageFile, Parts]:
    """Reads the header and checks the size; no pixels are decoded yet. Returns the image and the parts of its file."""
    if not content:
        raise DecodeError("the file is empty")
    kind = claimed_format(content)
    if kind is None:
        raise DecodeError(unknown_format(content))
    parts = take_apart(content)
    image = open_file(parts.content, kind)
    if image.width * image.height > MAX_PIXELS:
        raise DecodeError(f"the image has {image.width} x {image.height} pixels, more than the limit of {MAX_PIXELS}")
    if max(image.size) > MAX_SIDE:
        raise DecodeError(f"the image has {image.width} x {image.height} pixels, more than {MAX_SIDE} on a side")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        defuse_exif(image)
    if isinstance(image, JxlFile):
        if image.is_animation:
            raise DecodeError("animations in JPEG XL are not supported")
        image.load()  # before that it does not know its mode
        if image.jpeg is not None:
            return _open(image.jpeg)
        parts.notes += image.notes
    found = {
        "exif": None if parts.exif is None else _EXIF_SIGNATURE + parts.exif,
        "xmp": parts.xmp,
        "icc_profile": parts.profile,
    }
    image.info |= {name: data for name, data in found.items() if data is not None}
    return image, parts


def draft(image: ImageFile.ImageFile, fit: Fit | None, *, height: int, width: int) -> Box | None:
    """Lets a large JPEG be decoded at a fraction of its size, with at least twice `height` x `width` for what is used of it.

    Returns:
        The part of the reduced image with the picture (its last row and column may be padding), or None for all of it.
    """
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return None
    is_sideways = read_orientation(image) in _SIDEWAYS
    size = (width, height)
    if fit is not None:
        upright = image.size[::-1] if is_sideways else image.size
        wanted = drafted_size(fit, width=upright[0], height=upright[1], to=(height, width))
        if wanted is None:
            return None
        size = wanted
    if is_sideways:
        size = size[::-1]
    reduced = image.draft(None, (2 * size[0], 2 * size[1]))
    return None if reduced is None else Box(*reduced[1])


def _statistics_if_known(
    image: ImageFile.ImageFile, parts: Parts
) -> tuple[tuple[float, float, float], tuple[float, float, float]] | tuple[None, None]:
    try:
        return _colour_statistics(to_rgb(image, parts))
    except (
        UnknownScaleError
    ) as error:  # a table of images is no place to say it: feature sets may have another scale each
        parts.notes.append(str(error))
        return None, None


def _colour_statistics(rgb: Image.Image) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Exact mean and standard deviation per channel, from the histogram, without a float copy of a large image."""
    counts = np.array(rgb.histogram(), dtype=np.float64).reshape(3, 256)
    weights = counts / counts.sum(axis=1, keepdims=True)
    levels = np.arange(256, dtype=np.float64)
    mean = weights @ levels
    red, green, blue = np.sqrt((weights * (levels - mean[:, None]) ** 2).sum(axis=1)).tolist()
    return (float(mean[0]), float(mean[1]), float(mean[2])), (red, green, blue)
