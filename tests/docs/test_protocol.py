"""The models of docs/protocol: each wrong protocol is found wrong, and the documentation names them all.

`.ci/run` also runs the checks of the right ones that take longest.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.project import ROOT

SCRIPT = ROOT / "scripts" / "check_protocol.sh"
FOLDER = ROOT / "docs" / "protocol"


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("spin") and shutil.which("gcc")), reason="needs spin and gcc")
def test_each_wrong_protocol_is_found_wrong() -> None:
    ended = subprocess.run([str(SCRIPT), "quick"], capture_output=True, text=True, timeout=1200, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = [(line.split()[0], line.split()[3], line.split()[-1]) for line in ended.stdout.splitlines()]
    failed = {(model, flag.removeprefix("-D")) for verdict, model, flag in found if verdict == "fails"}
    assert failed == _wrong_protocols()
    assert {model for verdict, model, _ in found if verdict != "fails"} == {"publication", "networks"}


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_script_says_what_is_missing(tmp_path: Path) -> None:
    for name in ("bash", "env", "dirname"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    ended = subprocess.run([str(SCRIPT)], capture_output=True, text=True, env={"PATH": str(tmp_path)}, check=False)
    assert ended.returncode == 1
    assert ended.stderr == "check_protocol: spin is missing. Debian, Ubuntu: apt-get install spin\n"


def test_the_documentation_names_each_wrong_protocol() -> None:
    text = (FOLDER / "README.md").read_text()
    sections = {match[1]: match[2] for match in re.finditer(r"## `(\w+)\.pml`.*?\n(.*?)(?=\n## )", text, re.DOTALL)}
    documented = {
        (model, wrong) for model, body in sections.items() for wrong in re.findall(r"^\| `(\w+)`", body, re.M)
    }
    assert documented == _wrong_protocols()


def _wrong_protocols() -> set[tuple[str, str]]:
    """The model and the name of each wrong protocol."""
    pattern = re.compile(r"^#(?:ifn?def |(?:el)?if defined\()(\w+)", re.M)
    return {(path.stem, name) for path in FOLDER.glob("*.pml") for name in pattern.findall(path.read_text())}
