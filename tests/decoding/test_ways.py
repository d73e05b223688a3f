"""The named ways from pictures to an input: the pixels of Keras and of torchvision, on made and on real photographs."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.images.pictures import encode
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from featurize.backbones.keras_network import trained_fit
from featurize.decoding.decode import DecodeError, Fit, decode_image, decode_sized
from featurize.decoding.decoder_process import Decoder
from featurize.decoding.fitting import PLAIN
from featurize.recipes.backbone_section import BackboneSettings

LEVEL = 1.0001 / 255
WAYS = ("crop", "pad")
SIZES = ((300, 401), (401, 300), (97, 331), (500, 223), (64, 64), (45, 37), (5, 90))


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    decoder = Decoder()
    yield decoder
    decoder.close()


def photo(height: int, width: int) -> Image.Image:
    """Smooth colours with noise, so that each filter and each shift gives other pixels."""
    random = np.random.default_rng(height * 1000 + width)
    coarse = Image.fromarray(random.integers(0, 256, (9, 7, 3), dtype=np.uint8)).resize((width, height))
    noisy = np.asarray(coarse, np.int16) + random.integers(-40, 41, (height, width, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def by_keras(
    image: Image.Image, way: str, height: int, width: int, filter: str, antialias: bool
) -> NDArray[np.float32]:
    """What a data set of Keras with `crop_to_aspect_ratio` or `pad_to_aspect_ratio` gives, rounded, in [0, 255]."""
    import tensorflow as tf
    from keras.src import ops

    options: dict[str, Any] = {"interpolation": filter, "antialias": antialias, "data_format": "channels_last"}
    options |= {"crop_to_aspect_ratio": way == "crop", "pad_to_aspect_ratio": way == "pad"}
    pixels = np.asarray(image, np.float32)
    with tf.device("CPU"):
        resized: NDArray[np.float32] = np.rint(np.asarray(ops.image.resize(pixels, (height, width), **options)))
    return resized


def by_torchvision(image: Image.Image, shorter: int, size: int, filter: str) -> NDArray[np.uint8]:
    """`Resize(shorter)` and `CenterCrop(size)` of torchvision on an image of Pillow, as its documentation says."""
    short, long = min(image.size), max(image.size)
    longer = int(shorter * long / short)
    wide, tall = (shorter, longer) if image.width <= image.height else (longer, shorter)
    resized = np.asarray(image.resize((wide, tall), Image.Resampling[filter.upper()]))
    top, left = round((tall - size) / 2), round((wide - size) / 2)
    return resized[top : top + size, left : left + size]


def most(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """The largest difference of two pictures with values in [0, 255], as a part of 1."""
    return float(np.abs(found.astype(np.float64) - np.asarray(wanted, np.float64)).max() / 255)


def real_photographs(folder: Path, count: int) -> list[bytes]:
    files = sorted(folder.glob("*/*.jpg"))
    return [path.read_bytes() for path in files[:: len(files) // count]]


# As other libraries do it


@pytest.mark.parametrize(
    ("filter", "size"),
    [("nearest", (97, 331)), ("nearest", (45, 37)), *((filter, size) for filter in PLAIN[1:] for size in SIZES)],
)  # with other sizes there are two nearest pixels
@pytest.mark.parametrize("way", WAYS)
def test_without_antialiasing_the_pixels_are_those_of_keras(size: tuple[int, int], way: Any, filter: Any) -> None:
    image, fit = photo(*size), Fit(way, filter, antialias=False)
    for height, width in ((32, 32), (40, 24), (23, 61)):
        wanted = by_keras(image, way, height, width, filter, False)
        found = decode_image(encode(image, "PNG"), height=height, width=width, fit=fit)
        assert most(found, wanted.clip(0, 255)) <= LEVEL


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", WAYS)
def test_with_antialiasing_the_pixels_are_those_of_keras(size: tuple[int, int], way: Any) -> None:
    image = photo(*size)
    for height, width in ((32, 32), (40, 24), (23, 61)):
        wanted = by_keras(image, way, height, width, "bilinear", True)
        found = decode_image(encode(image, "PNG"), height=height, width=width, fit=Fit(way))
        assert most(found, wanted) <= LEVEL


@pytest.mark.parametrize("size", SIZES[:5])
@pytest.mark.parametrize(("name", "shorter", "filter"), [("VGG16", 64, "bilinear"), ("EfficientNetB0", 88, "bicubic")])
def test_a_known_network_sees_what_torchvision_gives_it(
    size: tuple[int, int], name: str, shorter: int, filter: str
) -> None:
    image, fit = photo(*size), trained_fit(BackboneSettings(name=name), height=56, width=56)
    assert fit == Fit(shorter, filter, "round", draft=True)  # type: ignore[arg-type]
    found = decode_image(encode(image, "PNG"), height=56, width=56, fit=fit)
    assert most(found, by_torchvision(image, shorter, 56, filter)) <= LEVEL


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["VGG16", "MobileNet", "EfficientNetLite0", "ConvNeXtTiny"])
def test_real_photographs_are_seen_as_torchvision_gives_them(real_data: Path, name: str) -> None:
    fit = trained_fit(BackboneSettings(name=name), height=224, width=224)
    assert fit is not None
    for content in real_photographs(real_data / "objects", 40):
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
        if min(image.size) >= 1000:
            continue  # a fraction is decoded of it
        wanted = by_torchvision(image, 256, 224, fit.interpolation)
        assert most(decode_image(content, height=224, width=224, fit=fit), wanted) <= LEVEL


@pytest.mark.realdata
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("antialias", [True, False])
def test_real_photographs_are_seen_as_keras_gives_them(real_data: Path, way: Any, antialias: bool) -> None:
    for content in real_photographs(real_data / "objects", 12):
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
        wanted = by_keras(image, way, 224, 224, "bilinear", antialias)
        found = decode_image(content, height=224, width=224, fit=Fit(way, antialias=antialias))
        assert most(found, wanted) <= LEVEL


# Laws


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "fit", [Fit(36, draft=True), Fit("crop", draft=True), Fit((40, 50), draft=True), Fit("pad", draft=True)]
)
def test_a_large_jpeg_is_nearly_what_a_whole_decode_gives(orientation: int, fit: Fit) -> None:
    """A part of it that is off by a pixel, or turned another way, shows: smooth colours, eight different corners."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((901, 637))
    content = encode(smooth, "JPEG", exif=exif, quality=95)
    whole = Fit(fit.resize, fit.interpolation, fit.offset)
    shortcut, size = decode_sized(content, height=32, width=32, fit=fit)
    wanted, wanted_size = decode_sized(content, height=32, width=32, fit=whole)
    assert size == wanted_size
    assert np.abs(shortcut.astype(int) - wanted).mean() < 1
    assert np.abs(shortcut.astype(int) - wanted).max() <= 8


