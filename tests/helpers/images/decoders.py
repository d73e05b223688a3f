"""Files for decoder processes, and ways to watch those; for the tests."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from featurize.decoding.decode import decode_sized
from featurize.decoding.decoder_process import Decoder
from helpers.images.pictures import encode, quadrants

TURNED = Image.Exif()
TURNED[0x0112] = 6
FILES = {
    "jpeg": encode(quadrants(), "JPEG", quality=90),
    "turned jpeg": encode(quadrants(40, 24), "JPEG", exif=TURNED),
    "large jpeg": encode(quadrants(1000, 700), "JPEG"),
    "mpo": encode(quadrants(), "MPO", save_all=True, append_images=[quadrants()]),
    "png": encode(quadrants(), "PNG"),
    "grey 16 png": encode(Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100), "PNG"),
    "palette png": encode(quadrants().quantize(4), "PNG", transparency=1),
    "gif": encode(quadrants(), "GIF"),
    "webp": encode(quadrants(), "WEBP"),
    "tiff": encode(quadrants(), "TIFF", compression="tiff_lzw"),
    "ppm": encode(quadrants(), "PPM"),
    "avif": encode(quadrants(), "AVIF"),
    "jpeg 2000": encode(quadrants(), "JPEG2000"),
    "turned heic": encode(quadrants(), "HEIF", exif=TURNED.tobytes()),
    "heic of tiles": encode(quadrants(1500, 1100), "HEIF", tile_size=512),
    "jpeg xl": encode(quadrants(), "JXL", exif=TURNED.tobytes()),
    "large jpeg xl": encode(quadrants(1500, 1100), "JXL", effort=1),
    "bmp of 12 MB": encode(quadrants(2400, 1700), "BMP"),
}
BROKEN = {
    "empty": b"",
    "text": b"no picture",
    "cut": FILES["png"][:-30],
    "header only": FILES["jpeg"][:20],
    "huge": b"P6 100000 100000 255\n",
    "damaged": FILES["png"][:45] + bytes(9) + FILES["png"][54:],
}
PICTURE = FILES["png"]


def pid_of(decoder: Decoder) -> int:
    assert decoder.pid is not None
    return decoder.pid


def is_running(pid: int) -> bool:
    """Neither gone nor dead and waiting for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def decode(decoder: Decoder, content: bytes = PICTURE, height: int = 9, width: int = 7, channels: int = 3) -> None:
    """Decodes in both ways and compares."""
    pixels, size = decoder.decode(content, height=height, width=width, channels=channels)
    expected, expected_size = decode_sized(content, height=height, width=width, channels=channels)
    np.testing.assert_array_equal(pixels, expected)
    assert (pixels.dtype, size) == (np.dtype(np.uint8), expected_size)


def processor_time_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def open_files() -> int:
    """How many this process has."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
