"""What `make fuzz` has found stays mended; and every target accepts good input."""

from pathlib import Path

import pytest
from fuzz.targets import TARGETS, seeds

CORPUS = Path(__file__).parent / "corpus"
FOUND = sorted(CORPUS.rglob("*")) if CORPUS.is_dir() else []


@pytest.mark.parametrize("target", TARGETS)
def test_good_input_is_no_fault(target: str) -> None:
    for content in seeds(target):
        TARGETS[target](content)
        for cut in (0, 1, len(content) // 2):
            TARGETS[target](content[:cut])


@pytest.mark.parametrize(
    "path", [path for path in FOUND if path.is_file()], ids=lambda path: f"{path.parent.name}-{path.name}"
)
def test_what_was_found_is_mended(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())
