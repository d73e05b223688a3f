"""A process shuts itself in: after that it can compute and talk over what is open already, and can do nothing else.

Decoders read bytes that anybody may have made, by libraries in C. Whoever takes one over by an image shall find no environment,
no network, no file, no other program and no way back. Three of the kernel's means do it, each where the kernel has it: a filter
of system calls (seccomp, on x86-64), Landlock for files and programs, and a limit of zero on further open files, which sockets
count as too. None of them needs a privilege, and none can be taken back.
"""

import ctypes
import errno
import os
import platform
import resource
import struct
from collections.abc import Iterator
from typing import Final

_PR_SET_NO_NEW_PRIVS: Final = 38
_SYS_LANDLOCK_CREATE, _SYS_LANDLOCK_RESTRICT = 444, 446  # the same on all processors
_LANDLOCK_FILE_RIGHTS: Final = (1 << 13) - 1  # those of its first version: execute, read, write, list, make, remove
_SYS_SECCOMP, _SET_MODE_FILTER, _ALL_THREADS = 317, 1, 1
_X86_64: Final = 0xC000003E  # AUDIT_ARCH_X86_64
_OTHER_NUMBERS: Final = 0x40000000  # system calls of the x32 ABI begin here

# Offsets in what the kernel shows to a filter, struct seccomp_data: the number of the call, the processor, the first argument.
_NUMBER, _PROCESSOR, _FIRST_ARGUMENT = 0, 4, 16
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW: Final = 0x7FFF0000
_FAIL: Final = 0x00050000  # with an error number in the lower bits

_CLONE, _CLONE3, _CLONE_THREAD, _TGKILL = 56, 435, 0x00010000, 234
ALLOWED: Final = {
    "read": 0, "write": 1, "close": 3, "fstat": 5, "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12,
    "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "readv": 19, "writev": 20, "sched_yield": 24, "mremap": 25,
    "madvise": 28, "nanosleep": 35, "getitimer": 36, "setitimer": 38, "getpid": 39, "sendto": 44, "recvfrom": 45, "exit": 60,
    "gettimeofday": 96, "getrusage": 98, "sysinfo": 99, "sigaltstack": 131, "gettid": 186, "time": 201, "futex": 202,
    "sched_getaffinity": 204, "restart_syscall": 219, "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230,
    "exit_group": 231, "set_robust_list": 273, "getrandom": 318, "membarrier": 324, "rseq": 334,
}  # fmt: skip
"""System calls of x86-64 that memory, threads, clocks and open files need. Source: Linux, arch/x86/entry/syscalls."""


def confine() -> str:
    """Shuts this process in, for good. Call it once everything is imported and open.

    Returns:
        What could not be done and why, in one line; empty where everything was done that matters.
    """
    os.environ.clear()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    missing = []
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0))) != 0:
        missing.append(f"programs may get more privileges ({_last_error()})")
    files = _forbid_files(libc)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    calls = _forbid_calls(libc)
    if calls:
        missing.append(f"system calls are not filtered ({calls})")
        if files:  # the filter forbids all that Landlock does
            missing.append(f"programs may be started ({files})")
    return "; ".join(missing)


def _forbid_files(libc: ctypes.CDLL) -> str:
    """Takes from this process every file that is not open yet, by Landlock; returns why not, or nothing."""
    rights = ctypes.c_uint64(_LANDLOCK_FILE_RIGHTS)
    rules = libc.syscall(
        ctypes.c_long(_SYS_LANDLOCK_CREATE),
        ctypes.byref(rights),
        ctypes.c_size_t(ctypes.sizeof(rights)),
        ctypes.c_long(0),
    )
    if rules < 0:
        return f"no Landlock: {_last_error()}"
    try:
        if libc.syscall(ctypes.c_long(_SYS_LANDLOCK_RESTRICT), ctypes.c_long(rules), ctypes.c_long(0)) != 0:
            return f"no Landlock: {_last_error()}"
    finally:
        os.close(rules)
    return ""


def _forbid_calls(libc: ctypes.CDLL) -> str:
    """Has the kernel refuse every system call but those that computing needs; returns why not, or nothing."""
    if platform.machine() != "x86_64" or struct.calcsize("P") != 8:
        return f"the filter is for x86_64, and this is {platform.machine()}"
    steps = list(_filter(os.getpid()))
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(steps), ctypes.addressof(code)))
    failed: int = libc.syscall(
        ctypes.c_long(_SYS_SECCOMP), ctypes.c_long(_SET_MODE_FILTER), ctypes.c_long(_ALL_THREADS), program
    )
    return f"no seccomp: {_last_error()}" if failed else ""


def _filter(pid: int) -> Iterator[tuple[int, int, int, int]]:
    """The steps of the filter, each with its operation, how many steps it skips if it is true and if not, and its number."""
    refuse = (_RETURN, 0, 0, _FAIL | errno.EPERM)
    allow = (_RETURN, 0, 0, _ALLOW)
    yield (_LOAD, 0, 0, _PROCESSOR)
    yield (_IF_EQUAL, 1, 0, _X86_64)
    yield refuse
    yield (_LOAD, 0, 0, _NUMBER)
    yield (_IF_AT_LEAST, 0, 1, _OTHER_NUMBERS)
    yield refuse
    yield (_IF_EQUAL, 0, 1, _CLONE3)  # its flags cannot be seen here; without it the C library takes `clone`
    yield (_RETURN, 0, 0, _FAIL | errno.ENOSYS)
    yield (_IF_EQUAL, 0, 4, _CLONE)  # a thread, but no process
    yield (_LOAD, 0, 0, _FIRST_ARGUMENT)
    yield (_IF_ANY_BIT, 0, 1, _CLONE_THREAD)
    yield allow
    yield refuse
    yield (_IF_EQUAL, 0, 4, _TGKILL)  # as `abort` does to its own process
    yield (_LOAD, 0, 0, _FIRST_ARGUMENT)
    yield (_IF_EQUAL, 0, 1, pid)
    yield allow
    yield refuse
    for number in ALLOWED.values():
        yield (_IF_EQUAL, 0, 1, number)
        yield allow
    yield refuse


def _last_error() -> str:
    return os.strerror(ctypes.get_errno())
