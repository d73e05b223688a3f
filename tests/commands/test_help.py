"""Tests of the options and of the help of both commands."""

import re

import pytest
import typer
from typer.testing import CliRunner

from featurize.__main__ import app as featurize_app
from finetune.__main__ import app as finetune_app

CALLS = {
    "predict": ("model", "--images", "photos", "--output", "out"),
    "stream": ("model", "--images", "photos", "--output", "out", "--checkpoint", "place"),
}


@pytest.mark.parametrize("command", CALLS)
def test_the_old_name_of_target_precision_is_refused_with_the_new_one(command: str) -> None:
    outcome = CliRunner().invoke(finetune_app, [command, *CALLS[command], "--precision", "0.9"])
    assert outcome.exit_code == 2
    assert "--target-precision" in plain(outcome.output)
    shown = CliRunner().invoke(finetune_app, [command, "--help"], env={"COLUMNS": "200"}).output
    assert "--target-precision" in plain(shown)
    assert not re.search(r"(?<!target)-+precision", plain(shown).replace("--target-precision", ""))


@pytest.mark.parametrize(
    ("app", "groups"),
    [
        (
            finetune_app,
            {
                "Train": ["fit", "evaluate", "report", "sweep"],
                "Data": ["check", "relabel"],
                "Label new images": ["predict", "stream", "views", "compact"],
                "Watch": ["drift", "models"],
            },
        ),
        (
            featurize_app,
            {
                "Images": ["upload", "ingest"],
                "Features": ["backbones", "backbone", "run", "describe"],
                "Query and export": ["similar", "sql", "serve", "export"],
                "Upkeep": ["vacuum", "upgrade"],
            },
        ),
    ],
)
def test_commands_are_listed_in_groups_in_the_order_of_use(app: typer.Typer, groups: dict[str, list[str]]) -> None:
    shown = plain(CliRunner().invoke(app, ["--help"], env={"COLUMNS": "100"}).output)
    titles = [title for title in re.findall(r"╭─ (.+?) ─+╮", shown) if title != "Options"]
    assert titles == list(groups)
    names = [name for each in groups.values() for name in each]
    assert re.findall(rf"^│ ({'|'.join(names)}) ", shown, re.MULTILINE) == names


def plain(text: str) -> str:
    """`text` without what a terminal makes colours of."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)
