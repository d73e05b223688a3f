"""Small pictures whose pixels are known, and their encodings."""

import io

import numpy as np
import pillow_heif
import pillow_jxl  # noqa: F401 - Pillow writes JPEG XL with it
from numpy.typing import NDArray
from PIL import Image

pillow_heif.register_heif_opener()

RED, GREEN, BLUE, YELLOW = (220, 40, 30), (30, 180, 60), (40, 60, 200), (230, 220, 40)


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def quadrants(width: int = 48, height: int = 32) -> Image.Image:
    """Red, green / blue, yellow: no symmetry, and no colour that a swap of channels would keep."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2], pixels[: height // 2, width // 2 :] = RED, GREEN
    pixels[height // 2 :, : width // 2], pixels[height // 2 :, width // 2 :] = BLUE, YELLOW
    return Image.fromarray(pixels)


def assert_quadrants(pixels: NDArray[np.uint8], tolerance: float) -> None:
    """Compares the centre of each quadrant, where neither resampling nor JPEG mixes the colours."""
    height, width = pixels.shape[:2]
    for row, column, colour in ((1, 1, RED), (1, 3, GREEN), (3, 1, BLUE), (3, 3, YELLOW)):
        np.testing.assert_allclose(pixels[height * row // 4, width * column // 4], colour, atol=tolerance)
