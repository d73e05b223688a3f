"""HEIC and JPEG XL files that the packages for Pillow do not write; for the tests."""

import base64
import io
from pathlib import Path

from PIL import Image

from helpers.images.camera_files import turned
from helpers.images.pictures import encode

# Written by imagecodecs 2026.3.6 (libjxl 0.11), lossless. The first three are made of the samples of `test_added_formats`.
LINEAR_16_BIT = base64.b64decode(
    "AAAADEpYTCANCocKAAAAFGZ0eXBqeGwgAAAAAGp4bCAAAAAJanhsbAoAAACaanhsY/8KGBD8ABQtAggEAQAMAksYixVCCtBtagIA1bcLBAQglmD+f8xr/n/gLQUA5P8v"
    "yn8AQACA/P/FtA4AyP8PVLn5//3/e2ma/w/MDVff7EAa8OX/I9z987qadvn/Xg1KpHG5gjYchsqD9S/bWXABAIrb5/8fvAgAwBGQ/f/C+xKCgP/fB0Qp05eL42HbXTVq"
    "dM8C"
)
GREY_16_BIT_WITH_ALPHA = base64.b64decode(
    "AAAADEpYTCANCocKAAAAFGZ0eXBqeGwgAAAAAGp4bCAAAAAJanhsbAoAAABganhsY/8KGBD8CH4AihYBCBAQABwBSxiTjoODpNhoqurcGjrEELbYSy5wAAAC+CwAAAAA"
    "AAAAAAAAAAAAAAAAAAAAAPADAAAAAADv/wAAAAC8/9v2/n/bqquuugo="
)
GREY_FLOATS = base64.b64decode(
    "AAAADEpYTCANCocKAAAAFGZ0eXBqeGwgAAAAAGp4bCAAAAAJanhsbAoAAABWanhsY/8KGBByQNEiCAQBAAABSxiLFUJ6cF4AANxrPzSqVVXVfqqq8qiqqsqqavWFqqoC"
    "AG44PGfCqqr6tuxzkUpKrRqYUVVVxanGMeUJWuWTAQ=="
)
ANIMATION = base64.b64decode(
    "/woYEEETAIgJCAQBAFgASxiLFcIJY1xs+wDiIABAJxABcDQAAAgEAQBMAEsYixXCSYLlAZw4AGAHAEAcAAAIBAUAXABLGIsVwgljXNj7AOJwAMAxAAA9ATEAAA=="
)
"""Three pictures of 4 x 4: red, green, blue."""


def jxl_turned(orientation: int, **options: object) -> bytes:
    """The picture as stored for an orientation that the codestream itself has, not EXIF; sides are multiples of eight.

    The header that an encoder writes for the usual case, one bit for "everything as usual", is spelled out with this
    orientation. Source: ISO/IEC 18181-1, annex D.
    """
    content = encode(turned(orientation), "JXL", **options)
    bits = "".join(f"{byte:08b}"[::-1] for byte in content[2:6])
    size = bits[: 9 if "1" in bits[6:9] else 14]
    rest = bits[len(size) :]
    assert (bits[0], rest[:2]) == ("1", "11")
    frames = 2 + (len(size) + 2 + 7) // 8
    metadata = ["0", "1", f"{orientation - 1:03b}"[::-1], "000", "000", "1", "00", "1", "1", "1", "00", "1"]
    header = size + "".join(metadata)
    header += "0" * (-len(header) % 8)
    written = bytes(int(header[at : at + 8][::-1], 2) for at in range(0, len(header), 8))
    return content[:2] + written + content[frames:]


def jxl_of_size(width: int, height: int) -> bytes:
    """The beginning of a codestream, up to where its pixels would start."""
    bits = "0" + "".join("11" + f"{side - 1:030b}"[::-1] + "000" * (side is height) for side in (height, width)) + "11"
    bits += "0" * (-len(bits) % 8)
    return b"\xff\x0a" + bytes(int(bits[at : at + 8][::-1], 2) for at in range(0, len(bits), 8))


def jxl_of_jpeg(jpeg: bytes, folder: Path) -> bytes:
    """A JPEG, packed without loss. The package wants it as a file."""
    path = folder / "packed.jpg"
    path.write_bytes(jpeg)
    buffer = io.BytesIO()
    with Image.open(path) as image:
        image.save(buffer, "JXL", lossless_jpeg=True)
    return buffer.getvalue()


def with_brands(content: bytes, main: bytes, *further: bytes) -> bytes:
    """A file of the HEIF family with other brands: as many further ones as it has, or fewer."""
    length = int.from_bytes(content[:4], "big")
    brands = main + content[12:16] + b"".join(further)
    return content[:8] + brands.ljust(length - 8, b" ") + content[length:]
