"""Resizing and cropping as processors of images do it: Pillow's own pixels, for every shape, filter and orientation."""

import io
from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pytest
from helpers.images.pictures import encode
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from featurize.decoding.decode import DecodeError, Fit, Interpolation, decode_image, decode_sized
from featurize.decoding.decoder_process import Decoder

FILTERS: tuple[Interpolation, ...] = get_args(Interpolation)
OFFSETS = ("floor", "round")
ORIENTATIONS = range(1, 9)


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    decoder = Decoder()
    yield decoder
    decoder.close()


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Random pixels, so that one wrong row, column or rounding shows."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def fitted(image: Image.Image, fit: Fit, height: int, width: int) -> NDArray[np.uint8]:
    """What the documentation of `Fit` says, in Pillow's words."""
    if isinstance(fit.resize, int):
        by = image.height if image.height <= image.width else image.width
        size = tuple(fit.resize if side == by else int(fit.resize * side / by) for side in (image.width, image.height))
    else:
        assert isinstance(fit.resize, tuple)
        size = fit.resize[::-1]
    resized = np.asarray(image.resize((size[0], size[1]), getattr(Image.Resampling, fit.interpolation.upper())))
    rounded = round if fit.offset == "round" else int
    top, left = (rounded((whole - part) / 2) for whole, part in zip(resized.shape, (height, width), strict=False))
    return resized[top : top + height, left : left + width]


sides = st.integers(1, 60)
wanted = st.integers(1, 24)


@st.composite
def fits(draw: Any) -> tuple[Fit, int, int]:
    """A fit, and the height and width of an input that it covers."""
    height, width = draw(wanted), draw(wanted)
    more = st.integers(0, 20)
    one = draw(st.booleans())
    resize = max(height, width) + draw(more) if one else (height + draw(more), width + draw(more))
    return Fit(resize, draw(st.sampled_from(FILTERS)), draw(st.sampled_from(OFFSETS))), height, width


@settings(max_examples=300)
@given(sides, sides, fits(), st.integers(0, 9))
def test_a_fit_is_pillows_resize_and_the_central_part(
    height: int, width: int, wanted: tuple[Fit, int, int], seed: int
) -> None:
    image = picture(height, width, seed)
    fit, *size = wanted
    pixels, upright = decode_sized(encode(image, "PNG"), height=size[0], width=size[1], fit=fit)
    np.testing.assert_array_equal(pixels, fitted(image, fit, *size))
    assert upright == (width, height)
    assert pixels.flags.writeable


