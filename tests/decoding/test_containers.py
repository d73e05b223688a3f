"""Metadata never costs a picture, and damage to pixels always does: laws over any chunks and segments."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers.images.pictures import encode, quadrants
from helpers.images.png_files import GREY, PALETTE, RGB, SIGNATURE, chunk, png
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from featurize.decoding.containers import take_apart
from featurize.decoding.decode import DecodeError, decode_image, inspect_image

SAMPLES = np.random.default_rng(0).integers(0, 256, (6, 9, 3))
JPEG = encode(quadrants(), "JPEG")
ANCILLARY = (
    b"zTXt",
    b"iTXt",
    b"tEXt",
    b"iCCP",
    b"pHYs",
    b"eXIf",
    b"gAMA",
    b"cHRM",
    b"sBIT",
    b"hIST",
    b"tIME",
    b"vpAg",
    b"fdAT",
)
KEYWORDS = (b"", b"ICC\0\0", b"XML:com.adobe.xmp\0", b"Raw profile type exif\0", b"Raw profile type exif\0\0")


def pixels(content: bytes) -> NDArray[np.uint8]:
    height, width = SAMPLES.shape[:2]
    return decode_image(content, height=height, width=width)


@given(
    kind=st.sampled_from(ANCILLARY),
    keyword=st.sampled_from(KEYWORDS),
    data=st.binary(max_size=200),
    packed=st.booleans(),
    checksum=st.sampled_from([None, 1]),
    is_after=st.booleans(),
)
def test_no_chunk_beside_the_pixels_costs_a_png(
    kind: bytes, keyword: bytes, data: bytes, packed: bool, checksum: int | None, is_after: bool
) -> None:
    odd = chunk(kind, keyword + (zlib.compress(data) if packed else data), checksum=checksum)
    content = png(SAMPLES, 8, RGB, *([] if is_after else [odd]), after=odd if is_after else b"")
    np.testing.assert_array_equal(pixels(content), SAMPLES)
    notes = inspect_image(content).notes
    if checksum is not None and kind in (b"zTXt", b"iCCP", b"eXIf"):
        assert notes == (f"its {kind.decode()} chunk was left out: its checksum is wrong",)


@pytest.mark.parametrize("length", [2_000_000, 10_000_000])
def test_a_long_text_costs_nothing(length: int) -> None:
    content = png(SAMPLES, 8, RGB, chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"a" * length)))
    np.testing.assert_array_equal(pixels(content), SAMPLES)
    assert len(inspect_image(content).notes) == (length > 4 << 20)


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"IDAT", b"IEND"])
def test_a_wrong_checksum_of_what_makes_the_pixels_is_a_reject(kind: bytes) -> None:
    content = png(SAMPLES[..., :1] % 4, 2, PALETTE, chunk(b"PLTE", bytes(range(12))))
    at = content.index(kind)
    (length,) = struct.unpack_from(">I", content, at - 4)
    damaged = bytearray(content)
    damaged[at + 4 + length] ^= 1
    with pytest.raises(
        DecodeError, match=f"^the PNG file is damaged: the checksum of its {kind.decode()} chunk is wrong$"
    ):
        pixels(bytes(damaged))


@given(
    segments=st.lists(
        st.tuples(
            st.sampled_from([*range(0xE1, 0xEE), 0xEF, 0xFE]),
            st.sampled_from([b"", b"Exif\0\0", b"ICC_PROFILE\0\1\1", b"MPF\0", b"http://ns.adobe.com/xap/1.0/\0"]),
            st.binary(max_size=100),
        ),
        max_size=4,
    )
)
def test_no_segment_beside_the_pixels_costs_a_jpeg(segments: list[tuple[int, bytes, bytes]]) -> None:
    odd = b"".join(
        struct.pack(">BBH", 0xFF, marker, 2 + len(start) + len(data)) + start + data for marker, start, data in segments
    )
    content = JPEG[:2] + odd + JPEG[2:]
    assert take_apart(content).content == JPEG
    inspect_image(content)


@given(cut=st.integers(0, 400))
def test_a_file_that_is_cut_off_goes_to_the_decoder_as_it_is(cut: int) -> None:
    for content in (JPEG[:cut], png(SAMPLES, 8, RGB)[:cut]):
        take_apart(content)
        try:
            pixels(content)
        except DecodeError as error:
            assert "is wrong" not in str(error)


def reference(samples: NDArray[np.int64], depth: int, transparent: tuple[int, ...]) -> NDArray[np.int64]:
    """Over white, by the samples as stored."""
    levels = samples * 255 // ((1 << depth) - 1) if depth < 16 else samples >> 8
    levels = np.where((samples == transparent).all(axis=-1, keepdims=True), 255, levels)
    return np.broadcast_to(levels, (*samples.shape[:2], 3))


@given(
    data=st.data(),
    kind=st.sampled_from([(1, GREY), (2, GREY), (4, GREY), (8, GREY), (16, GREY), (8, RGB), (16, RGB)]),
)
def test_a_transparent_colour_is_compared_with_samples_as_they_are_stored(
    data: st.DataObject, kind: tuple[int, int]
) -> None:
    depth, colour = kind
    channels = 1 if colour == GREY else 3
    near = st.integers(0, min(3, (1 << depth) - 1))
    base = data.draw(st.integers(0, max(0, (1 << depth) - 4)))
    count = 6 * 9 * channels
    samples = np.array(data.draw(st.lists(near, min_size=count, max_size=count))).reshape(6, 9, channels) + base
    transparent = tuple(data.draw(near) + base for _ in range(channels))
    content = png(samples, depth, colour, chunk(b"tRNS", struct.pack(f">{channels}H", *transparent)))
    tolerance = 1 if depth == 16 else 0  # grey of 16 bits is rounded
    np.testing.assert_allclose(pixels(content).astype(np.int64), reference(samples, depth, transparent), atol=tolerance)


def test_the_fourth_band_of_a_tiff_is_alpha_only_if_it_says_so(tmp_path: Path) -> None:
    rgba = Image.merge("RGBA", [*quadrants().split(), Image.new("L", quadrants().size, 60)])
    declared = encode(rgba, "TIFF")
    (at,) = [at for at in range(len(declared) - 12) if declared[at : at + 8] == struct.pack("<HHI", 338, 3, 1)]
    unsaid = declared[:at] + struct.pack("<HHIHH", 338, 3, 1, 0, 0) + declared[at + 12 :]
    height, width = quadrants().height, quadrants().width
    np.testing.assert_array_equal(decode_image(unsaid, height=height, width=width), np.asarray(quadrants()))
    assert np.abs(decode_image(declared, height=height, width=width).astype(int) - np.asarray(quadrants())).max() > 60


def test_an_alpha_that_is_0_everywhere_is_no_transparency_in_a_bmp() -> None:
    for alpha, is_shown in ((0, True), (1, False)):
        rows = np.zeros((4, 4, 4), np.uint8)
        rows[...] = (40, 40, 200, 0)
        rows[0, 0, 3] = alpha
        size = 108
        head = struct.pack("<IiiHHIIiiII", size, 4, 4, 1, 32, 3, 64, 2835, 2835, 0, 0)
        head += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
        content = (
            b"BM"
            + struct.pack("<IHHI", 14 + size + 64, 0, 0, 14 + size)
            + head
            + bytes(size - len(head))
            + rows.tobytes()
        )
        shown = decode_image(content, height=4, width=4)
        assert (shown == (200, 40, 40)).all() == is_shown


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"%PDF-1.7\n", "a PDF document"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- made -->\n<svg xmlns='x'/>", "an SVG drawing"),
        (b"<!DOCTYPE html><p>404", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a pointer of Git LFS"),
        (b"PK\x03\x04\x14\0\x06\0xl/workbook.xml", "an Excel workbook"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(64), "an old Office document, or a Thumbs.db"),
        (b"name,label\n1,cat\n", "a text file"),
    ],
)
def test_what_is_no_image_is_named(content: bytes, what: str) -> None:
    with pytest.raises(DecodeError, match=f"^not an image in a known format, but {what}"):
        pixels(content)


def test_a_png_without_metadata_is_not_copied() -> None:
    content = png(SAMPLES, 8, RGB)
    assert take_apart(content).content is content
    assert content.startswith(SIGNATURE)


@pytest.mark.parametrize("transparent", [None, 1])
def test_around_the_picture_of_a_gif_there_is_white(transparent: int | None) -> None:
    options = {} if transparent is None else {"transparency": transparent}
    content = encode(Image.new("P", (4, 4), 0), "GIF", **options)
    larger = content[:6] + struct.pack("<HH", 7, 6) + content[10:]
    shown = decode_image(larger, height=6, width=7)
    assert (shown[:4, :4] == decode_image(content, height=4, width=4)).all()
    assert (shown[:4, 4:] == 255).all()
    assert (shown[4:] == 255).all()
