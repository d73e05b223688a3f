"""Folders: every file under its own name, with its label and split; what is no image source is refused."""

import os
import shutil
from pathlib import Path
from typing import Literal

import pytest
from helpers.tables.listings import card, put, rows

from featurize import storage
from featurize.errors import UsageError
from featurize.sources.listing import ImageReadError, ImageSource, planned_images
from featurize.sources.opening import open_card, open_source

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


def labels_by_name(source: ImageSource, root: Path) -> dict[str, str | None]:
    """Label of every file, by its path below `root`; the content behind each path is checked on the way."""
    labels = {}
    for path, row in rows(source).items():
        assert storage.read_bytes(path) == row.content
        assert row.image.bytes_size == len(row.content)
        assert path.startswith(f"file://{root}/")
        labels[path.removeprefix(f"file://{root}/")] = row.image.label
    return labels


@pytest.mark.parametrize("root", ["photos", "two words 100%", "[a]{b}*?", "ünïcode+#1"])
def test_every_file_in_a_class_folder_is_found_under_its_own_name(tmp_path: Path, root: str) -> None:
    folder = tmp_path / root
    names = [f"{label}/{name}" for label in ("cats", "dogs & [more]") for name in ODD_NAMES]
    put(folder, *names)
    source = open_source(str(folder), None)
    assert labels_by_name(source, folder) == {name: name.split("/")[0] for name in names}
    assert source.classes == ("cats", "dogs & [more]")


def test_classes_hold_folders_of_any_depth(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "a/deep/2.png", "a/deep/er/3.png", "b/a/4.png", "loose.png")
    source = open_source(str(tmp_path), None)
    expected = {"a/1.png": "a", "a/deep/2.png": "a", "a/deep/er/3.png": "a", "b/a/4.png": "b", "loose.png": None}
    assert labels_by_name(source, tmp_path) == expected
    assert source.classes == ("a", "b")


def test_files_whose_name_begins_with_an_underscore_are_images_too(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "a/_2.png", "b/3.png", "_c/4.png")
    assert set(labels_by_name(open_source(str(tmp_path), None), tmp_path)) >= {"a/_2.png", "_c/4.png"}


def test_hidden_files_and_those_that_hdfs_is_being_given_are_passed_over(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "b/2.png", "a/.hidden.png", ".trash/3.png", "b/.deep/4.png", "a/5.png._COPYING_")
    source = open_source(str(tmp_path), None)
    assert set(labels_by_name(source, tmp_path)) == {"a/1.png", "b/2.png"}
    assert source.classes == ("a", "b")


@pytest.mark.parametrize(
    "spelling", ["{root}/aa/..", "{root}/", "file://{root}", "file:{root}/", "{parent}//{name}", "./{name}"]
)
def test_any_spelling_of_the_folder_finds_the_same_images(
    tmp_path: Path, spelling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "photos"
    put(root, "aa/1.png", "bb/2.png")
    monkeypatch.chdir(tmp_path)
    source = open_source(spelling.format(root=root, parent=root.parent, name=root.name), None)
    assert labels_by_name(source, root) == {"aa/1.png": "aa", "bb/2.png": "bb"}
    assert source.settings == open_source(str(root), None).settings


def test_a_listing_is_the_same_in_however_many_parts_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, *(f"{label}/{index}.png" for label in "cab" for index in range(5)))
    whole = open_source(str(tmp_path), None).listing
    monkeypatch.setattr("featurize.sources.folders.LISTED_AT_A_TIME", 2)
    assert planned_images(open_source(str(tmp_path), None).listing) == planned_images(whole)


def test_equal_bytes_are_two_rows_with_one_identity(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "b/2.png")
    shutil.copy(tmp_path / "a/1.png", tmp_path / "b/copy.png")
    found = rows(open_source(str(tmp_path), None))
    assert len(found) == 3
    assert len({row.image_id for row in found.values()}) == 2


