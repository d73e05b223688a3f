"""Damaged image files: mutant number `index` of a `seed` is the same in every process."""

import itertools
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from PIL import Image

from helpers.images.camera_files import CAMERA, GPS, MAIN, file_with
from helpers.images.exif_bytes import exif_block
from helpers.images.pictures import encode, quadrants

_NOISE: Final = Image.fromarray(np.random.default_rng(7).integers(0, 256, (20, 30, 3), np.uint8))
_PLAIN: Final = quadrants(30, 20)
_WIDE_GREY: Final = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100)
_CLEAR: Final = Image.merge("RGBA", (*_PLAIN.split(), _NOISE.getchannel(0)))
_FRAMES: Final = {"save_all": True, "append_images": [_NOISE, _PLAIN.rotate(180)]}


def _bmp_rle8() -> bytes:
    """A grey 6 x 2 BMP with run lengths, which Pillow reads and does not write."""
    palette = b"".join(bytes([level, level, level, 0]) for level in range(256))
    rows = (
        b"\6\x20\0\0" + b"\3\x80\0\3\1\2\3\0" + b"\0\1"
    )  # a run of six; a run of three and three single pixels; the end
    header = struct.pack("<IiiHHIIiiII", 40, 6, 2, 1, 8, 1, len(rows), 0, 0, 256, 0)
    start = 14 + len(header) + len(palette)
    return struct.pack("<2sIHHI", b"BM", start + len(rows), 0, 0, start) + header + palette + rows


