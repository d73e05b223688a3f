"""The command `featurize`, run as a user runs it: results as JSON, one message and an exit status where it fails."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.images.photos import make_photos
from helpers.project import ROOT, Firn

RECIPE = """
[images]
source = "photos"
max_reject_fraction = 0.2
[backbone]
name = "mean.keras"
preprocessing = "none"
batch_size = 8
[features]
url = "features"
"""
CARD = 'name = "mine"\ntitle = "Mine"\nlicence = "CC0-1.0"\nlayout = "folders"\nsource = "photos"\n'


@pytest.fixture
def place(tmp_path: Path, mean_backbone: Path) -> Path:
    """The folder the command runs in: a recipe, a card, a backbone and photos of two classes, one of them damaged."""
    make_photos(tmp_path / "photos", per_class=4, classes=("green", "red"))
    (tmp_path / "photos" / "red" / "broken.jpg").write_bytes(b"no picture")
    shutil.copy(mean_backbone, tmp_path / "mean.keras")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "mine.toml").write_text(CARD)
    return tmp_path


def result_of(ended: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    assert ended.returncode == 0, ended.stderr
    result: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return result


def failure(ended: "subprocess.CompletedProcess[str]", status: int) -> str:
    """The message of a command that failed as it should: with its status and without a trace."""
    assert ended.returncode == status, ended.stderr
    for word in ("Traceback", "\tat ", "py4j", "site-packages"):
        assert word not in ended.stderr
    assert ended.stderr.count("error:") == 1
    assert ended.stdout.strip() == ""
    return ended.stderr


def test_the_help_names_the_commands_and_starts_no_spark(firn: Firn) -> None:
    ended = firn("featurize", "--help", timeout_s=60)
    assert ended.returncode == 0
    for name in ("ingest", "run", "describe", "upload", "similar", "sql", "serve", "export"):
        assert name in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "none.toml"], ["none.toml", "No such file"]),
        (
            ["run", "recipe.toml", "--set", "backbone.layr=fc2", "--set", "images.sorce=x"],
            ["2 faults", "`layer`", "`source`"],
        ),
        (["run", "recipe.toml", "--set", "nothing"], ["`overrides` (--set)", "nothing"]),
        (["ingest", "none.toml", "--output", "out"], ["none.toml"]),
        (["ingest", "unknown", "--output", "out"], ["unknown"]),
        (["describe", "nowhere"], ["nowhere", "neither a feature set nor an images table"]),
        (["describe", "s4://bucket/x"], ["s4://bucket/x", "hdfs://"]),
        (["upload", "photos", "hdfs://node:8020/x"], ["hdfs://node:8020/x", "webhdfs://"]),
        (["upload", "none", "webhdfs://node:9870/x"], ["no folder none"]),
    ],
)
def test_a_wrong_call_ends_with_status_2_and_one_message(
    firn: Firn, place: Path, arguments: list[str], words: list[str]
) -> None:
    before = set(place.rglob("*"))
    message = failure(firn("featurize", *arguments, timeout_s=60), 2)
    for word in words:
        assert word in message
    assert set(place.rglob("*")) == before


@pytest.mark.spark
@pytest.mark.slow
def test_ingest_run_and_describe_say_what_they_did(firn: Firn, place: Path) -> None:
    run = result_of(firn("featurize", "run", "recipe.toml", "--json"))
    assert {"features", "rows", "rejects", "skipped", "images_per_second", "seconds"} <= set(run)
    assert run["features"] == f"file://{place}/features"
    assert (run["rows"], run["rejects"], run["skipped"]) == (8, 1, 0)
    assert 0 < run["images_per_second"] <= run["steady_images_per_second"]
    assert min(run["timings"].values()) >= 0  # a network of one layer takes less than a millisecond
    assert min(run["timings"][name] for name in ("startup", "decode", "tasks")) > 0
    assert run["worker_memory_bytes"] > 100 << 20

    ingest = ["featurize", "ingest", "mine.toml", "--output", "images table", "--json"]
    refused = failure(firn(*ingest), 1)
    assert "1 of 9 images could not be read" in refused
    assert "1 x decode: not an image in a known format" in refused
    ingested = firn(*ingest, "--max-reject-fraction", "0.2")
    table = result_of(ingested)
    assert table["skipped"] == 9  # what was read the first time is not read again
    assert (table["rows"], table["rejects"]) == (8, 1)
    assert "not an image in a known format" in ingested.stderr

    described = result_of(firn("featurize", "describe", "features", "--json"))
    assert (described["kind"], described["rows"], described["rejects"]) == ("features", 8, 1)
    assert described["backbone"]["name"] == "mean.keras"
    assert sum(described["rows_per_split"].values()) == 8
    screen = firn("featurize", "describe", "images table").stdout
    assert "images table" in screen
    for word in ("green", "red", "rejects", "all"):
        assert word in screen

    spelled = subprocess.run(
        [
            str(Path(sys.executable).parent / "spark-submit"),
            str(ROOT / "featurize" / "__main__.py"),
            "describe",
            "features",
            "--json",
        ],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYSPARK_PYTHON": sys.executable},
    )
    assert result_of(spelled) == described

    before = {path: path.stat().st_mtime_ns for path in (place / "features").rglob("*")}
    arguments = ["--set", "backbone.preprocessing=tf"]
    message = failure(firn("featurize", "run", "recipe.toml", "--json", *arguments), 2)
    assert "backbone.preprocessing: existing 'none', requested 'tf'" in message
    assert {path: path.stat().st_mtime_ns for path in (place / "features").rglob("*")} == before


@pytest.mark.spark
@pytest.mark.slow
def test_images_that_are_no_use_end_with_one_message_and_no_feature_set(firn: Firn, place: Path) -> None:
    (place / "empty").mkdir()
    shutil.copytree(place / "photos" / "red", place / "one" / "red")
    for label in ("a", "b"):
        (place / "corrupt" / label).mkdir(parents=True)
        (place / "corrupt" / label / "x.jpg").write_bytes(b"no picture")
    cases = {
        "missing": (2, "nothing at"),
        "empty": (2, "no files"),
        "one": (2, "one class only"),
        "corrupt": (1, "2 of 2 images could not be read"),
    }
    for source, (status, words) in cases.items():
        message = failure(firn("featurize", "run", "recipe.toml", "--json", "--set", f"images.source={source}"), status)
        assert words in message
        assert source in message or source == "corrupt"
        assert not (place / "features" / "_delta_log").exists()
        assert (place / "features").exists() == (source == "corrupt")  # whose rejects are kept