@settings(max_examples=200)
@given(sides, sides, fits(), st.sampled_from(ORIENTATIONS), st.sampled_from(["PNG", "JPEG", "TIFF"]))
def test_turned_pictures_are_resized_upright(
    height: int, width: int, wanted: tuple[Fit, int, int], orientation: int, format: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(picture(height, width), format, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    fit, *size = wanted
    pixels, upright_size = decode_sized(content, height=size[0], width=size[1], fit=fit)
    assert upright_size == upright.size
    np.testing.assert_array_equal(pixels, fitted(upright, fit, *size))


def test_a_large_jpeg_is_decoded_whole() -> None:
    content = encode(picture(400, 600), "JPEG", quality=90)
    fit = Fit(40, "bicubic")
    pixels = decode_image(content, height=32, width=32, fit=fit)
    np.testing.assert_array_equal(pixels, fitted(Image.open(io.BytesIO(content)), fit, 32, 32))
    stretched = decode_image(content, height=40, width=60)
    whole = decode_image(content, height=40, width=60, fit=Fit((40, 60)))
    assert (stretched != whole).any()  # that stretching takes the shortcut is why this can fail


def test_transparent_parts_are_white_before_they_are_resized() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (31, 45, 4), dtype=np.uint8)
    content = encode(Image.fromarray(pixels), "PNG")
    white = Image.new("RGBA", (45, 31), "white")
    white.alpha_composite(Image.fromarray(pixels))
    fit = Fit(20, "lanczos")
    expected = fitted(white.convert("RGB"), fit, 16, 16)
    np.testing.assert_array_equal(decode_image(content, height=16, width=16, fit=fit), expected)


def test_grey_is_the_luma_of_the_fitted_picture() -> None:
    image, fit = picture(37, 51), Fit(30, "box", "round")
    expected = Image.fromarray(fitted(image, fit, 21, 30)).convert("L")
    pixels = decode_image(encode(image, "PNG"), height=21, width=30, channels=1, fit=fit)
    np.testing.assert_array_equal(pixels[..., 0], np.asarray(expected))


@pytest.mark.parametrize(
    ("whole", "part", "floor", "rounded"), [(8, 4, 2, 2), (9, 4, 2, 2), (11, 4, 3, 4), (5, 4, 0, 0), (7, 4, 1, 2)]
)
def test_half_a_pixel_is_rounded_down_or_to_even(whole: int, part: int, floor: int, rounded: int) -> None:
    assert Fit(whole, offset="floor").start(whole, part) == floor
    assert Fit(whole, offset="round").start(whole, part) == rounded
    image = picture(whole, whole)
    for offset, first in (("floor", floor), ("round", rounded)):
        fit = Fit(whole, offset=offset)  # type: ignore[arg-type]
        pixels = decode_image(encode(image, "PNG"), height=part, width=part, fit=fit)
        np.testing.assert_array_equal(pixels, np.asarray(image)[first : first + part, first : first + part])


@pytest.mark.parametrize(
    ("size", "resized"),
    [((333, 500), (224, 336)), ((500, 333), (336, 224)), ((3, 1000), (224, 74666)), ((7, 7), (224, 224))],
)
def test_the_longer_side_keeps_its_proportion_rounded_down(size: tuple[int, int], resized: tuple[int, int]) -> None:
    assert Fit(224).resized(*size) == resized


def test_a_picture_that_a_fit_leaves_too_small_is_refused() -> None:
    with pytest.raises(DecodeError, match="resized to 60 x 20, does not fit 24 x 24 pixels"):
        decode_image(encode(picture(10, 30), "PNG"), height=24, width=24, fit=Fit(20))


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (2, 3000)])
def test_a_strip_that_would_become_huge_is_refused(decoder: Decoder, size: tuple[int, int]) -> None:
    content = encode(Image.new("RGB", size), "PNG")
    with pytest.raises(DecodeError, match="has more than 100000000 pixels"):
        decode_image(content, height=1000, width=1000, fit=Fit(1000))
    with pytest.raises(DecodeError, match="has more than 100000000 pixels"):
        decoder.decode(content, height=1000, width=1000, channels=3, fit=Fit(1000))


# Decoder processes


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("resize", [29, (29, 32), (300, 29)])
def test_a_decoder_process_fits_as_the_decoder_itself(
    decoder: Decoder, interpolation: Interpolation, offset: Any, resize: int | tuple[int, int]
) -> None:
    fit = Fit(resize, interpolation, offset)
    exif = Image.Exif()
    exif[0x0112] = 6
    for content in (encode(picture(47, 61), "PNG"), encode(picture(47, 61), "JPEG", exif=exif)):
        for channels in (3, 1):
            pixels, size = decoder.decode(content, height=28, width=25, channels=channels, fit=fit)
            expected = decode_sized(content, height=28, width=25, channels=channels, fit=fit)
            np.testing.assert_array_equal(pixels, expected[0])
            assert size == expected[1]


@settings(max_examples=50)
@given(wanted=fits())
def test_a_decoder_process_understands_every_fit(decoder: Decoder, wanted: tuple[Fit, int, int]) -> None:
    fit, height, width = wanted
    content = encode(picture(23, 40), "PNG")
    pixels, _ = decoder.decode(content, height=height, width=width, channels=3, fit=fit)
    np.testing.assert_array_equal(pixels, decode_image(content, height=height, width=width, fit=fit))


def test_a_decoder_process_fits_one_picture_and_stretches_the_next(decoder: Decoder) -> None:
    content = encode(picture(40, 80), "PNG")
    fit = Fit(20)
    fitted_pixels, _ = decoder.decode(content, height=20, width=20, channels=3, fit=fit)
    stretched, _ = decoder.decode(content, height=20, width=20, channels=3)
    np.testing.assert_array_equal(stretched, decode_image(content, height=20, width=20))
    assert (fitted_pixels != stretched).any()
