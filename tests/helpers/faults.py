"""Faults of a file system, at every call that a job makes of it, one after the other: what SQLite calls an out-of-disk loop.

Calls are counted where Python asks the system, below all code of Firn's, and only those on files in one folder.
"""

import builtins
import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from featurize.building.staging import STAGING
from featurize.errors import FirnError
from featurize.storage.claims import CLAIM_NAME
from featurize.tables import publication

_BY_PATH = ("open", "link", "replace", "rename", "unlink", "remove", "rmdir", "mkdir", "stat", "scandir")
FAULTS = ("full", "broken", "lost", "killed before", "killed after")
"""full: ENOSPC, where something is written, else EIO. broken: EIO. lost: it is done, and EIO. Or the process dies."""


MOST_TRIALS = 90
_READS = ("stat", "scandir")


class Killed(BaseException):
    """The process is dead: nothing it does from here on reaches the file system."""


class FaultyFolder:
    """A folder below which the call number `at` fails, counted from 0, in the way of `fault`; None: only counts.

    As a process that dies makes no more calls, every further call fails too, until the end of the `with` block.
    """

    def __init__(self, folder: Path, at: int | None = None, fault: str = "broken") -> None:
        self.calls: list[str] = []
        self.happened = False
        self._folder, self._at, self._fault = str(folder), at, fault
        self._patch = pytest.MonkeyPatch()
        self._is_dead = self._is_inside = False

    def __enter__(self) -> "FaultyFolder":
        for name in _BY_PATH:
            self._patch.setattr(os, name, self._faulty(name, getattr(os, name)))
        self._patch.setattr(builtins, "open", self._faulty("open", builtins.open))
        self._patch.setattr(os, "fsync", self._faulty("fsync", os.fsync, has_path=False))
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def _faulty(self, name: str, real: Callable[..., Any], *, has_path: bool = True) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            path = arguments[0] if arguments else named.get("path")
            is_ours = not has_path or named.get("dir_fd") is not None or str(path).startswith(self._folder)
            if not is_ours or self._is_inside:
                return real(*arguments, **named)
            if self._is_dead:
                raise Killed
            number = len(self.calls)
            self.calls.append(f"{name} {path}")
            if number != self._at:
                return real(*arguments, **named)
            self.happened = True
            return self._fail(name, path, lambda: real(*arguments, **named))

        return call

    def _fail(self, name: str, path: object, do: Callable[[], Any]) -> Any:
        if self._fault == "killed before":
            self._is_dead = True
            raise Killed
        if self._fault in ("lost", "killed after"):
            self._is_inside = True
            try:
                do()
            finally:
                self._is_inside = False
            self._is_dead = self._fault == "killed after"
            if self._is_dead:
                raise Killed
        number = errno.ENOSPC if self._fault == "full" and name not in _READS else errno.EIO
        raise OSError(number, os.strerror(number), str(path))


@dataclass(frozen=True)
class Job:
    """A job in whose folder everything may fail.

    Attributes:
        prepare: Makes what is there before the job; what it makes outside the folder stays as it is.
        act: The job.
        look: All that another process reads of the result, for `==`.
        begin: Called before each trial.
        may_be: Whether a state, given what was before and what an undisturbed job gives, may follow a job that failed.
    """

    prepare: Callable[[Path], object]
    act: Callable[[Path], object]
    look: Callable[[Path], Any]
    may_be: Callable[[Any, Any, Any], bool] = lambda state, before, wanted: state in (before, wanted)
    begin: Callable[[], object] = lambda: None


def check_every_fault(job: Job, folder: Path, *, most_trials: int = MOST_TRIALS) -> int:
    """Every call that a job makes of the file system fails once, in every way; then a rerun gives what an undisturbed one gives.

    Args:
        folder: The folder of the job. All that it changes must lie there.
        most_trials: Trials, evenly spread over all; with FIRN_ALL_FAULTS=1 there is no limit (`make faults`).

    Returns:
        The number of all trials, also of those that were passed over.
    """
    begun = folder.with_name(f"{folder.name}.begun")
    folder.mkdir(parents=True)
    job.prepare(folder)
    folder.rename(begun)

    def begin() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(begun, folder)
        publication._cached.clear()
        job.begin()

    begin()
    before = job.look(folder)
    with FaultyFolder(folder) as counted:
        job.act(folder)
    wanted = job.look(folder)
    trials = [
        (at, fault)
        for at, call in enumerate(counted.calls)
        for fault in (("broken",) if call.startswith(_READS) else FAULTS)
    ]
    step = 1 if "FIRN_ALL_FAULTS" in os.environ else 1 + len(trials) // most_trials
    for at, fault in trials[:: step if step == 1 or step % len(FAULTS) else step + 1]:
        what = f"{fault} at {at}: {counted.calls[at]}"
        begin()
        with FaultyFolder(folder, at, fault) as faulty:
            try:
                job.act(folder)
            except (FirnError, OSError, Killed):
                assert faulty.happened, what
        for claim in folder.rglob(CLAIM_NAME):  # of a holder who is known to be dead
            claim.unlink()
        assert job.may_be(job.look(folder), before, wanted), what
        job.act(folder)
        assert job.look(folder) == wanted, what
        assert not list(folder.rglob(STAGING)), what
        assert len(list(folder.rglob("*.tmp"))) <= 1, what  # that whose removal failed
    return len(trials)
