"""Decoder processes that hang, die, are killed or cannot start: no image takes more with it than itself."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.images.decoders import PICTURE, decode, is_running, open_files, pid_of, processor_time_s, wait_until
from helpers.images.pictures import encode
from helpers.images.poison import scan_bomb
from PIL import Image

from featurize.decoding.decode import DecodeError
from featurize.decoding.decoder_process import Decoder
from featurize.errors import JobError


@pytest.fixture
def own() -> Iterator[Callable[..., Decoder]]:
    """Makes decoders of the test's own, and ends them."""
    made: list[Decoder] = []

    def make(**limits: float) -> Decoder:
        made.append(Decoder(**limits))  # type: ignore[arg-type]
        decode(made[-1])
        return made[-1]

    yield make
    for decoder in made:
        decoder.close()


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGSEGV])
def test_an_idle_one_that_is_killed_is_replaced_and_nobody_notices(own: Callable[..., Decoder], by: int) -> None:
    decoder = own()
    killed = pid_of(decoder)
    os.kill(killed, by)
    wait_until(lambda: not is_running(killed))
    decode(decoder)
    assert pid_of(decoder) != killed


def test_an_interrupt_from_the_keyboard_is_not_for_it(own: Callable[..., Decoder]) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored already
    try:
        decoder = own()
    finally:
        signal.signal(signal.SIGINT, before)
    process = pid_of(decoder)
    os.kill(process, signal.SIGINT)
    decode(decoder)
    assert pid_of(decoder) == process


def test_the_limit_of_time_is_for_images_and_not_for_waiting(own: Callable[..., Decoder]) -> None:
    decoder = own(timeout_s=1.0)
    waited_enough = time.monotonic() + 1.5
    while time.monotonic() < waited_enough:
        assert is_running(pid_of(decoder))
        time.sleep(0.05)


def test_an_image_that_takes_too_long_is_rejected_and_the_next_is_decoded(own: Callable[..., Decoder]) -> None:
    decoder = own(timeout_s=0.5)
    process, started = pid_of(decoder), time.monotonic()
    with pytest.raises(DecodeError, match=r"^decoding took longer than 0\.5 s$"):
        decoder.decode(scan_bomb(5000, 4000), height=4, width=4, channels=3)
    assert time.monotonic() - started < 40  # of twice 50 s that it would take
    assert not is_running(process)
    decode(decoder)


def kill_while_it_decodes(decoder: Decoder, killed: set[int], *, start_s: float) -> None:
    """Waits for a process that is not in `killed` and busy for longer than starting takes; kills it and adds it."""

    def busy() -> bool:
        pid = decoder.pid
        return pid is not None and pid not in killed and processor_time_s(pid) > 2 * start_s + 0.2

    wait_until(busy)
    killed.add(pid_of(decoder))
    os.kill(pid_of(decoder), signal.SIGSEGV)


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "scans"), [(1, 250), (2, 5000)])
def test_an_image_on_which_decoding_dies_twice_is_rejected_and_once_is_nothing(
    own: Callable[..., Decoder], kills: int, scans: int
) -> None:
    decoder, killed = own(), set[int]()
    start_s = processor_time_s(pid_of(decoder))
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(decoder.decode, scan_bomb(scans, 4000), height=4, width=4, channels=3)
        for _ in range(kills):
            kill_while_it_decodes(decoder, killed, start_s=start_s)
        if kills == 1:
            assert (result.result()[0] == 77).all()
        else:
            with pytest.raises(DecodeError, match=r"^decoding crashed its process: SIGSEGV$"):
                result.result()
    decode(decoder)
    assert len(killed) == kills


@pytest.mark.parametrize(
    ("format", "options", "reason"),
    [
        ("PNG", {}, "^not enough memory to decode the image$"),
        ("JPEG", {}, "^not enough memory to decode the image$"),
        ("GIF", {}, "^not enough memory to decode the image$"),
        ("TIFF", {"compression": "tiff_lzw"}, "^not enough memory to decode the image$"),
        ("WEBP", {}, "could not create decoder object"),  # libwebp does not say why
    ],
)
def test_an_image_that_takes_too_much_memory_is_rejected(
    own: Callable[..., Decoder], format: str, options: dict[str, object], reason: str
) -> None:
    content = encode(Image.new("RGB", (6000, 6000), (9, 99, 200)), format, **options)
    decoder = own(max_memory_bytes=48 << 20)
    process = pid_of(decoder)
    with pytest.raises(DecodeError, match=reason):
        decoder.inspect(content)
    decode(decoder)
    assert pid_of(decoder) == process


def test_it_ends_with_its_parent() -> None:
    """Also when the parent is killed and can do nothing about it."""
    code = (
        "import sys\nfrom featurize.decoding.decoder_process import Decoder\nfrom featurize.decoding.decode import DecodeError\n"
        "decoder = Decoder()\n"
        "try:\n    decoder.inspect(b'')\nexcept DecodeError:\n    print(decoder.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_running(child)
        parent.kill()
        wait_until(lambda: not is_running(child))


def test_closed_and_dead_ones_leave_neither_processes_nor_open_files(own: Callable[..., Decoder]) -> None:
    decoder = own()
    before, processes = open_files(), set()
    for _ in range(3):
        processes.add(pid_of(decoder))
        os.kill(pid_of(decoder), signal.SIGKILL)
        decode(decoder)
        assert open_files() == before
    processes.add(pid_of(decoder))
    decoder.close()
    decoder.close()
    assert len(processes) == 4
    assert not any(is_running(process) for process in processes)
    assert open_files() < before


@pytest.mark.parametrize("interpreter", ["/nowhere/python", "/bin/false", "complaining"])
def test_if_none_can_be_started_the_interpreter_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interpreter: str
) -> None:
    if interpreter == "complaining":
        path = tmp_path / "python"
        path.write_text("#!/bin/sh\necho trace >&2\necho 'ImportError: no module named numpy' >&2\nexit 1\n")
        path.chmod(0o755)
        interpreter = str(path)
    monkeypatch.setattr(sys, "executable", interpreter)
    before = open_files()
    with pytest.raises(JobError, match=f"^no decoder process can be started with {interpreter}: ") as raised:
        Decoder().decode(PICTURE, height=4, width=4, channels=3)
    assert "\n" not in str(raised.value)
    if interpreter.startswith(str(tmp_path)):
        assert str(raised.value).endswith("ImportError: no module named numpy")
    assert open_files() == before
