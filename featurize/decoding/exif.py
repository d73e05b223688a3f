"""The EXIF of an opened image: its orientation, every readable tag as text, and the most used ones as values.

Pillow reads the directories; this module interprets them. No content of a file raises an error: a broken block gives what can be
read before the damage, in the worst case nothing.

Source of the tags and their meaning: Exif 2.32 (CIPA DC-008-2019), called DC-008 below.
"""

import math
import re
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from numbers import Real
from typing import Final

from PIL import ExifTags, Image, TiffImagePlugin, TiffTags

_LEFT_OUT: Final = frozenset({ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo, ExifTags.IFD.Interop, 0x927C})
"""Offsets of directories and the MakerNote, which mean nothing outside the file."""

_MAX_TEXT: Final = 1000
"""Most characters of a value; a longer one (a TIFF's strip offsets, its colour map) is binary data and is left out."""

# The errors of Pillow's EXIF reader on damaged blocks; Warning, for a caller who turns warnings into errors.
_FAULTS: Final = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, OSError, SyntaxError),
    *(TypeError, ValueError, Warning, struct.error),
)

_TAKEN_AT: Final = (
    (ExifTags.Base.DateTimeOriginal, ExifTags.Base.OffsetTimeOriginal),
    (ExifTags.Base.DateTimeDigitized, ExifTags.Base.OffsetTimeDigitized),
    (ExifTags.Base.DateTime, ExifTags.Base.OffsetTime),
)
_TIME: Final = re.compile(r"(\d{4})[:-](\d\d)[:-](\d\d)[ T](\d\d):(\d\d):(\d\d)", re.ASCII)
_UTC_OFFSET: Final = re.compile(r"[+-](?:0\d|1[0-4]):[0-5]\d", re.ASCII)

_ISO: Final = (
    *(ExifTags.Base.ISOSpeedRatings, ExifTags.Base.RecommendedExposureIndex),
    *(ExifTags.Base.StandardOutputSensitivity, ExifTags.Base.ISOSpeed),
)
_ISO_IS_ELSEWHERE: Final = 65535
"""PhotographicSensitivity has 16 bits; higher values are in the other tags. Source: DC-008, tag 0x8827."""

_MAX_ISO: Final = 2**31 - 1
"""Largest value that fits a 32-bit column; the tags with 32 bits use 2 ** 32 - 1 for "unknown"."""

_SIGN_OF_ALTITUDE: Final = {0: 1, 1: -1, 2: 1, 3: -1}
"""The sign for each GPSAltitudeRef; 2 and 3 since Exif 3.0, section 4.6.7.1.6. Source: DC-008, GPS tag 5."""

_UPRIGHT: Final = ("HEIF", "JXL")
"""Formats whose decoders turn pictures by what their own headers say."""

Tags = Mapping[int, object]


@dataclass(frozen=True, slots=True)
class ExifSummary:
    """Where, when and how a picture was taken; None for values that its EXIF lacks or has in a broken form.

    Attributes:
        camera: Make and model, without repeating the make: "Canon EOS 5D".
        aperture: F-number, above 0.
        exposure_s: Exposure time in seconds, above 0.
        taken_at: ISO 8601, "2020-01-02T03:04:05", with an offset from UTC ("+02:00") where the camera recorded one; otherwise
            the time of the camera's clock.
        latitude: Degrees in [-90, 90], north positive.
        longitude: Degrees in [-180, 180], east positive.
        altitude_m: Metres above sea level, negative below.
        iso: Sensitivity, 1 to 2 ** 31 - 1.
        focal_length_mm: Focal length of the lens, above 0, not converted to 35 mm film.
    """

    camera: str | None = None
    aperture: float | None = None
    exposure_s: float | None = None
    taken_at: str | None = None
    latitude: float | None = None
    longitude: float | None = None
    altitude_m: float | None = None
    iso: int | None = None
    focal_length_mm: float | None = None


