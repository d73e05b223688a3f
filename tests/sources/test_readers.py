"""Readers: the bytes of each listed image, or the reason why they cannot be read."""

import gzip
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.images.idx_files import encode_idx
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featurize import storage
from featurize.sources.listing import ImageReadError, PlannedImage
from featurize.sources.readers import MAX_FILE_BYTES, FileReader, IdxReader, SceneReader, TableReader, read_file


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds slept between tries; nobody waits for them."""
    slept: list[float] = []
    monkeypatch.setattr("featurize.sources.readers.time.sleep", slept.append)
    return slept


def planned(path: str, *, container: str | None = None, position: int | None = None, **changes: Any) -> PlannedImage:
    base = {"label": "a", "own_split": None, "bytes_size": None, "stamp": "1:1"}
    return PlannedImage(path=path, container=container, position=position, **{**base, **changes})


# Files


def test_files_are_read_in_order_when_they_are_asked_for(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("b", "ünïcode 雪#1?", "a%20b")]
    fetches = list(FileReader().open([planned(f"file://{path}") for path in paths]))
    for path in paths:
        path.write_bytes(path.name.encode())
    assert [fetch() for fetch in fetches] == [path.name.encode() for path in paths]


@pytest.mark.parametrize("gone", ["file", "folder", "folder became a file", "link to nothing"])
def test_a_file_that_is_gone_is_no_fault_of_the_storage(tmp_path: Path, gone: str, pauses: list[float]) -> None:
    path = tmp_path / "folder" / "x.png"
    if gone != "folder":
        path.parent.mkdir()
    if gone == "folder became a file":
        path.parent.rmdir()
        path.parent.write_bytes(b"")
    if gone == "link to nothing":
        path.symlink_to("nowhere")
    with pytest.raises(ImageReadError, match=r"^the file is gone$"):
        read_file(f"file://{path}")
    assert pauses == []


def test_a_file_that_may_not_be_read_is_rejected_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    """What the system says to a user who is not root, as the tests may be."""

    def refuse(url: str) -> bytes:
        raise PermissionError(13, "Permission denied", url)

    monkeypatch.setattr(storage, "read_bytes", refuse)
    with pytest.raises(ImageReadError, match=r"^no permission to read the file$"):
        read_file(f"file://{tmp_path}/x.png")
    assert pauses == []


def test_a_file_over_the_limit_is_refused_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "film.jpg"
    path.touch()
    os.truncate(path, MAX_FILE_BYTES + 1)  # a hole: it takes no room
    (fetch,) = FileReader().open([planned(f"file://{path}", bytes_size=MAX_FILE_BYTES + 1)])
    path.unlink()
    with pytest.raises(
        ImageReadError, match=f"has {MAX_FILE_BYTES + 1} bytes, more than the limit of {MAX_FILE_BYTES}"
    ):
        fetch()


@pytest.mark.parametrize("fault", ["a folder", "a link in a circle"])
def test_a_file_that_alone_cannot_be_read_is_rejected_after_some_tries(
    tmp_path: Path, fault: str, pauses: list[float]
) -> None:
    path = tmp_path / "x.png"
    path.mkdir() if fault == "a folder" else path.symlink_to(path)
    reason = {"a folder": "Is a directory", "a link in a circle": "Too many levels of symbolic links"}[fault]
    with pytest.raises(ImageReadError, match=f"^the file cannot be read: {reason}$"):
        read_file(f"file://{path}")
    assert len(pauses) >= 3


def test_a_storage_that_does_not_answer_fails_the_job_and_not_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    def fail(*_: Any) -> bool:
        raise OSError("the connection was reset")

    monkeypatch.setattr(storage, "read_bytes", fail)
    with pytest.raises(OSError, match="reset"):
        read_file(f"file://{tmp_path}/not mounted/x.png")
    assert len(pauses) >= 3


def test_a_storage_that_comes_back_is_given_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    read, failures = storage.read_bytes, iter([OSError("reset"), TimeoutError("slow")])

    def fail_twice(url: str) -> bytes:
        if (error := next(failures, None)) is not None:
            raise error
        return read(url)

    monkeypatch.setattr(storage, "read_bytes", fail_twice)
    (tmp_path / "x.png").write_bytes(b"content")
    assert read_file(f"file://{tmp_path}/x.png") == b"content"
    assert len(pauses) == 2


# Images tables


def write_table(path: Path, groups: list[int]) -> list[bytes]:
    """A Parquet file with row groups of these sizes; returns the contents of its rows."""
    contents = [os.urandom(5) for _ in range(sum(groups))]
    with pq.ParquetWriter(path, pa.schema([("content", pa.binary()), ("other", pa.int64())])) as writer:
        start = 0
        for size in groups:
            part = contents[start : start + size]
            writer.write_table(pa.table({"content": pa.array(part, pa.binary()), "other": list(range(size))}))
            start += size
    return contents


@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=3), st.randoms())
@settings(max_examples=40)
def test_rows_of_a_table_are_found_in_any_order_and_in_any_thread(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[int]], random: Any
) -> None:
    folder = tmp_path_factory.mktemp("table")
    places = []
    for number, groups in enumerate(files):
        contents = write_table(folder / f"{number}.parquet", groups)
        places += [(f"{folder}/{number}.parquet", position, content) for position, content in enumerate(contents)]
    random.shuffle(places)
    places = places[: random.randint(1, len(places))]
    fetches = TableReader().open(
        [planned(f"{file}#{row}", container=file, position=row) for file, row, _ in places],
    )
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda fetch: fetch(), fetches))
    assert found == [content for _, _, content in places]


def test_a_row_group_is_read_once_for_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = write_table(tmp_path / "x.parquet", [4, 3, 5])
    reads = []
    read_group = pq.ParquetFile.read_row_group

    def counted(file: pq.ParquetFile, group: int, **options: Any) -> Any:
        reads.append(group)
        return read_group(file, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    images = [planned(str(row), container=f"{tmp_path}/x.parquet", position=row) for row in (1, 2, 3, 7, 9, 11)]
    assert [fetch() for fetch in TableReader().open(images)] == [contents[row] for row in (1, 2, 3, 7, 9, 11)]
    assert reads == [0, 2]


# IDX files and scenes


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_images_come_as_png_with_their_own_pixels(tmp_path: Path, zipped: bool) -> None:
    pixels = {name: np.random.default_rng(3).integers(0, 256, (4, 5, 6), dtype=np.uint8) for name in ("one", "two")}
    pixels["two"][:] ^= 255
    for name, array in pixels.items():
        content = encode_idx(array)
        (tmp_path / name).write_bytes(gzip.compress(content) if zipped else content)
    images = [
        planned(f"{name}#{index}", container=f"{tmp_path}/{name}", position=index)
        for index in (3, 0, 2)
        for name in pixels
    ]
    for image, fetch in zip(images, IdxReader().open(images), strict=True):
        name, index = image.path.split("#")
        opened = Image.open(io.BytesIO(fetch()))
        assert opened.format == "PNG"
        np.testing.assert_array_equal(np.asarray(opened), pixels[name][int(index)])


def test_a_scene_is_the_same_whoever_draws_it(tmp_path: Path) -> None:
    reader = SceneReader(seed=4, height=16, width=20)
    images = [planned(f"x/{index}", label="forest", position=index) for index in (5, 2, 5)]
    one, other, again = (fetch() for fetch in reader.open(images))
    assert one == again != other
    assert Image.open(io.BytesIO(one)).size == (20, 16)
    (alone,) = SceneReader(seed=5, height=16, width=20).open(images[:1])
    assert alone() != one
