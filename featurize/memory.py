"""The memory that a process uses."""


def peak_memory_bytes() -> int:
    """The most memory that this process has used, in bytes; a forked process starts from its own use, unlike with `getrusage`."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
