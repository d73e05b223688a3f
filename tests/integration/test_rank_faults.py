"""Ranks that die, stall, fail or never come: the job ends in time, names the rank in one message and leaves no process."""

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from helpers.project import ROOT
from helpers.services.processes import Daemon, java_environment, kill_processes, wait_until
from helpers.services.spark_cluster import SparkCluster

pytestmark = [pytest.mark.horovod, pytest.mark.slow]
PROGRAM = ROOT / "tests" / "helpers" / "services" / "rank_program.py"
TIMEOUT_S = 8.0
LIMIT_S = TIMEOUT_S + 20  # with the timeout of 40 s: a minute
START_S = 200
HOST = re.escape(socket.gethostname())


class Job:
    """Ranks of `rank_program` under a launcher, and every process that is theirs.

    Args:
        launcher: runs the ranks.
        folder: theirs.
    """

    def __init__(self, launcher: Daemon, folder: Path) -> None:
        self.launcher, self.folder = launcher, folder
        self._seen: dict[int, psutil.Process] = {}

    def pid(self, rank: int) -> int:
        return int((self.folder / f"pid-{rank}").read_text())

    def wait_for(self, name: str, ranks: range) -> None:
        """Waits until these ranks have written the file, and remembers what runs then."""
        wait_until(
            lambda: all((self.folder / f"{name}-{rank}").exists() for rank in ranks),
            f"{name} of {ranks}",
            timeout_s=START_S,
            needs=[self.launcher],
        )
        self._seen |= {process.pid: process for process in self.launcher.children()}
        assert {self.pid(rank) for rank in ranks} <= set(self._seen)

    def wait_for_end(self) -> str:
        """What the job wrote, once it has ended within the limit, by an error, with nothing of it left."""
        started = time.monotonic()
        wait_until(lambda: not self.launcher.is_running(), "the end of the job", timeout_s=LIMIT_S, needs=[])
        assert self.launcher.wait() == 1
        wait_until(lambda: not self.left(), f"the end of {self.left()}", timeout_s=LIMIT_S)
        assert time.monotonic() - started < LIMIT_S
        return self.launcher.log.read_text()

    def left(self) -> list[psutil.Process]:
        return [process for process in self._seen.values() if process.is_running() and process.status() != "zombie"]

    def listens_at(self) -> set[str]:
        """The addresses at which its processes accept connections, Python's and Java's."""
        processes = [psutil.Process(self.launcher.pid), *self._seen.values()]
        sockets = [one for process in processes if process.is_running() for one in process.net_connections("inet")]
        return {one.laddr.ip.removeprefix("::ffff:") for one in sockets if one.status == psutil.CONN_LISTEN}

    def stop(self) -> None:
        self.launcher.kill()
        kill_processes(self.left())


def start(folder: Path, *command: str) -> Job:
    variables = java_environment() | {"TF_CPP_MIN_LOG_LEVEL": "2"}
    return Job(Daemon("job", [sys.executable, *command], folder / "log", variables, cwd=folder), folder)


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[list[Job]]:
    started: list[Job] = []
    yield started
    for job in started:
        job.stop()


def horovodrun(jobs: list[Job], folder: Path, fault: str, faulty: int, size: int = 2) -> Job:
    launcher = str(Path(sys.executable).with_name("horovodrun"))
    program = (sys.executable, str(PROGRAM), str(folder), fault, str(faulty), str(TIMEOUT_S))
    jobs.append(start(folder, launcher, "-np", str(size), "--gloo", *program))
    return jobs[-1]


def on_spark(jobs: list[Job], folder: Path, fault: str, faulty: int, size: int = 2) -> Job:
    program = (str(PROGRAM), str(folder), fault, str(faulty), str(TIMEOUT_S), str(size))
    jobs.append(start(folder, *program))
    return jobs[-1]


def the_error(output: str) -> str:
    """The one message with which the job ends."""
    # On Spark it may come within a line that Horovod logs, behind the time that this begins with.
    found = re.findall(r"^(?:\[\d\]<stderr>:)?(?:\[[\d :.-]*)?error: (.*)$", output, flags=re.MULTILINE)
    assert len(found) == 1, output[-5000:]
    return str(found[0])


@pytest.mark.parametrize(
    ("faulty", "number", "ending", "shared"),
    [
        (0, signal.SIGKILL, "is gone: killed or crashed.", True),
        (0, signal.SIGKILL, "is gone: killed or crashed.", False),
        (1, signal.SIGSTOP, f"has not been heard of for {TIMEOUT_S:g} s: stalled.", True),
    ],
)
def test_horovodrun_a_rank_is_killed_or_stopped(
    jobs: list[Job],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    faulty: int,
    number: int,
    ending: str,
    shared: bool,
) -> None:
    """In memory that the ranks share, and in Horovod's own collectives, which are those of several hosts."""
    monkeypatch.setenv("FIRN_SHARED_MEMORY", str(int(shared)))
    job = horovodrun(jobs, tmp_path, "none", faulty, size=3)
    job.wait_for("ready", range(3))
    os.kill(job.pid(faulty), number)
    message = the_error(job.wait_for_end())
    assert message.startswith(f"rank {faulty} (process {job.pid(faulty)} on {socket.gethostname()})")
    assert message.endswith(ending)
    assert re.search(r", last in epoch 3, step \d+ ", message)


