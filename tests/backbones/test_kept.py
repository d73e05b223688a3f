"""What is kept between runs: found whole or not at all, and never in the way."""

import os
from pathlib import Path

import pytest

from featurize.backbones import kept


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRN_CACHE", str(tmp_path / "cache"))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_kept_network_is_found_with_what_was_said_of_it(tmp_path: Path) -> None:
    assert kept.find_network("a", dict) is None
    kept.keep_network("a", write(tmp_path / "n", b"network"), {"spec": 1})
    found = kept.find_network("a", dict)
    assert found is not None
    assert (found[0].read_bytes(), found[1]["spec"]) == (b"network", 1)


@pytest.mark.parametrize("damage", ["other bytes", "truncated", "no description", "no JSON"])
def test_a_damaged_network_is_forgotten(tmp_path: Path, damage: str) -> None:
    kept.keep_network("a", write(tmp_path / "n", b"network"), {})
    network, about = (kept.cache_folder() / "networks" / "a" / name for name in ("backbone.onnx", "about.json"))
    if damage == "no description":
        about.unlink()
    elif damage == "no JSON":
        about.write_text("{")
    else:
        network.write_bytes(b"netwerk" if damage == "other bytes" else b"net")
    assert kept.find_network("a", dict) is None
    kept.keep_network("a", write(tmp_path / "n", b"network"), {})
    assert kept.find_network("a", dict) is not None


def test_the_networks_used_longest_ago_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_MOST_BYTES", 25)
    for number, name in enumerate("abc"):
        kept.keep_network(name, write(tmp_path / "n", name.encode() * 10), {})
        if name in "ab":
            os.utime(kept.cache_folder() / "networks" / name / "about.json", (number, number))
    assert [name for name in "abc" if kept.find_network(name, dict)] == ["b", "c"]


def test_where_nothing_can_be_kept_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRN_CACHE", str(write(tmp_path / "file", b"")))
    kept.keep_network("a", write(tmp_path / "n", b"network"), {})
    kept.keep_document("kind", "a", 1)
    assert kept.find_network("a", dict) is None
    assert kept.find_document("kind", "a", int) is None


def test_documents_are_kept_by_kind_and_key() -> None:
    kept.keep_document("one", "a", {"x": 1})
    kept.keep_document("other", "a", [2])
    kept.keep_document("other", "a", [3])
    assert (kept.find_document("one", "a", dict), kept.find_document("other", "a", list)) == ({"x": 1}, [3])
    assert kept.find_document("one", "b", dict) is None


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FIRN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert kept.cache_folder() == Path("/somewhere/firn")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert kept.cache_folder() == Path.home() / ".cache" / "firn"
