"""The memory that a process uses, and that there is."""

import os
from contextlib import suppress
from pathlib import Path


def peak_memory_bytes() -> int:
    """The peak memory of this process in bytes. Unlike that of `getrusage`, it does not include the parent's before a fork."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM:"))


def machine_memory_bytes() -> int:
    """The memory of this machine in bytes, or what its container allows if that is less."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for line in Path("/proc/self/cgroup").read_text(encoding="ascii", errors="replace").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        # Version 2 of control groups has no list of controllers. In a container its own group may be at the top.
        folder, name = ("memory", "memory.limit_in_bytes") if controllers else ("", "memory.max")
        for path in (Path("/sys/fs/cgroup", folder, group.lstrip("/"), name), Path("/sys/fs/cgroup", folder, name)):
            with suppress(OSError, ValueError):  # it is not there, or says "max"
                limits.append(int(path.read_text(encoding="ascii")))
    return min(limits)
