"""Claims: one job at a time writes to an output, and a dead one blocks nobody."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from featurize import storage
from featurize.errors import JobError
from featurize.storage import claims
from featurize.storage.claims import CLAIM_NAME, Claim, claim_output
from featurize.storage.processes import identify_process, is_running

ELSEWHERE = {"host": "elsewhere", "boot_id": "another machine's"}
CONTAINER = {"pid_namespace": "pid:[1]"}  # on this machine, under its host name
OF_0_1 = {"boot_id": None, "pid_namespace": None, "start_time": None}


def holder(**changes: Any) -> str:
    """The text of a claim of another job on this machine."""
    document = {
        "token": "t",
        "host": socket.gethostname(),
        "user": "ada",
        "since": "2026-01-01",
        "beat_at": time.time(),
    }
    return json.dumps({**document, **identify_process(), **changes})


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second counts as two minutes."""
    monkeypatch.setattr(claims, "EXPIRY_S", 0.5)
    monkeypatch.setattr(claims, "LOOK_S", 0.05)


@contextmanager
def beating(folder: Path, clock: str = "time.time()", **changes: Any) -> Iterator[None]:
    """A claim that another process holds: its heart beats, and its clock is `clock`."""
    code = f"""
import time, os, sys
now = time.time
time.time = lambda: {clock.replace("time.time()", "now()")}
from featurize.storage import claims
claims.HEARTBEAT_S = 0.05
claims.identify_process = lambda: {{**{identify_process()!r}, **{changes!r}}}
with claims.claim_output(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield
        process.communicate()


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


def test_a_process_number_that_is_used_again_is_not_taken_for_the_holder(tmp_path: Path) -> None:
    started = identify_process()["start_time"]
    (tmp_path / CLAIM_NAME).write_text(holder(start_time=started - 1))
    with claim_output(str(tmp_path)) as claim:
        claim.verify()


def test_a_process_that_runs_holds_its_claim_whatever_the_clocks_say(tmp_path: Path) -> None:
    for beat_at in (0.0, time.time() - 1000, 9e9):
        (tmp_path / CLAIM_NAME).write_text(holder(beat_at=beat_at))
        with pytest.raises(JobError, match="is being written by"), claim_output(str(tmp_path)):
            pass


@pytest.mark.parametrize("hidden", [ELSEWHERE, CONTAINER, OF_0_1])
@pytest.mark.parametrize("clock", ["time.time() - 130", "time.time() + 130", "0.0"])
def test_while_the_heart_beats_a_holder_who_is_not_seen_is_alive_whatever_its_clock_says(
    tmp_path: Path, impatient: None, hidden: dict[str, Any], clock: str
) -> None:
    """The number of its process is that of one that has ended here, or means another process here."""
    with beating(tmp_path, clock, **hidden, pid=ended_process()):
        with pytest.raises(JobError, match="is being written by"), claim_output(str(tmp_path)):
            pass
        assert json.loads((tmp_path / CLAIM_NAME).read_text())["beats"] > 1


@pytest.mark.parametrize("hidden", [ELSEWHERE, CONTAINER, OF_0_1])
@pytest.mark.parametrize("clock_is_off_by", [-130, 130])
def test_a_holder_who_is_not_seen_is_dead_when_its_heartbeat_does_not_change(
    tmp_path: Path, impatient: None, caplog: pytest.LogCaptureFixture, hidden: dict[str, Any], clock_is_off_by: float
) -> None:
    """Its process number lives on here, and its last heartbeat is from the future or long ago."""
    (tmp_path / CLAIM_NAME).write_text(holder(**hidden, beat_at=time.time() + clock_is_off_by))
    began = time.monotonic()
    with caplog.at_level("WARNING", "featurize.storage.claims"), claim_output(str(tmp_path)) as claim:
        assert time.monotonic() - began >= claims.EXPIRY_S
        claim.verify()
    (said,) = [record.getMessage() for record in caplog.records]
    for part in (
        f"file://{tmp_path} is claimed by process {os.getpid()} of ada",
        "Waiting for a sign of life",
        "after",
    ):
        assert part in said


def test_a_pause_of_the_one_who_looks_is_not_taken_for_silence(
    tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both may have been paused, as two containers are when their machine sleeps."""
    sleep, monotonic, pauses = time.sleep, time.monotonic, [0.0]

    def be_paused(seconds: float) -> None:
        """The clock goes on; the first time, the holder has had no turn yet."""
        if len(pauses) > 1:
            sleep(seconds)
        pauses.append(1000.0)

    with beating(tmp_path, **ELSEWHERE):
        monkeypatch.setattr(time, "monotonic", lambda: monotonic() + sum(pauses))
        monkeypatch.setattr(time, "sleep", be_paused)
        with pytest.raises(JobError, match="is being written by"), claim_output(str(tmp_path)):
            pass


def test_a_claim_that_is_released_while_another_waits_goes_to_it(tmp_path: Path, impatient: None) -> None:
    (tmp_path / CLAIM_NAME).write_text(holder(**ELSEWHERE))
    timer = threading.Timer(0.1, (tmp_path / CLAIM_NAME).unlink)
    timer.start()
    with claim_output(str(tmp_path)) as claim:
        claim.verify()
    timer.join()


def test_control_characters_of_a_claim_are_not_shown(
    tmp_path: Path, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / CLAIM_NAME).write_text(holder(**{**ELSEWHERE, "host": "\x1b[2Jelsewhere\nerror: no"}))
    with caplog.at_level("WARNING", "featurize.storage.claims"), claim_output(str(tmp_path)):
        pass
    assert "\\x1b[2Jelsewhere\\nerror: no" in caplog.text
    assert "\x1b" not in caplog.text


def test_a_real_process_of_another_pid_namespace_is_neither_alive_nor_dead_here(tmp_path: Path) -> None:
    code = "from featurize.storage.processes import identify_process as me; import json; print(json.dumps(me()))"
    command = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this system makes no PID namespaces for users")
    other = json.loads(told)
    assert other["pid"] == 1
    assert other["boot_id"] == identify_process()["boot_id"]
    assert other["pid_namespace"] not in (None, identify_process()["pid_namespace"])
    assert is_running(other) is None


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


def test_of_two_that_find_a_dead_holder_one_holds_the_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first takes the claim over while the second still thinks about the dead holder."""
    (tmp_path / CLAIM_NAME).write_text(holder(pid=ended_process()))
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
