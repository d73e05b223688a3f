"""Files of one small picture, upright or turned, with the EXIF of a camera."""

from dataclasses import asdict
from functools import cache

from PIL import Image

from featurize.decoding.decode import ImageInfo, decode_image, inspect_image
from featurize.decoding.exif import ExifSummary
from helpers.images.exif_bytes import (
    ASCII,
    BYTE,
    RATIONAL,
    SHORT,
    SRATIONAL,
    UNDEFINED,
    ByteOrder,
    Entry,
    exif_block,
    in_jpeg,
    in_png,
    in_webp,
    tiff_with_exif,
)
from helpers.images.pictures import assert_quadrants, encode, quadrants

UPRIGHT = quadrants()
JPEG, PNG = encode(UPRIGHT, "JPEG", quality=95), encode(UPRIGHT, "PNG")
WEBP = encode(UPRIGHT, "WEBP", lossless=True)
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "deflated TIFF")

ORIENTATION = 0x0112
MAKE, MODEL, X_RESOLUTION, RESOLUTION_UNIT, DATE_TIME, XMP = 0x010F, 0x0110, 0x011A, 0x0128, 0x0132, 0x02BC
EXPOSURE_TIME, F_NUMBER, ISO, SHUTTER_SPEED, APERTURE, FOCAL_LENGTH = 0x829A, 0x829D, 0x8827, 0x9201, 0x9202, 0x920A
ORIGINAL, DIGITIZED, OFFSET, OFFSET_ORIGINAL, MAKER_NOTE = 0x9003, 0x9004, 0x9010, 0x9011, 0x927C

MAIN = [
    Entry(MAKE, ASCII, "Canon"),
    Entry(MODEL, ASCII, "Canon EOS 5D"),
    Entry(ORIENTATION, SHORT, [1]),
    Entry(X_RESOLUTION, RATIONAL, [(72, 1)]),
    Entry(0x011B, RATIONAL, [(72, 1)]),
    Entry(RESOLUTION_UNIT, SHORT, [2]),
    Entry(DATE_TIME, ASCII, "2021:05:06 07:08:09"),
]
CAMERA = [
    Entry(EXPOSURE_TIME, RATIONAL, [(1, 125)]),
    Entry(F_NUMBER, RATIONAL, [(28, 10)]),
    Entry(ISO, SHORT, [400]),
    Entry(0x9000, UNDEFINED, b"0232"),
    Entry(ORIGINAL, ASCII, "2020:01:02 03:04:05"),
    Entry(OFFSET_ORIGINAL, ASCII, "+02:00"),
    Entry(SHUTTER_SPEED, SRATIONAL, [(6965784, 1000000)]),
    Entry(APERTURE, RATIONAL, [(2970854, 1000000)]),
    Entry(FOCAL_LENGTH, RATIONAL, [(85, 1)]),
    Entry(MAKER_NOTE, UNDEFINED, b"\x01\x00\xff" * 20),
]
GPS = [
    Entry(0, BYTE, b"\2\3\0\0"),
    Entry(1, ASCII, "N"),
    Entry(2, RATIONAL, [(46, 1), (7, 1), (3000, 100)]),
    Entry(3, ASCII, "E"),
    Entry(4, RATIONAL, [(7, 1), (46, 1), (5250, 100)]),
    Entry(5, BYTE, b"\0"),
    Entry(6, RATIONAL, [(31065, 10)]),
]
WHOLE = ExifSummary(
    camera="Canon EOS 5D",
    aperture=2.8,
    exposure_s=0.008,
    taken_at="2020-01-02T03:04:05+02:00",
    latitude=46.125,
    longitude=7.78125,
    altitude_m=3106.5,
    iso=400,
    focal_length_mm=85.0,
)
"""What is read of these entries."""


def changed(entries: list[Entry], *changes: Entry) -> list[Entry]:
    """The entries with some replaced or added."""
    return [*without(entries, *(entry.tag for entry in changes)), *changes]


def without(entries: list[Entry], *tags: int) -> list[Entry]:
    return [entry for entry in entries if entry.tag not in tags]


def turned(orientation: int, *, scale: int = 1) -> Image.Image:
    """The picture as a camera stores it that was held so that it writes this orientation."""
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpositions, inverse to those of the reader
    picture = quadrants(48 * scale, 32 * scale)
    return picture if orientation == 1 else picture.transpose(Image.Transpose(undo[orientation]))


def file_with(
    main: list[Entry],
    camera: list[Entry],
    gps: list[Entry],
    *,
    format: str,
    order: ByteOrder = "II",
    orientation: int = 1,
    scale: int = 1,
) -> bytes:
    """The picture, stored for this orientation, with these directories; `format` is one of `FORMATS`."""
    picture = turned(orientation, scale=scale)
    width, height = picture.size
    if format.endswith("TIFF"):
        directories = {"main": main, "camera": camera, "gps": gps}
        deflated = format != "TIFF"
        return tiff_with_exif(
            picture.tobytes(), width=width, height=height, order=order, deflated=deflated, **directories
        )
    block, file = exif_block(main, camera, gps, order=order), _encoded(format, orientation, scale)
    if format == "WEBP":
        return in_webp(block, file, width=width, height=height)
    return in_jpeg(block, file) if format == "JPEG" else in_png(block, file)


@cache
def _encoded(format: str, orientation: int, scale: int) -> bytes:
    options: dict[str, dict[str, object]] = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}, "PNG": {}}
    return encode(turned(orientation, scale=scale), format, **options[format])


def is_decoded(content: bytes) -> ImageInfo:
    """The description of a file whose picture must be whole and upright, whatever its EXIF is."""
    assert_quadrants(decode_image(content, height=30, width=40), 6)
    info = inspect_image(content)
    assert info.width * 2 == info.height * 3
    assert ImageInfo.from_json(info.to_json()) == info
    return info


def summary(*camera: Entry, main: tuple[Entry, ...] = (), gps: tuple[Entry, ...] = ()) -> ExifSummary:
    """What is read from a JPEG that has these entries only."""
    return inspect_image(in_jpeg(exif_block(main, camera, gps), JPEG)).metadata


def known(found: ExifSummary) -> dict[str, object]:
    """The values that are not missing."""
    return {name: value for name, value in asdict(found).items() if value is not None}
