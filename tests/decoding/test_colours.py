"""Colour profiles are converted or kept raw, and the scale of wide grey is decided by tags or the recipe, never by the values."""

import io
import struct

import numpy as np
import pytest
from helpers.images.pictures import encode
from helpers.images.profiles import PRIMARIES, encoded, grey_profile, in_srgb, profile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms, TiffImagePlugin

from featurize.decoding.colours import UnknownScaleError
from featurize.decoding.decode import Color, DecodeError, decode_image, inspect_image

GAMMA = 2.2
PIXELS = np.random.default_rng(5).integers(0, 256, (16, 16, 3), dtype=np.uint8)
RAMP = (np.arange(256).reshape(16, 16) / 255).astype(np.float32)


def decoded(content: bytes, color: Color = "srgb", white: float | None = None) -> NDArray[np.float64]:
    return decode_image(content, height=16, width=16, color=color, white=white).astype(np.float64)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("name", PRIMARIES)
def test_a_profile_is_converted_to_srgb_or_ignored_by_choice(name: str, format: str) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    content = encode(Image.fromarray(PIXELS), format, icc_profile=profile(name, GAMMA), **options)
    np.testing.assert_array_equal(decoded(content, "raw"), PIXELS)
    found = decoded(content)
    differences = np.abs(found - in_srgb(PIXELS, name, GAMMA))
    assert differences.max() <= 3
    assert differences.mean() < 0.5
    assert np.abs(found - PIXELS).max() > 15


def test_jpeg_with_a_profile_in_several_segments() -> None:
    one = profile("Display P3", GAMMA)
    long = one[:128] + one[128:] + bytes(70_000)
    long = struct.pack(">I", len(long)) + long[4:]
    content = encode(Image.new("RGB", (16, 16), (200, 40, 40)), "JPEG", quality=95, icc_profile=long)
    wanted = in_srgb(np.array([[[200, 40, 40]]], np.uint8), "Display P3", GAMMA).round()
    np.testing.assert_allclose(decoded(content), np.broadcast_to(wanted, (16, 16, 3)), atol=4)


def test_grey_with_a_profile() -> None:
    grey = PIXELS[..., 0]
    content = encode(Image.fromarray(grey), "PNG", icc_profile=grey_profile(1.8))
    wanted = encoded((grey / 255.0) ** 1.8)
    np.testing.assert_allclose(decoded(content)[..., 0], wanted, atol=2)
    np.testing.assert_array_equal(decoded(content, "raw")[..., 1], grey)


def test_alpha_stays_as_it_is() -> None:
    alpha = np.where(np.arange(16) % 2, 255, 0).astype(np.uint8)
    rgba = np.dstack([PIXELS, np.broadcast_to(alpha, (16, 16))])
    found = decoded(encode(Image.fromarray(rgba), "PNG", icc_profile=profile("Adobe RGB", GAMMA)))
    assert (found[:, ::2] == 255).all()
    np.testing.assert_allclose(found[:, 1::2], in_srgb(PIXELS, "Adobe RGB", GAMMA)[:, 1::2], atol=3)


def test_srgb_keeps_its_pixels() -> None:
    content = encode(
        Image.fromarray(PIXELS), "PNG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    )
    np.testing.assert_array_equal(decoded(content), PIXELS)
    assert inspect_image(content).notes == ()


@pytest.mark.parametrize("damaged", [b"nothing", profile("Adobe RGB", GAMMA)[:150], grey_profile(1.8)])
def test_a_profile_that_cannot_be_used_costs_nothing_and_is_noted(damaged: bytes) -> None:
    content = encode(Image.fromarray(PIXELS), "PNG", icc_profile=damaged)
    np.testing.assert_array_equal(decoded(content), PIXELS)
    (note,) = inspect_image(content).notes
    assert note.startswith("its colour profile was ignored: ")


def float_tiff(values: NDArray[np.float32], **tags: float) -> bytes:
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in zip((340, 341), (tags.get("least"), tags.get("most")), strict=True):
        if value is not None:
            directory.tagtype[tag] = 11
            directory[tag] = value
    return encode(Image.fromarray(values), "TIFF", tiffinfo=directory)


@pytest.mark.parametrize(
    "content", [float_tiff(RAMP), float_tiff(RAMP * np.float32(1.0000002)), encode(Image.fromarray(RAMP), "PPM")]
)
def test_floats_without_a_scale_are_refused_with_the_key_to_set(content: bytes) -> None:
    with pytest.raises(UnknownScaleError, match=r"`images\.white` says which value is white"):
        decoded(content)
    np.testing.assert_array_equal(decoded(content, white=1.0)[..., 0], np.rint(RAMP * 255))
    info = inspect_image(content)
    assert info.colour_mean is None
    assert "`images.white`" in info.notes[0]


@given(
    white=st.floats(0.01, 1e6),
    values=st.lists(st.floats(-1, 2, width=32), min_size=1, max_size=8),
)
def test_a_white_that_is_set_counts_for_each_image_alike(white: float, values: list[float]) -> None:
    samples = np.array([values], np.float32) * np.float32(white)
    found = decode_image(float_tiff(samples), height=1, width=len(values), channels=1, white=white)
    np.testing.assert_allclose(found.ravel(), (samples.ravel() / white * 255).clip(0, 255), atol=0.51)


def test_tags_of_a_tiff_say_its_scale() -> None:
    content = float_tiff(RAMP * 40 - 10, least=-10.0, most=30.0)
    np.testing.assert_array_equal(decoded(content)[..., 0], np.rint(RAMP * 255))
    np.testing.assert_array_equal(decoded(content, white=30.0)[..., 0], np.rint((RAMP * 40 - 10).clip(0) / 30 * 255))


def test_twelve_bits_in_sixteen_fill_the_range_by_the_recipe() -> None:
    samples = (np.arange(256).reshape(16, 16) * 4095 // 255).astype(np.uint16)
    content = encode(Image.fromarray(samples), "PNG")
    assert decoded(content).max() == 16
    np.testing.assert_allclose(decoded(content, white=4095)[..., 0], np.arange(256).reshape(16, 16), atol=1)


def test_eight_bits_have_their_own_white() -> None:
    np.testing.assert_array_equal(decoded(encode(Image.fromarray(PIXELS), "PNG"), white=1.0), PIXELS)


def test_not_a_number_is_refused_whatever_the_scale() -> None:
    values = RAMP.copy()
    values[3, 3] = np.nan
    with pytest.raises(DecodeError, match="infinite or not-a-number"):
        decoded(float_tiff(values), white=1.0)
    assert Image.open(io.BytesIO(float_tiff(values))).mode == "F"
