"""Processes of this machine: who a process is, for others to recognise, and whether it still runs.

A number alone names no process: another PID namespace (a container) has the same numbers, and numbers are used again. A boot of
the machine, a PID namespace and the time at which a process started name it for good.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_ENDED = {"Z", "X"}  # states: ended and not yet collected by its parent


def identify_process() -> dict[str, Any]:
    """Who this process is: `pid`, and `boot_id`, `pid_namespace` and `start_time`, which are None where the system hides them.

    `start_time` counts clock ticks from the start of the machine.
    """
    namespace = _pid_namespace()
    status = None if namespace is None else _status(os.getpid())
    return {
        "pid": os.getpid(),
        "boot_id": _boot_id(),
        "pid_namespace": namespace,
        "start_time": None if status is None else status[1],
    }


def is_running(process: Mapping[str, Any]) -> bool | None:
    """Whether a process, as `identify_process` described it, is running; None where this process cannot know.

    It cannot know of another machine, of another PID namespace, or where the system hides the processes of others.
    """
    mine = (_boot_id(), _pid_namespace())
    if None in mine or (process.get("boot_id"), process.get("pid_namespace")) != mine:
        return None
    pid, started = process.get("pid"), process.get("start_time")
    if not isinstance(pid, int) or not isinstance(started, int) or pid < 1:
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # of another user
        pass
    status = _status(pid)
    return None if status is None else status == ("running", started)


def _boot_id() -> str | None:
    """What the kernel calls this boot of the machine."""
    try:
        return _BOOT_ID.read_text().strip() or None
    except OSError:
        return None


def _pid_namespace() -> str | None:
    """The PID namespace of this process; None where `/proc` shows the processes of another one."""
    try:
        if Path("/proc/self").readlink().name != str(os.getpid()):
            return None
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None


def _status(pid: int) -> tuple[str, int] | None:
    """Whether a process is "running" or has "ended", and when it started; None where the system does not tell."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before may hold anything; from the third field on
    state, threads, started = fields[0], int(fields[17]), int(fields[19])
    return ("ended" if state in _ENDED and threads <= 1 else "running"), started
