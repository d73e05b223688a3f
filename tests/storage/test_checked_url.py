"""Tests of URLs that carry a rule: links below a folder of Firn's own, and URLs that a document names."""

import pickle
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from featurize import storage
from featurize.errors import FirnError, JobError, UsageError
from featurize.recipes.recipe import read_recipe
from featurize.storage.checked_url import ALLOWED, CheckedUrl


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder of Firn's own, reached through a link, with links in it to a file and a folder outside."""
    (tmp_path / "outside" / "folder").mkdir(parents=True)
    (tmp_path / "outside" / "file").write_text("private")
    (tmp_path / "outside" / "folder" / "file").write_text("private")
    (tmp_path / "place" / "data").mkdir(parents=True)
    (tmp_path / "place" / "data" / "file").write_text("own")
    (tmp_path / "own").symlink_to("place")
    (tmp_path / "place" / "link").symlink_to(tmp_path / "outside" / "file")
    (tmp_path / "place" / "folder").symlink_to(tmp_path / "outside" / "folder")
    return tmp_path / "own"


def private(own: Path) -> list[str]:
    return [path.read_text() for path in sorted((own.parent / "outside").rglob("file"))]


def test_a_folder_that_is_reached_through_a_link_is_like_any_other(own: Path) -> None:
    url = storage.join_url(str(own), "data", "file")
    assert storage.read_bytes(url) == b"own"
    storage.write_bytes(url, b"new")
    storage.remove(url)
    assert not storage.exists(url)
    assert private(own) == ["private", "private"]


OPENING: list[Callable[[str], object]] = [
    storage.read_bytes,
    storage.exists,
    storage.is_folder,
    storage.list_files,
    storage.list_folders,
    lambda url: storage.write_bytes(storage.join_url(url, "new"), b""),
    lambda url: storage.create_exclusively(storage.join_url(url, "new"), b""),
    lambda url: storage.move(url + "x", url),
    lambda url: storage.remove(storage.join_url(url, "file")),
    lambda url: list(storage.walk_files(url)),
]


@pytest.mark.parametrize("use", OPENING)
@pytest.mark.parametrize("name", ["folder", "folder/file", "link"])
def test_a_link_below_is_refused_by_name(own: Path, name: str, use: Callable[[str], object]) -> None:
    url = storage.join_url(str(own), name)
    with pytest.raises(JobError, match=f"own/{name.partition('/')[0]} is a link, and Firn follows none inside"):
        use(url)
    assert private(own) == ["private", "private"]


def test_a_link_is_removed_and_replaced_and_what_it_leads_to_is_not(own: Path) -> None:
    storage.replace(storage.join_url(str(own), "data", "file"), storage.join_url(str(own), "link"))
    assert (own / "link").read_text() == "own"
    assert not (own / "link").is_symlink()
    storage.remove(storage.join_url(str(own), "folder"))
    assert private(own) == ["private", "private"]
    assert sorted(path.name for path in own.iterdir()) == ["data", "link"]


def test_links_are_listed_as_what_they_are(own: Path) -> None:
    assert {file.inner: file.size for file in storage.walk_files(str(own)) if file.inner != "data/file"} == {
        "folder": len(str(own.parent / "outside" / "folder")),
        "link": len(str(own.parent / "outside" / "file")),
    }
    assert storage.list_folders(str(own)) == [f"file://{own}/data"]
    assert storage.list_files(str(own)) == [f"file://{own}/{name}" for name in ("data/file", "folder", "link")]
    with pytest.raises(JobError, match="own/link is a link"):
        storage.read_bytes(storage.list_files(str(own))[2])


def test_a_folder_with_nothing_but_a_link_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "link").symlink_to(tmp_path)
    storage.remove_if_empty(str(tmp_path / "own"))
    assert (tmp_path / "own" / "link").is_symlink()


def test_an_empty_folder_that_was_named_by_a_link_stays(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    (tmp_path / "own").symlink_to("place")
    storage.remove_if_empty(str(tmp_path / "own"))
    assert (tmp_path / "own").is_symlink()


@pytest.mark.parametrize("part", ["/etc/passwd", "..", "../x", "data/../../x"])
def test_a_part_that_leads_out_of_the_folder_is_refused(tmp_path: Path, part: str) -> None:
    with pytest.raises(JobError, match="is not a path inside"):
        storage.join_url(str(tmp_path), "data", part)


def test_the_rule_travels_with_the_url(own: Path) -> None:
    url = storage.join_url(storage.absolute_url(storage.join_url(str(own), "folder")), "file")
    sent = pickle.loads(pickle.dumps(url))
    assert sent == url == f"file://{own}/folder/file"
    with pytest.raises(JobError, match="own/folder is a link"):
        storage.read_bytes(sent)


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featurize.storage.checked_url._given", set())


NAMED = [
    ("file:///x/y", "file:///a/model.json", True),
    ("hdfs://one:8020/x", "hdfs://one:8020/a/model.json", True),
    ("hdfs://ONE:8020/x", "hdfs://one:8020/a/model.json", True),
    ("hdfs://two:8020/x", "hdfs://one:8020/a/model.json", False),
    ("hdfs://one:9000/x", "hdfs://one:8020/a/model.json", False),
    ("hdfs://one:8020/x", "file:///a/model.json", False),
    ("file:///x", "hdfs://one:8020/a/model.json", False),
    ("hdfs:///x", "file:///a/model.json", True),
]


@pytest.mark.parametrize(("url", "document", "is_allowed"), NAMED)
def test_a_document_names_what_is_on_its_own_file_system(url: str, document: str, is_allowed: bool) -> None:
    assert storage.may_be_named(url, document) == is_allowed


def test_what_the_caller_has_named_allows_its_neighbours() -> None:
    document = "file:///a/model.json"
    read_recipe({"features": {"url": "hdfs://one:8020/features"}, "model": {"url": "runs/model"}})
    storage.give("hdfs://two/out", None)
    urls = [f"hdfs://{host}/x" for host in ("one:8020", "two", "three")]
    assert [url for url in urls if storage.may_be_named(url, document)] == urls[:2]
    assert storage.may_be_named("file:///x", "hdfs://three/model.json")


def test_the_environment_allows_more_at_and_below_what_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    document = "file:///a/model.json"
    monkeypatch.setenv(ALLOWED, "hdfs://one:8020/data/ hdfs://two")
    allowed = ["hdfs://one:8020/data", "hdfs://one:8020/data/x", "hdfs://two/y"]
    others = ["hdfs://one:8020/database", "hdfs://one:8020", "hdfs://two.evil/x", "hdfs://three/x"]
    assert [url for url in allowed + others if storage.may_be_named(url, document)] == allowed


def test_nothing_is_connected_to_before_a_url_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = f"hdfs://127.0.0.1:{listener.getsockname()[1]}"
        url = storage.join_url(CheckedUrl(f"{host}/x", named_by="file:///a/model.json"), "manifest.json")
        with pytest.raises(UsageError, match=f"file:///a/model.json names '{host}/x'.*{ALLOWED}"):
            storage.read_bytes(url)
        listener.settimeout(0.1)
        with pytest.raises(TimeoutError):
            listener.accept()
        listener.close()
    monkeypatch.setenv(ALLOWED, host)
    with pytest.raises(FirnError, match="no HDFS NameNode answers"):  # now it is tried
        storage.read_bytes(url)
