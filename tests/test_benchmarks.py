"""Tests of benchmarks/: what is measured lies elsewhere, and moves."""

import importlib

import pytest
from helpers.project import ROOT

FOLDER = ROOT / "benchmarks"


@pytest.mark.parametrize(
    "name", sorted(file.relative_to(FOLDER).with_suffix("").as_posix() for file in FOLDER.rglob("*.py"))
)
def test_a_benchmark_finds_what_it_measures(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER.parent))
    importlib.import_module(f"benchmarks.{name.replace('/', '.')}")
