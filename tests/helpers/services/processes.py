"""Daemons for the tests: started so that they die with the tests, waited for with a deadline, killed with all they started."""

import os
import shutil
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TypeVar

import psutil

from featurize.java import find_java
from helpers.project import SHORT_LIVED_JAVA

Result = TypeVar("Result")
LOOPBACK = "127.0.0.1"
_POLL_S = 0.1


class Daemon:
    """A child process that writes to a log file. When the tests die, the kernel kills it (Linux).

    Args:
        output: where its standard output goes; default: the log, as its standard error.
    """

    def __init__(
        self,
        name: str,
        command: Iterable[str],
        log: Path,
        environment: Mapping[str, str],
        *,
        output: Path | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self._output = output or log
        guard = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
        with log.open("ab") as errors, self._output.open("ab") as target:
            self._process = subprocess.Popen(
                [*guard, *command],
                stdin=subprocess.DEVNULL,
                stdout=target,
                stderr=errors,
                env=dict(environment),
                cwd=cwd,
                start_new_session=True,  # an interrupt from the keyboard is for the tests
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_running(self) -> bool:
        return self._process.poll() is None

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        return self._process.wait()

    def children(self) -> list[psutil.Process]:
        """All that it started and that still runs, at any depth."""
        if not self.is_running():
            return []
        with suppress(psutil.NoSuchProcess):
            return list(psutil.Process(self.pid).children(recursive=True))
        return []

    def kill(self) -> None:
        """SIGKILL, to it and to all that it started."""
        children = self.children()
        self._process.kill()
        kill_processes(children)
        self._process.wait()

    def last_words(self) -> str:
        """The ends of its output and of its log."""
        ends = [
            f"{path}:\n{path.read_text(errors='replace')[-3000:]}" for path in dict.fromkeys((self._output, self.log))
        ]
        return "\n".join((f"{self.name}, the end of what it wrote", *ends))


class DaemonGroup(ABC):
    """A head and the members that report to it; a member that is killed can be started again.

    The constructor starts the members: a subclass calls it last.

    Args:
        head: runs already.
        members: how many.
    """

    def __init__(self, head: Daemon, members: int) -> None:
        self._head = head
        self._members: list[Daemon | None] = [None] * members
        try:
            self.heal()
        except BaseException:
            self.stop()
            raise

    def heal(self) -> None:
        """Starts the members that do not run, and waits until the head has them all."""
        for index, member in enumerate(self._members):
            if member is None or not member.is_running():
                self._members[index] = self._start_member(index)
        self._wait_for_members(len(self._members))

    def stop(self) -> None:
        """Kills all of it."""
        for daemon in (*self._members, self._head):
            if daemon is not None:
                daemon.kill()

    @abstractmethod
    def _start_member(self, index: int) -> Daemon:
        """The member of that number, new or with what it had before it was killed."""

    @abstractmethod
    def _count_members(self) -> int:
        """How many members the head knows to be alive. It may raise OSError as long as the head does not answer."""

    def _kill_member(self, index: int) -> None:
        member = self._members[index]
        assert member is not None
        member.kill()

    def _wait_for_members(self, count: int) -> None:
        running = [daemon for daemon in (self._head, *self._members) if daemon is not None and daemon.is_running()]
        what = f"{type(self).__name__} with {count} of {len(self._members)} members"
        wait_until(lambda: self._count_members() == count, what, needs=running)


def kill_processes(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL to every one that still runs."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def wait_until(
    condition: Callable[[], Result], what: str, *, timeout_s: float = 60, needs: Iterable[Daemon] = ()
) -> Result:
    """What `condition` returns, as soon as that is true. It may raise OSError as long as nothing answers.

    Raises:
        AssertionError: it stays false for `timeout_s` seconds, or one of the daemons that it `needs` has ended.
    """
    needs = list(needs)
    deadline = time.monotonic() + timeout_s
    while True:
        with suppress(OSError):
            if result := condition():
                return result
        ended = [daemon for daemon in needs if not daemon.is_running()]
        if ended or time.monotonic() > deadline:
            reason = f"{ended[0].name} has ended" if ended else f"waited for {timeout_s:.0f} s"
            words = "\n".join(daemon.last_words() for daemon in (ended or needs))
            raise AssertionError(f"{what}: {reason}\n{words}")
        time.sleep(_POLL_S)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on at this moment."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((LOOPBACK, 0))
        return [one.getsockname()[1] for one in sockets]


def java_environment() -> dict[str, str]:
    """The environment for a Java that Spark runs on, without what a Spark session of the tests has left in it."""
    find_java()
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SPARK_", "PYSPARK_", "HADOOP_", "PYTHONPATH"))
    }
    return {**kept, "SPARK_LOCAL_IP": LOOPBACK, "SPARK_SUBMIT_OPTS": SHORT_LIVED_JAVA}


def java_command() -> str:
    """The Java that `java_environment` is about."""
    home = os.environ.get("JAVA_HOME")
    return str(Path(home, "bin", "java")) if home else "java"
