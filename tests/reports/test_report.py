"""Tests of `finetune report`: what the file says, that it needs nothing else, the plain report, and what is refused."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.models.report_folders import HOSTILE, class_names, make_features, train_model, train_sweep
from helpers.tables.feature_sets import write_feature_set
from PIL import Image
from typer.testing import CliRunner, Result

from featurize.pages.thumbnails import MAX_SIDE, read_thumbnails
from featurize.tables.readable import read_features_manifest
from finetune.__main__ import app
from finetune.evaluation.evaluate import evaluate_model
from finetune.reports.judge import find_target, judge
from finetune.reports.sweep import sweep_section
from finetune.scores.calibration import wilson_interval


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`set` of five classes with odd names, its pictures, `model`, `other`, and `sweep` of two rates with three seeds."""
    folder = tmp_path_factory.mktemp("report")
    features = make_features(folder, n_classes=5, rows=400)
    train_model(features, folder / "model", epochs=6)
    train_model(features, folder / "other", epochs=1, seed=7)
    train_sweep(
        features,
        folder / "sweep",
        learning_rate=(0.01, 0.1),
        optimizer=("sgd",),
        failed=[{"training.learning_rate": 9.0, "training.optimizer": "sgd"}],
    )
    return folder


def report(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["report", *arguments], catch_exceptions=False)


def last_json(result: Result) -> dict[str, Any]:
    document = json.loads(result.stdout.splitlines()[-1])
    assert isinstance(document, dict)
    return document


@pytest.fixture(autouse=True)
def in_the_folder_of_the_pictures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def written(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The JSON and the HTML of a report on `model`, with `other` beside it."""
    path = tmp_path_factory.mktemp("written") / "deep" / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = report(folder, "model", "--output", str(path), "--compare", "other", "--json")
    assert result.exit_code == 0, result.output
    return last_json(result), path.read_text()


def test_json_says_the_verdict_as_evaluate_has_it(
    folder: Path, written: tuple[dict[str, Any], str], tmp_path: Path
) -> None:
    said, _ = written
    wanted = evaluate_model(str(folder / "model"), None, "test", str(tmp_path))
    right = round(wanted["accuracy"] * wanted["rows"])
    assert said["accuracy"] == pytest.approx(wanted["accuracy"])
    assert (said["rows"], said["split"], said["kind"]) == (wanted["rows"], "test", "model")
    assert said["accuracy_interval"] == pytest.approx(list(wilson_interval(right, wanted["rows"])))
    assert said["model_id"] == wanted["model_id"]
    assert 0.3 < said["accuracy"] < 0.99
    assert said["baseline_accuracy"] == pytest.approx(0.2, abs=0.12)
    assert len(said["models"]) == 2
    assert said["report"].endswith("/deep/report.html")


def test_the_file_needs_nothing_from_elsewhere(written: tuple[dict[str, Any], str]) -> None:
    _, html = written
    assert "default-src 'none'" in html
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:image/jpeg;base64,|#)""", html)
    assert not re.findall(r"@import|url\(|https?://", html)


def test_what_comes_from_the_data_is_escaped(written: tuple[dict[str, Any], str]) -> None:
    _, html = written
    assert HOSTILE not in html
    assert "&lt;script&gt;alert(&#34;class&#34;)&lt;/script&gt;" in html
    assert "{{ 7 * 7 }}" in html
    data = re.search(r'<script type="application/json" id="matrix-data">(.*?)</script>', html, re.DOTALL)
    assert data is not None
    assert json.loads(data.group(1))["classes"] == class_names(5)


def test_every_section_of_a_model_is_there(written: tuple[dict[str, Any], str]) -> None:
    said, html = written
    for section in ("verdict", "comparison", "learning", "confusion", "classes", "mistakes", "calibration", "data"):
        assert f'<section id="{section}"' in html
    assert '<section id="sweep"' not in html
    assert said["model_id"] in html
    assert f"{100 * said['accuracy']:.1f}\u00a0%" in html


def test_thumbnails_are_small_jpegs_that_keep_their_proportions(written: tuple[dict[str, Any], str]) -> None:
    _, html = written
    images = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    assert images
    ratios = set()
    for image in images:
        with Image.open(io.BytesIO(base64.b64decode(image))) as opened:
            opened.load()
            assert max(opened.size) <= MAX_SIDE
            ratios.add(round(opened.width / opened.height, 1))
    assert ratios <= {2.5, 0.4}


