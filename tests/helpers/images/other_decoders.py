"""Other decoders, which give what Firn should: RGB over white, in [0, 255], upright; for the tests."""

import cv2
import numpy as np
import pyvips
from numpy.typing import NDArray

from featurize.decoding.decode import Color

_SCALE = {"uint8": 1.0, "uint16": 1 / 257, "float32": 255.0}
Pixels = NDArray[np.float64]

cv2.setLogLevel(0)


class UnreadError(Exception):
    """The other decoder does not read such files."""


def by_libvips(content: bytes, *, color: Color) -> Pixels:
    """``(height, width, 3)``; profiles are converted as Firn does, with LittleCMS in libvips too."""
    try:
        image = pyvips.Image.new_from_buffer(content, "", fail_on="error").autorot()
        if color == "srgb" and image.get_typeof("icc-profile-data"):
            options = {"intent": "relative", "black_point_compensation": True, "depth": 8}
            image = image.icc_transform("srgb", embedded=True, **options)
        elif image.format == "float":
            image *= _SCALE["float32"]
        elif image.interpretation != "srgb":
            image = image.colourspace("srgb")
        pixels = image.flatten(background=255).numpy() if image.hasalpha() else image.numpy()
    except pyvips.Error as error:
        raise UnreadError(str(error)) from error
    return _rgb(pixels.astype(np.float64))


def by_opencv(content: bytes, *, is_turned: bool) -> Pixels:
    """``(height, width, 3)``; it ignores profiles, and gives alpha only without turning pictures upright."""
    flags = cv2.IMREAD_COLOR if is_turned else cv2.IMREAD_UNCHANGED
    try:
        found = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:
        raise UnreadError(str(error)) from error
    if found is None:
        raise UnreadError("it gives nothing")
    pixels = found.astype(np.float64) * _SCALE[found.dtype.name]
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        alpha = pixels[..., 3:]
        return np.asarray(pixels[..., 2::-1] * alpha / 255 + 255 - alpha)
    return _rgb(pixels[..., ::-1] if pixels.ndim == 3 else pixels)


def _rgb(pixels: Pixels) -> Pixels:
    deep = pixels if pixels.ndim == 3 else pixels[..., None]
    return np.broadcast_to(deep, (*deep.shape[:2], 3))
