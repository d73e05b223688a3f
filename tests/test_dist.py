"""Tests of the zip and the wheel that `make dist` makes. tests/integration/test_cluster.py runs the zip on a cluster."""

import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from helpers.project import ROOT

import featurize


def make_zip(folder: Path) -> Path:
    command = [sys.executable, str(ROOT / "scripts" / "dist.py"), str(folder)]
    return Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


@pytest.fixture(scope="module")
def firn_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zip(tmp_path_factory.mktemp("dist"))


def test_the_zip_holds_all_that_is_installed(firn_zip: Path) -> None:
    packages = {
        str(path.relative_to(ROOT))
        for package in ("featurize", "finetune")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with ZipFile(firn_zip) as archive:
        names = set(archive.namelist())
        assert all(archive.read(name) == (ROOT / name).read_bytes() for name in packages)
    assert names == packages | {f"firn-{featurize.__version__}.dist-info/METADATA"}
    assert firn_zip.name == f"firn-{featurize.__version__}.zip"


def test_equal_code_gives_an_equal_zip(firn_zip: Path, tmp_path: Path) -> None:
    assert make_zip(tmp_path / "another").read_bytes() == firn_zip.read_bytes()


@pytest.mark.parametrize("package", ["featurize", "finetune"])
def test_the_commands_run_out_of_the_zip(package: str, firn_zip: Path, tmp_path: Path) -> None:
    program = f"import {package}, featurize; from importlib.metadata import version; "
    program += f"print({package}.__file__, version('firn') == featurize.__version__)"
    environment = {**os.environ, "PYTHONPATH": str(firn_zip)}
    for arguments, wanted in (
        (["-c", program], f"{firn_zip}/{package}/__init__.py True"),
        (["-m", package, "--help"], "Usage:"),
    ):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        assert wanted in done.stdout


def test_the_wheel_holds_the_same_files_and_starts_both_commands(firn_zip: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as archive, ZipFile(firn_zip) as zipped:
        own = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert own == {name for name in zipped.namelist() if ".dist-info/" not in name}
        entry_points = archive.read(f"firn-{featurize.__version__}.dist-info/entry_points.txt").decode()
        archive.extractall(tmp_path / "site")
    for package in ("featurize", "finetune"):
        assert f"{package} = {package}.__main__:main" in entry_points
        program = f"import {package}; print({package}.__file__); from {package}.__main__ import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", program, "--version"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == [f"{tmp_path}/site/{package}/__init__.py", "firn", featurize.__version__]
