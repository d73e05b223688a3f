import os
import re
import subprocess
import sys
from pathlib import Path

_PROGRAM = """
import os, threading, time
from featurize.engines.tensorflow_log import show_errors_only, start_xla
show_errors_only()
import tensorflow as tf
written, done = [], threading.Event()

def write():
    while not done.is_set():
        os.write(2, f"line {len(written)}\\n".encode())
        written.append(0)
        time.sleep(0.001)

thread = threading.Thread(target=write)
thread.start()
start_xla()
done.set()
thread.join()
assert tf.function(lambda x: 2 * x, jit_compile=True)(tf.constant(3.0)) == 6.0
print(len(written))
"""
_COMPARE = """
import sys
from featurize.backbones.backbone import prepare_backbone
from featurize.recipes.backbone_section import BackboneSettings

print(prepare_backbone(BackboneSettings(name=sys.argv[1], preprocessing="tf"), sys.argv[2]).spec.precision)
"""


def run(**environment: str) -> "subprocess.CompletedProcess[str]":
    variables = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, env=variables, check=True)


def test_xla_starts_without_its_notes_and_nothing_else_is_lost() -> None:
    made = run(TF_CPP_MIN_LOG_LEVEL="2")
    assert made.stderr.splitlines() == [f"line {number}" for number in range(int(made.stdout))]
    assert int(made.stdout) > 1


def test_level_0_shows_what_xla_says() -> None:
    lines = run(TF_CPP_MIN_LOG_LEVEL="0").stderr
    assert re.search(r"^I\d{4} .*XLA service", lines, flags=re.MULTILINE)
    assert "Compiled cluster using XLA!" in lines


def test_comparing_precisions_writes_nothing(small_backbone: Path, tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-c", _COMPARE, str(small_backbone), str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert made.stdout.strip() in ("float32", "bfloat16")
    assert made.stderr == ""
