"""Broken EXIF: the picture is decoded all the same, and of the metadata what can be trusted is kept."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from helpers.images.camera_files import (
    APERTURE,
    CAMERA,
    DATE_TIME,
    FORMATS,
    GPS,
    JPEG,
    MAIN,
    MAKE,
    OFFSET_ORIGINAL,
    ORIENTATION,
    PNG,
    SHUTTER_SPEED,
    WEBP,
    WHOLE,
    X_RESOLUTION,
    XMP,
    changed,
    file_with,
    is_decoded,
    known,
    summary,
    without,
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
    SLONG,
    SRATIONAL,
    UNDEFINED,
    ByteOrder,
    Entry,
    exif_block,
    in_jpeg,
    in_png,
    in_webp,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from featurize.decoding.exif import ExifSummary

# The module ignores these itself, but pytest sets its own filters for every test.


@pytest.mark.parametrize("order", ["II", "MM"])
@pytest.mark.parametrize("insert", [in_jpeg, in_png], ids=["jpeg", "png"])
def test_block_cut_anywhere_gives_what_is_left(insert: Callable[[bytes, bytes], bytes], order: ByteOrder) -> None:
    # Without the values that another one would replace.
    main, camera = without(MAIN, MAKE, DATE_TIME), without(CAMERA, SHUTTER_SPEED, APERTURE, OFFSET_ORIGINAL)
    block = exif_block(main, camera, GPS, order=order)
    whole = known(replace(WHOLE, taken_at="2020-01-02T03:04:05"))
    left = [
        known(is_decoded(insert(block[:length], JPEG if insert is in_jpeg else PNG)).metadata)
        for length in range(len(block) + 1)
    ]
    assert all(found.items() <= whole.items() for found in left)
    assert [len(found) for found in left] == sorted(len(found) for found in left)
    assert (left[0], left[-1]) == ({}, whole)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("order", ["II", "MM"])
@pytest.mark.parametrize(
    "pointer",
    [
        Entry(GPS_POINTER, LONG, [8]),
        Entry(GPS_POINTER, LONG, [10]),
        Entry(GPS_POINTER, LONG, [0]),
        Entry(GPS_POINTER, LONG, [2**32 - 1]),
        Entry(GPS_POINTER, LONG, [8, 8]),
        Entry(GPS_POINTER, SLONG, [-5]),
        Entry(GPS_POINTER, ASCII, "a directory"),
        Entry(GPS_POINTER, RATIONAL, [(8, 0)]),
        Entry(GPS_POINTER, DOUBLE, [-1e300]),
        Entry(XMP, LONG, [5, 6]),
        Entry(XMP, ASCII, "tiff:Orientation"),
        Entry(XMP, DOUBLE, [math.nan]),
    ],
    ids=str,
)
def test_pointer_to_nowhere_or_in_a_loop(pointer: Entry, format: str, order: ByteOrder) -> None:
    main = [*without(MAIN, ORIENTATION), pointer]
    found = is_decoded(file_with(main, CAMERA, [], format=format, order=order)).metadata
    assert found == replace(WHOLE, latitude=None, longitude=None, altitude_m=None)


@pytest.mark.parametrize("format", FORMATS)
def test_exif_directory_that_is_the_main_one(format: str) -> None:
    found = is_decoded(file_with([*MAIN, Entry(EXIF_POINTER, LONG, [8])], [], GPS, format=format)).metadata
    assert known(found) == {
        "camera": WHOLE.camera,
        "taken_at": "2021-05-06T07:08:09",
        "latitude": WHOLE.latitude,
        "longitude": WHOLE.longitude,
        "altitude_m": WHOLE.altitude_m,
    }


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("part", ["main", "camera", "gps"])
def test_any_entry_may_have_any_type_and_count(part: str, format: str) -> None:
    whole = {"main": MAIN, "camera": CAMERA, "gps": GPS}
    for entry in without(whole[part], ORIENTATION):
        for type in (0, *range(1, 14), 65535):
            for count in (None, 7, 1_000_000, 2**32 - 1):
                raw = Entry(entry.tag, type, entry.packed("II"), count)
                directories: dict[str, Any] = {**whole, part: changed(whole[part], raw)}
                found = known(is_decoded(file_with(**directories, format=format)).metadata)
                assert all(math.isfinite(value) for value in found.values() if isinstance(value, float))


@pytest.mark.parametrize(
    "latitude",
    [
        Entry(2, RATIONAL, [(33, 0), (51, 1), (54, 1)]),
        Entry(2, RATIONAL, [(33, 1), (51, 0), (54, 1)]),
        Entry(2, RATIONAL, [(33, 1), (51, 1), (0, 0)]),
        Entry(2, RATIONAL, [(90, 1), (0, 1), (1, 100)]),
        Entry(2, RATIONAL, [(2**32 - 1, 1), (0, 1), (0, 1)]),
        Entry(2, RATIONAL, [(33, 1), (75, 1), (0, 1)]),
        Entry(2, RATIONAL, [(33, 1), (51, 1), (54, 1), (2, 1)]),
        Entry(2, SRATIONAL, [(-33, 1), (51, 1), (54, 1)]),
        Entry(2, DOUBLE, [math.nan, 51.0, 54.0]),
        Entry(2, DOUBLE, [33.0, math.inf, 54.0]),
        Entry(2, ASCII, "33,51,54"),
        Entry(2, UNDEFINED, bytes(24)),
        Entry(2, RATIONAL, []),
        Entry(1, ASCII, "X"),
        Entry(1, ASCII, "NS"),
        Entry(1, ASCII, ""),
        Entry(1, SHORT, [83]),
    ],
    ids=str,
)
def test_broken_latitude_is_none_and_leaves_the_longitude(latitude: Entry) -> None:
    found = summary(*CAMERA, main=tuple(MAIN), gps=tuple(changed(GPS, latitude)))
    assert found == replace(WHOLE, latitude=None)


def test_position_without_a_direction_is_none() -> None:
    found = summary(*CAMERA, main=tuple(MAIN), gps=tuple(without(GPS, 1, 3)))
    assert found == replace(WHOLE, latitude=None, longitude=None)


@pytest.mark.parametrize("order", ["II", "MM"])
@pytest.mark.parametrize("resolution", [Entry(X_RESOLUTION, BYTE, b"\5"), Entry(X_RESOLUTION, ASCII, "")], ids=str)
def test_resolution_of_a_wrong_type_costs_neither_picture_nor_metadata(resolution: Entry, order: ByteOrder) -> None:
    # Pillow 13.0 calls such a JPEG no image.
    main = changed(MAIN, resolution, Entry(ORIENTATION, SHORT, [6]))
    content = file_with(main, CAMERA, GPS, format="JPEG", order=order, orientation=6)
    assert is_decoded(content).metadata == WHOLE


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "orientation",
    [
        Entry(ORIENTATION, SHORT, [0]),
        Entry(ORIENTATION, SHORT, [9]),
        Entry(ORIENTATION, ASCII, "6"),
        Entry(ORIENTATION, RATIONAL, [(6, 0)]),
        Entry(ORIENTATION, DOUBLE, [math.nan]),
        Entry(ORIENTATION, UNDEFINED, b"\6"),
    ],
    ids=str,
)
def test_odd_orientation_is_upright(orientation: Entry, format: str) -> None:
    assert is_decoded(file_with(changed(MAIN, orientation), CAMERA, GPS, format=format)).metadata == WHOLE


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"nonsense",
        b"II*\0",
        b"II*\0\x08\0\0\0\xff\xff",
        b"MM\0*\0\0\0\x08",
        b"MM\0*\xff\xff\xff\xff",
        b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0",
        b"II*\0\x08\0\0\0\xff\xff" + b"\x0f\x01\2\0\xff\xff\xff\xff\0\0\0\0" * 5000,
    ],
    ids=lambda block: repr(block[:16]),
)
def test_block_that_is_none(block: bytes) -> None:
    for content in (in_jpeg(block, JPEG), in_png(block, PNG), in_webp(block, WEBP, width=48, height=32)):
        info = is_decoded(content)
        assert info.exif == {}
        assert info.metadata == ExifSummary()


@settings(max_examples=300)
@given(
    prefix=st.sampled_from([b"", b"II*\0\x08\0\0\0\x05\0", b"MM\0*\0\0\0\x08\0\x05"]),
    noise=st.binary(max_size=200),
)
def test_random_block_leaves_the_picture(prefix: bytes, noise: bytes) -> None:
    # No orientation by chance: it would be right to turn the picture.
    block = (prefix + noise).replace(b"\x12\x01", b"\0\0").replace(b"\x01\x12", b"\0\0")
    for content in (in_jpeg(block, JPEG), in_png(block, PNG), in_webp(block, WEBP, width=48, height=32)):
        is_decoded(content)
