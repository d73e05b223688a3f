"""Claims: one job at a time writes to an output, and a dead one blocks nobody."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from featurize import storage
from featurize.errors import JobError
from featurize.storage import claims
from featurize.storage.claims import CLAIM_NAME, Claim, claim_output


def holder(**changes: Any) -> str:
    """The text of a claim of another job on this machine."""
    document = {"token": "t", "host": socket.gethostname(), "pid": os.getpid(), "user": "ada", "since": "2026-01-01"}
    return json.dumps({**document, "beat_at": time.time(), **changes})


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_second_job_is_refused_by_the_name_of_the_holder(tmp_path: Path) -> None:
    with claim_output(str(tmp_path)), pytest.raises(JobError) as raised, claim_output(str(tmp_path)):
        pass
    message = str(raised.value)
    assert str(tmp_path) in message
    assert str(os.getpid()) in message
    assert socket.gethostname() in message
    assert CLAIM_NAME not in message


def test_a_refused_job_leaves_the_claim_with_its_holder(tmp_path: Path) -> None:
    with claim_output(str(tmp_path)) as claim:
        with pytest.raises(JobError), claim_output(str(tmp_path)):
            pass
        claim.verify()


def test_another_process_is_refused_too(tmp_path: Path) -> None:
    code = f"from featurize.storage.claims import Claim; Claim({str(tmp_path)!r}).take()"
    with claim_output(str(tmp_path)):
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert f"process {os.getpid()}" in ended.stderr


def test_after_the_block_the_next_job_may_come(tmp_path: Path) -> None:
    for _ in range(2):
        with claim_output(str(tmp_path)):
            assert (tmp_path / CLAIM_NAME).exists()
        assert list(tmp_path.iterdir()) == []


def test_a_job_that_fails_gives_its_claim_back(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), claim_output(str(tmp_path)):
        _ = 1 / 0
    assert not (tmp_path / CLAIM_NAME).exists()


def test_the_claim_of_a_process_that_has_ended_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / CLAIM_NAME).write_text(holder(pid=ended_process()))
    with claim_output(str(tmp_path)) as claim:
        claim.verify()


def test_a_holder_on_another_host_is_alive_while_its_heart_beats(tmp_path: Path) -> None:
    (tmp_path / CLAIM_NAME).write_text(holder(host="elsewhere", pid=ended_process()))
    with pytest.raises(JobError, match="elsewhere"), claim_output(str(tmp_path)):
        pass


def test_a_holder_on_another_host_whose_heart_stopped_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / CLAIM_NAME).write_text(holder(host="elsewhere", beat_at=time.time() - claims.EXPIRY_S - 1))
    with claim_output(str(tmp_path)) as claim:
        claim.verify()


def test_a_heart_beats_often_before_it_counts_as_dead() -> None:
    assert claims.EXPIRY_S >= 5 * claims.HEARTBEAT_S


def test_a_lost_claim_is_noticed_and_not_taken_from_its_new_holder(tmp_path: Path) -> None:
    with claim_output(str(tmp_path)) as claim:
        (tmp_path / CLAIM_NAME).write_text(holder())
        with pytest.raises(JobError, match="lost"):
            claim.verify()
    assert json.loads((tmp_path / CLAIM_NAME).read_text())["token"] == "t"


def test_a_removed_claim_is_noticed(tmp_path: Path) -> None:
    with claim_output(str(tmp_path)) as claim:
        (tmp_path / CLAIM_NAME).unlink()
        with pytest.raises(JobError, match="lost"):
            claim.verify()


def test_the_heart_beats_and_keeps_the_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT_S", 0.02)
    with claim_output(str(tmp_path)) as claim:
        first = json.loads((tmp_path / CLAIM_NAME).read_text())["beat_at"]
        deadline = time.monotonic() + 5
        while json.loads((tmp_path / CLAIM_NAME).read_text())["beat_at"] == first and time.monotonic() < deadline:
            time.sleep(0.02)
        assert json.loads((tmp_path / CLAIM_NAME).read_text())["beat_at"] > first
        claim.verify()
    assert list(tmp_path.iterdir()) == []


def test_a_beating_heart_never_takes_back_a_lost_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT_S", 0.02)
    with claim_output(str(tmp_path)):
        (tmp_path / "new").write_text(holder())
        (tmp_path / "new").replace(tmp_path / CLAIM_NAME)
        time.sleep(0.2)
        assert json.loads((tmp_path / CLAIM_NAME).read_text())["token"] == "t"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"token": "t"}', '{"host": "h", "pid": "x"}'])
def test_a_damaged_claim_that_is_old_ends_in_an_error_of_firns_or_is_taken_over(tmp_path: Path, content: str) -> None:
    path = tmp_path / CLAIM_NAME
    path.write_text(content)
    os.utime(path, (0, 0))
    try:
        with claim_output(str(tmp_path), patience_s=0.2) as claim:
            claim.verify()
    except JobError as error:
        assert str(tmp_path) in str(error)


def test_of_many_jobs_that_start_at_once_one_holds_the_claim(tmp_path: Path) -> None:
    jobs = 8
    barrier = threading.Barrier(jobs)

    def take(url: str) -> Claim | None:
        claim = Claim(url)
        barrier.wait()
        try:
            claim.take()
        except JobError:
            return None
        return claim

    with ThreadPoolExecutor(jobs) as pool:
        for round_ in range(30):
            url = str(tmp_path / f"{round_}")
            held = [claim for claim in pool.map(take, [url] * jobs) if claim is not None]
            assert len(held) == 1
            held[0].verify()
            held[0].release()


def test_a_holder_whose_heart_has_stopped_is_dead_though_its_process_number_lives_on(tmp_path: Path) -> None:
    """A container that starts again has the same host name, and often the same process number."""
    (tmp_path / CLAIM_NAME).write_text(holder(pid=os.getpid(), beat_at=time.time() - 1000))
    with claim_output(str(tmp_path)) as claim:
        claim.verify()


def test_of_two_that_find_a_dead_holder_one_holds_the_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first takes the claim over while the second still thinks about the dead holder."""
    dead = {"token": "x", "host": "elsewhere", "pid": 1, "user": "u", "since": "s", "beat_at": 0.0}
    storage.write_json(f"{tmp_path}/{CLAIM_NAME}", dead)
    first, second = (Claim(str(tmp_path), settling_s=0.0) for _ in range(2))
    read = storage.read_json

    def read_while_the_other_takes_it(url: str) -> Any:
        holder = read(url)
        monkeypatch.setattr(storage, "read_json", read)
        first.take()
        return holder

    monkeypatch.setattr(storage, "read_json", read_while_the_other_takes_it)
    try:
        with pytest.raises(JobError, match="is being written by process"):
            second.take()
        first.verify()
    finally:
        second.release()
        first.release()
