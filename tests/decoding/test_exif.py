"""What is read of whole EXIF, which `exif_bytes` writes by a camera's rules; `test_exif_damage` has the broken ones."""

import math
from fractions import Fraction

import pytest
from helpers.images.camera_files import (
    APERTURE,
    CAMERA,
    DATE_TIME,
    DIGITIZED,
    EXPOSURE_TIME,
    F_NUMBER,
    FORMATS,
    GPS,
    ISO,
    JPEG,
    MAIN,
    MAKE,
    MAKER_NOTE,
    MODEL,
    OFFSET,
    OFFSET_ORIGINAL,
    ORIENTATION,
    ORIGINAL,
    PNG,
    SHUTTER_SPEED,
    WEBP,
    WHOLE,
    changed,
    file_with,
    is_decoded,
    summary,
    turned,
)
from helpers.images.exif_bytes import (
    ASCII,
    BYTE,
    DOUBLE,
    EXIF_POINTER,
    GPS_POINTER,
    LONG,
    RATIONAL,
    SHORT,
    SRATIONAL,
    UNDEFINED,
    ByteOrder,
    Entry,
    exif_block,
    in_jpeg,
)
from helpers.images.pictures import encode, quadrants
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featurize.decoding.decode import ImageInfo, inspect_image
from featurize.decoding.exif import ExifSummary

# The module ignores these itself, but pytest sets its own filters for every test.


@pytest.mark.parametrize("order", ["II", "MM"])
@pytest.mark.parametrize("format", FORMATS)
def test_a_cameras_block_is_read_whole(format: str, order: ByteOrder) -> None:
    info = is_decoded(file_with(MAIN, CAMERA, GPS, format=format, order=order))
    assert info.format == format.removeprefix("deflated ")
    assert info.metadata == WHOLE
    assert info.exif["Model"] == "Canon EOS 5D"
    assert info.exif["ExposureTime"] == "0.008"
    assert info.exif["GPSLatitude"] == "46.0, 7.0, 30.0"
    assert not {"MakerNote", "ExifOffset", "GPSInfo", "ExifVersion"} & set(info.exif)


