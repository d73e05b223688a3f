"""Every picture is made here with Pillow or by hand, so that the expected pixels are known."""

import io
import os
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from helpers.images.pictures import BLUE, GREEN, RED, assert_quadrants, encode, quadrants
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from featurize.decoding import decode
from featurize.decoding.decode import DecodeError, decode_image, inspect_image

# The module ignores these itself, but pytest sets its own filters for every test.

ORIENTATION = 0x0112


def plain(content: bytes, *, size: int = 4) -> NDArray[np.int64]:
    """The colour of an image of one colour."""
    pixels = decode_image(content, height=size, width=size)
    assert pixels.shape == (size, size, 3)
    assert np.ptp(pixels.reshape(-1, 3), axis=0).max() <= 3
    mean: NDArray[np.float64] = pixels.reshape(-1, 3).mean(axis=0)
    return mean.round().astype(np.int64)


def tiff(values: bytes, *, width: int, height: int, bits: int, photometric: int = 1) -> bytes:
    """A little-endian grey TIFF of one strip, for what Pillow does not write."""
    tags = [(256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8)]
    tags += [(277, 3, 1), (278, 3, height), (279, 4, len(values))]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    offset = 8 + len(values)
    return struct.pack("<2sHI", b"II", 42, offset) + values + struct.pack("<H", len(tags)) + entries + bytes(4)