@pytest.mark.parametrize(
    ("fault", "faulty", "message"),
    [
        ("exits", 0, rf"rank 0 \(process \d+ on {HOST}\) ended with exit status 3\."),
        ("firn error", 1, r"the features of cats are not finite\."),
        ("disk full", 0, r"No space left on device"),
    ],
)
def test_horovodrun_a_rank_fails_by_itself(
    jobs: list[Job], tmp_path: Path, fault: str, faulty: int, message: str
) -> None:
    job = horovodrun(jobs, tmp_path, fault, faulty)
    job.wait_for("ready", range(2))
    assert re.fullmatch(message, the_error(job.wait_for_end()))


def test_horovodrun_a_rank_never_starts(jobs: list[Job], tmp_path: Path) -> None:
    job = horovodrun(jobs, tmp_path, "not started", 1)
    job.wait_for("pid", range(2))
    wait_until(lambda: "error: " in job.launcher.log.read_text(), "the message", timeout_s=START_S)
    assert the_error(job.wait_for_end()) == f"rank 1 has not started: nothing was heard of it for {TIMEOUT_S:g} s."


def test_horovodrun_a_rank_lives_and_does_not_come(jobs: list[Job], tmp_path: Path) -> None:
    """The limit for that is ten seconds here, not ten minutes."""
    job = horovodrun(jobs, tmp_path, "absent", 1)
    job.wait_for("ready", range(2))
    message = the_error(job.wait_for_end())
    wanted = r", last in epoch 3, step \d+ has not made progress for 10 s, and the other ranks wait: stalled\."
    assert re.fullmatch(rf"rank 1 \(process \d+ on {HOST}\){wanted}", message)


@pytest.mark.spark
@pytest.mark.parametrize(
    ("number", "ending"),
    [
        (signal.SIGKILL, "is gone: killed or crashed."),
        (signal.SIGSTOP, f"has not been heard of for {TIMEOUT_S:g} s: stalled."),
    ],
)
def test_spark_a_rank_is_killed_or_stopped(jobs: list[Job], tmp_path: Path, number: int, ending: str) -> None:
    job = on_spark(jobs, tmp_path, "none", 1)
    job.wait_for("ready", range(2))
    assert job.listens_at() == {"127.0.0.1"}
    os.kill(job.pid(1), number)
    message = the_error(job.wait_for_end())
    wanted = rf"rank 1 \(process {job.pid(1)} on {HOST}\), last in epoch 3, step \d+ {re.escape(ending)}"
    assert re.fullmatch(wanted, message)


@pytest.mark.spark
def test_spark_a_rank_fails_by_itself(jobs: list[Job], tmp_path: Path) -> None:
    job = on_spark(jobs, tmp_path, "raises", 1)
    job.wait_for("ready", range(2))
    message = rf"rank 1 \(process \d+ on {HOST}\) failed: ValueError: boom"
    assert re.fullmatch(message, the_error(job.wait_for_end()))


@pytest.mark.spark
def test_spark_a_rank_is_killed_before_it_is_heard_of(jobs: list[Job], tmp_path: Path) -> None:
    job = on_spark(jobs, tmp_path, "killed early", 1)
    job.wait_for("pid", range(1))
    wait_until(lambda: "error: " in job.launcher.log.read_text(), "the message", timeout_s=START_S)
    assert the_error(job.wait_for_end()) == f"rank 1 has not started: nothing was heard of it for {TIMEOUT_S:g} s."


@pytest.mark.spark
@pytest.mark.cluster
@pytest.mark.hdfs
def test_cluster_an_executor_is_killed(cluster: SparkCluster, tmp_path: Path) -> None:
    arguments = (str(tmp_path), "none", "1", str(TIMEOUT_S), "2")
    submission = cluster.submit(PROGRAM, *arguments, cwd=tmp_path)
    ready = [tmp_path / f"ready-{rank}" for rank in range(2)]
    wait_until(lambda: all(path.exists() for path in ready), "two ranks", timeout_s=START_S, needs=[submission.daemon])
    ranks = {int((tmp_path / f"pid-{rank}").read_text()): rank for rank in range(2)}
    executor = cluster.executors()[0]
    (lost,) = {process.pid for process in executor.children(recursive=True)} & set(ranks)
    cluster.kill_executor(0)
    assert submission.wait(timeout_s=LIMIT_S) == 1
    message = the_error(submission.output.read_text())  # spark-submit puts the driver's two outputs in one
    wanted = rf"rank {ranks[lost]} \(process {lost} on {HOST}\), last in epoch 3, step \d+ is gone: killed or crashed\."
    assert re.fullmatch(wanted, message)
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in ranks), "the end of the ranks", timeout_s=LIMIT_S)
