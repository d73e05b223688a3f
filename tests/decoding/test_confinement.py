"""A decoder that an image has taken over: what it reaches from inside. An attacker's code runs in a real decoder process."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.images.decoders import FILES, decode, is_running, wait_until

from featurize.decoding import decoder_process
from featurize.decoding.decode import DecodeError
from featurize.decoding.decoder_process import Decoder

# The content of an image is Python; its value, or the error that it raises, comes back as the reason of a reject.
TAKEN_OVER = """
import ctypes, os, resource, signal, socket, subprocess, sys, threading
from featurize.decoding import decoder_process
from featurize.decoding.decode import DecodeError
libc = ctypes.CDLL(None, use_errno=True)
def syscall(*arguments):
    result = libc.syscall(*arguments)
    return result if result >= 0 else os.strerror(ctypes.get_errno())
def attack(content):
    try:
        raise DecodeError(repr(eval(content.decode())))
    except DecodeError:
        raise
    except BaseException as error:
        raise DecodeError(f"{type(error).__name__}: {error}")
decoder_process.inspect_image = attack
"""


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    """It begins as every other one does, and then evaluates what it is given as an image."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder_process, "_SERVE", TAKEN_OVER + decoder_process._SERVE)
        patch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
        patch.setenv("MLFLOW_TRACKING_TOKEN", "hunter3")
        decoder = Decoder()
        with pytest.raises(DecodeError, match=r"^1$"):
            decoder.inspect(b"1")
    yield decoder
    decoder.close()


@pytest.fixture
def attacker(decoder: Decoder) -> Callable[[str], str]:
    """The value of an expression in a decoder, or its error."""

    def evaluate(code: str) -> str:
        with pytest.raises(DecodeError) as reason:
            decoder.inspect(code.encode())
        return str(reason.value)

    return evaluate


def test_it_finds_no_environment(attacker: Callable[[str], str]) -> None:
    assert attacker("dict(os.environ)") == "{}"
    own = f"/proc/{os.getpid()}/environ"
    for path in ("/proc/self/environ", "/proc/thread-self/environ", own):
        assert attacker(f"open({path!r}).read()").startswith("PermissionError")
    environment = "ctypes.cast(ctypes.c_void_p.in_dll(libc, 'environ').value or 0, ctypes.POINTER(ctypes.c_char_p))"
    assert attacker(f"bool({environment}) and {environment}[0]") in ("False", "None")


def test_it_was_given_no_secret_to_begin_with(decoder: Decoder) -> None:
    given = Path(f"/proc/{decoder.pid}/environ").read_bytes()
    names = {line.split(b"=")[0].decode() for line in given.split(b"\0") if line}
    assert {"PYTHONPATH", "OPENBLAS_NUM_THREADS"} <= names
    assert names <= {"PYTHONPATH", "OPENBLAS_NUM_THREADS", *decoder_process._PASSED_ON, "LC_CTYPE"}


@pytest.mark.parametrize(
    "code",
    [
        "socket.socket()",
        "socket.socket(socket.AF_UNIX)",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
        "socket.socketpair()",
        "os.pipe()",
        "os.dup(2)",
    ],
)
def test_it_opens_no_connection(attacker: Callable[[str], str], code: str) -> None:
    assert attacker(code).startswith("PermissionError")


@pytest.mark.parametrize("path", ["/etc/passwd", "/proc/self/maps", "/dev/null", "/tmp/firn-written"])
def test_it_opens_no_file(attacker: Callable[[str], str], path: str) -> None:
    for mode in ("rb", "ab"):
        assert attacker(f"open({path!r}, {mode!r})").startswith("PermissionError")
    assert attacker(f"os.stat({path!r})").startswith("PermissionError")
    assert attacker("os.listdir('/')").startswith("PermissionError")
    assert attacker("os.mkdir('/tmp/firn-written')").startswith("PermissionError")


