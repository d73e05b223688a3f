"""PNG files, chunk by chunk; for the tests."""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}


def chunk(kind: bytes, data: bytes, *, checksum: int | None = None) -> bytes:
    right = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", right if checksum is None else checksum)


def png(samples: NDArray[np.int64], depth: int, colour: int, *between: bytes, after: bytes = b"") -> bytes:
    """A PNG of `samples`, (height, width, channels), of `depth` bits each; the chunks `between` come before its pixels."""
    height, width, channels = samples.shape
    assert channels == CHANNELS[colour]
    bits = (samples[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    rows = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    lines = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(lines.tobytes()))
    return b"".join([SIGNATURE, chunk(b"IHDR", header), *between, pixels, after, chunk(b"IEND", b"")])
