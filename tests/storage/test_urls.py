"""Storage: every spelling of a URL means one place, and what is written is seen whole or not at all."""

import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurize import storage
from featurize.errors import UsageError
from featurize.tables.corrections import read_corrections
from featurize.tables.layout import CORRECTIONS

ODD_NAMES = [
    "plain",
    "two words",
    "100%",
    "a%20b",
    "ünïcode 雪",
    "[brackets]",
    "{braces}",
    "plus+",
    "hash#1",
    "q?x=1",
    "a:b",
]
path_parts = st.text(st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="/~"), min_size=1).filter(
    lambda name: name not in (".", "..")
)


def test_every_spelling_of_a_local_path_is_one_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spellings = ["a/b", "a/b/", "./a/b", f"{tmp_path}/a/b", f"file://{tmp_path}/a/b", f"file:{tmp_path}/a/b/"]
    assert {storage.absolute_url(spelling) for spelling in spellings} == {f"file://{tmp_path}/a/b"}


@pytest.mark.parametrize(
    "spelling", ["{root}/x/../b", "file://{root}/x/../b", "{root}//b", "file://{root}//b", "{root}/./b"]
)
def test_dots_and_double_slashes_do_not_make_another_url(tmp_path: Path, spelling: str) -> None:
    """Spark resolves them in the paths it reports, and Firn finds classes by position in those."""
    (tmp_path / "x").mkdir()
    assert storage.absolute_url(spelling.format(root=tmp_path)) == f"file://{tmp_path}/b"


def test_the_home_folder_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert storage.absolute_url("~/photos") == f"file://{tmp_path}/photos"


def test_hdfs_urls_stay_as_they_are_but_for_the_slash_at_the_end() -> None:
    assert storage.absolute_url("hdfs://node:8020/firn/x/") == "hdfs://node:8020/firn/x"
    assert storage.absolute_url("hdfs:///firn/two words") == "hdfs:///firn/two words"


@pytest.mark.parametrize("url", ["s4://bucket/x", "http://example.org/x", "ftp://x/y", "C://x"])
def test_an_unknown_scheme_is_named_with_those_that_are_known(url: str) -> None:
    with pytest.raises(UsageError) as raised:
        storage.absolute_url(url)
    assert url in str(raised.value)
    assert "hdfs://" in str(raised.value)
    assert "file://" in str(raised.value)


@given(st.lists(path_parts, min_size=1, max_size=3))
def test_an_absolute_url_is_its_own_absolute_url(parts: list[str]) -> None:
    url = storage.absolute_url("/" + "/".join(parts))
    assert storage.absolute_url(url) == url
    assert storage.open_filesystem(url)[1] == "/" + "/".join(parts)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_file_of_any_name_is_written_found_read_moved_and_removed(tmp_path: Path, name: str) -> None:
    url = storage.join_url(str(tmp_path), name, name)
    storage.write_bytes(url, b"content")
    assert (tmp_path / name / name).read_bytes() == b"content"
    assert storage.list_files(str(tmp_path)) == [url]
    assert storage.read_bytes(storage.list_files(str(tmp_path))[0]) == b"content"
    moved = storage.join_url(str(tmp_path), "moved", name)
    storage.move(url, moved)
    assert not storage.exists(url)
    storage.download(moved, tmp_path / "local")
    assert (tmp_path / "local").read_bytes() == b"content"
    storage.remove(storage.join_url(str(tmp_path), "moved"))
    assert storage.list_files(str(tmp_path)) == [storage.join_url(str(tmp_path), "local")]


def test_files_are_listed_at_any_depth_and_sorted(tmp_path: Path) -> None:
    for name in ("b/2", "a", "b/c/1", "b/1"):
        storage.write_bytes(storage.join_url(str(tmp_path), name), b"")
    inner = [url.removeprefix(f"file://{tmp_path}/") for url in storage.list_files(f"{tmp_path}/")]
    assert inner == ["a", "b/1", "b/2", "b/c/1"]
    assert storage.list_files(f"{tmp_path}/missing") == []


def test_a_folder_is_told_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert storage.is_folder(str(tmp_path))
    assert not storage.is_folder(str(tmp_path / "file"))
    assert storage.exists(str(tmp_path / "file"))
    assert not storage.exists(str(tmp_path / "missing"))


def test_removing_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    storage.remove(str(tmp_path / "missing"))


