"""HEIC and JPEG XL: by the rules of all other formats, and named where their packages are missing."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.images.added_files import (
    ANIMATION,
    GREY_16_BIT_WITH_ALPHA,
    GREY_FLOATS,
    LINEAR_16_BIT,
    jxl_of_jpeg,
    jxl_of_size,
    jxl_turned,
    with_brands,
)
from helpers.images.camera_files import CAMERA, GPS, MAIN, WHOLE, turned
from helpers.images.decoders import TURNED
from helpers.images.exif_bytes import exif_block
from helpers.images.pictures import RED, assert_quadrants, encode, quadrants
from helpers.images.profiles import encoded, in_srgb, profile
from helpers.project import ROOT
from PIL import Image

from featurize.decoding.decode import DecodeError, decode_image, inspect_image

HEIC = encode(quadrants(), "HEIF")
JXL = encode(quadrants(), "JXL")
EXIF = exif_block(MAIN, CAMERA, GPS)
RAMP = np.arange(16).reshape(4, 4) * 4096 + 300


@pytest.mark.parametrize(("content", "format"), [(HEIC, "HEIF"), (JXL, "JXL")])
def test_they_are_read(content: bytes, format: str) -> None:
    assert_quadrants(decode_image(content, height=32, width=48), 12)
    info = inspect_image(content)
    assert (info.format, info.mode, info.width, info.height, info.notes) == (format, "RGB", 48, 32, ())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic_is_turned_once_by_its_own_properties(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(turned(orientation), "HEIF", exif=exif.tobytes())
    assert (b"irot" in content or b"imir" in content) == (orientation > 1)
    assert_quadrants(decode_image(content, height=32, width=48), 12)
    assert (inspect_image(content).width, inspect_image(content).height) == (48, 32)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_in_a_heic_turns_nothing_by_itself(orientation: int) -> None:
    content = encode(quadrants(), "HEIF", exif=EXIF)
    entry = b"\x12\x01\x03\0\1\0\0\0"
    assert content.count(entry + b"\1") == 1
    assert_quadrants(
        decode_image(content.replace(entry + b"\1", entry + bytes([orientation])), height=32, width=48), 12
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_xl_is_turned_by_its_codestream_and_not_by_exif(orientation: int) -> None:
    content = jxl_turned(orientation)
    assert_quadrants(decode_image(content, height=32, width=48), 16)
    assert (inspect_image(content).width, inspect_image(content).height) == (48, 32)
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert_quadrants(decode_image(encode(quadrants(), "JXL", exif=exif.tobytes()), height=32, width=48), 16)


@pytest.mark.parametrize("format", ["HEIF", "JXL"])
def test_exif_is_read_and_its_damage_costs_nothing(format: str) -> None:
    content = encode(quadrants(), format, exif=EXIF)
    assert inspect_image(content).metadata == WHOLE
    at = content.index(EXIF)
    for damage in (bytes(len(EXIF)), EXIF[:8] + b"\xff" * (len(EXIF) - 8), EXIF[::-1]):
        damaged = content[:at] + damage + content[at + len(EXIF) :]
        np.testing.assert_array_equal(
            decode_image(damaged, height=32, width=48), decode_image(content, height=32, width=48)
        )
        inspect_image(damaged)


def test_compressed_metadata_of_a_jpeg_xl_is_noted() -> None:
    content = encode(quadrants(), "JXL", exif=EXIF, xmp=b"<x/>", compress_metadata=True)
    assert inspect_image(content).notes == (
        "its Exif box was left out: it is compressed",
        "its xml box was left out: it is compressed",
    )


@pytest.mark.parametrize(("format", "options"), [("HEIF", {"quality": -1, "chroma": 444}), ("JXL", {"lossless": True})])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_over_white(format: str, options: dict[str, object], mode: str) -> None:
    levels = (200, 0, 100, 51) if mode == "RGBA" else (0, 51)
    expected = (244, 204, 224) if mode == "RGBA" else (204, 204, 204)
    content = encode(Image.new(mode, (64, 64), levels), format, **options)
    found = decode_image(content, height=64, width=64)
    np.testing.assert_allclose(found.reshape(-1, 3), np.broadcast_to(expected, (4096, 3)), atol=2)


def test_a_profile_of_a_heic_is_converted() -> None:
    content = encode(Image.new("RGB", (64, 64), RED), "HEIF", icc_profile=profile("Adobe RGB", 2.2), quality=95)
    stored = decode_image(content, height=1, width=1, color="raw")
    wanted = in_srgb(stored, "Adobe RGB", 2.2)
    np.testing.assert_allclose(decode_image(content, height=1, width=1), wanted, atol=2)
    assert np.abs(wanted - stored).max() > 10


def test_samples_of_more_than_8_bits() -> None:
    stored = np.stack([RAMP, RAMP[::-1], RAMP.T], axis=-1)
    raw = decode_image(LINEAR_16_BIT, height=4, width=4, color="raw")
    np.testing.assert_allclose(raw, stored / 257, atol=1)
    np.testing.assert_allclose(decode_image(LINEAR_16_BIT, height=4, width=4), encoded(raw / 255.0), atol=2)
    grey, alpha = RAMP / 65535, RAMP[::-1] / 65535
    found = decode_image(GREY_16_BIT_WITH_ALPHA, height=4, width=4, color="raw", channels=1)
    np.testing.assert_allclose(found[..., 0], 255 * (grey * alpha + 1 - alpha), atol=1.1)
    assert inspect_image(encode(Image.fromarray(RAMP.astype(np.uint16)), "JXL", lossless=True)).mode == "I;16"
    ten_bits = encode(Image.fromarray(np.tile(RAMP, (16, 16)).astype(np.uint16)), "HEIF", quality=100)
    np.testing.assert_allclose(
        decode_image(ten_bits, height=64, width=64, channels=1)[..., 0], np.tile(RAMP, (16, 16)) / 257, atol=2
    )


def test_floats_of_a_jpeg_xl_are_white_at_one_and_clipped_beyond() -> None:
    values = np.arange(16).reshape(4, 4) / 12
    found = decode_image(GREY_FLOATS, height=4, width=4, channels=1, color="raw")[..., 0]
    np.testing.assert_allclose(found, (255 * values).clip(0, 255), atol=0.51)
    halved = decode_image(GREY_FLOATS, height=4, width=4, channels=1, color="raw", white=2.0)[..., 0]
    np.testing.assert_allclose(halved, (255 * values / 2).clip(0, 255), atol=0.51)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_in_a_jpeg_xl_is_read_as_that_jpeg(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    jpeg = encode(turned(orientation), "JPEG", exif=exif, quality=95, icc_profile=profile("Adobe RGB", 2.2))
    content = jxl_of_jpeg(jpeg, tmp_path)
    assert content[4:7] == b"JXL"
    np.testing.assert_array_equal(decode_image(content, height=5, width=7), decode_image(jpeg, height=5, width=7))
    assert inspect_image(content) == inspect_image(jpeg)


def test_only_the_main_picture_of_several_counts() -> None:
    others = [Image.new("RGB", (64, 64), "blue")] * 2
    content = encode(quadrants(), "HEIF", save_all=True, append_images=others)
    assert_quadrants(decode_image(content, height=32, width=48), 12)
    with pytest.raises(DecodeError, match=r"^animations in JPEG XL are not supported$"):  # the last one would be given
        decode_image(ANIMATION, height=4, width=4)


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1", b"msf1", b"hevc"])
def test_what_is_not_avif_among_files_of_several_brands_is_heif(brand: bytes) -> None:
    assert inspect_image(with_brands(HEIC, brand, b"heic")).format == "HEIF"


def test_avif_may_be_of_another_main_brand() -> None:
    assert inspect_image(with_brands(encode(quadrants(), "AVIF"), b"mif1", b"avif", b"miaf")).format == "AVIF"


def of_other_size(side: int) -> bytes:
    """A HEIC that says it has this width and height."""
    content = encode(Image.new("RGB", (64, 64), RED), "HEIF")
    size = b"ispe" + bytes(4) + (64).to_bytes(4, "big") * 2
    assert content.count(size) == 1
    return content.replace(size, size[:8] + side.to_bytes(4, "big") * 2)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (HEIC[:-10], "the HEIF file is truncated"),
        (HEIC[:100], "the HEIF file is damaged: "),
        (HEIC[:200] + bytes(len(HEIC) - 200), "the HEIF file is damaged: "),
        (JXL[:-10], "the JXL file is damaged: its pixels are damaged or cut off"),
        (JXL[:3], "the JXL file is truncated"),
        (JXL[:40] + bytes(len(JXL) - 40), "the JXL file is damaged: its pixels are damaged or cut off"),
        (jxl_of_size(60_000, 60_000), "the image has 60000 x 60000 pixels, more than the limit of 100000000"),
        (jxl_of_size(1_000_001, 5), "the image has 1000001 x 5 pixels, more than 1000000 on a side"),
        (of_other_size(30_000), "the image has 30000 x 30000 pixels, more than the limit of 100000000"),
    ],
)
def test_damage_and_size_are_rejects_with_a_reason(content: bytes, reason: str) -> None:
    for read in (lambda: decode_image(content, height=8, width=8), lambda: inspect_image(content)):
        with pytest.raises(DecodeError) as caught:
            read()
        assert str(caught.value).startswith(reason)


WITHOUT = """
import sys
sys.modules["pillow_heif"] = sys.modules["pillow_jxl"] = None
from featurize.decoding.decode import FORMATS, DecodeError, decode_image
assert not {"HEIF", "JXL"} & set(FORMATS)
sizes = [int(size) for size in sys.argv[1:]]
for size in sizes:
    try:
        print(decode_image(sys.stdin.buffer.read(size), height=2, width=2).shape)
    except DecodeError as error:
        print(error)
"""


def test_without_the_packages_the_reason_names_the_format_and_the_extra() -> None:
    files = [HEIC, with_brands(HEIC, b"mif1", b"heic"), JXL, encode(quadrants(), "JXL", exif=TURNED.tobytes())]
    files += [encode(quadrants(), "AVIF"), encode(quadrants(), "PNG")]
    command = [sys.executable, "-c", WITHOUT, *(str(len(content)) for content in files)]
    done = subprocess.run(command, input=b"".join(files), capture_output=True, cwd=ROOT, check=True)
    no_image, extra = "not an image in a known format, but", "which Firn reads with its extra `formats`"
    assert done.stdout.decode().splitlines() == [
        f"{no_image} a HEIC photo, {extra}",
        f"{no_image} a HEIF image, {extra}",
        f"{no_image} a JPEG XL image, {extra}",
        f"{no_image} a JPEG XL image, {extra}",
        "(2, 2, 3)",
        "(2, 2, 3)",
    ]
