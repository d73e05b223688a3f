"""How a set sees the shape of pictures is part of it: known networks as they were trained, rows of a set all alike."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.images.pictures import encode
from helpers.local_builds import without_spark
from helpers.tables.building import read_rows, recipe
from PIL import Image

from featurize.backbones.spec import BackboneSpec
from featurize.decoding.decode import Fit, decode_image
from featurize.errors import UsageError
from featurize.jobs.run import featurize
from featurize.tables.publication import read_published_features

TRAINED = Fit(256, "bicubic", "round", draft=True)


@pytest.fixture
def spark(monkeypatch: pytest.MonkeyPatch) -> Any:
    return without_spark(monkeypatch)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for number, label in enumerate(("a", "b", "b")):
        write_image(tmp_path / "images" / label / f"{number}.png", random)
    return tmp_path / "images"


def write_image(path: Path, random: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(Image.fromarray(random.integers(0, 256, (60, 40, 3), dtype=np.uint8)), "PNG"))


def spec_of(table: Path) -> BackboneSpec:
    return BackboneSpec.from_dict(read_published_features(str(table)).backbone)


def assert_decoded(table: Path, images: Path, fit: Fit | None) -> None:
    contents = {sha256(path.read_bytes()).hexdigest(): path.read_bytes() for path in images.glob("*/*.png")}
    rows = read_rows(table)
    assert set(rows["image_id"]) == set(contents)
    for image_id, features in zip(rows["image_id"], rows["features"], strict=True):
        wanted = decode_image(contents[image_id], height=16, width=16, fit=fit)
        np.testing.assert_array_equal(np.frombuffer(features, np.uint8).reshape(16, 16, 3), wanted)


@pytest.mark.parametrize(
    ("said", "fit"),
    [
        ({}, None),
        ({"resize": "stretch", "interpolation": "bicubic"}, Fit((16, 16), "bicubic", draft=True)),
        ({"resize": "crop"}, Fit("crop", draft=True)),
        ({"resize": "pad", "antialias": False}, Fit("pad", antialias=False, draft=True)),
        ({"antialias": False}, Fit((16, 16), antialias=False, draft=True)),
    ],
)
def test_rows_that_exist_decide_where_a_recipe_says_nothing(
    spark: Any, images: Path, tmp_path: Path, said: dict[str, Any], fit: Fit | None
) -> None:
    table = tmp_path / "table"
    featurize(spark, recipe(images, table, "pixels", **said))
    assert spec_of(table).fit == fit
    assert ("resize" in spec_of(table).as_dict()) == (fit is not None)  # sets of 0.2 stretch, and do not say so
    write_image(images / "a" / "9.png", np.random.default_rng(9))
    result, _ = featurize(spark, recipe(images, table, "pixels"))
    assert (result.added, result.skipped) == (1, 3)
    result, _ = featurize(spark, recipe(images, table, "pixels", **said))
    assert (result.added, result.skipped) == (0, 4)
    assert_decoded(table, images, fit)
    other = "pad" if said.get("resize") == "crop" else "crop"
    with pytest.raises(UsageError, match="resize"):
        featurize(spark, recipe(images, table, "pixels", resize=other))


def test_a_known_network_sees_pictures_as_it_was_trained_unless_its_set_stretches_them(
    spark: Any, images: Path, tmp_path: Path
) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    known = {"preprocessing": None, "weights": "random"}
    featurize(spark, recipe(images, new, "EfficientNetLite0", **known))
    featurize(spark, recipe(images, old, "EfficientNetLite0", **known, resize="stretch"))
    assert (spec_of(new).fit, spec_of(old).fit) == (TRAINED, None)
    assert read_published_features(str(new)).backbone["resizing"] == (
        "shorter side to 256, Pillow bicubic, central 224 x 224, JPEG at a fraction"
    )
    write_image(images / "a" / "9.png", np.random.default_rng(9))
    result, _ = featurize(spark, recipe(images, old, "EfficientNetLite0", **known))
    assert (result.added, spec_of(old).fit) == (1, None)
    with pytest.raises(UsageError, match="resize"):
        featurize(spark, recipe(images, old, "EfficientNetLite0", **known, resize="trained"))


def test_pixels_were_not_trained(images: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='`resize` cannot be "trained": how pixels was trained'):
        featurize(None, recipe(images, tmp_path / "table", "pixels", resize="trained"))  # type: ignore[arg-type]