def test_images_that_are_gone_are_said_to_be(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where no folder `photos` is
    result = report(folder, str(folder / "model"), "--output", "report.html", "--no-check-data")
    assert result.exit_code == 0
    html = (tmp_path / "report.html").read_text()
    assert "could not be read from where the features were made: the source no longer lists them" in html
    assert "photos/000" in html
    assert "data:image/jpeg" not in html
    assert '<section id="data"' not in html


def test_a_feature_set_that_names_no_source_gives_no_thumbnails(tmp_path: Path) -> None:
    features = np.eye(3, dtype=np.float32)
    manifest = write_feature_set(tmp_path / "set", features, np.arange(3))
    assert read_thumbnails(manifest, ["photos/1.png"], url=f"file://{tmp_path}/set") == (
        {},
        "the feature set does not say where its images came from",
    )
    assert read_thumbnails(manifest, [], url=f"file://{tmp_path}/set") == ({}, None)


def test_some_images_unreadable_leave_the_others(folder: Path) -> None:
    manifest = read_features_manifest(str(folder / "set"))
    (folder / "photos" / "broken.png").write_bytes(b"no image")
    found, reason = read_thumbnails(manifest, ["photos/00001.png", "photos/broken.png"], url=f"file://{folder}/set")
    assert set(found) == {"photos/00001.png"}
    assert reason


def test_a_report_on_a_sweep(folder: Path, tmp_path: Path) -> None:
    result = report(folder, "sweep", "--output", str(tmp_path / "sweep.html"), "--json", "--title", "Which rate?")
    assert result.exit_code == 0, result.output
    said, html = last_json(result), (tmp_path / "sweep.html").read_text()
    assert (said["kind"], len(said["models"])) == ("sweep", 6)
    for section in ("sweep", "stability", "comparison"):
        assert f'<section id="{section}"' in html
    assert "Which rate?" in html
    assert "loss is nan" in html
    assert html.count("over learning_rate</figcaption>") + html.count("over learning_rate <small>") == 1
    assert "over optimizer" not in html
    assert "All use optimizer sgd." in html


def test_the_first_model_of_a_sweep_is_the_best_trial_of_the_best_setting(folder: Path) -> None:
    target = find_target(str(folder / "sweep"))
    assert target.sweep is not None
    best = target.settings[0]
    metric = target.sweep.metric
    done = [trial for trial in best.trials if trial.state == "done"]
    assert target.candidates[0].url == max(done, key=lambda trial: trial.metrics[metric]).url
    assert [candidate.setting for candidate in target.candidates] == [0, 0, 0, 1, 1, 1]
    section = sweep_section(target.sweep, target.settings)
    assert [row["done"] for row in section["settings"]] == [3, 3, 0]
    assert section["settings"][0]["mean"] == pytest.approx(np.mean([trial.metrics[metric] for trial in done]))
    assert section["settings"][2]["mean_text"] == "failed"


def test_models_are_judged_on_the_same_rows(folder: Path) -> None:
    judged = judge(find_target(str(folder / "model"), [str(folder / "other")]), "validation")
    assert len(judged.paths) == len(judged.label_index) == len(judged.probabilities) == 80
    assert (judged.probabilities.argmax(axis=1) == judged.models[0].predicted).all()
    for model in judged.models:
        assert model.card.metrics["validation_accuracy"] == pytest.approx(model.accuracy)


def test_the_plain_report(folder: Path, tmp_path: Path) -> None:
    result = report(folder, "model", "--plain")
    assert result.exit_code == 0
    wanted = evaluate_model(str(folder / "model"), None, "test", str(tmp_path))
    lines = result.stdout.splitlines()
    mistakes = [line for line in lines if line.startswith("Examples labeled as ")]
    counts = [int(line.rpartition(": ")[2].split()[0]) for line in mistakes]
    assert counts == sorted(counts, reverse=True)
    assert sum(counts) == wanted["rows"] - np.trace(np.array(wanted["confusion_matrix"]))
    first = wanted["most_confused"][0]
    times = "1 time" if first["count"] == 1 else f"{first['count']} times"
    assert mistakes[0] == f"Examples labeled as {first['true']} classified by model as {first['predicted']}: {times}"
    scores = dict(line.split() for line in lines[len(mistakes) + 1 :])
    assert float(scores["accuracy"]) == pytest.approx(wanted["accuracy"], abs=1e-4)
    assert int(scores["rows"]) == wanted["rows"]
    assert not (folder / "report.html").exists()


def test_plain_with_json_leaves_standard_output_to_the_json(folder: Path) -> None:
    result = report(folder, "model", "--plain", "--json")
    assert len(result.stdout.splitlines()) == 1
    assert last_json(result)["report"] is None
    assert "Examples labeled as" in result.stderr


@pytest.mark.parametrize("name", ["set", "nothing"])
def test_what_is_neither_model_nor_sweep_is_refused_naming_both(folder: Path, name: str) -> None:
    result = report(folder, name)
    assert result.exit_code == 2
    for part in ("model.json", "sweep.json", f"/{name}"):
        assert part in result.stderr


def test_a_split_without_rows_is_refused_naming_those_with_rows(folder: Path) -> None:
    result = report(folder, "model", "--split", "holdout")
    assert result.exit_code == 2
    assert "test, train, validation" in result.stderr


def test_a_sweep_without_a_trial_that_is_done_is_refused(folder: Path, tmp_path: Path) -> None:
    card = json.loads((folder / "sweep" / "sweep.json").read_text())
    card["trials"] = [trial for trial in card["trials"] if trial["state"] == "failed"]
    (tmp_path / "sweep.json").write_text(json.dumps(card))
    result = report(folder, str(tmp_path))
    assert result.exit_code == 2
    assert "in which no trial is done" in result.stderr


def test_a_perfect_model_has_a_report_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    features = make_features(tmp_path, n_classes=2, rows=100, spread=0.1, pictures=False)
    train_model(features, tmp_path / "model", epochs=10, learning_rate=0.5)
    result = report(tmp_path, "model", "--output", "perfect.html", "--json")
    assert result.exit_code == 0, result.output
    assert last_json(result)["accuracy"] == 1
    assert "There are no mistakes on this split." in (tmp_path / "perfect.html").read_text()
    assert report(tmp_path, "model", "--plain").stdout.startswith("No mistakes.")
