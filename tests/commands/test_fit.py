"""Tests of the command `finetune`: in one process, as ranks of horovodrun, on Spark; what it prints and how it fails."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.project import Firn
from helpers.tables.claim_files import hold_claim
from helpers.tables.feature_sets import make_clusters, write_feature_set, write_recipe
from typer.testing import CliRunner

from featurize.recipes.training_section import METRICS
from finetune.__main__ import app

FIT_KEYS = {"model", "model_id", "metrics", "epochs", "rows_per_second", "ranks"}
EVALUATE_KEYS = {
    "accuracy", "top5_accuracy", "precision", "recall", "f1", "log_loss", "rows", "confusion_matrix", "classes"
}  # fmt: skip
TRAINING: dict[str, Any] = {"epochs": 3, "batch_size": 32, "learning_rate": 0.05}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `set`, a feature set of an odd number of rows, `recipe.toml`, and what is trained from it in passing."""
    folder = tmp_path_factory.mktemp("command")
    features, label_index = make_clusters(333, dim=9, n_classes=3, spread=3.0)
    write_feature_set(folder / "set", features, label_index)
    write_recipe(folder / "recipe.toml", features="set", model="model", **TRAINING)
    return folder


def call(*arguments: object, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit status and all that was printed, of the command in this process."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=env)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.fixture
def keep_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `call` train in this process, whose TensorFlow has its threads already."""
    monkeypatch.setattr("finetune.ranks.horovod_ranks.set_threads", lambda threads: None)


def last_json(text: str) -> dict[str, Any]:
    """The last line of standard output, freed of what horovodrun puts before it."""
    result: dict[str, Any] = json.loads(re.sub(r"^\[\d+\]<stdout>:", "", text.strip().splitlines()[-1]))
    return result


def json_lines(text: str) -> list[str]:
    """The lines that hold a JSON object."""
    return [line for line in text.splitlines() if re.match(r"(\[\d+\]<stdout>:)?\{", line)]


def horovodrun(*arguments: str, cwd: Path, timeout_s: float = 120) -> "subprocess.CompletedProcess[str]":
    """`finetune` as the two ranks of one launch."""
    program = [sys.executable, str(Path(sys.executable).with_name("horovodrun")), "-np", "2", "--gloo"]
    command = [*program, sys.executable, "-m", "finetune", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout_s, check=False)


@pytest.fixture(scope="module")
def one_rank(folder: Path) -> "subprocess.CompletedProcess[str]":
    """`fit` in one process on batches of 64, into `one`."""
    command = [sys.executable, "-m", "finetune", "fit", "recipe.toml", "--json"]
    command += ["--set", "training.batch_size=64", "--set", "model.url=one"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def assert_same_training(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found["model_id"] == wanted["model_id"]
    assert (found["ranks"], wanted["ranks"]) == (2, 1)
    assert found["epochs"] == wanted["epochs"] == 3
    assert found["metrics"] == pytest.approx(wanted["metrics"], abs=1e-5)


def test_fit_prints_one_json_object_and_progress_elsewhere(
    folder: Path, one_rank: "subprocess.CompletedProcess[str]"
) -> None:
    assert one_rank.returncode == 0, one_rank.stderr
    assert one_rank.stdout.count("\n") == 1
    result = last_json(one_rank.stdout)
    assert set(result) >= FIT_KEYS
    assert result["model"] == f"file://{folder}/one"
    assert set(result["metrics"]) == set(METRICS)
    assert (result["epochs"], result["ranks"], result["reused"]) == (3, 1, False)
    assert len(re.findall(r"^epoch \d/3  loss", one_rank.stderr, flags=re.MULTILINE)) == 3
    assert (folder / "one" / "model.keras").is_file()


def test_fit_again_changes_nothing_and_says_so(folder: Path, one_rank: "subprocess.CompletedProcess[str]") -> None:
    card = (folder / "one" / "model.json").read_bytes()
    arguments = ["--set", f"features.url={folder}/set", "--set", f"model.url={folder}/one", "--json"]
    status, output = call("fit", folder / "recipe.toml", "--set", "training.batch_size=64", *arguments)
    assert status == 0, output
    assert "trained already" in output
    assert last_json(output) == last_json(one_rank.stdout) | {"reused": True}
    assert (folder / "one" / "model.json").read_bytes() == card
    status, output = call("fit", folder / "recipe.toml", "--set", "training.seed=1", *arguments)
    assert status == 2
    assert "--overwrite" in output
    assert (folder / "one" / "model.json").read_bytes() == card


def test_evaluate_prints_the_designed_keys(folder: Path, one_rank: "subprocess.CompletedProcess[str]") -> None:
    assert one_rank.returncode == 0
    status, output = call("evaluate", folder / "one", "--json")
    assert status == 0, output
    result = last_json(output)
    assert set(result) >= EVALUATE_KEYS
    assert result["rows"] == sum(map(sum, result["confusion_matrix"])) == 66
    status, output = call("evaluate", folder / "one", "--split", "train", "--output", folder / "scores")
    assert status == 0
    assert not json_lines(output)
    assert (folder / "scores" / "confusion-train.png").is_file()


@pytest.mark.usefixtures("keep_threads")
def test_overwrite_replaces_a_model(folder: Path) -> None:
    recipe = write_recipe(folder / "first.toml", features=f"{folder}/set", model=f"{folder}/replaced", epochs=1)
    status, first = call("fit", recipe, "--json")
    assert status == 0, first
    status, second = call("fit", recipe, "--json", "--set", "training.seed=9", "--overwrite")
    assert status == 0, second
    result = last_json(second)
    assert result["model_id"] != last_json(first)["model_id"]
    card = json.loads((folder / "replaced" / "model.json").read_text())
    assert (card["model_id"], card["seed"]) == (result["model_id"], 9)
    status, output = call("evaluate", folder / "replaced")
    assert status == 0, output


@pytest.mark.horovod
@pytest.mark.slow
def test_two_ranks_of_horovodrun_give_the_model_of_one(
    folder: Path, one_rank: "subprocess.CompletedProcess[str]"
) -> None:
    done = horovodrun("fit", "recipe.toml", "--json", "--set", "model.url=under_horovodrun", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(json_lines(done.stdout)) == 1
    assert_same_training(last_json(done.stdout), last_json(one_rank.stdout))
    assert len(re.findall(r"epoch \d/3  loss", done.stdout + done.stderr)) == 3
    assert re.search(
        r"memory of a rank: features take [\d.]+ MB; [\d,]+ MB in all at most\.", done.stdout + done.stderr
    )
    assert len(last_json(done.stdout)["memory_of_ranks"]) == 2
    again = horovodrun("fit", "recipe.toml", "--json", "--set", "model.url=under_horovodrun", cwd=folder)
    assert again.returncode == 0, again.stdout + again.stderr
    assert len(json_lines(again.stdout)) == 1, "rank 0 alone speaks, also of a model that is there already"
    assert last_json(again.stdout)["reused"] is True


@pytest.mark.horovod
@pytest.mark.spark
@pytest.mark.slow
def test_two_ranks_on_spark_give_the_model_of_one(
    folder: Path, firn: Firn, one_rank: "subprocess.CompletedProcess[str]"
) -> None:
    arguments = ("fit", "recipe.toml", "--json", "--num-proc", "2", "--set", "model.url=on_spark")
    done = firn("finetune", *arguments, cwd=folder, timeout_s=150)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n") == 1
    result = last_json(done.stdout)
    assert set(result) >= FIT_KEYS
    assert_same_training(result, last_json(one_rank.stdout))
    assert result["model"] == f"file://{folder}/on_spark"
    again = firn("finetune", *arguments, cwd=folder)
    assert last_json(again.stdout) == result | {"reused": True}


@pytest.mark.horovod
@pytest.mark.slow
def test_failure_of_rank_0_alone_ends_all_ranks_of_horovodrun_with_one_message(folder: Path) -> None:
    hold_claim(folder / "held")
    done = horovodrun("fit", "recipe.toml", "--set", "model.url=held", cwd=folder)
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert output.count("is being written by process") == 1
    of_ranks = [line for line in output.splitlines() if re.match(r"\[\d\]<std(out|err)>:", line)]
    assert not [line for line in of_ranks if "Traceback" in line], output


@pytest.mark.horovod
@pytest.mark.spark
@pytest.mark.slow
def test_failure_of_rank_0_alone_on_spark_is_one_message(folder: Path, firn: Firn) -> None:
    hold_claim(folder / "held_on_spark")
    done = firn("finetune", "fit", "recipe.toml", "--num-proc", "2", "--set", "model.url=held_on_spark", cwd=folder)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(re.findall(r"error:.*is being written by process", done.stderr)) == 1, done.stderr
    assert "Traceback" not in done.stderr


def assert_refused(outcome: tuple[int, str], *parts: str, status: int = 2) -> None:
    """One error message with these parts, and no trace."""
    found, output = outcome
    assert found == status, output
    assert "Traceback" not in output
    assert output.lower().count("error:") + output.count("─ Error ─") == 1, output
    for part in parts:
        assert part in output


def test_missing_recipe_is_named(tmp_path: Path) -> None:
    assert_refused(call("fit", tmp_path / "none.toml"), f"{tmp_path}/none.toml", "No such file")
    assert_refused(call("fit", tmp_path), "cannot be read")


def test_all_wrong_keys_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(
        '[features]\nurl = "set"\n[model]\nname = "softmax"\nurl = 3\n[training]\nepoch = 3\nlearning_rate = -1.0\n'
        'batch_size = 0\nmomentum = 1.5\noptimizer = "sdg"\n[trainning]\n'
    )
    outcome = call("fit", tmp_path / "recipe.toml")
    keys = (
        "model.name",
        "model.url",
        "training.epoch",
        "learning_rate",
        "batch_size",
        "momentum",
        "optimizer",
        "trainning",
    )
    assert_refused(outcome, *keys, "did you mean `epochs`", "8 faults")


@pytest.mark.parametrize("section", ["features", "model"])
def test_missing_section_is_named(tmp_path: Path, section: str) -> None:
    other = {"features": "model", "model": "features"}[section]
    (tmp_path / "recipe.toml").write_text(f'[{other}]\nurl = "x"\n')
    assert_refused(call("fit", tmp_path / "recipe.toml"), f"[{section}] is missing")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_learning_rate_that_is_no_finite_number_is_refused(folder: Path, value: str) -> None:
    assert_refused(call("fit", folder / "recipe.toml", "--set", f"training.learning_rate={value}"), "learning_rate")


def test_missing_feature_set_is_named(folder: Path, tmp_path: Path) -> None:
    outcome = call("fit", folder / "recipe.toml", "--set", f"features.url={tmp_path}/none")
    assert_refused(outcome, f"{tmp_path}/none is not a feature set", "featurize run")


def test_unknown_scheme_is_named(folder: Path) -> None:
    assert_refused(call("fit", folder / "recipe.toml", "--set", "features.url=ftp://host/set"), "ftp://host/set")


def test_num_proc_under_horovodrun_is_refused(folder: Path) -> None:
    env = {"HOROVOD_RANK": "0", "HOROVOD_SIZE": "2"}
    assert_refused(call("fit", folder / "recipe.toml", "--num-proc", "2", env=env), "--num-proc", "horovodrun")


@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_num_proc_must_be_a_number_of_ranks(folder: Path, number: str) -> None:
    assert_refused(call("fit", folder / "recipe.toml", "--num-proc", number))


@pytest.mark.usefixtures("keep_threads")
def test_seed_that_numpy_cannot_take_is_refused(folder: Path) -> None:
    recipe = (
        "--set",
        f"features.url={folder}/set",
        "--set",
        f"model.url={folder}/negative",
        "--set",
        "training.seed=-1",
    )
    assert_refused(call("fit", folder / "recipe.toml", *recipe), "seed")
    assert not (folder / "negative").exists()


def test_evaluate_names_what_is_missing(folder: Path, tmp_path: Path) -> None:
    assert_refused(call("evaluate", tmp_path / "none"), f"there is no model {tmp_path}/none", "finetune fit")
    assert_refused(call("evaluate", folder / "set"), "it is not a folder with model.json")


def test_evaluate_names_splits_with_rows(folder: Path, one_rank: "subprocess.CompletedProcess[str]") -> None:
    assert one_rank.returncode == 0
    assert_refused(call("evaluate", folder / "one", "--split", "tset"), "'tset' has no rows", "test, train, validation")


def test_evaluate_refuses_a_damaged_model(
    folder: Path, tmp_path: Path, one_rank: "subprocess.CompletedProcess[str]"
) -> None:
    assert one_rank.returncode == 0
    (tmp_path / "model.json").write_bytes((folder / "one" / "model.json").read_bytes())
    (tmp_path / "model.keras").write_bytes(b"other")
    assert_refused(call("evaluate", tmp_path), "SHA-256 differs", status=1)


@pytest.mark.usefixtures("keep_threads")
def test_file_in_the_place_of_the_model_is_refused_also_with_overwrite(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("years of work")
    arguments = ("--set", f"features.url={folder}/set", "--set", f"model.url={tmp_path}/file")
    assert_refused(call("fit", folder / "recipe.toml", *arguments), "file")
    assert_refused(call("fit", folder / "recipe.toml", *arguments, "--overwrite"), "file")
    assert (tmp_path / "file").read_text() == "years of work"


@pytest.mark.usefixtures("keep_threads")
def test_foreign_folder_is_refused_also_with_overwrite(folder: Path, tmp_path: Path) -> None:
    """--overwrite replaces a model, as its help says; it does not put one among somebody's files."""
    (tmp_path / "thesis.tex").write_text("years of work")
    arguments = ("--set", f"features.url={folder}/set", "--set", f"model.url={tmp_path}")
    assert_refused(call("fit", folder / "recipe.toml", *arguments), "holds no model")
    assert_refused(call("fit", folder / "recipe.toml", *arguments, "--overwrite"), "holds no model")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_version_and_help() -> None:
    status, output = call("--version")
    assert (status, output.split()[0]) == (0, "firn")
    assert call("fit", "--help")[0] == 0