def test_the_stamps_are_those_of_the_last_listing_unless_a_file_was_written_to(tmp_path: Path) -> None:
    put(tmp_path, "a/same.png", "a/longer.png", "b/later.png")

    def stamps() -> dict[str, str]:
        listing = open_source(str(tmp_path), None).listing
        names = [path.rsplit("/", 1)[1] for path in listing["path"].to_pylist()]
        return dict(zip(names, listing["stamp"].to_pylist(), strict=True))

    before = stamps()
    assert stamps() == before
    later = tmp_path / "b/later.png"
    os.utime(later, ns=(0, later.stat().st_mtime_ns + 1))
    longer, modified = tmp_path / "a/longer.png", (tmp_path / "a/longer.png").stat().st_mtime_ns
    longer.write_bytes(longer.read_bytes() + b"x")
    os.utime(longer, ns=(0, modified))
    after = stamps()
    assert {name for name in before if before[name] != after[name]} == {"later.png", "longer.png"}


def linked_photos(folder: Path) -> Path:
    """Photos with links to a file and a folder outside, to nothing, and to a file inside."""
    put(folder / "elsewhere", "x.png", "deep/y.png")
    put(folder / "photos", "a/1.png", "b/2.png")
    photos = folder / "photos"
    (photos / "a" / "linked.png").symlink_to(folder / "elsewhere" / "x.png")
    (photos / "c").symlink_to(folder / "elsewhere")
    (photos / "a" / "nowhere.png").symlink_to(photos / "none.png")
    (photos / "b" / "inside.png").symlink_to("../a/1.png")
    return photos


def answers(source: ImageSource, folder: Path) -> dict[str, bytes | str]:
    """The bytes of each image, or why it cannot be read."""
    found: dict[str, bytes | str] = {}
    images = planned_images(source.listing)
    for image, fetch in zip(images, source.reader.open(images), strict=True):
        try:
            found[image.path.removeprefix(f"file://{folder}/")] = fetch()
        except ImageReadError as error:
            found[image.path.removeprefix(f"file://{folder}/")] = str(error)
    return found


def test_links_that_lead_out_of_the_source_are_rejects_and_others_are_followed(tmp_path: Path) -> None:
    photos = linked_photos(tmp_path)
    one, two = ((photos / name).read_bytes() for name in ("a/1.png", "b/2.png"))
    refused = "the link leads out of the source, and `follow_links` is not set"
    expected = {"a/1.png": one, "a/linked.png": refused, "a/nowhere.png": "the file is gone", "b/2.png": two}
    expected |= {"b/inside.png": one, "c": refused}
    for source in (open_source(str(photos), None), open_source(str(photos), None, is_sorted=False)):
        assert answers(source, photos) == expected


def test_links_out_of_the_source_are_followed_where_the_recipe_says_so(tmp_path: Path) -> None:
    photos = linked_photos(tmp_path)
    found = answers(open_source(str(photos), None, follow_links=True), photos)
    assert list(found) == [
        *("a/1.png", "a/linked.png", "a/nowhere.png", "b/2.png", "b/inside.png", "c/deep/y.png", "c/x.png")
    ]
    assert found["a/linked.png"] == (tmp_path / "elsewhere" / "x.png").read_bytes()
    assert found["a/nowhere.png"] == "the file is gone"


def test_class_folders_that_are_links_are_named(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", "x.png")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cats").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"cats is a link that leads out of the source.*follow_links"):
        open_source(str(tmp_path / "photos"), None)
    (tmp_path / "also photos").symlink_to(tmp_path / "photos")
    source = open_source(str(tmp_path / "also photos"), None, follow_links=True)
    assert labels_by_name(source, tmp_path / "also photos") == {"cats/x.png": "cats"}


def test_links_in_a_circle_are_not_followed_round_and_round(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "a" / "other").symlink_to("../b")
    (tmp_path / "b" / "other").symlink_to("../a")
    (tmp_path / "b" / "itself").symlink_to(".")
    found = labels_by_name(open_source(str(tmp_path), None), tmp_path)
    assert found == {"a/1.png": "a", "a/other/2.png": "a", "b/2.png": "b", "b/other/1.png": "b"}


