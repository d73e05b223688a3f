"""Tests of the options and of the help of the command `finetune`."""

import re

import pytest
from typer.testing import CliRunner

from finetune.__main__ import app

CALLS = {
    "predict": ("model", "--images", "photos", "--output", "out"),
    "stream": ("model", "--images", "photos", "--output", "out", "--checkpoint", "place"),
}


@pytest.mark.parametrize("command", CALLS)
def test_the_old_name_of_target_precision_is_refused_with_the_new_one(command: str) -> None:
    outcome = CliRunner().invoke(app, [command, *CALLS[command], "--precision", "0.9"])
    assert outcome.exit_code == 2
    assert "--target-precision" in plain(outcome.output)
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
    assert "--target-precision" in plain(shown)
    assert not re.search(r"(?<!target)-+precision", plain(shown).replace("--target-precision", ""))


def plain(text: str) -> str:
    """`text` without what a terminal makes colours of."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)