def read_orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where it is missing or unreadable.

    For a loaded TIFF it is 1, as Pillow has turned it, and so it is for `_UPRIGHT`.
    """
    if image.format in _UPRIGHT:
        return 1
    orientation: object = None
    with suppress(*_FAULTS):
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    number = _number(orientation)
    return int(number) if number is not None and number in range(1, 9) else 1


def defuse_exif(image: TiffImagePlugin.TiffImageFile) -> None:
    """Makes the EXIF of an opened TIFF harmless to `image.load()`.

    Loading ends with reading the EXIF, and would fail, with the pixels complete, on an offset that cannot be followed or
    on XMP that is not binary. Pillow keeps what was read first, so it is read here, and what fails is dropped.
    """
    with suppress(*_FAULTS):
        image.getexif()
    exif = image.getexif()
    for directory in TiffTags.TAGS_V2_GROUPS:
        try:
            exif.get_ifd(directory)
        except _FAULTS:
            exif.pop(directory, None)


def read_exif(image: Image.Image) -> tuple[dict[str, str], ExifSummary]:
    """Reads the main, the Exif and the GPS directory of a loaded image.

    Returns:
        Text by tag name, without binary values, the MakerNote and values of more than 1,000 characters; and the summary.
    """
    main: Tags = {}
    camera: Tags = {}
    gps: Tags = {}
    # One by one: the GPS directory may be intact where the Exif directory is not.
    with suppress(*_FAULTS):
        main = _values(image.getexif())
    with suppress(*_FAULTS):
        camera = _values(image.getexif().get_ifd(ExifTags.IFD.Exif))
    with suppress(*_FAULTS):
        gps = _values(image.getexif().get_ifd(ExifTags.IFD.GPSInfo))
    # A raw converter may put tags of the Exif directory into the main one (TIFF/EP); their numbers differ.
    return _texts(main, camera, gps), _summary({**main, **camera}, gps)


def _values(directory: Tags) -> Tags:
    """The tags that can be parsed; Pillow parses each on access."""
    values = {}
    for tag in directory:
        with suppress(*_FAULTS):
            values[tag] = directory[tag]
    return values


def _texts(main: Tags, camera: Tags, gps: Tags) -> dict[str, str]:
    texts = {}
    for directory, names in ((main, ExifTags.TAGS), (camera, ExifTags.TAGS), (gps, ExifTags.GPSTAGS)):
        for tag, value in directory.items():
            text = None if tag in _LEFT_OUT else _text(value)
            if text is not None:
                texts[names.get(tag, f"Tag0x{tag:04X}")] = text
    return texts


def _text(value: object) -> str | None:
    """A value as text, several numbers joined by ", "; None for binary, empty and very long values."""
    if isinstance(value, bytes):
        return None
    if isinstance(value, tuple | list):
        parts = () if len(value) > _MAX_TEXT else value
        text = ", ".join(str(part) for part in parts if not isinstance(part, bytes))
    else:
        text = _unicode(str(value)).replace("\0", " ").strip()
    return text if 0 < len(text) <= _MAX_TEXT else None


def _unicode(text: str) -> str:
    """Text that Pillow decoded as Latin-1. DC-008 allows only ASCII; other bytes are UTF-8 in most files."""
    with suppress(UnicodeError):
        return text.encode("latin-1").decode("utf-8")
    return text


def _summary(tags: Tags, gps: Tags) -> ExifSummary:
    return ExifSummary(
        camera=_camera(_line(tags.get(ExifTags.Base.Make)), _line(tags.get(ExifTags.Base.Model))),
        aperture=_aperture(tags),
        exposure_s=_exposure_s(tags),
        taken_at=_taken_at(tags),
        latitude=_degrees(gps.get(ExifTags.GPS.GPSLatitude), gps.get(ExifTags.GPS.GPSLatitudeRef), "NS", limit=90),
        longitude=_degrees(gps.get(ExifTags.GPS.GPSLongitude), gps.get(ExifTags.GPS.GPSLongitudeRef), "EW", limit=180),
        altitude_m=_altitude_m(gps),
        iso=_iso(tags),
        focal_length_mm=_positive(tags.get(ExifTags.Base.FocalLength)),
    )


def _line(value: object) -> str:
    """A text up to its NUL, in one line; empty for other types."""
    text = _text(value.partition("\0")[0]) if isinstance(value, str) else None
    return " ".join((text or "").split())


def _number(value: object) -> float | None:
    """A finite number; None for text, for several numbers and for a rational with a denominator of zero."""
    if not isinstance(value, Real):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _positive(value: object) -> float | None:
    number = _number(value)
    return number if number is not None and number > 0 else None


def _camera(make: str, model: str) -> str | None:
    """Joins make and model, or uses only the model where it includes the maker: "NIKON CORPORATION", "NIKON D70"."""
    first_word = re.match(r"[^\W_]*", model.casefold())
    made_by = re.findall(r"[^\W_]+", make.casefold())
    if (first_word is not None and first_word[0] in made_by) or model.casefold().startswith(make.casefold()):
        return model or make or None
    return f"{make} {model}".strip() or None


def _aperture(tags: Tags) -> float | None:
    """F-number = 2 ** (ApertureValue / 2). Source: DC-008, tag 0x9202 and its annex on APEX.

    An ApertureValue of 0 would be f/1; cameras write it for a lens without contacts, so it counts as missing.
    """
    f_number = _positive(tags.get(ExifTags.Base.FNumber))
    apex = _positive(tags.get(ExifTags.Base.ApertureValue))
    return f_number if f_number is not None or apex is None else _power_of_two(apex / 2)


def _exposure_s(tags: Tags) -> float | None:
    """Seconds = 2 ** -ShutterSpeedValue. Source: DC-008, tag 0x9201 and its annex on APEX."""
    seconds = _positive(tags.get(ExifTags.Base.ExposureTime))
    apex = _number(tags.get(ExifTags.Base.ShutterSpeedValue))
    return seconds if seconds is not None or apex is None else _power_of_two(-apex)


def _power_of_two(exponent: float) -> float | None:
    """2 to the power of `exponent`; None beyond 2 ** 32, a century of exposure, which cameras write for "unknown"."""
    return math.exp2(exponent) if abs(exponent) <= 32 else None


def _taken_at(tags: Tags) -> str | None:
    """The first valid of the three times; a camera whose clock was never set writes "0000:00:00 00:00:00" or blanks."""
    for time_tag, offset_tag in _TAKEN_AT:
        found = _TIME.fullmatch(_line(tags.get(time_tag)))
        with suppress(ValueError):  # a thirteenth month
            if found is not None:
                offset = _UTC_OFFSET.fullmatch(_line(tags.get(offset_tag)))
                time = datetime.fromisoformat("{}-{}-{}T{}:{}:{}".format(*found.groups()))
                return time.isoformat() + (offset[0] if offset else "")
    return None


def _degrees(value: object, reference: object, directions: str, *, limit: int) -> float | None:
    """Decimal degrees from one to three numbers: degrees, minutes and seconds, the last of which may have a fraction.

    None where a part has a denominator of zero, minutes or seconds are outside [0, 60], or the reference is missing: half a
    position is a wrong position. 60 itself is a rounded 59.99.

    Args:
        value: The numbers.
        reference: A letter of `directions`.
        directions: Two letters, the positive and the negative one.
        limit: The largest magnitude in degrees.
    """
    parts = [_number(part) for part in (value if isinstance(value, tuple) else (value,))]
    numbers = [part for part in parts if part is not None]
    sign = {directions[0]: 1, directions[1]: -1}.get(_line(reference).upper())
    if sign is None or not 1 <= len(parts) == len(numbers) <= 3:
        return None
    degrees = sum(number / 60.0**power for power, number in enumerate(numbers))
    valid = numbers[0] >= 0 and all(0 <= number <= 60 for number in numbers[1:]) and degrees <= limit
    return sign * degrees + 0.0 if valid else None  # + 0.0: the equator is 0.0, never -0.0


def _altitude_m(gps: Tags) -> float | None:
    altitude = _number(gps.get(ExifTags.GPS.GPSAltitude))
    reference = gps.get(ExifTags.GPS.GPSAltitudeRef, 0)
    if isinstance(reference, bytes):  # type BYTE
        reference = int.from_bytes(reference, "big")
    sign = _SIGN_OF_ALTITUDE.get(reference) if isinstance(reference, int) else None
    return None if altitude is None or sign is None else sign * altitude + 0.0


def _iso(tags: Tags) -> int | None:
    for tag in _ISO:
        value = tags.get(tag)
        number = _positive(value[0] if isinstance(value, tuple) and value else value)
        if number is not None and number != _ISO_IS_ELSEWHERE and 1 <= number <= _MAX_ISO:
            return round(number)
    return None