@pytest.mark.parametrize("order", ["II", "MM"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("scale", [1, 8], ids=["small", "drafted"])
def test_all_orientations_give_the_same_upright_picture(
    orientation: int, format: str, order: ByteOrder, scale: int
) -> None:
    main = changed(MAIN, Entry(ORIENTATION, SHORT, [orientation]))
    content = file_with(main, CAMERA, GPS, format=format, order=order, orientation=orientation, scale=scale)
    info = is_decoded(content)
    assert (info.width, info.height) == (48 * scale, 32 * scale)
    assert info.metadata == WHOLE


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_of_another_writer_is_read_too(format: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[MAKE], exif[MODEL] = "Canon\0", "EOS"
    exif.get_ifd(EXIF_POINTER).update({EXPOSURE_TIME: 0.5, MAKER_NOTE: b"\1\2", 0x9286: b"comment"})
    exif.get_ifd(GPS_POINTER).update({1: "N", 2: (60.0, 10.5, 0.0)})
    info = is_decoded(encode(turned(6), format, exif=exif, quality=95))
    assert info.metadata == ExifSummary(camera="Canon EOS", exposure_s=0.5, latitude=60.175)
    assert info.exif["GPSLatitude"] == "60.0, 10.5, 0.0"
    assert not {"MakerNote", "UserComment", "ExifOffset", "GPSInfo"} & set(info.exif)


def test_picture_without_exif_has_none() -> None:
    for content in (JPEG, PNG, WEBP, *(encode(quadrants(), format) for format in ("BMP", "GIF", "PPM"))):
        info = is_decoded(content)
        assert info.exif == {}
        assert info.metadata == ExifSummary()


@pytest.mark.parametrize(
    ("make", "model", "camera"),
    [
        ("Canon", "Canon EOS 5D", "Canon EOS 5D"),
        ("NIKON CORPORATION", "NIKON D70", "NIKON D70"),
        ("Eastman Kodak Company", "KODAK DC280 ZOOM", "KODAK DC280 ZOOM"),
        ("LG Electronics", "LG-H870", "LG-H870"),
        ("samsung", "SAMSUNG-SM-G900A", "SAMSUNG-SM-G900A"),
        ("Apple", "iPhone 6", "Apple iPhone 6"),
        ("SONY", "DSC-RX100", "SONY DSC-RX100"),
        ("OLYMPUS IMAGING CORP.  ", "E-M5            ", "OLYMPUS IMAGING CORP. E-M5"),
        ("Canon\0EOS\xff", "5D", "Canon 5D"),
        ("Ricoh", None, "Ricoh"),
        (None, "X100", "X100"),
        ("  ", "\0\0\0", None),
        ("-", "-", "-"),
        (None, None, None),
    ],
)
def test_camera_names_its_maker_once(make: str | None, model: str | None, camera: str | None) -> None:
    texts = [Entry(tag, ASCII, text) for tag, text in ((MAKE, make), (MODEL, model)) if text is not None]
    assert summary(main=tuple(texts)).camera == camera


@pytest.mark.parametrize(
    ("entries", "aperture"),
    [
        ([Entry(F_NUMBER, RATIONAL, [(56, 10)])], 5.6),
        ([Entry(F_NUMBER, RATIONAL, [(56, 10)]), Entry(APERTURE, RATIONAL, [(4, 1)])], 5.6),
        ([Entry(APERTURE, RATIONAL, [(4, 1)])], 4.0),
        ([Entry(APERTURE, RATIONAL, [(5, 1)])], 4 * math.sqrt(2)),
        ([Entry(F_NUMBER, RATIONAL, [(28, 0)]), Entry(APERTURE, RATIONAL, [(2, 1)])], 2.0),
        ([Entry(F_NUMBER, RATIONAL, [(0, 10)]), Entry(APERTURE, RATIONAL, [(0, 1)])], None),
        ([Entry(F_NUMBER, RATIONAL, [(0, 0)])], None),
        ([Entry(F_NUMBER, ASCII, "2.8")], None),
        ([Entry(F_NUMBER, DOUBLE, [math.nan])], None),
        ([Entry(F_NUMBER, DOUBLE, [math.inf])], None),
        ([Entry(F_NUMBER, SRATIONAL, [(-28, 10)])], None),
        ([Entry(F_NUMBER, RATIONAL, [(28, 10), (4, 1)])], None),
        ([Entry(APERTURE, RATIONAL, [(2**32 - 1, 1)])], None),
    ],
)
def test_aperture_is_the_f_number_or_from_apex(entries: list[Entry], aperture: float | None) -> None:
    assert summary(*entries).aperture == (None if aperture is None else pytest.approx(aperture, rel=1e-12))


@pytest.mark.parametrize(
    ("entries", "exposure_s"),
    [
        ([Entry(EXPOSURE_TIME, RATIONAL, [(10, 2500)])], 0.004),
        ([Entry(EXPOSURE_TIME, RATIONAL, [(30, 1)]), Entry(SHUTTER_SPEED, SRATIONAL, [(7, 1)])], 30.0),
        ([Entry(SHUTTER_SPEED, SRATIONAL, [(7, 1)])], 1 / 128),
        ([Entry(SHUTTER_SPEED, SRATIONAL, [(-5, 1)])], 32.0),
        ([Entry(EXPOSURE_TIME, RATIONAL, [(0, 1)]), Entry(SHUTTER_SPEED, SRATIONAL, [(0, 1)])], 1.0),
        ([Entry(EXPOSURE_TIME, RATIONAL, [(1, 0)])], None),
        ([Entry(SHUTTER_SPEED, SRATIONAL, [(-(2**31), 1)])], None),
        ([Entry(SHUTTER_SPEED, SRATIONAL, [(2**31 - 1, 1)])], None),
        ([Entry(SHUTTER_SPEED, SRATIONAL, [(7, 0)])], None),
    ],
)
def test_exposure_is_in_seconds_or_from_apex(entries: list[Entry], exposure_s: float | None) -> None:
    assert summary(*entries).exposure_s == (None if exposure_s is None else pytest.approx(exposure_s, rel=1e-12))


@pytest.mark.parametrize(
    ("texts", "taken_at"),
    [
        ({ORIGINAL: "2020:01:02 03:04:05"}, "2020-01-02T03:04:05"),
        ({ORIGINAL: "2020:01:02 03:04:05", OFFSET_ORIGINAL: "-03:30"}, "2020-01-02T03:04:05-03:30"),
        ({ORIGINAL: "2020:01:02 03:04:05", OFFSET: "+09:00"}, "2020-01-02T03:04:05"),
        ({ORIGINAL: "2020:01:02 03:04:05", OFFSET_ORIGINAL: "   :  "}, "2020-01-02T03:04:05"),
        ({ORIGINAL: "2020:01:02 03:04:05", OFFSET_ORIGINAL: "+99:00"}, "2020-01-02T03:04:05"),
        ({ORIGINAL: "2020-01-02T03:04:05"}, "2020-01-02T03:04:05"),
        ({DIGITIZED: "1999:12:31 23:59:59", DATE_TIME: "2020:01:02 03:04:05"}, "1999-12-31T23:59:59"),
        ({DATE_TIME: "2020:01:02 03:04:05", OFFSET: "+09:00"}, "2020-01-02T03:04:05+09:00"),
        ({ORIGINAL: "0000:00:00 00:00:00", DATE_TIME: "2020:01:02 03:04:05"}, "2020-01-02T03:04:05"),
        ({ORIGINAL: "2020:02:29 00:00:00"}, "2020-02-29T00:00:00"),
        ({ORIGINAL: "2021:02:29 00:00:00"}, None),
        ({ORIGINAL: "2020:13:01 00:00:00"}, None),
        ({ORIGINAL: "2020:01:02 24:00:00"}, None),
        ({ORIGINAL: "0000:00:00 00:00:00"}, None),
        ({ORIGINAL: "    :  :     :  :  "}, None),
        ({ORIGINAL: "Sunday, 11am"}, None),
        ({ORIGINAL: "2020:01:02"}, None),
    ],
)
def test_time_is_iso_8601_where_it_is_a_time(texts: dict[int, str], taken_at: str | None) -> None:
    camera = [Entry(tag, ASCII, text) for tag, text in texts.items() if tag != DATE_TIME]
    main = [Entry(tag, ASCII, text) for tag, text in texts.items() if tag == DATE_TIME]
    assert summary(*camera, main=tuple(main)).taken_at == taken_at


@pytest.mark.parametrize(
    ("entries", "iso"),
    [
        ([Entry(ISO, SHORT, [100])], 100),
        ([Entry(ISO, SHORT, [100, 0])], 100),
        ([Entry(ISO, SHORT, [65535]), Entry(0x8830, SHORT, [2]), Entry(0x8832, LONG, [102400])], 102400),
        ([Entry(ISO, SHORT, [65535])], None),
        ([Entry(ISO, SHORT, [0])], None),
        ([Entry(ISO, ASCII, "Auto ISO")], None),
        ([Entry(0x8833, LONG, [2**32 - 1])], None),
    ],
)
def test_iso(entries: list[Entry], iso: int | None) -> None:
    assert summary(*entries).iso == iso


@pytest.mark.parametrize("order", ["II", "MM"])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("north", "east"), [("N", "E"), ("N", "W"), ("S", "E"), ("S", "W")])
def test_four_hemispheres(north: str, east: str, format: str, order: ByteOrder) -> None:
    gps = changed(GPS, Entry(1, ASCII, north), Entry(3, ASCII, east))
    found = inspect_image(file_with(MAIN, CAMERA, gps, format=format, order=order)).metadata
    assert found.latitude == {"N": 46.125, "S": -46.125}[north]
    assert found.longitude == {"E": 7.78125, "W": -7.78125}[east]


@pytest.mark.parametrize(
    "parts",
    [
        [(33, 1), (51, 1), (5412, 100)],
        [(33, 1), (51, 1), (54120000, 1000000)],
        [(66, 2), (102, 2), (5412, 100)],
        [(33, 1), (51902, 1000), (0, 1)],
        [(33, 1), (51902, 1000)],
        [(3386503333, 100000000)],
    ],
    ids=["usual", "fine fraction", "unreduced", "decimal minutes", "two components", "decimal degrees"],
)
def test_each_way_to_write_degrees(parts: list[tuple[int, int]]) -> None:
    gps = (Entry(1, ASCII, "S"), Entry(2, RATIONAL, parts))
    assert summary(gps=gps).latitude == pytest.approx(-33.8650333333, abs=1e-8)


def test_longitude_ends_at_180_degrees() -> None:
    for degrees, seconds, longitude in ((180, 0, -180.0), (180, 1, None), (0, 0, 0.0)):
        gps = (Entry(3, ASCII, "W"), Entry(4, RATIONAL, [(degrees, 1), (0, 1), (seconds, 100)]))
        found = summary(gps=gps).longitude
        assert found == longitude
        assert found is None or math.copysign(1, found) == (1 if longitude == 0 else -1)


@settings(max_examples=200)
@given(
    degrees=st.integers(0, 200),
    minutes=st.integers(0, 59),
    seconds=st.fractions(0, Fraction(5999, 100), max_denominator=10**6),
    direction=st.sampled_from("EW"),
    order=st.sampled_from(["II", "MM"]),
)
def test_degrees_minutes_seconds_are_decimal_degrees(
    degrees: int, minutes: int, seconds: Fraction, direction: str, order: ByteOrder
) -> None:
    parts = [(degrees, 1), (minutes, 1), (seconds.numerator, seconds.denominator)]
    gps = [Entry(3, ASCII, direction), Entry(4, RATIONAL, parts)]
    exact = degrees + Fraction(minutes, 60) + seconds / 3600
    found = inspect_image(in_jpeg(exif_block(gps=gps, order=order), JPEG)).metadata.longitude
    assert found == (None if exact > 180 else pytest.approx(float(exact if direction == "E" else -exact), abs=1e-12))


@settings(max_examples=200)
@given(latitude=st.floats(-90, 90))
def test_position_survives_a_cameras_rounding(latitude: float) -> None:
    # A camera cuts a position into degrees, minutes and hundred-thousandths of a second: 0.3 mm on the ground.
    units = round(abs(latitude) * 3600 * 10**5)
    minutes, seconds = divmod(units, 60 * 10**5)
    gps = (
        Entry(1, ASCII, "S" if latitude < 0 else "N"),
        Entry(2, RATIONAL, [(minutes // 60, 1), (minutes % 60, 1), (seconds, 10**5)]),
    )
    assert summary(gps=gps).latitude == pytest.approx(latitude, abs=0.6 / 3600 / 10**5)


@pytest.mark.parametrize(
    ("reference", "altitude_m"),
    [
        (Entry(5, BYTE, b"\0"), 430.5),
        (Entry(5, BYTE, b"\1"), -430.5),
        (Entry(5, BYTE, b"\2"), 430.5),
        (Entry(5, BYTE, b"\3"), -430.5),
        (Entry(5, SHORT, [1]), -430.5),
        (Entry(5, BYTE, b"\7"), None),
        (Entry(5, BYTE, b"\1\0"), None),
        (Entry(5, ASCII, "1"), None),
        (Entry(7, RATIONAL, [(12, 1), (0, 1), (0, 1)]), 430.5),
    ],
    ids=str,
)
def test_altitude_is_negative_below_the_sea(reference: Entry, altitude_m: float | None) -> None:
    assert summary(gps=(reference, Entry(6, RATIONAL, [(861, 2)]))).altitude_m == altitude_m
    assert summary(gps=(reference, Entry(6, RATIONAL, [(861, 0)]))).altitude_m is None


def test_text_beyond_ascii_is_utf_8_or_latin_1() -> None:
    block = exif_block([Entry(0x013B, ASCII, "José"), Entry(0x8298, UNDEFINED, b"x")])
    assert inspect_image(in_jpeg(block, JPEG)).exif == {"Artist": "José"}
    latin = block.replace("José".encode(), b"Jos\xe9\0")
    assert inspect_image(in_jpeg(latin, JPEG)).exif == {"Artist": "José"}


def test_long_values_are_left_out() -> None:
    main = [Entry(MAKE, ASCII, "x" * 1001), Entry(MODEL, ASCII, "y" * 1000), Entry(0x9999, SHORT, [7] * 3000)]
    info = is_decoded(in_jpeg(exif_block(main), JPEG))
    assert info.exif == {"Model": "y" * 1000}
    assert info.metadata == ExifSummary(camera="y" * 1000)


def test_json_keeps_every_field() -> None:
    info = inspect_image(in_jpeg(exif_block(MAIN, CAMERA, GPS), JPEG))
    assert info.metadata == WHOLE
    text = info.to_json()
    assert "\n" not in text
    assert ImageInfo.from_json(text) == info