@pytest.mark.parametrize(
    "code",
    [
        "os.execv('/bin/true', ['true'])",
        "os.fork()",
        "subprocess.run(['/bin/true'])",
        "os.posix_spawn('/bin/true', ['true'], {})",
        pytest.param(f"os.kill({os.getpid()}, 0)", id="os.kill of the tests"),
        "os.kill(1, signal.SIGKILL)",
        "signal.pidfd_send_signal(0, signal.SIGKILL)",
        "resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))",
        "resource.prlimit(0, resource.RLIMIT_AS, (-1, -1))",
        "os.setuid(0)",
        "os.chroot('/')",
    ],
)
def test_it_starts_and_ends_nothing_and_frees_itself_of_nothing(attacker: Callable[[str], str], code: str) -> None:
    assert attacker(code).startswith(("PermissionError", "ValueError: not allowed"))


@pytest.mark.parametrize(
    "number",
    {
        "ptrace": 101, "execveat": 322, "io_uring_setup": 425, "bpf": 321, "process_vm_readv": 310, "userfaultfd": 323,
        "memfd_create": 319, "unshare": 272, "open_by_handle_at": 304, "prctl": 157, "seccomp": 317, "x32 read": 0x40000000,
        "fork": 57, "vfork": 58, "openat2": 437, "keyctl": 250, "mount": 165, "kexec_load": 246,
    }.values(),
)  # fmt: skip
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers and the filter are those of x86-64")
def test_the_kernel_refuses_what_no_library_asks_for(attacker: Callable[[str], str], number: int) -> None:
    assert attacker(f"syscall({number}, 0, 0, 0, 0, 0)") == "'Operation not permitted'"


def test_it_gets_no_new_privileges_and_may_have_threads(attacker: Callable[[str], str]) -> None:
    heard = "[(t := threading.Thread(target=print)), t.start(), t.join(), t.is_alive()][-1]"
    assert attacker(heard) == "False"


def test_the_kernel_says_that_it_is_shut_in() -> None:
    decoder = Decoder()
    decode(decoder)
    assert decoder.pid is not None
    facts = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{decoder.pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert facts["NoNewPrivs"] == "1"
    assert facts["Seccomp"] == "2"
    limits = Path(f"/proc/{decoder.pid}/limits").read_text()
    assert "Max open files            0                    0" in limits
    decoder.close()


def test_all_formats_are_decoded_as_before_and_an_animation_with_its_threads() -> None:
    decoder = Decoder()
    for content in FILES.values():
        decode(decoder, content)
        decoder.inspect(content)
    decoder.close()


def test_abort_is_named_as_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_process, "_SERVE", TAKEN_OVER + decoder_process._SERVE)
    decoder = Decoder()
    with pytest.raises(DecodeError, match=r"^decoding crashed its process: SIGABRT$"):
        decoder.inspect(b"libc.abort()")
    decoder.close()


# What it tells the process that has started it


SAYS = "os.write(int(sys.argv[1]), struct.pack('<BIIQ', {kind}, 1, 1, {length}) + {content!r}) and time.sleep(1)"


@pytest.mark.parametrize(
    ("kind", "length", "content"),
    [
        (2, 1 << 62, b""),  # more memory than there is
        (3, 1 << 62, b""),
        (1, 12, bytes(12)),  # pixels, where a description is wanted
        (9, 0, b""),
        (2, 2, b"[]"),
        (2, 2, b"{}"),
        (2, 100_000, b"[" * 100_000),
        (2, 4, b"\xff" * 4),
        (2, 16, b'{"metadata": {}}'),
    ],
)
def test_an_untrue_answer_is_a_reject_and_nothing_worse(
    monkeypatch: pytest.MonkeyPatch, kind: int, length: int, content: bytes
) -> None:
    monkeypatch.setattr(decoder_process, "_SERVE", "import struct, time\n" + TAKEN_OVER + decoder_process._SERVE)
    decoder = Decoder()
    with pytest.raises(DecodeError, match=r"^decoding gave no answer that can be believed$"):
        decoder.inspect(SAYS.format(kind=kind, length=length, content=content).encode())
    assert decoder.pid is None
    decoder.close()


