"""Sources: whatever the images lie in, the same listing comes out, and every row of it leads back to its bytes."""

import gzip
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.images.idx_files import encode_idx
from helpers.tables.listings import Row, card, put, rows
from PIL import Image
from pyspark.sql import SparkSession

from featurize import storage
from featurize.errors import JobError, UsageError
from featurize.jobs.ingest import ingest
from featurize.recipes.recipe import FractionSplit
from featurize.sources.cards import Card
from featurize.sources.opening import open_card, open_source
from featurize.sources.scenes import SCENE_CLASSES

# IDX


DIGITS = {"train": np.array([3, 1, 4, 1, 5], np.uint8), "test": np.array([9, 1], np.uint8)}
IDX_LAYOUT = {part: {"images": f"{part}-images", "labels": f"{part}-labels"} for part in ("train", "test")}


def write_idx(folder: Path, *, zipped: bool) -> dict[str, Any]:
    """Writes a tiny IDX data set and returns the pixels of each part."""
    pixels = {}
    for part, digits in DIGITS.items():
        pixels[part] = np.random.default_rng(len(digits)).integers(0, 256, (len(digits), 6, 4), dtype=np.uint8)
        for name, array in (("images", pixels[part]), ("labels", digits)):
            content = encode_idx(array)
            path = folder / f"{part}-{name}{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(content) if zipped else content)
    return pixels


def idx_card(folder: Path, **settings: Any) -> Card:
    return card(layout="idx", idx=IDX_LAYOUT, source=str(folder), **settings)


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files_keep_their_pixels_labels_and_splits(tmp_path: Path, zipped: bool) -> None:
    pixels = write_idx(tmp_path, zipped=zipped)
    source = open_card(idx_card(tmp_path))
    found = rows(source)
    assert len(found) == 7
    assert source.classes == ("1", "3", "4", "5", "9")
    for part, digits in DIGITS.items():
        for index, digit in enumerate(digits):
            row = found[f"file://{tmp_path}/{part}-images{'.gz' if zipped else ''}#{index}"]
            assert (row.image.label, row.image.own_split) == (str(digit), part)
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(row.content))), pixels[part][index])
    assert source.split_rule.validation_fraction == 0.1


def test_the_stamp_of_an_idx_image_changes_with_its_pixels_alone(tmp_path: Path) -> None:
    pixels = write_idx(tmp_path, zipped=False)
    before = rows(open_card(idx_card(tmp_path)))
    pixels["train"][2, 0, 0] ^= 1
    (tmp_path / "train-images").write_bytes(encode_idx(pixels["train"]))
    after = rows(open_card(idx_card(tmp_path)))
    changed = [path for path, row in after.items() if row.image.stamp != before[path].image.stamp]
    assert changed == [f"file://{tmp_path}/train-images#2"]
    assert changed == [path for path, row in after.items() if row.content != before[path].content]


def test_idx_files_are_checked_by_the_digest_of_their_unzipped_content(tmp_path: Path) -> None:
    write_idx(tmp_path, zipped=True)
    good = hashlib.sha256(encode_idx(DIGITS["train"])).hexdigest()
    open_card(idx_card(tmp_path, files=[{"name": "train-labels", "sha256": good}]))
    with pytest.raises(UsageError) as raised:
        open_card(idx_card(tmp_path, files=[{"name": "train-labels", "sha256": "0" * 64}]))
    for part in ("train-labels", good, "0" * 64):
        assert part in str(raised.value)


def test_a_missing_idx_file_is_named_both_ways(tmp_path: Path) -> None:
    write_idx(tmp_path, zipped=False)
    (tmp_path / "test-labels").unlink()
    with pytest.raises(UsageError, match=r"neither test-labels nor test-labels\.gz"):
        open_card(idx_card(tmp_path))


def test_more_images_than_labels_are_refused(tmp_path: Path) -> None:
    write_idx(tmp_path, zipped=False)
    (tmp_path / "test-images").write_bytes(encode_idx(np.zeros((3, 6, 4), np.uint8)))
    with pytest.raises(JobError, match="images do not match 2 labels"):
        open_card(idx_card(tmp_path))


