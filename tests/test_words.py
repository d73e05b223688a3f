"""Messages are read by callers in Python and by users of the commands: they name the parameter, and a flag only beside it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.project import ROOT

PACKAGES = ["featurize", "finetune"]
# A flag of Firn's commands; those of Spark are named as they are, and so are whole commands of others.
FLAG = re.compile(r"--(?!packages\b|py-files\b)[a-z][a-z-]*")
COMMAND_OF_OTHERS = re.compile(r"`python -m tf2onnx[^`]*`")
BESIDE_ITS_PARAMETER = re.compile(r"\w`? \(--[a-z-]+\)")


def texts_of(file: Path) -> Iterator[str]:
    """The strings of a file that are no docstrings, with `{}` in place of the values in an f-string."""
    tree = ast.parse(file.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings | parts:
            yield node.value


@pytest.mark.parametrize("package", PACKAGES)
def test_a_library_names_a_flag_only_beside_the_parameter(package: str) -> None:
    commands = ROOT / package / "commands"
    files = [file for file in sorted((ROOT / package).rglob("*.py")) if not file.is_relative_to(commands)]
    texts = [(file, text) for file in files for text in texts_of(file)]
    wrong = [
        f"{file.relative_to(ROOT)}: {text}"
        for file, text in texts
        if FLAG.search(COMMAND_OF_OTHERS.sub("", BESIDE_ITS_PARAMETER.sub("", text)))
    ]
    assert not wrong
    assert any(BESIDE_ITS_PARAMETER.search(text) for _, text in texts)
