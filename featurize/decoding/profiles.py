"""Colour profiles: pictures in another colour space are converted to sRGB by LittleCMS.

The intent is relative colorimetric with black point compensation, as photo editors have it by default.
"""

import io
from functools import lru_cache
from typing import Final

from PIL import Image, ImageCms

_SPACES: Final = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}
"""The colour space that a profile must have, for each of Pillow's modes."""
_FLAGS: Final = ImageCms.Flags.NOCACHE | ImageCms.Flags.BLACKPOINTCOMPENSATION  # without a cache, threads may share one
_FAULTS: Final = (ImageCms.PyCMSError, OSError, ValueError, TypeError)
_SRGB: Final = "sRGB"
_KEPT: Final = 8
"""Profiles whose conversion is kept in memory; a set of pictures has few."""


def to_srgb(image: Image.Image, profile: bytes, notes: list[str]) -> Image.Image:
    """A picture without alpha in mode "RGB", in sRGB.

    Args:
        image: The picture, of any mode.
        profile: Its ICC profile. One that is damaged, or of another colour space than the picture, is ignored.
        notes: Gets a line where the profile was ignored.
    """
    plain = image if image.mode in _SPACES else image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")
    try:
        conversion = _conversion(profile, plain.mode)
        converted = plain if conversion is None else ImageCms.applyTransform(plain, conversion)
    except _FAULTS as error:
        notes.append(f"its colour profile was ignored: {' '.join(str(error).split())[:100]}")
        converted = plain
    return (converted or plain).convert("RGB")


@lru_cache(maxsize=_KEPT)
def _conversion(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The conversion of pictures of a mode; None where the profile is that of sRGB.

    Raises:
        ValueError: The profile is for another colour space.
        PyCMSError: It is damaged.
    """
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = opened.profile.xcolor_space.strip()
    if space != _SPACES[mode]:
        raise ValueError(f"it is for {space} and the picture is {_SPACES[mode]}")
    if (opened.profile.profile_description or "").startswith(_SRGB):
        return None
    return ImageCms.buildTransform(
        opened,
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=_FLAGS,
    )
