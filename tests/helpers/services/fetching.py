"""Jars that scripts fetch, for tests that need them."""

import subprocess
import sys
from pathlib import Path

import pytest

from helpers.project import ROOT


def fetched(script: str) -> list[Path]:
    """The jars that a script of `scripts/` fetches; without them the test is skipped, with the reason."""
    command = [sys.executable, str(ROOT / "scripts" / script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(done.stderr.strip())
    return [Path(line) for line in done.stdout.splitlines()]
