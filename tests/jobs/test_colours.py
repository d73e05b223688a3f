"""How a feature set reads colours is part of what it is: new sets convert profiles, and rows of a set are all read alike."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.images.pictures import encode
from helpers.images.profiles import profile
from helpers.local_builds import without_spark
from helpers.tables.building import read_rows, recipe
from numpy.typing import NDArray
from PIL import Image

from featurize.backbones.spec import BackboneSpec
from featurize.errors import UsageError
from featurize.jobs.run import featurize
from featurize.tables.publication import read_published_features

WIDE = profile("Display P3", 2.2)


@pytest.fixture
def spark(monkeypatch: pytest.MonkeyPatch) -> Any:
    return without_spark(monkeypatch)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number, label in enumerate(("a", "b", "b")):
        path = tmp_path / "images" / label / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(Image.new("RGB", (8, 8), (200, 40 + number, 40)), "PNG", icc_profile=WIDE))
    return tmp_path / "images"


def pixels_of(table: Path) -> NDArray[np.uint8]:
    return np.stack([np.frombuffer(row, np.uint8) for row in read_rows(table)["features"]])


def spec_of(table: Path) -> BackboneSpec:
    return BackboneSpec.from_dict(read_published_features(str(table)).backbone)


def test_new_sets_convert_profiles_and_others_go_on_as_they_are(spark: Any, images: Path, tmp_path: Path) -> None:
    raw, new = tmp_path / "raw", tmp_path / "new"
    featurize(spark, recipe(images, raw, "pixels", color="raw"))
    featurize(spark, recipe(images, new, "pixels"))
    assert (pixels_of(raw)[:, 0] == 200).all()
    assert (pixels_of(new)[:, 0] > 210).all()
    assert (spec_of(raw).color, spec_of(new).color) == ("raw", "srgb")
    assert spec_of(raw).preparation_id != spec_of(new).preparation_id
    assert "color" not in spec_of(raw).as_dict()  # as sets of version 0.2 have it
    (images / "a" / "9.png").write_bytes(encode(Image.new("RGB", (8, 8), (200, 49, 40)), "PNG", icc_profile=WIDE))
    for table, column in ((raw, 200), (new, pixels_of(new)[0, 0])):
        result, _ = featurize(spark, recipe(images, table, "pixels"))
        assert (result.added, result.skipped) == (1, 3)
        assert np.abs(pixels_of(table)[:, 0].astype(int) - column).max() <= 1
    with pytest.raises(UsageError, match="color"):
        featurize(spark, recipe(images, raw, "pixels", color="srgb"))


def test_a_white_is_part_of_the_set_and_rejects_say_what_to_set(spark: Any, tmp_path: Path) -> None:
    for number, label in enumerate(("a", "b")):
        (tmp_path / "images" / label).mkdir(parents=True)
        values = np.full((8, 8), 0.25 + number / 4, np.float32)
        (tmp_path / "images" / label / "1.tif").write_bytes(encode(Image.fromarray(values), "TIFF"))
    (tmp_path / "images" / "a" / "2.png").write_bytes(encode(Image.new("L", (8, 8), 7), "PNG"))
    unset, table = tmp_path / "unset", tmp_path / "set"
    result, _ = featurize(spark, recipe(tmp_path / "images", unset, "pixels"))
    assert (result.added, result.rejected) == (1, 2)
    (reason,) = result.manifest.rejects
    assert reason.endswith("`images.white` says which value is white, such as 1, 255 or 65535")
    featurize(spark, recipe(tmp_path / "images", table, "pixels", white=1.0))
    assert sorted(pixels_of(table)[:, 0]) == [7, 64, 128]
    assert spec_of(table).white == 1.0
    result, _ = featurize(spark, recipe(tmp_path / "images", table, "pixels"))
    assert (result.added, result.skipped) == (0, 3)
    with pytest.raises(UsageError, match="white"):
        featurize(spark, recipe(tmp_path / "images", table, "pixels", white=2.0))
