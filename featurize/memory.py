"""The memory that a process uses."""


def peak_memory_bytes() -> int:
    """The peak memory of this process in bytes. Unlike that of `getrusage`, it does not include the parent's before a fork."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
