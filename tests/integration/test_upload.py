"""Uploads over WebHDFS, to a real NameNode and real DataNodes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.services.hdfs_cluster import MiniHdfs

from featurize import storage
from featurize.errors import JobError, UsageError
from featurize.sources.webhdfs_upload import upload_folder

pytestmark = pytest.mark.hdfs
NAMES = ["a/1.jpg", "a/two words.jpg", "a/100%.png", "a/plus+.png", "b/ünïcode 雪.png", "b/hash#1.png", "b/q?x=1.png"]


def write_files(folder: Path, names: list[str], *, size: int = 1000) -> dict[str, bytes]:
    contents = {}
    for number, name in enumerate(names):
        contents[name] = np.random.default_rng(number).bytes(size + number)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(contents[name])
    return contents


def remote_files(hdfs: MiniHdfs, path: str) -> dict[str, bytes]:
    url = hdfs.url + path
    return {file[len(url) + 1 :]: storage.read_bytes(file) for file in storage.list_files(url)}


def test_all_but_hidden_files_arrive_under_their_names_and_are_not_sent_twice(hdfs: MiniHdfs, tmp_path: Path) -> None:
    contents = write_files(tmp_path, NAMES) | write_files(tmp_path, ["a/large.bin"], size=3 << 20)
    contents["a/empty.jpg"] = b""
    (tmp_path / "a" / "empty.jpg").write_bytes(b"")
    write_files(tmp_path, [".hidden", "a/.DS_Store", ".git/config", "b/half.jpg._COPYING_"])
    url, sent, totals = f"{hdfs.webhdfs_url}/up/all", list[int](), list[int]()
    first = upload_folder(tmp_path, url, on_bytes=sent.append, on_total=totals.append)
    assert remote_files(hdfs, "/up/all") == contents
    assert (first.uploaded, first.skipped, first.bytes) == (9, 0, sum(map(len, contents.values())))
    assert [sum(sent)] == totals == [first.bytes]
    second = upload_folder(tmp_path, url.replace("http://", "webhdfs://") + "/")
    assert (second.uploaded, second.skipped, second.bytes) == (0, 9, 0)


def test_files_of_another_size_and_those_cut_short_are_sent_again(hdfs: MiniHdfs, tmp_path: Path) -> None:
    contents = write_files(tmp_path, NAMES)
    url = f"{hdfs.webhdfs_url}/up/again"
    storage.write_bytes(f"{hdfs.url}/up/again/a/1.jpg", b"shorter")
    storage.write_bytes(f"{hdfs.url}/up/again/a/100%.png._COPYING_", b"half")
    result = upload_folder(tmp_path, url, threads=1)
    assert (result.uploaded, result.skipped) == (7, 0)
    assert remote_files(hdfs, "/up/again") == contents


def test_a_killed_upload_resumes(hdfs: MiniHdfs, tmp_path: Path) -> None:
    contents = write_files(tmp_path, [f"{label}/{n}.jpg" for label in "ab" for n in range(50)], size=20_000)
    url = f"{hdfs.webhdfs_url}/up/killed"
    command = [sys.executable, "-m", "featurize", "upload", str(tmp_path), url, "--json", "--threads", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(storage.list_files(f"{hdfs.url}/up/killed")) < 10 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    whole = {name for name in remote_files(hdfs, "/up/killed") if not name.endswith("._COPYING_")}
    assert 0 < len(whole) < 100
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["uploaded"] + result["skipped"] == 100
    assert result["skipped"] >= len(whole)
    assert remote_files(hdfs, "/up/killed") == contents


def test_a_file_whose_name_is_not_utf_8_is_named_and_all_others_arrive(hdfs: MiniHdfs, tmp_path: Path) -> None:
    contents = write_files(tmp_path, NAMES)
    (tmp_path / "a" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"content")
    with pytest.raises(
        JobError, match=r"1 of 8 files could not be uploaded.*\n.*a/caf\\xe9\.jpg: the name is not UTF-8"
    ):
        upload_folder(tmp_path, f"{hdfs.webhdfs_url}/up/bytes")
    assert remote_files(hdfs, "/up/bytes") == contents


def test_a_file_that_vanishes_is_named_and_all_others_arrive(hdfs: MiniHdfs, tmp_path: Path) -> None:
    contents = write_files(tmp_path, NAMES)

    def vanish(total: int) -> None:
        (tmp_path / "a" / "1.jpg").unlink()

    with pytest.raises(JobError, match=r"1 of 7 files could not be uploaded[^$]*a/1\.jpg") as raised:
        upload_folder(tmp_path, f"{hdfs.webhdfs_url}/up/vanished", pauses_s=(0.0,), on_total=vanish)
    assert "No such file" in str(raised.value)
    del contents["a/1.jpg"]
    assert remote_files(hdfs, "/up/vanished") == contents


@pytest.mark.parametrize("url", ["hdfs://node:8020/x", "webhdfs:///x", "http://node:9870", "http://node:9870/", "/x"])
def test_a_target_that_is_no_webhdfs_url_with_a_path_is_refused(tmp_path: Path, url: str) -> None:
    write_files(tmp_path, NAMES)
    with pytest.raises(UsageError, match="webhdfs://namenode:9870/data/photos") as raised:
        upload_folder(tmp_path, url)
    assert repr(url) in str(raised.value)


def test_folders_that_are_missing_or_empty_are_refused(hdfs: MiniHdfs, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        upload_folder(tmp_path / "none", f"{hdfs.webhdfs_url}/up/none")
    with pytest.raises(UsageError, match="holds no files"):
        upload_folder(tmp_path, f"{hdfs.webhdfs_url}/up/none")


def test_a_server_that_does_not_answer_is_named(tmp_path: Path) -> None:
    write_files(tmp_path, NAMES)
    with pytest.raises(JobError, match=r"http://127\.0\.0\.1:9: HDFS does not answer"):
        upload_folder(tmp_path, "http://127.0.0.1:9/up")
