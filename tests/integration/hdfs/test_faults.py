"""What happens to a real HDFS while a table is made there: a job ends with its reason or waits, and a rerun loses nothing."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.local_builds import look, run_on, without_spark
from helpers.services.fetching import fetched
from helpers.services.hdfs_cluster import MiniHdfs
from helpers.services.hdfs_pair import HdfsPair
from helpers.tables.listings import put

from featurize import storage
from featurize.errors import FirnError
from featurize.storage.hdfs import ExactHdfsFileSystem

pytestmark = [pytest.mark.hdfs, pytest.mark.slow]
FIRST, LATER = ("a/1.png", "a/2.png", "b/1.png"), ("a/3.png", "b/2.png")
CALLS = (4,)
"""Which files of those that a job writes are about to be written then; a refusal takes the client half a minute."""


@pytest.fixture(autouse=True)
def _no_spark(monkeypatch: pytest.MonkeyPatch) -> None:
    without_spark(monkeypatch)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    put(tmp_path / "images", *FIRST)
    return tmp_path / "images"


def before_file(number: int, happens: Callable[[], object]) -> pytest.MonkeyPatch:
    """Something happens before the file of this number is written to HDFS."""
    patch, real, seen = pytest.MonkeyPatch(), ExactHdfsFileSystem._open, [0]

    def opening(self: ExactHdfsFileSystem, path: str, mode: str = "rb", **settings: Any) -> Any:
        if "w" in mode:
            seen[0] += 1
            if seen[0] == number:
                happens()
        return real(self, path, mode, **settings)

    patch.setattr(ExactHdfsFileSystem, "_open", opening)
    return patch


def undisturbed(images: Path, folder: Path) -> Any:
    run_on(images, folder)
    return look(folder)


def check_refused(
    images: Path, url: str, happens: Callable[[], object], over: Callable[[], object], *words: str
) -> None:
    """A job is refused with these words, readers see what was there, and a rerun gives what an undisturbed one gives."""
    run_on(images, url)
    before = look(url)
    put(images, *LATER)
    wanted = undisturbed(images, images.parent / "undisturbed")
    refused = 0
    for call in CALLS:
        patch = before_file(call, happens)
        try:
            run_on(images, url)
        except (FirnError, OSError) as error:
            refused += 1
            assert any(word in str(error) for word in words), error
        finally:
            patch.undo()
        assert look(url) in (before, wanted)
        over()
        storage.remove(f"{url}/_claim.json")
    run_on(images, url)
    assert look(url) == wanted
    assert refused > 0


def test_safe_mode(hdfs: MiniHdfs, images: Path) -> None:
    check_refused(
        images,
        f"{hdfs.url}/safe",
        lambda: hdfs.administer("-safemode", "enter"),
        lambda: hdfs.administer("-safemode", "leave"),
        "safe mode",
    )


def test_quota(hdfs: MiniHdfs, images: Path) -> None:
    check_refused(
        images,
        f"{hdfs.url}/quota",
        lambda: hdfs.administer("-setSpaceQuota", "1", "/quota"),
        lambda: hdfs.administer("-clrSpaceQuota", "/quota"),
        "quota",
    )


def test_a_namenode_that_does_not_answer_for_a_while(hdfs: MiniHdfs, images: Path) -> None:
    """A job waits, and ends as if nothing had been."""
    url = f"{hdfs.url}/silent"
    wanted = undisturbed(images, images.parent / "undisturbed")

    def silence() -> None:
        held = hdfs.silent()
        held.__enter__()
        threading.Timer(5.0, lambda: held.__exit__(None, None, None)).start()

    patch = before_file(3, silence)
    try:
        started = time.monotonic()
        run_on(images, url)
        assert time.monotonic() - started > 4
    finally:
        patch.undo()
    assert look(url) == wanted


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HdfsPair]:
    (jar,) = fetched("minicluster.py")
    pair = HdfsPair(jar, tmp_path / "pair")
    monkeypatch.setenv("HADOOP_CONF_DIR", str(pair.conf_dir))
    yield pair
    pair.stop()


def test_the_standby_takes_over(pair: HdfsPair, images: Path) -> None:
    """The active NameNode dies in the middle of a job; the job goes on with the other one, or a rerun does."""
    url = f"{pair.url}/sets/flowers"
    run_on(images, url)
    before = look(url)
    put(images, *LATER)
    wanted = undisturbed(images, images.parent / "undisturbed")

    def fail_over() -> None:
        pair.kill("one")
        pair.make_active("two")

    patch = before_file(4, fail_over)
    try:
        run_on(images, url)
    except (FirnError, OSError):
        assert look(url) == before
        storage.remove(f"{url}/_claim.json")
        run_on(images, url)
    finally:
        patch.undo()
    assert look(url) == wanted
