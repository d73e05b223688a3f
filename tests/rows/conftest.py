"""Feature sets that the tests of `where` share."""

from pathlib import Path

import pytest
from helpers.tables.selected_rows import KEPT, ROWS, write_rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "set", list(range(ROWS)))


@pytest.fixture
def twin(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "twin", KEPT)
