"""Faults of a file system, at every call that a job makes of it, one after the other: what SQLite calls an out-of-disk loop.

Calls are counted where Python asks the system, below all code of Firn's, and only those on files in one folder.
"""

import builtins
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_BY_PATH = ("open", "link", "replace", "rename", "unlink", "remove", "rmdir", "mkdir", "stat", "scandir")
FAULTS = ("full", "broken", "lost", "killed before", "killed after")
"""full: ENOSPC, where something is written, else EIO. broken: EIO. lost: it is done, and EIO. Or the process dies."""


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
        reads = name in ("stat", "scandir")
        number = errno.ENOSPC if self._fault == "full" and not reads else errno.EIO
        raise OSError(number, os.strerror(number), str(path))
