"""Sources: whatever the images lie in, the same rows come out, and every path leads back to its bytes."""

import gzip
import hashlib
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pyspark.sql import SparkSession

from featurize import storage
from featurize.cards import Card
from featurize.errors import JobError, UsageError
from featurize.idx import encode_idx
from featurize.images import ingest
from featurize.recipe import FractionSplit
from featurize.scenes import SCENE_CLASSES
from featurize.settings import check_settings
from featurize.sources import ImageSource, open_card, open_source

pytestmark = pytest.mark.spark

ODD_NAMES = [
    "two words.png",
    "100%.png",
    "a%20b.png",
    "ünïcode 雪.png",
    "[brackets].png",
    "{braces},x.png",
    "plus+minus.png",
    "hash#1.png",
    "question?x=1.png",
    "star*.png",
    "quote'\".png",
    "back\\slash.png",
    "split=train.png",
    "no_extension",
    "wrong.txt",
    "UPPER.JPEG",
]


def picture(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def put(folder: Path, *names: str) -> None:
    """Writes a small picture of its own under every name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)))


def rows(source: ImageSource) -> dict[str, Any]:
    """The rows of a source by path."""
    collected = source.frame.collect()
    found = {row["path"]: row for row in collected}
    assert len(found) == len(collected) == source.images
    for row in collected:
        assert row["image_id"] == hashlib.sha256(row["content"]).hexdigest()
        assert row["bytes_size"] == len(row["content"])
    return found


def labels_by_name(source: ImageSource, root: Path) -> dict[str, str | None]:
    """Label of every file, by its path below `root`; the content behind each path is checked on the way."""
    labels = {}
    for path, row in rows(source).items():
        assert storage.read_bytes(path) == row["content"]
        assert path.startswith(f"file://{root}/")
        labels[path.removeprefix(f"file://{root}/")] = row["label"]
    return labels


def card(**settings: Any) -> Card:
    base = {"name": "mine", "title": "Mine", "licence": "CC0-1.0", "layout": "folders"}
    return check_settings(Card, {**base, **settings}, origin="card")


# Folders


@pytest.mark.parametrize("root", ["photos", "two words 100%", "[a]{b}*?", "ünïcode+#1"])
def test_every_file_in_a_class_folder_is_found_under_its_own_name(
    spark: SparkSession, tmp_path: Path, root: str
) -> None:
    folder = tmp_path / root
    names = [f"{label}/{name}" for label in ("cats", "dogs & [more]") for name in ODD_NAMES]
    put(folder, *names)
    source = open_source(spark, str(folder), None)
    assert labels_by_name(source, folder) == {name: name.split("/")[0] for name in names}
    assert source.classes == ("cats", "dogs & [more]")


def test_classes_hold_folders_of_any_depth(spark: SparkSession, tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "a/deep/2.png", "a/deep/er/3.png", "b/a/4.png", "loose.png")
    source = open_source(spark, str(tmp_path), None)
    expected = {"a/1.png": "a", "a/deep/2.png": "a", "a/deep/er/3.png": "a", "b/a/4.png": "b", "loose.png": None}
    assert labels_by_name(source, tmp_path) == expected
    assert source.classes == ("a", "b")


def test_files_whose_name_begins_with_an_underscore_are_images_too(spark: SparkSession, tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "a/_2.png", "b/3.png", "_c/4.png")
    assert set(labels_by_name(open_source(spark, str(tmp_path), None), tmp_path)) >= {"a/_2.png", "_c/4.png"}


@pytest.mark.parametrize(
    "spelling", ["{root}/a/..", "{root}/", "file://{root}", "file:{root}/", "{parent}//{name}", "./{name}"]
)
def test_any_spelling_of_the_folder_finds_the_same_classes(
    spark: SparkSession, tmp_path: Path, spelling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "photos"
    put(root, "aa/1.png", "bb/2.png")
    monkeypatch.chdir(tmp_path)
    text = spelling.format(root=root, parent=root.parent, name=root.name).replace("/a/..", "/aa/..")
    source = open_source(spark, text, None)
    assert source.classes == ("aa", "bb")
    assert {bytes(row["content"]) for row in rows(source).values()} == {
        path.read_bytes() for path in root.rglob("*.png")
    }


def test_equal_bytes_are_two_rows_with_one_identity(spark: SparkSession, tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "b/2.png")
    shutil.copy(tmp_path / "a/1.png", tmp_path / "b/copy.png")
    found = rows(open_source(spark, str(tmp_path), None))
    assert len(found) == 3
    assert len({row["image_id"] for row in found.values()}) == 2


def test_an_empty_folder_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    for split in (None, "folders"):
        with pytest.raises(UsageError, match="no files") as raised:
            open_source(spark, str(tmp_path), split)  # type: ignore[arg-type]
        assert str(tmp_path) in str(raised.value)


def test_a_folder_of_empty_class_folders_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(UsageError, match="no files"):
        open_source(spark, str(tmp_path), None)


def test_files_without_class_folders_are_refused(spark: SparkSession, tmp_path: Path) -> None:
    put(tmp_path, "1.png", "2.png")
    with pytest.raises(UsageError, match="a folder per class is wanted"):
        open_source(spark, str(tmp_path), None)


def test_a_missing_path_and_a_file_are_refused(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing at .*none"):
        open_source(spark, str(tmp_path / "none"), None)
    put(tmp_path, "1.png")
    with pytest.raises(UsageError, match=r"1\.png is a file"):
        open_source(spark, str(tmp_path / "1.png"), None)
    with pytest.raises(UsageError, match=r"no folder at .*none"):
        open_card(spark, card(), source=str(tmp_path / "none"))
    with pytest.raises(UsageError, match="--source"):
        open_card(spark, card())


# Split by folders


@pytest.mark.parametrize("validation", ["validation", "valid", "val"])
def test_split_folders_give_their_own_split(spark: SparkSession, tmp_path: Path, validation: str) -> None:
    put(tmp_path, "train/a/1.png", "train/b/2.png", f"{validation}/a/3.png", "test/b/deep/4.png")
    source = open_source(spark, str(tmp_path), "folders")
    found = {path.rsplit("/", 1)[1]: (row["label"], row["own_split"]) for path, row in rows(source).items()}
    expected = {"1.png": ("a", "train"), "2.png": ("b", "train"), "3.png": ("a", "validation"), "4.png": ("b", "test")}
    assert found == expected
    assert source.classes == ("a", "b")
    assert source.split_rule.validation_fraction == 0.0


def test_without_a_validation_folder_a_tenth_of_train_is_set_aside(spark: SparkSession, tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "train/b/2.png", "test/a/3.png")
    rule = open_source(spark, str(tmp_path), "folders").split_rule
    assert rule.fractions is None
    assert rule.validation_fraction == 0.1


def test_a_file_directly_in_a_split_folder_has_no_label(spark: SparkSession, tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "train/b/2.png", "train/loose.png", "test/a/3.png")
    labels = labels_by_name(open_source(spark, str(tmp_path), "folders"), tmp_path)
    assert labels["train/loose.png"] is None


def test_other_folders_at_the_top_are_named(spark: SparkSession, tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "holdout/a/2.png", "trian/b/3.png")
    with pytest.raises(UsageError) as raised:
        open_source(spark, str(tmp_path), "folders")
    assert str(raised.value).endswith("Got holdout, trian.")


def test_a_train_folder_is_needed(spark: SparkSession, tmp_path: Path) -> None:
    put(tmp_path, "test/a/1.png", "val/b/2.png")
    with pytest.raises(UsageError, match="train/<class>"):
        open_source(spark, str(tmp_path), "folders")


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
def test_idx_files_keep_their_pixels_labels_and_splits(spark: SparkSession, tmp_path: Path, zipped: bool) -> None:
    pixels = write_idx(tmp_path, zipped=zipped)
    source = open_card(spark, idx_card(tmp_path))
    found = rows(source)
    assert source.classes == ("1", "3", "4", "5", "9")
    for part, digits in DIGITS.items():
        for index, digit in enumerate(digits):
            row = found[f"file://{tmp_path}/{part}-images{'.gz' if zipped else ''}#{index}"]
            assert (row["label"], row["own_split"]) == (str(digit), part)
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(row["content"]))), pixels[part][index])
    assert source.split_rule.validation_fraction == 0.1


def test_idx_files_are_checked_by_the_digest_of_their_unzipped_content(spark: SparkSession, tmp_path: Path) -> None:
    write_idx(tmp_path, zipped=True)
    good = hashlib.sha256(encode_idx(DIGITS["train"])).hexdigest()
    open_card(spark, idx_card(tmp_path, files=[{"name": "train-labels", "sha256": good}]))
    with pytest.raises(UsageError) as raised:
        open_card(spark, idx_card(tmp_path, files=[{"name": "train-labels", "sha256": "0" * 64}]))
    for part in ("train-labels", good, "0" * 64):
        assert part in str(raised.value)


def test_a_missing_idx_file_is_named_both_ways(spark: SparkSession, tmp_path: Path) -> None:
    write_idx(tmp_path, zipped=False)
    (tmp_path / "test-labels").unlink()
    with pytest.raises(UsageError, match=r"neither test-labels nor test-labels\.gz"):
        open_card(spark, idx_card(tmp_path))


def test_more_images_than_labels_are_refused(spark: SparkSession, tmp_path: Path) -> None:
    write_idx(tmp_path, zipped=False)
    (tmp_path / "test-images").write_bytes(encode_idx(np.zeros((3, 6, 4), np.uint8)))
    with pytest.raises(JobError, match="do not go together"):
        ingest(spark, idx_card(tmp_path), str(tmp_path / "out"))
    assert storage.list_files(str(tmp_path / "out")) == []


def test_an_idx_set_takes_no_other_split(spark: SparkSession, tmp_path: Path) -> None:
    write_idx(tmp_path, zipped=False)
    with pytest.raises(UsageError, match="leave `split` out"):
        open_card(spark, idx_card(tmp_path), split=FractionSplit())


# Scenes, cards, images tables


def test_scenes_are_drawn_alike_every_time_and_grow_without_change(spark: SparkSession, tmp_path: Path) -> None:
    few, many = (
        rows(open_card(spark, card(layout="synthetic", synthetic={"images": n, "height": 16, "width": 16})))
        for n in (6, 10)
    )
    assert len(few) == 6
    assert {path: row["image_id"] for path, row in few.items()}.items() <= {
        path: row["image_id"] for path, row in many.items()
    }.items()
    assert {row["label"] for row in few.values()} == set(SCENE_CLASSES)


def test_a_card_is_opened_by_its_name_and_enters_the_settings(spark: SparkSession, tmp_path: Path) -> None:
    text = 'name = "drawn"\ntitle = "x"\nlicence = "x"\nlayout = "synthetic"\n[synthetic]\nimages = 4\nheight = 16\nwidth = 16\n'
    (tmp_path / "drawn.toml").write_text(text)
    source = open_source(spark, "drawn", None, card_folders=(tmp_path,))
    assert source.settings["card"] == "drawn"
    assert source.images == 4
    with pytest.raises(UsageError, match="divided by fractions"):
        open_source(spark, "drawn", "folders", card_folders=(tmp_path,))


@pytest.mark.parametrize("name", ["images", "images [1]"])
def test_an_images_table_is_a_source_with_the_splits_it_has(spark: SparkSession, tmp_path: Path, name: str) -> None:
    put(tmp_path / "photos", *(f"{label}/{index}.png" for label in "ab" for index in range(6)))
    (tmp_path / "photos" / "a" / "broken.png").write_bytes(b"broken")
    result = ingest(spark, card(source=str(tmp_path / "photos"), split={"seed": 3}), str(tmp_path / name))
    assert (result.added, result.rejected) == (12, 1)
    before = rows(open_card(spark, card(source=str(tmp_path / "photos"))))
    source = open_source(spark, str(tmp_path / name), None)
    after = rows(source)
    assert {path: row["content"] for path, row in after.items()} == {
        path: row["content"] for path, row in before.items() if not path.endswith("broken.png")
    }
    for row in after.values():
        assert row["own_split"] == source.split_rule.assign(row["image_id"], row["own_split"])
    assert open_source(spark, str(tmp_path / name), FractionSplit(seed=9)).split_rule.fractions == FractionSplit(seed=9)
    with pytest.raises(UsageError, match="splits already"):
        open_source(spark, str(tmp_path / name), "folders")
