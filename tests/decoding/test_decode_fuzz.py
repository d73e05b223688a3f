"""Two thousand damaged files at the decoder: each is decoded or refused, within its time and memory.

They are decoded in a process of their own, so that a crash or a hang fails the test and does not end or block it. To look
for more:

    python tests/decoding/test_decode_fuzz.py SEED COUNT
"""

import faulthandler
import json
import math
import resource
import signal
import subprocess
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from helpers.images.mutations import SEEDS, mutant
from helpers.images.poison import scan_bomb

from featurize.decoding.decode import (
    FORMATS,
    DecodeError,
    ImageInfo,
    decode_image,
    decode_sized,
    inspect_image,
)
from featurize.decoding.fitting import MAX_PIXELS

SEED, COUNT = 20240, 2000
PROCESSOR_S_PER_IMAGE = 20
WAIT_S = 300  # for the whole process; a hang that takes no processor time ends here
MAX_MEMORY_BYTES = 3 << 29  # 1.5 GiB
_ADDRESS_SPACE_BYTES = 6 << 30  # so that a mutant which wants all memory gets an error and not the machine


def attack(seed: int, count: int) -> None:
    """Decodes mutants, telling on standard output which one is under way, what is wrong with it, and sums at the end."""
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE_BYTES, _ADDRESS_SPACE_BYTES))
    faulthandler.enable()
    done = {"decoded": 0, "refused": 0}
    for index in range(count):
        _tell(index=index)
        end_after(PROCESSOR_S_PER_IMAGE)
        try:
            done[check(mutant(seed, index).content, channels=1 + index % 2 * 2)] += 1
        except Exception:
            _tell(fault=traceback.format_exc(), index=index)
        end_after(0)
        if peak_memory_bytes() > MAX_MEMORY_BYTES:
            _tell(fault=f"memory reached {peak_memory_bytes()} bytes", index=index)
            break
    _tell(**done, peak_memory_bytes=peak_memory_bytes())


def end_after(processor_s: float) -> None:
    """Ends this process when it has worked for so long, wherever it is, and shows where; 0 calls it off."""
    faulthandler.register(signal.SIGPROF, chain=True)  # a traceback, then what the signal does by itself
    signal.setitimer(signal.ITIMER_PROF, processor_s)


def _tell(**event: object) -> None:
    print(json.dumps(event), flush=True)


def peak_memory_bytes() -> int:
    """The most memory this process had; `resource` would count what its parent had when it was started."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def check(content: bytes, *, channels: int) -> str:
    """Decodes and describes one file; any answer but a right one raises. Returns "decoded" or "refused"."""
    size = info = None
    try:
        pixels, size = decode_sized(content, height=7, width=9, channels=channels)
    except DecodeError as error:
        check_reason(error)
    else:
        assert pixels.shape == (7, 9, channels)
        assert pixels.dtype == np.uint8
        assert min(size) >= 1
        assert size[0] * size[1] <= MAX_PIXELS
    try:
        info = inspect_image(content)
    except DecodeError as error:
        check_reason(error)
    else:
        check_info(info)
        assert size in (None, (info.width, info.height))
    return "refused" if size is None else "decoded"


def check_reason(error: DecodeError) -> None:
    reason = str(error)
    assert 0 < len(reason) <= 300
    assert reason.isprintable()  # and so one line
    assert "memory" not in reason


def check_info(info: ImageInfo) -> None:
    assert info.format in (*FORMATS, "MPO")
    assert 1 <= info.width * info.height <= MAX_PIXELS
    assert all(isinstance(text, str) and 0 < len(text) <= 1000 for text in info.exif.values())
    assert all(math.isfinite(value) for value in asdict(info.metadata).values() if isinstance(value, float))
    assert all(0 <= mean <= 255 for mean in info.colour_mean or ())
    assert all(0 <= std <= 127.5 for std in info.colour_std or ())
    assert ImageInfo.from_json(info.to_json()) == info


def run_attack(seed: int, count: int) -> dict[str, Any]:
    """The sums of an attack in a process of its own; AssertionError names the mutants that were not met."""
    command = [sys.executable, __file__, str(seed), str(count)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        output, errors = process.communicate(timeout=WAIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
    events = [json.loads(line) for line in output.splitlines()]
    faults = [f"{mutant(seed, event['index']).name}\n{event['fault']}" for event in events if "fault" in event]
    if process.returncode != 0:
        place = mutant(seed, events[-1]["index"]).name if events else "at the start"
        faults.append(f"{place}\nended with {process.returncode}\n{errors[-4000:]}")
    assert not faults, f"{len(faults)} faults\n\n" + "\n\n".join(faults[:10])
    sums: dict[str, Any] = events[-1]
    return sums


def test_mutants_are_decoded_or_refused() -> None:
    done = run_attack(SEED, COUNT)
    assert done["decoded"] + done["refused"] == COUNT
    # Mutants that are all refused at their first byte would show nothing.
    assert min(done["decoded"], done["refused"]) > COUNT / 10


def test_what_the_mutants_are_made_of_is_sound() -> None:
    for name, content in SEEDS.items():
        assert check(content, channels=3) == "decoded", name
    assert {inspect_image(content).format for content in SEEDS.values()} == set(FORMATS)


def test_limit_ends_a_decoder_that_does_not_return() -> None:
    # As a mutant that hangs would be ended: inside libjpeg, where no Python code gets a turn.
    code = "import test_decode_fuzz as fuzz; from helpers.images import poison; fuzz.end_after(0.5); "
    code += "fuzz.check(poison.scan_bomb(5000, 4000), channels=1)"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, stderr=subprocess.PIPE, check=False)
    assert done.returncode == -signal.SIGPROF
    assert b"in decode_sized" in done.stderr


def test_scan_bomb_is_a_small_and_valid_picture() -> None:
    assert check(scan_bomb(5, 64), channels=3) == "decoded"
    assert (decode_image(scan_bomb(5, 64), height=7, width=9) == 77).all()
    assert len(scan_bomb(10_000, 4000)) < 500_000


if __name__ == "__main__":
    attack(int(sys.argv[1]), int(sys.argv[2]))
