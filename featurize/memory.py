"""What a process has in memory."""


def peak_memory_bytes() -> int:
    """The most that this process has had in memory; a fork starts anew, unlike with `getrusage`."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
