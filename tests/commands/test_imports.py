"""What importing the command line brings along: every `--help`, and every wrong call, waits for it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import featurize
import finetune

HEAVY = (
    "fsspec",
    "horovod",
    "keras",
    "mlflow",
    "numpy",
    "pandas",
    "petastorm",
    "PIL",
    "pyarrow",
    "pydantic",
    "pyspark",
    "scipy",
    "sklearn",
    "tensorflow",
)
COMMANDS = [
    f"{package.__name__}.commands.{file.stem}"
    for package in (featurize, finetune)
    for file in sorted(Path(str(package.__file__)).parent.joinpath("commands").glob("[!_]*.py"))
]
_REPORT = """
import importlib, json, sys
importlib.import_module(sys.argv[1])
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


@pytest.mark.parametrize("module", ["featurize.__main__", "finetune.__main__", *COMMANDS])
def test_a_command_is_imported_without_what_its_work_needs(module: str) -> None:
    made = subprocess.run([sys.executable, "-c", _REPORT, module], capture_output=True, text=True, check=True)
    imported = json.loads(made.stdout)
    assert [name for name in HEAVY if name in imported] == []


def test_the_test_sees_a_heavy_import() -> None:
    made = subprocess.run(
        [sys.executable, "-c", _REPORT, "featurize.storage"], capture_output=True, text=True, check=True
    )
    assert "fsspec" in json.loads(made.stdout)


def test_every_command_is_in_the_list() -> None:
    assert {"featurize.commands.run", "featurize.commands.describe", "finetune.commands.fit"} <= set(COMMANDS)
