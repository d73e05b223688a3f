"""How ranks of horovodrun find the hub: everybody can read the launcher's server, and write to it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from featurize.errors import JobError
from finetune.ranks.hub_address import KEY_FILE, LOOPBACK, KeyOfRanks, find_hub, own_host
from finetune.ranks.hub_messages import Address

LONG_S = 60.0
HUB = Address("host-a", 4242)


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Horovod's own server; the URL at which the hub's address is."""
    from horovod.runner.http.http_server import RendezvousServer

    server = RendezvousServer()
    port = server.start()
    monkeypatch.setenv("HOROVOD_GLOO_RENDEZVOUS_ADDR", LOOPBACK)
    monkeypatch.setenv("HOROVOD_GLOO_RENDEZVOUS_PORT", str(port))
    monkeypatch.setenv("http_proxy", f"http://{LOOPBACK}:1")
    monkeypatch.setenv("no_proxy", LOOPBACK)
    server.init([])
    yield f"http://{LOOPBACK}:{port}/firn/hub"
    server.stop()


def published(launcher: str) -> bytes:
    with urlopen(launcher, timeout=LONG_S) as answer:
        content: bytes = answer.read()
        return content


def put(launcher: str, content: bytes) -> None:
    urlopen(Request(launcher, data=content, method="PUT"), timeout=LONG_S).close()


def write_key(path: Path, content: bytes = b"s" * 40, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_ranks_of_one_host_meet_and_the_key_is_not_where_they_meet(launcher: str) -> None:
    assert own_host() == LOOPBACK
    with pytest.raises(JobError, match=r"rank 0 has not started: nothing was heard of it for 0\.5 s"):
        find_hub(1, timeout_s=0.5)
    shared = KeyOfRanks(on_one_host=True)
    shared.publish(HUB)
    assert find_hub(1, timeout_s=LONG_S) == (HUB, shared.key)
    assert shared.key not in published(launcher)
    assert shared.key.hex().encode() not in published(launcher)


def test_another_process_gets_the_same_key(launcher: str) -> None:
    shared = KeyOfRanks(on_one_host=True)
    shared.publish(HUB)
    code = "from finetune.ranks.hub_address import find_hub; print(find_hub(1, timeout_s=60.0)[1].hex())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LONG_S, check=True)
    assert found.stdout.strip() == shared.key.hex()


@pytest.mark.parametrize("on_one_host", [True, False])
def test_a_file_of_the_user_gives_each_job_a_key_of_its_own(
    launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], on_one_host: bool
) -> None:
    monkeypatch.setenv(KEY_FILE, str(write_key(tmp_path / "key")))
    keys = []
    for _ in range(2):
        shared = KeyOfRanks(on_one_host=on_one_host)
        shared.publish(HUB)
        assert find_hub(1, timeout_s=LONG_S) == (HUB, shared.key)
        assert shared.key.hex().encode() not in published(launcher)
        keys.append(shared.key)
    assert keys[0] != keys[1]
    assert not capfd.readouterr().err


def test_several_hosts_without_a_secret_are_warned_of(launcher: str, capfd: pytest.CaptureFixture[str]) -> None:
    shared = KeyOfRanks(on_one_host=False)
    assert "others on the network can read" in " ".join(capfd.readouterr().err.split())
    shared.publish(HUB)
    assert find_hub(1, timeout_s=LONG_S) == (HUB, shared.key)


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        (b"s" * 40, 0o644, "others may read it"),
        (b"s" * 40, 0o620, "others may read it"),
        (b"short", 0o600, "32 to 4096 random bytes. Got 5"),
        (b"s" * 5000, 0o600, "32 to 4096 random bytes. Got 4097"),
        (None, 0o600, "No such file"),
    ],
)
def test_a_file_that_keeps_no_secret_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, mode: int, reason: str
) -> None:
    path = tmp_path / "key"
    if content is not None:
        write_key(path, content, mode)
    monkeypatch.setenv(KEY_FILE, str(path))
    with pytest.raises(JobError, match=f"^{KEY_FILE}: .* cannot be used: .*{reason}"):
        KeyOfRanks(on_one_host=False)


MEETING: dict[str, object] = {"host": "h", "port": 1, "number": "0", "pid": 0, "descriptor": 0, "clear": ""}
WRONG: list[object] = [None, [], 5.5, {"a": 1}]


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"\xff",
        b"[" * 4000,
        b"{}",
        *(json.dumps(MEETING | {name: wrong}).encode() for name in MEETING for wrong in WRONG),
        json.dumps(MEETING | {"pid": "../../etc", "descriptor": 1}).encode(),
    ],
)
def test_what_a_stranger_writes_there_is_refused(launcher: str, content: bytes) -> None:
    put(launcher, content)
    with pytest.raises(JobError, match="was not written by rank 0"):
        find_hub(1, timeout_s=LONG_S)


def test_no_other_open_file_of_a_process_is_taken_for_the_key(launcher: str, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with (tmp_path / "log").open("wb") as log:
        log.write(bytes(100))
        log.flush()
        (tmp_path / "log").chmod(0o644)
        for descriptor in (reading, writing, log.fileno(), 10_000):
            put(launcher, json.dumps(MEETING | {"pid": os.getpid(), "descriptor": descriptor}).encode())
            with pytest.raises(JobError, match="the key that rank 0 holds for the other ranks cannot be read"):
                find_hub(1, timeout_s=LONG_S)
    os.close(reading)
    os.close(writing)