def test_json_is_readable_by_people_and_comes_back(tmp_path: Path) -> None:
    document = {"name": "Straße 雪", "rows": {"train": 1}}
    storage.write_json(str(tmp_path / "x.json"), document)
    assert storage.read_json(str(tmp_path / "x.json")) == document
    assert "Straße 雪" in (tmp_path / "x.json").read_text(encoding="utf-8")


def test_a_reader_sees_the_old_or_the_new_content_and_nothing_between(tmp_path: Path) -> None:
    url = str(tmp_path / "file")
    contents = [bytes([letter]) * (1 << 20) for letter in b"ab"]
    storage.write_bytes(url, contents[0])
    done = threading.Event()
    seen: list[bytes] = []

    def read() -> None:
        while not done.is_set():
            seen.append(storage.read_bytes(url))

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        for round_ in range(100):
            storage.write_bytes(url, contents[round_ % 2])
        done.set()
        reader.result()
    assert seen
    assert all(content in contents for content in seen)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_leaves_what_was_there_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(tmp_path / "file")
    storage.write_bytes(url, b"old")
    monkeypatch.setattr("featurize.storage.urls.replace", _fail)
    with pytest.raises(OSError, match="disk"):
        storage.write_bytes(url, b"new")
    assert storage.read_bytes(url) == b"old"


def test_an_upload_is_whole_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "local").write_bytes(content)
    storage.upload(tmp_path / "local", str(tmp_path / "up" / "file"))
    assert [path.name for path in (tmp_path / "up").iterdir()] == ["file"]
    assert storage.read_bytes(str(tmp_path / "up" / "file")) == content


def test_of_many_who_create_a_file_at_once_one_wins(tmp_path: Path) -> None:
    threads = 16
    barrier = threading.Barrier(threads)

    def create(url: str, number: int) -> bool:
        barrier.wait()
        return storage.create_exclusively(url, str(number).encode())

    with ThreadPoolExecutor(threads) as pool:
        for round_ in range(20):
            url = str(tmp_path / f"{round_}" / "file")
            won = list(pool.map(create, [url] * threads, range(threads)))
            assert sum(won) == 1
            assert storage.read_bytes(url) == str(won.index(True)).encode()


def test_a_file_created_exclusively_is_never_seen_half_written(tmp_path: Path) -> None:
    """Who reads a claim that is half written takes its holder for dead."""
    url, content = str(tmp_path / "file"), b"x" * (64 << 20)
    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(storage.create_exclusively, url, content)
        sizes = set()
        while not writer.done():
            if Path(url).exists():
                sizes.add(Path(url).stat().st_size)
        assert writer.result()
    assert sizes <= {len(content)}


def _fail(*_: object) -> None:
    raise OSError("no space left on this disk")


def failing_once(function: Any) -> Any:
    """`function`, which fails when it is first called: a store that stumbles."""
    failures = [OSError(5, "Input/output error")]

    def stumble(*arguments: Any, **settings: Any) -> Any:
        if failures:
            raise failures.pop()
        return function(*arguments, **settings)

    return stumble


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").write_text("{}")
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", failing_once(os.scandir))
        with pytest.raises(OSError, match="Input/output"):
            storage.remove_if_empty(str(tmp_path))
    with monkeypatch.context() as patch, storage.no_empty_folder(str(tmp_path)):
        patch.setattr(os, "scandir", failing_once(os.scandir))
    assert (tmp_path / "notes.txt").exists()


@pytest.mark.parametrize(
    "ask", [storage.exists, storage.is_folder, storage.list_files, storage.find_file, storage.remove]
)
def test_a_storage_that_does_not_answer_is_not_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], object]
) -> None:
    """As NFS does when its server is gone."""
    path = tmp_path / "features"
    path.mkdir()
    for name in ("stat", "lstat"):
        real = getattr(os, name)

        def broken(asked: Any, *arguments: Any, real: Any = real, **named: Any) -> Any:
            if str(asked) == str(path):
                raise OSError(errno.EIO, "Input/output error", str(asked))
            return real(asked, *arguments, **named)

        monkeypatch.setattr(os, name, broken)
    with pytest.raises(OSError, match=str(path)):
        ask(str(path))


def test_labels_are_not_read_uncorrected_where_corrections_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / CORRECTIONS
    folder.mkdir(parents=True)
    real = os.stat

    def broken(asked: Any, *arguments: Any, **named: Any) -> Any:
        if str(asked) == str(folder):
            raise OSError(errno.EIO, "Input/output error", str(asked))
        return real(asked, *arguments, **named)

    monkeypatch.setattr(os, "stat", broken)
    with pytest.raises(OSError, match="Input/output"):
        read_corrections(str(tmp_path))