def test_pixels_of_another_size_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    few = "decoder_process.decode_sized = lambda *_, **__: (np.zeros((2, 2, 3), np.uint8), (2, 2))\n"
    monkeypatch.setattr(decoder_process, "_SERVE", "import numpy as np\n" + TAKEN_OVER + few + decoder_process._SERVE)
    decoder = Decoder()
    with pytest.raises(DecodeError, match="no answer that can be believed"):
        decoder.decode(FILES["png"], height=4, width=4, channels=3)
    decoder.close()


def test_one_that_has_switched_off_its_alarm_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_process, "_SERVE", "import time\n" + TAKEN_OVER + decoder_process._SERVE)
    monkeypatch.setattr(decoder_process, "_GRACE_S", 0.5)
    decoder = Decoder(timeout_s=0.5)
    with pytest.raises(DecodeError, match=r"^decoding took longer than 0\.5 s$"):
        decoder.inspect(b"[signal.setitimer(signal.ITIMER_REAL, 0), time.sleep(1000)]")
    assert decoder.pid is None
    decoder.close()


# Where the kernel has less


def run_confined(*broken: str, code: str) -> str:
    """What `code` prints in a process that is shut in without the means `broken`."""
    program = "import os, platform, socket\nfrom featurize.decoding import confinement\n"
    if "seccomp" in broken:
        program += "platform.machine = lambda: 'riscv64'\n"
    if "landlock" in broken:
        program += "confinement._SYS_LANDLOCK_CREATE = 9999\n"
    program += "missing = confinement.confine()\n" + code
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


TRY = """
found = []
for attempt in (lambda: socket.socket(), lambda: open('/etc/passwd'), lambda: os.execv('/bin/true', ['true'])):
    try:
        attempt()
    except OSError as error:
        found.append(error.errno)
print(missing, found)
"""


def test_without_the_filter_the_other_means_do_it() -> None:
    found = run_confined("seccomp", code=TRY)
    assert found == "system calls are not filtered (the filter is for x86_64, and this is riscv64) [24, 24, 13]"


def test_without_landlock_the_filter_does_it() -> None:
    assert run_confined("landlock", code=TRY) == "[1, 1, 1]"


def test_what_is_missing_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    less = "import platform; platform.machine = lambda: 'riscv64'\n"
    monkeypatch.setattr(decoder_process, "_SERVE", less + decoder_process._SERVE)
    decoder_process._say_unconfined.cache_clear()
    with caplog.at_level(logging.WARNING, "featurize"):
        for _ in range(3):
            decoder = Decoder()
            decode(decoder)
            decoder.close()
    (record,) = [record for record in caplog.records if "shut in" in record.getMessage()]
    assert "the filter is for x86_64, and this is riscv64" in record.getMessage()
    decoder_process._say_unconfined.cache_clear()


def test_it_shuts_itself_in_before_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of calls, as the kernel sees it: an image that waits is read only after the filter stands."""
    marks = (
        "from featurize.decoding import decoder_process as d\n"
        "confine, receive, order = d.confine, d._receive, []\n"
        "def first(): order.append('confine'); return confine()\n"
        "def then(*a): order.append('read'); return receive(*a)\n"
        "d.confine, d._receive = first, then\n"
        "def tell(_): raise d.DecodeError(' '.join(order))\n"
        "d.inspect_image = tell\n"
    )
    monkeypatch.setattr(decoder_process, "_SERVE", marks + decoder_process._SERVE)
    decoder = Decoder()
    with pytest.raises(DecodeError, match=r"^confine read read$"):
        decoder.inspect(b"anything")
    decoder.close()


def test_a_confined_one_ends_with_its_parent() -> None:
    decoder = Decoder()
    decode(decoder)
    pid, connection = decoder.pid, decoder._socket
    assert pid is not None
    assert connection is not None
    connection.close()  # as the kernel does for a parent that is killed
    wait_until(lambda: not is_running(pid))
    decoder.close()