def test_an_idx_set_takes_no_other_split(tmp_path: Path) -> None:
    write_idx(tmp_path, zipped=False)
    with pytest.raises(UsageError, match="remove `split`"):
        open_card(idx_card(tmp_path), split=FractionSplit())


# Scenes and cards


def scenes(count: int) -> dict[str, Row]:
    return rows(open_card(card(layout="synthetic", synthetic={"images": count, "height": 16, "width": 16})))


def test_scenes_are_drawn_alike_every_time_and_grow_without_change() -> None:
    few, many = scenes(6), scenes(10)
    assert len(few) == 6
    assert {path: row.content for path, row in few.items()}.items() <= {
        path: row.content for path, row in many.items()
    }.items()
    assert len({row.image_id for row in many.values()}) == 10
    assert {row.image.label for row in few.values()} == set(SCENE_CLASSES)


def test_fewer_scenes_than_classes_have_the_classes_that_occur() -> None:
    source = open_card(card(layout="synthetic", synthetic={"images": 2, "height": 16, "width": 16}))
    assert {row.image.label for row in rows(source).values()} == set(source.classes) == set(SCENE_CLASSES[:2])


def test_a_card_is_opened_by_its_name_and_enters_the_settings(tmp_path: Path) -> None:
    text = 'name = "drawn"\ntitle = "x"\nlicence = "x"\nlayout = "synthetic"\n[synthetic]\nimages = 4\nheight = 16\nwidth = 16\n'
    (tmp_path / "drawn.toml").write_text(text)
    source = open_source("drawn", None, card_folders=(tmp_path,))
    assert source.settings["card"] == "drawn"
    assert source.images == 4
    with pytest.raises(UsageError, match="divided by fractions"):
        open_source("drawn", "folders", card_folders=(tmp_path,))


# Images tables


@pytest.mark.spark
@pytest.mark.parametrize("name", ["images", "images [1]"])
def test_an_images_table_is_a_source_with_the_splits_it_has(spark: SparkSession, tmp_path: Path, name: str) -> None:
    put(tmp_path / "photos", *(f"{label}/{index}.png" for label in "ab" for index in range(6)))
    (tmp_path / "photos" / "a" / "broken.png").write_bytes(b"broken")
    result = ingest(
        spark,
        card(source=str(tmp_path / "photos"), split={"seed": 3}),
        str(tmp_path / name),
        max_reject_fraction=0.5,
    )
    assert (result.added, result.rejected) == (12, 1)
    before = rows(open_card(card(source=str(tmp_path / "photos"))))
    source = open_source(str(tmp_path / name), None)
    after = rows(source)
    assert {path: row.content for path, row in after.items()} == {
        path: row.content for path, row in before.items() if not path.endswith("broken.png")
    }
    for row in after.values():
        assert row.image.stamp == row.image_id
        assert row.image.own_split == source.split_rule.assign(row.image_id, row.image.own_split)
    assert open_source(str(tmp_path / name), FractionSplit(seed=9)).split_rule.fractions == FractionSplit(seed=9)
    with pytest.raises(UsageError, match="splits already"):
        open_source(str(tmp_path / name), "folders")
    assert source.lineage["images"]["content_digest"] == result.manifest.content_digest


@pytest.mark.spark
def test_a_table_that_grew_in_between_is_listed_with_every_image_once(spark: SparkSession, tmp_path: Path) -> None:
    """The new rows lie in another file, and by their paths between the old ones."""
    put(tmp_path / "photos", *(f"{label}/{index}.png" for label in "ab" for index in range(0, 8, 2)))
    ingest(spark, card(source=str(tmp_path / "photos")), str(tmp_path / "images"))
    put(tmp_path / "photos", *(f"{label}/{index}.png" for label in "ab" for index in range(1, 8, 2)))
    ingest(spark, card(source=str(tmp_path / "photos")), str(tmp_path / "images"))
    source = open_source(str(tmp_path / "images"), None)
    found = rows(source)
    assert len({row.image.container for row in found.values()}) == 2
    assert len(found) == 16
    for path, row in found.items():
        assert row.content == storage.read_bytes(path)
