"""Colour profiles made by hand, of three primaries and a gamma, and what their colours are in sRGB; for the tests.

Source of the layout: ICC.1:2001-04; of the matrices: IEC 61966-2-1, and Bradford's adaptation to D50.
"""

import struct

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_D50, _D65 = np.array([0.9642, 1.0, 0.8249]), np.array([0.95047, 1.0, 1.08883])
_SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
PRIMARIES = {
    "Adobe RGB": ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)),
    "Display P3": ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)),
    "ProPhoto": ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)),
}
"""Of red, green and blue the x and y of CIE 1931; ProPhoto has the white D50, the others D65."""


def matrix_of(name: str) -> Matrix:
    """Linear RGB to XYZ at D50."""
    return _matrix(PRIMARIES[name], _D50 if name == "ProPhoto" else _D65)


def _matrix(primaries: tuple[tuple[float, float], ...], white: Matrix) -> Matrix:
    columns = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in primaries]).T
    scaled = columns * np.linalg.solve(columns, white)
    gain = np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white))
    return np.asarray(np.linalg.inv(_BRADFORD) @ gain @ _BRADFORD @ scaled)


def profile(name: str, gamma: float) -> bytes:
    """An ICC profile for RGB."""
    columns = matrix_of(name).T
    tags = {b"desc": _description(name), b"cprt": b"text\0\0\0\0none\0", b"wtpt": _xyz(_D50)}
    tags |= {kind: _xyz(column) for kind, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)}
    tags |= {kind: _curve(gamma) for kind in (b"rTRC", b"gTRC", b"bTRC")}
    return _icc(b"RGB ", tags)


def grey_profile(gamma: float) -> bytes:
    """An ICC profile for grey."""
    tags = {b"desc": _description("grey"), b"cprt": b"text\0\0\0\0none\0", b"wtpt": _xyz(_D50), b"kTRC": _curve(gamma)}
    return _icc(b"GRAY", tags)


def in_srgb(pixels: NDArray[np.uint8], name: str, gamma: float) -> Matrix:
    """What pixels of such a profile are in sRGB, in [0, 255]: colours that sRGB does not have are clipped."""
    linear = (pixels / 255.0) ** gamma @ matrix_of(name).T @ np.linalg.inv(_matrix(_SRGB, _D65)).T
    return encoded(linear)


def encoded(linear: Matrix) -> Matrix:
    """The curve of sRGB: linear light in [0, 1] to [0, 255]."""
    light = linear.clip(0, 1)
    return np.asarray(255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055))


def _xyz(values: Matrix) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(65536 * float(value)) for value in values))


def _curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(256 * gamma))


def _description(name: str) -> bytes:
    text = name.encode() + b"\0"
    return b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(4 + 4 + 2 + 1 + 67)


def _icc(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    table, body = b"", b""
    start = 128 + 4 + 12 * len(tags)
    for kind, data in tags.items():
        table += kind + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size = start + len(body)
    header = struct.pack(">I4s4s4s4s4s", size, bytes(4), b"\x02\x40\0\0", b"mntr", space, b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", *(round(65536 * float(value)) for value in _D50))
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body
