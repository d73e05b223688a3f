"""EXIF written byte by byte, the way a camera does: nothing of Pillow's writer, so that it is no test of Pillow against itself.

A block is a TIFF file without a picture: a header with the byte order, the main directory, and the Exif and GPS
directories it points to; in each the entries are sorted by tag, and values of more than four bytes follow the
directory. Source: Exif 2.32 (CIPA DC-008-2019), section 4.6; TIFF 6.0, section 2.
"""

import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

ByteOrder = Literal["II", "MM"]
BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED, SLONG, SRATIONAL, DOUBLE = 1, 2, 3, 4, 5, 7, 9, 10, 12
_CODES = {SHORT: "H", LONG: "I", RATIONAL: "I", SLONG: "i", SRATIONAL: "i", DOUBLE: "d"}

ORIENTATION, EXIF_POINTER, GPS_POINTER = 0x0112, 0x8769, 0x8825
STRIP_OFFSETS = 0x0111


@dataclass(frozen=True)
class Entry:
    """One entry of a directory.

    Attributes:
        values: Text for ASCII, bytes for BYTE and UNDEFINED, pairs for rationals, numbers for the rest.
        count: What the entry claims; None: the truth.
    """

    tag: int
    type: int
    values: str | bytes | Sequence[float | tuple[int, int]]
    count: int | None = None

    def packed(self, order: ByteOrder) -> bytes:
        if isinstance(self.values, str):
            return self.values.encode() + b"\0"
        if isinstance(self.values, bytes):
            return self.values
        mark = "<" if order == "II" else ">"
        numbers = [number for value in self.values for number in (value if isinstance(value, tuple) else (value,))]
        return struct.pack(f"{mark}{len(numbers)}{_CODES[self.type]}", *numbers)

    def true_count(self) -> int:
        return len(self.packed("II")) if isinstance(self.values, str | bytes) else len(self.values)


def _directory(entries: Iterable[Entry], start: int, order: ByteOrder) -> bytes:
    """A directory that begins at offset `start` of the block, with its values behind it."""
    mark = "<" if order == "II" else ">"
    entries = sorted(entries, key=lambda entry: entry.tag)
    table, values = struct.pack(f"{mark}H", len(entries)), b""
    values_at = start + 2 + 12 * len(entries) + 4
    for entry in entries:
        packed = entry.packed(order)
        count = entry.true_count() if entry.count is None else entry.count
        table += struct.pack(f"{mark}HHI", entry.tag, entry.type, count)
        if len(packed) <= 4:
            table += packed.ljust(4, b"\0")
        else:
            table += struct.pack(f"{mark}I", values_at + len(values))
            values += packed + b"\0" * (len(packed) % 2)  # values begin at even offsets
    return table + bytes(4) + values  # four bytes: no further directory


def exif_block(
    main: Iterable[Entry] = (), camera: Iterable[Entry] = (), gps: Iterable[Entry] = (), *, order: ByteOrder = "II"
) -> bytes:
    """The block with the directories that have entries."""
    main, camera, gps = list(main), list(camera), list(gps)

    def pointing(camera_at: int, gps_at: int) -> list[Entry]:
        pointers = [Entry(EXIF_POINTER, LONG, [camera_at])] * bool(camera) + [
            Entry(GPS_POINTER, LONG, [gps_at])
        ] * bool(gps)
        return [*main, *pointers]

    camera_at = 8 + len(_directory(pointing(0, 0), 8, order))
    gps_at = camera_at + (len(_directory(camera, camera_at, order)) if camera else 0)
    header = b"II*\0\x08\0\0\0" if order == "II" else b"MM\0*\0\0\0\x08"
    block = header + _directory(pointing(camera_at, gps_at), 8, order)
    for entries, start in ((camera, camera_at), (gps, gps_at)):
        block += _directory(entries, start, order) if entries else b""
    return block


def in_jpeg(block: bytes, jpeg: bytes) -> bytes:
    """The JPEG with the block as its APP1 segment, right after SOI and in place of JFIF's APP0."""
    rest = jpeg[2:]
    if rest.startswith(b"\xff\xe0"):
        rest = rest[2 + int.from_bytes(rest[2:4], "big") :]
    segment = b"Exif\0\0" + block
    return b"\xff\xd8\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + rest


def in_png(block: bytes, png: bytes) -> bytes:
    """The PNG with an eXIf chunk behind IHDR. Source: PNG, third edition, section 11.3.3.5."""
    chunk = b"eXIf" + block
    return png[:33] + struct.pack(">I", len(block)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]


def in_webp(block: bytes, webp: bytes, *, width: int, height: int) -> bytes:
    """A simple WebP file as an extended one with an EXIF chunk. Source: WebP container specification, VP8X."""
    extended = struct.pack("<I", 1 << 3) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunks = b"".join(
        [
            b"VP8X" + struct.pack("<I", len(extended)) + extended,
            webp[12:],
            b"EXIF" + struct.pack("<I", len(block)) + block + b"\0" * (len(block) % 2),
        ]
    )
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def tiff_with_exif(
    rgb: bytes,
    *,
    width: int,
    height: int,
    main: Iterable[Entry] = (),
    camera: Iterable[Entry] = (),
    gps: Iterable[Entry] = (),
    order: ByteOrder = "II",
    deflated: bool = False,
) -> bytes:
    """A TIFF of one strip: its own main directory is that of the EXIF."""
    strip = zlib.compress(rgb) if deflated else rgb
    shorts = {0x0102: [8, 8, 8], 0x0103: [8 if deflated else 1], 0x0106: [2], 0x0115: [3]}  # 3 x 8 bits of RGB
    numbers = {0x0100: [width], 0x0101: [height], 0x0116: [height], 0x0117: [len(strip)]}
    picture = [Entry(tag, SHORT, values) for tag, values in shorts.items()]
    picture += [Entry(tag, LONG, values) for tag, values in numbers.items()]

    def block(strip_at: int) -> bytes:
        return exif_block([*main, *picture, Entry(STRIP_OFFSETS, LONG, [strip_at])], camera, gps, order=order)

    return block(len(block(0))) + strip
