"""Cards: every committed one parses, and each layout brings what it needs."""

from pathlib import Path
from typing import Any

import pytest
from helpers.project import ROOT

from featurize.digests import canonical_json
from featurize.errors import UsageError
from featurize.recipes.toml_settings import check_settings
from featurize.sources.cards import Card, describe_card, find_card, read_card

CARDS = sorted((ROOT / "datasets").glob("*.toml"))
BASE: dict[str, Any] = {"name": "mine", "title": "Mine", "licence": "CC0-1.0", "layout": "folders"}
IDX = {part: {"images": f"{part}-i", "labels": f"{part}-l"} for part in ("train", "test")}


def faults(**changes: Any) -> str:
    with pytest.raises(UsageError) as raised:
        check_settings(Card, {**BASE, **changes}, origin="mine.toml")
    return str(raised.value)


def test_there_are_committed_cards() -> None:
    assert CARDS


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.name)
def test_every_committed_card_parses_and_is_named_like_its_file(path: Path) -> None:
    card = read_card(path)
    assert card.name == path.stem
    assert card.licence
    canonical_json(describe_card(card))


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.name)
def test_every_committed_card_of_real_data_says_where_it_comes_from_and_its_checksum(path: Path) -> None:
    card = read_card(path)
    if card.layout != "synthetic":
        assert card.homepage
    if card.layout == "idx":
        assert card.idx is not None
        names = {name for part in (card.idx.train, card.idx.test) for name in (part.images, part.labels)}
        assert names <= {file.name for file in card.files if file.sha256}


def test_every_layout_needs_its_own_section_and_no_other() -> None:
    assert "[idx]" in faults(layout="idx")
    assert "[synthetic]" in faults(layout="synthetic")
    assert "[idx]" in faults(idx=IDX)
    assert "[synthetic]" in faults(synthetic={"images": 1})
    check_settings(Card, {**BASE, "layout": "idx", "idx": IDX}, origin="x")
    check_settings(Card, {**BASE, "layout": "synthetic", "synthetic": {"images": 4}}, origin="x")


def test_settings_without_use_are_refused() -> None:
    assert "split" in faults(layout="idx", idx=IDX, split="folders")
    assert "synthetic" in faults(layout="synthetic", synthetic={"images": 4}, source="photos")


def test_faults_are_all_named_with_suggestions() -> None:
    message = faults(licens="x", name="Two Words", files=[{"name": "a", "sha265": "0"}], expect={"images": 0})
    for part in ("`licens` is not a key; did you mean `licence`?", "`name`", "sha265", "`expect.images`", "4 faults"):
        assert part in message
    assert "did you mean `sha256`?" in message


def test_a_card_is_found_by_path_and_by_name(tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "mine.toml").write_text("")
    folders = (tmp_path / "first", tmp_path / "second")
    assert find_card("mine", folders) == tmp_path / "second" / "mine.toml"
    assert find_card(str(tmp_path / "second" / "mine.toml"), ()) == tmp_path / "second" / "mine.toml"
    assert find_card("other", folders) is None
    assert find_card("../second/mine", (tmp_path / "first",)) is None


def test_a_missing_card_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml"):
        find_card(str(tmp_path / "none.toml"), ())
