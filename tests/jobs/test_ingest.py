"""The images table: the bytes as they were, with what is known of them."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from helpers.images.photos import make_photos
from helpers.tables.building import files_of
from PIL import Image
from pyspark.sql import SparkSession

from featurize.errors import UsageError
from featurize.jobs.ingest import ingest
from featurize.recipes.recipe import FractionSplit
from featurize.recipes.toml_settings import check_settings
from featurize.sources.cards import Card
from featurize.sources.opening import open_source
from featurize.sources.splits import split_by_fractions
from featurize.tables.manifests import ImagesManifest
from featurize.tables.publication import read_manifest
from featurize.tables.readable import read_features_manifest

pytestmark = pytest.mark.spark
DESIGN_COLUMNS = {
    *("image_id", "path", "label", "label_index", "split", "format", "mode", "width", "height", "bytes_size"),
    *("content", "exif", "camera", "aperture", "exposure_s", "taken_at", "latitude", "longitude"),
}


def card(source: Path, **settings: Any) -> Card:
    base = {"name": "mine", "title": "Mine", "licence": "CC0-1.0", "layout": "folders", "source": str(source)}
    return check_settings(Card, {**base, **settings}, origin="card")


@pytest.fixture(scope="module")
def source(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few pictures of several formats, one in grey and one with EXIF, and one that is none."""
    folder = tmp_path_factory.mktemp("source")
    for label in ("b", "a"):
        (folder / label).mkdir()
        pixels = np.random.default_rng(1).integers(0, 256, (10, 14, 3), dtype=np.uint8)
        for name in ("x.png", "x.jpg", "x.gif", "x.bmp"):
            Image.fromarray(pixels).save(folder / label / name)
        Image.fromarray(pixels[..., 0]).save(folder / label / "grey.png")
    exif = Image.Exif()
    exif[0x0110] = "Camera 7"
    exif[0x0112] = 6
    exif.get_ifd(0x8769).update({0x829D: 2.8, 0x829A: 0.004, 0x9003: "2020:01:02 03:04:05"})
    exif.get_ifd(0x8825).update({1: "S", 2: (33.0, 30.0, 0.0), 3: "W", 4: (70.0, 15.0, 0.0)})
    Image.fromarray(pixels).save(folder / "a" / "turned.jpg", exif=exif)
    (folder / "a" / "no picture.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def table(spark: SparkSession, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table") / "images"
    ingest(spark, card(source, split={"seed": 3}), str(folder), max_reject_fraction=0.1)
    return folder


def read_table(folder: Path) -> pd.DataFrame:
    manifest = read_manifest(str(folder))
    assert isinstance(manifest, ImagesManifest)
    parts: list[pd.DataFrame] = [pq.ParquetFile(folder / file.path).read().to_pandas() for file in manifest.files]
    return pd.concat(parts).set_index("path", drop=False).sort_index()


def test_each_image_is_a_row_with_its_bytes_and_what_they_hold(table: Path, source: Path) -> None:
    rows = read_table(table)
    assert set(rows.columns) >= DESIGN_COLUMNS
    assert len(rows) == 11
    for url, row in rows.iterrows():
        content = Path(str(url).removeprefix("file://")).read_bytes()
        assert row["content"] == content
        assert row["image_id"] == hashlib.sha256(content).hexdigest()
        assert row["bytes_size"] == len(content)
        assert row["split"] == split_by_fractions(row["image_id"], FractionSplit(seed=3))
        assert row["label"] == ["a", "b"][row["label_index"]]
        image = Image.open(io.BytesIO(content))
        assert (row["format"], row["mode"]) == (image.format, image.mode)
    turned = rows.loc[f"file://{source}/a/turned.jpg"]
    assert (turned["width"], turned["height"]) == (10, 14)
    assert dict(turned["exif"])["Model"] == "Camera 7"
    assert (turned["camera"], turned["taken_at"]) == ("Camera 7", "2020-01-02T03:04:05")
    assert (turned["latitude"], turned["longitude"]) == (-33.5, -70.25)
    np.testing.assert_allclose([turned["aperture"], turned["exposure_s"]], [2.8, 0.004], rtol=1e-6)
    assert rows.loc[rows.index != turned.name, "camera"].isna().all()


def test_colour_statistics_are_those_of_the_pixels(table: Path, source: Path) -> None:
    row = read_table(table).loc[f"file://{source}/a/x.png"]
    pixels = np.asarray(Image.open(source / "a" / "x.png"), np.float64)
    np.testing.assert_allclose(row["colour_mean"], pixels.mean(axis=(0, 1)), rtol=1e-5)
    np.testing.assert_allclose(row["colour_std"], pixels.std(axis=(0, 1)), rtol=1e-5)


def test_the_manifest_names_the_card_and_counts_the_rejects(table: Path) -> None:
    manifest = read_manifest(str(table))
    assert isinstance(manifest, ImagesManifest)
    assert manifest.card is not None
    assert manifest.card["licence"] == "CC0-1.0"
    assert (manifest.row_count, manifest.rejects) == (
        11,
        {"decode: not an image in a known format, but a text file": 1},
    )
    with pytest.raises(UsageError, match="images table, not a feature set"):
        read_features_manifest(str(table))


def test_a_rerun_adds_nothing(spark: SparkSession, source: Path, table: Path) -> None:
    before = files_of(table)
    result = ingest(spark, card(source, split={"seed": 3}), str(table))
    assert (result.added, result.skipped) == (0, 12)
    assert files_of(table) == before


def test_equal_bytes_in_two_classes_are_in_one_split(table: Path, source: Path) -> None:
    split_of = dict(read_table(table)["split"])
    for name in ("x.png", "x.jpg", "grey.png"):
        assert split_of[f"file://{source}/a/{name}"] == split_of[f"file://{source}/b/{name}"]


def test_an_images_table_has_the_notes_on_classes_of_its_folders(spark: SparkSession, tmp_path: Path) -> None:
    make_photos(tmp_path / "photos", per_class=2, seed=1)
    for before, after in (("red", "cafe\u0301"), ("green", "café"), ("blue", "Test")):
        (tmp_path / "photos" / before).rename(tmp_path / "photos" / after)
    ingest(spark, card(tmp_path / "photos"), str(tmp_path / "images"))
    notes = open_source(str(tmp_path / "images"), None).notes
    assert notes == open_source(str(tmp_path / "photos"), None).notes
    assert notes == (
        r"the classes 'cafe\u0301', 'caf\xe9' differ only in case, blanks or the form of their characters.",
        "classes are named like splits: Test.",
    )