def png_header(width: int, height: int) -> bytes:
    """An RGB PNG up to where its pixels would start."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">II", zlib.crc32(chunk), 9) + b"IDAT"


VALID_FILES = {
    "jpeg": encode(quadrants(), "JPEG", exif=Image.Exif()),
    "png": encode(quadrants(), "PNG"),
    "palette png": encode(quadrants().quantize(4), "PNG", transparency=1),
    "grey 16 png": encode(Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100), "PNG"),
    "bmp": encode(quadrants(), "BMP"),
    "gif": encode(quadrants(), "GIF"),
    "webp": encode(quadrants(), "WEBP"),
    "tiff": encode(quadrants(), "TIFF"),
    "lzw tiff": encode(quadrants(), "TIFF", compression="tiff_lzw"),
    "ppm": encode(quadrants(), "PPM"),
    "plain pgm": b"P2 3 2 255\n0 10 20\n30 40 50\n",
}


@pytest.mark.parametrize(
    ("format", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("PPM", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 95}, 6),
        ("GIF", {}, 1),
        ("JPEG", {"quality": 95}, 6),
        ("JPEG", {"quality": 95, "progressive": True}, 6),
        ("MPO", {"quality": 95, "save_all": True, "append_images": [quadrants()]}, 6),
        ("AVIF", {"quality": 95}, 8),
        ("JPEG2000", {}, 1),
    ],
)
def test_format_keeps_its_colours(format: str, options: dict[str, object], tolerance: float) -> None:
    content = encode(quadrants(), format, **options)
    assert_quadrants(decode_image(content, height=32, width=48), tolerance)
    assert inspect_image(content).format == format.replace("MPO", "JPEG")


@pytest.mark.parametrize(
    ("image", "format", "expected"),
    [
        (Image.new("L", (4, 4), 77), "PNG", (77, 77, 77)),
        (Image.new("L", (4, 4), 77), "JPEG", (77, 77, 77)),
        (Image.new("L", (4, 4), 77), "PPM", (77, 77, 77)),
        (Image.new("1", (4, 4), 1), "PNG", (255, 255, 255)),
        (Image.new("1", (4, 4), 0), "TIFF", (0, 0, 0)),
        (Image.new("1", (4, 4), 1), "PPM", (255, 255, 255)),
        (Image.new("RGB", (4, 4), RED).quantize(2), "PNG", RED),
        (Image.new("RGBA", (4, 4), (*BLUE, 255)), "PNG", BLUE),
        (Image.new("RGBA", (4, 4), (*BLUE, 0)), "PNG", (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (200, 0, 100, 51)), "PNG", (244, 204, 224)),
        (Image.new("RGBA", (4, 4), (200, 0, 100, 51)), "TIFF", (244, 204, 224)),
        (Image.new("RGBA", (4, 4), (200, 0, 100, 0)), "WEBP", (255, 255, 255)),
        (Image.new("LA", (4, 4), (0, 51)), "PNG", (204, 204, 204)),
        (Image.new("LA", (4, 4), (0, 51)), "TIFF", (204, 204, 204)),
        (Image.new("CMYK", (4, 4), (255, 0, 0, 0)), "TIFF", (0, 255, 255)),
        (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "JPEG", (255, 0, 0)),
        (Image.new("YCbCr", (4, 4), (128, 128, 128)), "TIFF", (128, 128, 128)),
        (Image.new("I;16", (4, 4), 257 * 100), "PNG", (100, 100, 100)),
        (Image.new("I;16", (4, 4), 257 * 100), "TIFF", (100, 100, 100)),
        (Image.new("I", (4, 4), 257 * 100), "PPM", (100, 100, 100)),
        (Image.new("I", (4, 4), 257 * 100), "TIFF", (100, 100, 100)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else str(value),
)
def test_mode_becomes_rgb_over_white(image: Image.Image, format: str, expected: tuple[int, int, int]) -> None:
    np.testing.assert_allclose(plain(encode(image, format)), expected, atol=2)


def test_palette_transparency_is_white() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([*RED, *GREEN])
    assert plain(encode(image, "PNG")).tolist() == list(GREEN)
    assert plain(encode(image, "PNG", transparency=1)).tolist() == [255, 255, 255]
    assert plain(encode(image, "GIF", transparency=1)).tolist() == [255, 255, 255]
    half = plain(encode(image, "PNG", transparency=bytes([255, 128])))
    np.testing.assert_allclose(half, (np.array(GREEN) + 255) / 2, atol=1)


def test_transparent_colour_of_a_png_is_white() -> None:
    assert plain(encode(Image.new("RGB", (4, 4), RED), "PNG", transparency=RED)).tolist() == [255, 255, 255]
    assert plain(encode(Image.new("L", (4, 4), 9), "PNG", transparency=9)).tolist() == [255, 255, 255]
    assert plain(encode(Image.new("I;16", (4, 4), 900), "PNG", transparency=900)).tolist() == [255, 255, 255]


def test_ycck_jpeg_has_the_colours_of_its_cmyk_source() -> None:
    # YCCK codes inverted CMY as YCbCr. Pillow writes CMYK only, so its Adobe marker is set to 2, YCCK.
    cmy = tuple(255 - part for part in RED)
    y, cb, cr = Image.new("RGB", (1, 1), cmy).convert("YCbCr").tobytes()
    content = encode(Image.new("CMYK", (16, 16), (255 - y, 255 - cb, 255 - cr, 0)), "JPEG", quality=100)
    marker = content.index(b"Adobe")
    assert content[marker + 11] == 0
    ycck = content[: marker + 11] + b"\x02" + content[marker + 12 :]
    np.testing.assert_allclose(plain(ycck), RED, atol=4)
    assert inspect_image(ycck).mode == "CMYK"


@pytest.mark.parametrize(
    "content",
    [
        encode(Image.fromarray(np.tile(np.arange(256, dtype=np.uint16) * 257, (4, 1))), "PNG"),
        encode(Image.fromarray(np.tile(np.arange(256, dtype=np.uint16) * 257, (4, 1))), "TIFF"),
        b"P5 256 4 65535\n" + (np.tile(np.arange(256), (4, 1)) * 257).astype(">u2").tobytes(),
        b"P5 256 4 1020\n" + (np.tile(np.arange(256), (4, 1)) * 4).astype(">u2").tobytes(),
        tiff(
            (np.tile(np.arange(256)[::-1], (4, 1)) * 257).astype("<u2").tobytes(),
            width=256,
            height=4,
            bits=16,
            photometric=0,
        ),
    ],
    ids=["png", "tiff", "pgm", "pgm of maxval 1020", "tiff with white as zero"],
)
def test_16_bit_gradient_is_scaled_and_not_clipped(content: bytes) -> None:
    pixels = decode_image(content, height=4, width=256, channels=1)
    np.testing.assert_array_equal(pixels[:, :, 0], np.tile(np.arange(256), (4, 1)))


def test_12_bit_tiff_fills_the_range() -> None:
    # Three bytes hold two samples, 0xFFF and 0x800.
    pixels = decode_image(tiff(b"\xff\xf8\x00", width=2, height=1, bits=12), height=1, width=2, channels=1)
    assert pixels.ravel().tolist() == [255, 128]


@pytest.mark.parametrize("values", [[-1.0, 5.0], [0.0, 300.0], [0.0, np.nan], [np.inf, 0.5]])
def test_float_image_without_a_known_scale_is_refused(values: list[float]) -> None:
    content = encode(Image.fromarray(np.array([values], np.float32)), "TIFF")
    with pytest.raises(DecodeError, match=r"known scale|infinite or not-a-number"):
        decode_image(content, height=2, width=2)


def test_integer_image_beyond_16_bit_is_refused() -> None:
    content = encode(Image.fromarray(np.array([[0, 70000]], np.int32)), "TIFF")
    with pytest.raises(DecodeError, match="grey values from 0 to 70000 have no known scale"):
        decode_image(content, height=2, width=2)


def test_first_frame_counts() -> None:
    frames = [Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), BLUE)]
    for format, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("PNG", {}), ("MPO", {})):
        content = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_allclose(plain(content), RED, atol=3, err_msg=format)


def test_inspect_gives_size_mode_and_colours() -> None:
    pixels = np.zeros((2, 4, 3), np.uint8)
    pixels[0] = (100, 200, 250)
    info = inspect_image(encode(Image.fromarray(pixels), "PNG"))
    assert (info.format, info.mode, info.width, info.height) == ("PNG", "RGB", 4, 2)
    assert info.colour_mean == (50.0, 100.0, 125.0)
    assert info.colour_std == (50.0, 100.0, 125.0)
    assert inspect_image(encode(Image.new("I;16", (4, 4), 0), "PNG")).mode == "I;16"
    assert inspect_image(encode(quadrants().quantize(4), "PNG")).mode == "P"


def test_resizing_is_pillows_antialiased_bilinear_stretch() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8))
    expected = np.asarray(noise.resize((17, 40), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(decode_image(encode(noise, "PNG"), height=40, width=17), expected)
    np.testing.assert_array_equal(decode_image(encode(noise, "PNG"), height=60, width=90), np.asarray(noise))


def test_grey_is_the_itu_601_luma_of_the_resized_image() -> None:
    expected = np.asarray(quadrants().resize((10, 9), Image.Resampling.BILINEAR).convert("L"))
    pixels = decode_image(encode(quadrants(), "PNG"), height=9, width=10, channels=1)
    assert pixels.shape == (9, 10, 1)
    np.testing.assert_array_equal(pixels[:, :, 0], expected)
    assert pixels.flags.writeable


@pytest.mark.parametrize("size", [(400, 300), (403, 305), (1111, 777)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_draft_stays_close_to_a_full_decode(size: tuple[int, int], orientation: int) -> None:
    small = np.random.default_rng(1).integers(0, 256, (12, 16, 3), np.uint8)
    picture = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    content = encode(picture, "JPEG", quality=90, exif=exif)
    height, width = (45, 30) if orientation == 6 else (30, 45)
    full = Image.open(io.BytesIO(content)).convert("RGB")
    upright = full.transpose(Image.Transpose.ROTATE_270) if orientation == 6 else full
    expected = np.asarray(upright.resize((width, height), Image.Resampling.BILINEAR), np.int64)
    difference = np.abs(decode_image(content, height=height, width=width) - expected)
    assert difference.mean() < 3
    assert difference.max() < 30


def test_draft_never_goes_below_twice_the_wanted_size() -> None:
    content = encode(quadrants(480, 320), "JPEG")
    for height, width in ((40, 60), (41, 60), (160, 240), (10, 10), (320, 1), (1, 480)):
        image = Image.open(io.BytesIO(content))
        decode.draft(image, None, height=height, width=width)
        assert image.width >= min(480, 2 * width)
        assert image.height >= min(320, 2 * height)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"a few words, no picture\n", "not an image in a known format"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "not an image in a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image in a known format"),
        (b"\0" * 100, "not an image in a known format"),
        (VALID_FILES["jpeg"][:20], "the JPEG header gives no size, a size of zero, or no kind of pixels"),
        (VALID_FILES["jpeg"][:-200], "the JPEG file is truncated"),
        (VALID_FILES["png"][: len(VALID_FILES["png"]) // 2], "the PNG file is truncated"),
        (VALID_FILES["bmp"][:-100], "the BMP file is truncated"),
        (VALID_FILES["ppm"][:-100], "the PPM file is truncated"),
        (VALID_FILES["png"][:33], "the PNG file is truncated"),
        (png_header(5, 5), "the PNG file is truncated"),
        (png_header(0, 5), "the PNG header gives no size, a size of zero, or no kind of pixels"),
        (b"P5 0 5 255\n", "the PPM header gives no size, a size of zero, or no kind of pixels"),
        (png_header(60_000, 60_000), "the image has 60000 x 60000 pixels, more than the limit of 100000000"),
        (png_header(1_000_001, 5), "the image has 1000001 x 5 pixels, more than 1000000 on a side"),
        (b"P6 10001 10000 255\n", "the image has 10001 x 10000 pixels, more than the limit of 100000000"),
    ],
)
def test_unusable_bytes_have_a_clear_reason(content: bytes, reason: str) -> None:
    for read in (lambda: decode_image(content, height=8, width=8), lambda: inspect_image(content)):
        with pytest.raises(DecodeError) as caught:
            read()
        assert str(caught.value).startswith(reason)
        assert "\n" not in str(caught.value)


def test_formats_that_are_not_allowed_are_not_entered() -> None:
    for format in ("ICO", "TGA", "PCX", "SGI", "EPS"):
        content = encode(quadrants(), format)
        with pytest.raises(DecodeError, match="not an image in a known format"):
            decode_image(content, height=8, width=8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 0, "width": 4}, "`height` and `width` must be at least 1. Got 0 and 4."),
        ({"height": 4, "width": 4, "channels": 4}, "`channels` must be 1 or 3. Got 4."),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        decode_image(VALID_FILES["png"], **arguments)
    assert str(caught.value) == message


def test_warnings_of_pillow_are_silent_and_no_errors() -> None:
    # In a process of its own: pytest resets the filters that importing the module sets.
    exif = Image.Exif()
    exif[0x010F] = "a maker with a long name"
    content = encode(quadrants(), "JPEG", exif=exif.tobytes()[:-12])
    code = "import sys; from featurize.decoding.decode import inspect_image; print(inspect_image(sys.stdin.buffer.read()).format)"
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    done = subprocess.run(command, input=content, capture_output=True, check=True, env={**os.environ})
    assert (done.stdout, done.stderr) == (b"JPEG\n", b"")


def test_threads_decode_the_same_pixels() -> None:
    jobs = [*VALID_FILES.values()] * 12

    def digest(content: bytes) -> bytes:
        return decode_image(content, height=20, width=20).tobytes() + repr(inspect_image(content)).encode()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(digest, jobs)) == [digest(content) for content in jobs]


def decodes_or_is_refused(content: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "MAX_PIXELS", 1_000_000)  # a damaged header may claim a size that takes seconds
        try:
            pixels = decode_image(content, height=7, width=9)
        except DecodeError as error:
            assert str(error)
            assert "\n" not in str(error)
        else:
            assert pixels.shape == (7, 9, 3)
            assert pixels.dtype == np.uint8
        try:
            info = inspect_image(content)
        except DecodeError:
            return
        assert all(0 <= value <= 255 for value in (*(info.colour_mean or ()), *(info.colour_std or ())))


@settings(max_examples=100)
@given(content=st.binary(max_size=300), prefix=st.sampled_from([b"", *(file[:40] for file in VALID_FILES.values())]))
def test_random_bytes_decode_or_are_refused(content: bytes, prefix: bytes) -> None:
    decodes_or_is_refused(prefix + content)


@settings(max_examples=100)
@given(name=st.sampled_from(sorted(VALID_FILES)), length=st.integers(0, 5000))
def test_truncated_files_decode_or_are_refused(name: str, length: int) -> None:
    decodes_or_is_refused(VALID_FILES[name][:length])


@settings(max_examples=100)
@given(
    name=st.sampled_from(sorted(VALID_FILES)),
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    channels=st.sampled_from([1, 3]),
)
def test_any_size_is_honoured(name: str, height: int, width: int, channels: int) -> None:
    pixels = decode_image(VALID_FILES[name], height=height, width=width, channels=channels)
    assert pixels.shape == (height, width, channels)
    assert pixels.dtype == np.uint8