def test_pipes_are_passed_over_instead_of_waited_for(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "b/2.png")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    listing = open_source(str(tmp_path), None).listing
    assert listing["path"].to_pylist() == [f"file://{tmp_path}/{name}" for name in ("a/1.png", "b/2.png")]


def test_a_name_that_is_not_utf_8_is_an_unreadable_image_and_spoils_no_other(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "b/2.png")
    for name in (b"\xff.png", b"\xfe.png"):
        with open(bytes(tmp_path / "a") + b"/" + name, "wb") as file:
            file.write(b"x")
    source = open_source(str(tmp_path), None)
    images = planned_images(source.listing)
    assert [image.path.removeprefix(f"file://{tmp_path}/") for image in images] == [
        *("a/1.png", "a/\\xfe.png", "a/\\xff.png", "b/2.png")
    ]
    with pytest.raises(ImageReadError, match="not UTF-8"):
        list(source.reader.open(images))[1]()


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    splits: tuple[Literal["folders"] | None, ...] = (None, "folders")
    for split in splits:
        with pytest.raises(UsageError, match="no files") as raised:
            open_source(str(tmp_path), split)
        assert str(tmp_path) in str(raised.value)


def test_a_folder_of_empty_class_folders_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(UsageError, match="no files"):
        open_source(str(tmp_path), None)


def test_files_without_class_folders_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "1.png", "2.png")
    with pytest.raises(UsageError, match="needs a folder for each class"):
        open_source(str(tmp_path), None)


def test_a_missing_path_and_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing at .*none"):
        open_source(str(tmp_path / "none"), None)
    put(tmp_path, "1.png")
    with pytest.raises(UsageError, match=r"1\.png is a file"):
        open_source(str(tmp_path / "1.png"), None)
    with pytest.raises(UsageError, match=r"no folder at .*none"):
        open_card(card(), source=str(tmp_path / "none"))
    with pytest.raises(UsageError, match="--source"):
        open_card(card())


# Split by folders


@pytest.mark.parametrize("validation", ["validation", "valid", "val"])
def test_split_folders_give_their_own_split(tmp_path: Path, validation: str) -> None:
    put(tmp_path, "train/a/1.png", "train/b/2.png", f"{validation}/a/3.png", "test/b/deep/4.png")
    source = open_source(str(tmp_path), "folders")
    found = {path.rsplit("/", 1)[1]: (row.image.label, row.image.own_split) for path, row in rows(source).items()}
    expected = {"1.png": ("a", "train"), "2.png": ("b", "train"), "3.png": ("a", "validation"), "4.png": ("b", "test")}
    assert found == expected
    assert source.classes == ("a", "b")
    assert source.split_rule.validation_fraction == 0.0


def test_without_a_validation_folder_a_tenth_of_train_is_set_aside(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "train/b/2.png", "test/a/3.png")
    rule = open_source(str(tmp_path), "folders").split_rule
    assert rule.fractions is None
    assert rule.validation_fraction == 0.1


def test_a_file_directly_in_a_split_folder_has_no_label(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "train/b/2.png", "train/loose.png", "test/a/3.png")
    assert labels_by_name(open_source(str(tmp_path), "folders"), tmp_path)["train/loose.png"] is None


def test_other_folders_at_the_top_are_named(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "holdout/a/2.png", "trian/b/3.png")
    with pytest.raises(UsageError) as raised:
        open_source(str(tmp_path), "folders")
    assert str(raised.value).endswith("Got holdout, trian.")


def test_a_train_folder_is_needed(tmp_path: Path) -> None:
    put(tmp_path, "test/a/1.png", "val/b/2.png")
    with pytest.raises(UsageError, match="train/<class>"):
        open_source(str(tmp_path), "folders")