SEEDS: Final[dict[str, bytes]] = {
    "jpeg": encode(_NOISE, "JPEG", quality=60),
    "jpeg, subsampled, drafted": encode(quadrants(200, 140), "JPEG", subsampling=2),
    "jpeg, progressive": encode(_NOISE, "JPEG", progressive=True),
    "jpeg, progressive, grey": encode(_NOISE.convert("L"), "JPEG", progressive=True),
    "jpeg, restarts": encode(_NOISE, "JPEG", restart_marker_blocks=2),
    "jpeg, cmyk": encode(_PLAIN.convert("CMYK"), "JPEG"),
    "jpeg, camera": file_with(MAIN, CAMERA, GPS, format="JPEG"),
    "mpo": encode(_PLAIN, "MPO", **_FRAMES),
    "png": encode(_NOISE, "PNG"),
    "png, alpha": encode(_CLEAR, "PNG"),
    "png, palette": encode(_PLAIN.quantize(4), "PNG", transparency=1),
    "png, 1 bit": encode(_NOISE.convert("1"), "PNG"),
    "png, grey of 16 bits": encode(_WIDE_GREY, "PNG"),
    "png, animated": encode(_PLAIN, "PNG", **_FRAMES),
    "png, camera": file_with(MAIN, CAMERA, GPS, format="PNG", order="MM"),
    "gif": encode(_NOISE.quantize(64), "GIF"),
    "gif, animated": encode(_PLAIN, "GIF", **_FRAMES, transparency=0),
    "bmp": encode(_NOISE, "BMP"),
    "bmp, palette": encode(_PLAIN.quantize(16), "BMP"),
    "bmp, 1 bit": encode(_NOISE.convert("1"), "BMP"),
    "bmp, run lengths": _bmp_rle8(),
    "webp": encode(_NOISE, "WEBP"),
    "webp, lossless, alpha": encode(_CLEAR, "WEBP", lossless=True),
    "webp, lossy, alpha": encode(_CLEAR, "WEBP"),
    "webp, animated": encode(_PLAIN, "WEBP", **_FRAMES),
    "webp, camera": file_with(MAIN, CAMERA, GPS, format="WEBP"),
    "avif": encode(_NOISE, "AVIF"),
    "jpeg 2000": encode(_NOISE, "JPEG2000"),
    "heic": encode(_NOISE, "HEIF"),
    "heic, alpha, camera": encode(_CLEAR, "HEIF", exif=exif_block(MAIN, CAMERA, GPS)),
    "heic, tiles": encode(quadrants(200, 140), "HEIF", tile_size=64),
    "jpeg xl": encode(_NOISE, "JXL"),
    "jpeg xl, lossless, alpha, camera": encode(_CLEAR, "JXL", lossless=True, exif=exif_block(MAIN, CAMERA, GPS)),
    "jpeg xl, grey of 16 bits": encode(_WIDE_GREY, "JXL", lossless=True),
    "tiff": encode(_NOISE, "TIFF"),
    "tiff, lzw": encode(_NOISE, "TIFF", compression="tiff_lzw"),
    "tiff, deflate": encode(_CLEAR, "TIFF", compression="tiff_adobe_deflate"),
    "tiff, packbits": encode(_PLAIN.quantize(4), "TIFF", compression="packbits"),
    "tiff, jpeg": encode(_NOISE, "TIFF", compression="jpeg"),
    "tiff, fax": encode(_NOISE.convert("1"), "TIFF", compression="group4"),
    "tiff, zstd": encode(_PLAIN.convert("CMYK"), "TIFF", compression="zstd"),
    "tiff, grey of 16 bits": encode(_WIDE_GREY, "TIFF"),
    "tiff, float": encode(_NOISE.convert("F"), "TIFF", tiffinfo={340: 0.0, 341: 255.0}),
    "tiff, two pages": encode(_PLAIN, "TIFF", save_all=True, append_images=[_NOISE]),
    "tiff, camera": file_with(MAIN, CAMERA, GPS, format="TIFF", order="MM"),
    "tiff, camera, deflate": file_with(MAIN, CAMERA, GPS, format="deflated TIFF"),
    "ppm": encode(_NOISE, "PPM"),
    "pgm, 16 bits": b"P5 30 20 65535\n" + np.asarray(_WIDE_GREY).astype(">u2").tobytes(),
    "pbm": encode(_NOISE.convert("1"), "PPM"),
    "pgm, plain": b"P2 # words\n3 2 255\n0 10 20\n30 40 50\n",
}
"""One small file for each way into a decoder."""


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        changed[_position(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwrite_a_run(data: bytes, rng: random.Random) -> bytes:
    start, length = _position(data, rng), rng.randint(1, 40)
    run = rng.choice([rng.randbytes(length), bytes([rng.choice([0, 1, 0x7F, 0x80, 0xFF])]) * length])
    return data[:start] + run + data[start + length :]


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def repeat_a_segment(data: bytes, rng: random.Random) -> bytes:
    start, end = rng.choice(_segments(data))
    return data[:start] + data[start:end] * rng.choice([2, 2, 3, 50]) + data[end:]


def remove_a_segment(data: bytes, rng: random.Random) -> bytes:
    start, end = rng.choice(_segments(data))
    return data[:start] + data[end:]


def swap_segments(data: bytes, rng: random.Random) -> bytes:
    (start, middle), (other, end) = sorted((rng.choice(_segments(data)), rng.choice(_segments(data))))
    return (
        data
        if middle > other
        else data[:start] + data[other:end] + data[middle:other] + data[start:middle] + data[end:]
    )


def overwrite_a_field(data: bytes, rng: random.Random) -> bytes:
    """A number of the header, of 1, 2 or 4 bytes in either order, at the edge of its range or near what it was."""
    size: int = rng.choice([1, 2, 2, 4, 4])
    orders: list[Literal["big", "little"]] = ["big", "little"]
    order = rng.choice(orders)
    start = rng.randrange(min(len(data), 200) + 1)
    highest = (1 << 8 * size) - 1
    old = int.from_bytes(data[start : start + size], order)
    values = [0, 1, 2, 255, 10_000, highest // 2, highest // 2 + 1, highest, old + 1, old - 1, old * 2, old * 256]
    return data[:start] + (rng.choice(values) & highest).to_bytes(size, order) + data[start + size :]


def splice(data: bytes, rng: random.Random) -> bytes:
    """The beginning of this file, the end of another, which is mostly cut where a segment begins."""
    other = SEEDS[rng.choice(list(SEEDS))]
    cut, join = (
        rng.choice(_segments(part))[0] if rng.random() < 0.7 else rng.randrange(len(part) + 1) for part in (data, other)
    )
    return data[:cut] + other[join:]


MUTATIONS: Final[list[Callable[[bytes, random.Random], bytes]]] = [
    *(flip_bits, overwrite_a_run, truncate, repeat_a_segment, remove_a_segment),
    *(swap_segments, overwrite_a_field, splice),
]


@dataclass(frozen=True)
class Mutant:
    """One damaged file and how it came about."""

    name: str
    content: bytes


def mutant(seed: int, index: int) -> Mutant:
    """Damages one of `SEEDS` by up to four mutations."""
    rng = random.Random(f"{seed} {index}")
    file = rng.choice(list(SEEDS))
    content, steps = SEEDS[file], []
    for mutation in rng.choices(MUTATIONS, k=rng.choice([1, 1, 1, 2, 3, 4])):
        content = mutation(content, rng) if content else content
        steps.append(mutation.__name__)
    if rng.random() < 0.8:  # else nearly every PNG fails at a checksum and every WebP at its length
        content = _mended(content)
        steps.append("mend")
    return Mutant(f"seed {seed}, index {index}: {file}; {', '.join(steps)}; {len(content)} bytes", content)


def _position(data: bytes, rng: random.Random) -> int:
    """A place in the file, often among the headers."""
    return rng.randrange(min(len(data), rng.choice([32, 200, len(data)])))


def _segments(data: bytes) -> list[tuple[int, int]]:
    """Start and end of the parts the file consists of: markers, chunks, blocks; of 12 bytes, a TIFF's entries, if unknown."""
    if data.startswith(b"\xff\xd8"):
        starts = [place for place in range(2, len(data) - 1) if data[place] == 0xFF and 0xC0 <= data[place + 1] <= 0xFE]
    elif data.startswith(b"\x89PNG"):
        starts = [start for start, _ in _chunks(data, first=8, order=">", extra=12)]
    elif data.startswith(b"RIFF"):
        starts = [start for start, _ in _chunks(data, first=12, order="<", extra=8)]
    else:
        starts = list(range(0, len(data), 12))
    return list(itertools.pairwise([*(starts or [0]), len(data)]))


def _chunks(data: bytes, *, first: int, order: str, extra: int) -> list[tuple[int, int]]:
    """Start and length of the content of each chunk; the length lies at the start (PNG) or four bytes after it (RIFF)."""
    found, start = [], first
    while start + 8 <= len(data):
        (length,) = struct.unpack_from(order + "I", data, start + (0 if extra == 12 else 4))
        found.append((start, length))
        start += extra + length + (length % 2 if extra == 8 else 0)
    return found


def _mended(data: bytes) -> bytes:
    """The file with the checksums or the length that its content has now."""
    mended = bytearray(data)
    if data.startswith(b"RIFF"):
        mended[4:8] = struct.pack("<I", max(0, len(data) - 8))
    elif data.startswith(b"\x89PNG"):
        for start, length in _chunks(data, first=8, order=">", extra=12):
            checksum_at = start + 8 + length
            if checksum_at + 4 <= len(data):
                struct.pack_into(">I", mended, checksum_at, zlib.crc32(mended[start + 4 : checksum_at]))
    return bytes(mended)
