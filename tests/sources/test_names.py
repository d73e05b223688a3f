"""Tests of featurize.sources.names: what is left out of folders, and what is said of class names."""

import unicodedata
from pathlib import Path

import pytest
from helpers.tables.listings import put, rows
from hypothesis import given
from hypothesis import strategies as st

from featurize.recipes.recipe import FractionSplit
from featurize.sources.names import is_left_out, notes_on_classes, twin_of
from featurize.sources.opening import open_source

SYSTEM = (
    *("Thumbs.db", "thumbs.db", "a/Desktop.ini", "a/ehthumbs.db", ".DS_Store", "a/._1.png", "a/1.png._COPYING_"),
    *("@eaDir/1.png", "a/@eaDir/1.png@SYNOFILE_THUMB_M.png", "__MACOSX/a/1.png", "a/.ipynb_checkpoints/1.png"),
    *("$RECYCLE.BIN/1.png", "System Volume Information/1.png", "#recycle/a.png"),
)


@pytest.mark.parametrize("name", SYSTEM)
def test_what_systems_leave_behind_is_no_image(name: str) -> None:
    assert is_left_out(name)


@pytest.mark.parametrize(
    "name", ["a/thumbs.db.png", "thumbs/1.png", "macosx/1.png", "a/desktop.ini.jpg", "a/x._COPYING_/1.png"]
)
def test_what_only_looks_like_it_is_one(name: str) -> None:
    assert not is_left_out(name)


def test_a_folder_with_such_files_is_the_folder_without_them(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "b/2.png", *SYSTEM)
    source = open_source(str(tmp_path), FractionSplit(train=0.5, validation=0.2, test=0.3, seed=1))
    assert [path.rpartition("/")[2] for path in rows(source)] == ["1.png", "2.png"]
    assert source.classes == ("a", "b")
    assert source.notes == ()


@given(name=st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=8))
def test_twins_of_a_name_are_noted(name: str) -> None:
    for twin in (
        unicodedata.normalize("NFD", name),
        unicodedata.normalize("NFC", name),
        f"{name} ",
        name.upper().lower(),
    ):
        notes = notes_on_classes({name, twin, "something else"}, splits_by_folders=True)
        is_noted = any("differ only in case, blanks or the form" in note for note in notes)
        assert is_noted or twin == name or twin.casefold() != name.casefold()


def test_classes_that_are_named_like_splits_are_noted() -> None:
    (note,) = notes_on_classes({"train", "val", "test"}, splits_by_folders=False)
    assert (
        note
        == 'all classes are named like splits: test, train, val. If they are splits, set `images.split` = "folders".'
    )
    (note,) = notes_on_classes({"cat", "Test"}, splits_by_folders=False)
    assert note == "classes are named like splits: Test."
    assert notes_on_classes({"Cat", "dog"}, splits_by_folders=False) == []
    (note,) = notes_on_classes({"train", "val"}, splits_by_folders=None)  # a table: its splits are no folders
    assert note == "classes are named like splits: train, val."


@given(name=st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=8))
def test_the_twin_of_a_name_is_found_among_classes_if_there_is_one(name: str) -> None:
    assert twin_of(name, {name}) is None
    assert twin_of(f" {name}", {name, "\0 something else"}) == name
    assert twin_of(f"{name}x", {name}) is None
