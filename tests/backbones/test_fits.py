"""How pictures become the input of a network: what the recipe says, and what it may leave to the training."""

from typing import Any

import pytest

from featurize.backbones.preparation import decoding_fields
from featurize.decoding.decode import Fit
from featurize.decoding.fitting import describe_fit
from featurize.errors import UsageError
from featurize.recipes.backbone_section import BackboneSettings

TRAINED = Fit(256, "bicubic", "round", draft=True)


def chosen(trained: Fit | None = None, name: str = "VGG16", **changes: Any) -> Fit | None:
    fields = decoding_fields(BackboneSettings(name=name, **changes), trained, height=200, width=224)
    if fields["resize"] is None:
        return None
    return Fit(**{key: fields[key] for key in ("resize", "interpolation", "offset", "antialias", "draft")})


@pytest.mark.parametrize(
    ("fit", "words"),
    [
        (None, "stretched, Pillow bilinear"),
        (Fit(256, "bicubic"), "shorter side to 256, Pillow bicubic, central 200 x 224"),
        (Fit((240, 250), "nearest"), "stretched to 240 x 250, Pillow nearest, central 200 x 224"),
        (Fit("pad"), "black borders to the shape of 200 x 224, Pillow bilinear"),
        (
            Fit("crop", antialias=False, draft=True),
            "the largest central part with the shape of 200 x 224, bilinear without antialiasing, JPEG at a fraction",
        ),
    ],
)
def test_a_fit_is_described_in_words(fit: Fit | None, words: str) -> None:
    assert describe_fit(fit, height=200, width=224) == words


@pytest.mark.parametrize("resize", [223, [199, 300], [300, 223]])
def test_a_fit_that_does_not_cover_the_input_is_refused(resize: int | list[int]) -> None:
    with pytest.raises(UsageError, match=r"`backbone\.resize` must be at least the input of the network, 200 x 224"):
        chosen(resize=resize)


@pytest.mark.parametrize(
    ("changes", "fit"),
    [
        ({}, TRAINED),
        ({"resize": "trained"}, TRAINED),
        ({"interpolation": "nearest"}, Fit(256, "nearest", "round", draft=True)),
        ({"resize": "stretch"}, None),
        ({"resize": "stretch", "interpolation": "bilinear", "antialias": True}, None),
        ({"resize": "stretch", "interpolation": "box"}, Fit((200, 224), "box", draft=True)),
        ({"resize": "crop", "antialias": False}, Fit("crop", antialias=False, draft=True)),
        ({"resize": "pad"}, Fit("pad", draft=True)),
        ({"resize": 256}, Fit(256)),
        ({"resize": [240, 250], "crop": 224, "interpolation": "box"}, Fit((240, 250), "box")),
    ],
)
def test_a_recipe_chooses_a_fit(changes: dict[str, Any], fit: Fit | None) -> None:
    assert chosen(TRAINED, **changes) == fit


def test_where_the_training_is_not_known_pictures_are_stretched_and_it_cannot_be_asked_for() -> None:
    assert chosen(None) is None
    with pytest.raises(
        UsageError, match=r'`resize` cannot be "trained": how VGG16 was trained to see pictures is not known'
    ):
        chosen(None, resize="trained")


def test_filters_that_cannot_do_without_antialiasing_are_refused() -> None:
    words = "`antialias` cannot be false with the filter lanczos: only with nearest, bilinear, bicubic"
    with pytest.raises(UsageError, match=words):
        chosen(None, interpolation="lanczos", antialias=False)


def test_a_crop_needs_a_size() -> None:
    with pytest.raises(ValueError, match="`crop` needs `resize` to be a size"):
        BackboneSettings(name="VGG16", resize="pad", crop=224)
