"""Launches ranks by Horovod's own launcher."""

import subprocess
import sys
from pathlib import Path

TIMEOUT_S = 150


def horovodrun(*command: str, cwd: Path, timeout_s: float = TIMEOUT_S) -> "subprocess.CompletedProcess[str]":
    """Runs `command` as two ranks on this host."""
    program = [sys.executable, str(Path(sys.executable).with_name("horovodrun")), "-np", "2", "--gloo"]
    return subprocess.run([*program, *command], cwd=cwd, capture_output=True, text=True, timeout=timeout_s, check=False)