def test_a_shortcut_is_taken() -> None:
    content = encode(photo(640, 900), "JPEG", quality=90)
    for fit in (Fit("crop"), Fit(40)):
        whole = decode_image(content, height=32, width=32, fit=fit)
        fast = decode_image(content, height=32, width=32, fit=Fit(fit.resize, draft=True))
        assert (whole != fast).any()
        assert np.abs(whole.astype(int) - fast).mean() < 3


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(1, 24),
    st.integers(1, 24),
    st.sampled_from(PLAIN),
    st.booleans(),
)
def test_every_shape_has_a_part_and_borders(
    high: int, wide: int, height: int, width: int, filter: Any, antialias: bool
) -> None:
    """One colour stays it where it is cropped; padded, it is all there is but black."""
    content = encode(Image.new("RGB", (wide, high), (200, 100, 50)), "PNG")
    cropped = decode_image(content, height=height, width=width, fit=Fit("crop", filter, antialias=antialias))
    assert (cropped == (200, 100, 50)).all()
    padded = decode_image(content, height=height, width=width, fit=Fit("pad", "nearest", antialias=antialias))
    assert {tuple(pixel) for pixel in padded.reshape(-1, 3).tolist()} <= {(200, 100, 50), (0, 0, 0)}


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["crop", "pad", 30, (28, 33)]),
    st.sampled_from(PLAIN),
    st.sampled_from(["floor", "round"]),
    st.booleans(),
    st.booleans(),
)
def test_a_decoder_process_understands_every_way(
    decoder: Decoder, resize: Any, filter: Any, offset: Any, antialias: bool, draft: bool
) -> None:
    fit = Fit(resize, filter, offset, antialias, draft)
    for content in (encode(photo(47, 61), "PNG"), encode(photo(347, 461), "JPEG")):
        pixels, size = decoder.decode(content, height=28, width=25, channels=3, fit=fit)
        wanted = decode_sized(content, height=28, width=25, fit=fit)
        np.testing.assert_array_equal(pixels, wanted[0])
        assert size == wanted[1]


def test_a_strip_that_would_need_huge_borders_is_refused() -> None:
    with pytest.raises(DecodeError, match="padded to 20000 x 19999, has more than 100000000 pixels"):
        decode_image(encode(Image.new("RGB", (20000, 1)), "PNG"), height=8, width=8, fit=Fit("pad"))
    for fit in (Fit("crop"), Fit(2000, draft=True)):
        seen = decode_image(encode(Image.new("RGB", (20000, 1), "red"), "PNG"), height=8, width=8, fit=fit)
        assert (seen == (255, 0, 0)).all()
