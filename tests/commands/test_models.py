"""Tests of `finetune models` and of models by name, on real SQLite stores: list, compare, promote, archive, resolve."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.models.logged_models import client_of, registry_in, runs_of, train_model, write_clusters
from typer.testing import CliRunner

from featurize.errors import JobError, UsageError
from featurize.recipes.recipe import RegistrySettings
from finetune.__main__ import app
from finetune.evaluation.evaluate import evaluate_model
from finetune.registry.client import ENVIRONMENT
from finetune.registry.log_model import log_fit
from finetune.registry.resolve import resolve_model

RATES = {"slow": 0.05, "fast": 0.2}


class Store:
    """A registry with two models, `slow`, which is evaluated, and `fast`; of its own for every test."""

    def __init__(self, folder: Path, source: Path) -> None:
        self.folder = folder
        self.settings: RegistrySettings = registry_in(folder)
        self.runs = dict[str, str]()
        for name in RATES:
            shutil.copytree(source / name, folder / name)
            logged = log_fit(str(folder / name), self.settings)
            assert logged is not None
            self.runs[name] = logged.run_id

    def call(self, *arguments: str) -> tuple[int, str]:
        """Exit status and all that `finetune models` printed."""
        result = CliRunner().invoke(app, ["models", *arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output

    def ask(self, *arguments: str) -> Any:
        """The result of `finetune models --json`."""
        status, said = self.call(*arguments, "--json")
        assert status == 0, said
        return json.loads(said.strip().splitlines()[-1])

    def listed(self, *arguments: str) -> list[str]:
        return [model["run_id"] for model in self.ask("list", *arguments)["models"]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_clusters(folder / "set")
    for name, rate in RATES.items():
        train_model(folder / "set", folder / name, learning_rate=rate)
    evaluate_model(str(folder / "slow"), None, "test", None)
    return folder


@pytest.fixture
def store(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv(ENVIRONMENT, f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return Store(tmp_path, source)


def test_the_newest_model_is_listed_first_with_its_scores_and_aliases(store: Store) -> None:
    store.ask("promote", "slow", "--alias", "champion", "--name", "letters")
    fast, slow = store.ask("list")["models"]
    assert (fast["run_id"], slow["run_id"]) == (store.runs["fast"], store.runs["slow"])
    assert slow["versions"] == [{"name": "letters", "version": "1", "aliases": ["champion"]}]
    assert slow["model"] == (store.folder / "slow").as_uri()
    assert slow["metrics"]["test/accuracy"] > 0.4
    status, said = store.call("list")
    assert status == 0
    for part in (store.runs["slow"], "letters 1 @champion", f"{slow['metrics']['test/accuracy']:.4f}"):
        assert part in said, said


def test_list_takes_one_experiment_and_names_those_there_are(store: Store) -> None:
    assert store.listed("--experiment", "firn") == [store.runs["fast"], store.runs["slow"]]
    status, said = store.call("list", "--experiment", "other")
    assert (status, "'other'" in said, "firn" in said) == (2, True, True)


def test_compare_tells_settings_and_scores_apart(store: Store) -> None:
    store.ask("promote", "fast", "--alias", "challenger", "--name", "letters")
    for one, other in (("slow", "fast"), (store.runs["slow"], "letters@challenger")):
        result = store.ask("compare", one, other)
        assert result["settings"] == {"training.learning_rate": ["0.05", "0.2"]}
        assert result["metrics"]["test/accuracy"][0] > 0.4
        assert result["metrics"]["test/accuracy"][1] is None
    by_folder, by_run = store.ask("compare", "slow", "fast"), store.ask("compare", *store.runs.values())
    assert by_folder == by_run
    assert "training.learning_rate" in store.call("compare", "slow", "fast")[1]


def test_an_alias_goes_from_model_to_model(store: Store) -> None:
    first = store.ask("promote", "slow", "--alias", "champion", "--name", "letters")
    second = store.ask("promote", store.runs["fast"], "--alias", "champion", "--name", "letters")
    again = store.ask("promote", "letters@champion", "--alias", "champion")
    assert [result["version"] for result in (first, second, again)] == ["1", "2", "2"]
    assert [result["previous_version"] for result in (first, second, again)] == [None, "1", None]
    assert resolve_model("letters@champion") == (store.folder / "fast").as_uri()


def test_promote_takes_the_name_of_the_experiment_and_logs_what_was_not(store: Store, source: Path) -> None:
    train_model(source / "set", store.folder / "new", learning_rate=0.3)
    result = store.ask("promote", "new", "--alias", "challenger")
    assert (result["name"], result["aliases"]) == ("firn", ["challenger"])
    assert result["run_id"] in store.listed()


@pytest.mark.parametrize("alias", ["latest", "v1", ""])
def test_an_alias_that_mlflow_does_not_allow_is_a_wrong_call(store: Store, alias: str) -> None:
    status, said = store.call("promote", "slow", "--alias", alias)
    assert status == 2, said
    assert "alias" in said.lower()


def test_archived_models_are_not_listed_and_come_back_when_promoted(store: Store) -> None:
    assert store.ask("archive", "slow") == {"run_id": store.runs["slow"], "aliases_taken_away": []}
    assert store.listed() == [store.runs["fast"]]
    assert store.listed("--all") == [store.runs["fast"], store.runs["slow"]]
    store.ask("promote", "slow", "--alias", "champion")
    assert store.runs["slow"] in store.listed()


def test_a_champion_is_archived_by_force_only(store: Store) -> None:
    store.ask("promote", "slow", "--alias", "champion")
    status, said = store.call("archive", "slow")
    assert (status, "firn@champion" in said) == (2, True), said
    assert store.ask("archive", "firn@champion", "--force")["aliases_taken_away"] == ["firn@champion"]
    assert store.listed() == [store.runs["fast"]]
    with pytest.raises(UsageError, match="without the alias champion"):
        resolve_model("firn@champion")


def test_a_model_is_found_by_folder_run_id_and_alias(store: Store) -> None:
    store.ask("promote", "slow", "--alias", "champion")
    assert resolve_model("slow") == "slow"
    assert resolve_model("not/there@all") == "not/there@all"  # can be nothing but a folder
    assert resolve_model(store.runs["fast"]) == (store.folder / "fast").as_uri()
    assert resolve_model("firn@champion") == (store.folder / "slow").as_uri()
    (store.folder / "slow").rename(store.folder / "firn@champion")
    assert resolve_model("firn@champion") == "firn@champion"


def test_an_unknown_name_is_answered_by_what_there_is(store: Store) -> None:
    store.ask("promote", "slow", "--alias", "champion", "--name", "letters")
    for text in ("digits@champion", "letters@challenger", "0" * 32):
        with pytest.raises(UsageError, match=f"there is no model {text}.*letters@champion"):
            resolve_model(text)
    assert store.call("compare", "slow", "digits@champion")[0] == 2
    status, said = store.call("archive", "nowhere")
    assert (status, "there is no model nowhere" in said) == (2, True), said


def test_an_alias_whose_folder_is_gone_or_replaced_gives_the_logged_copy(store: Store) -> None:
    store.ask("promote", "slow", "--alias", "champion")
    wanted = evaluate_model("slow", None, "test", None)
    shutil.rmtree(store.folder / "slow")
    shutil.copytree(store.folder / "fast", store.folder / "slow")  # another model in its place
    copy = resolve_model("firn@champion")
    assert copy.startswith((store.folder / "cache").as_uri())
    found = evaluate_model(copy, None, "test", None)
    assert found["model_id"] == wanted["model_id"]
    assert found["confusion_matrix"] == wanted["confusion_matrix"]
    shutil.rmtree(store.folder / "mlartifacts")
    assert resolve_model("firn@champion") == copy
    shutil.rmtree(store.folder / "cache")
    with pytest.raises(JobError, match="is gone, and so is its copy"):
        resolve_model("firn@champion")


def test_an_alias_of_a_deleted_run_is_stale(store: Store) -> None:
    store.ask("promote", "slow", "--alias", "champion")
    client_of(store.settings).delete_run(store.runs["slow"])
    with pytest.raises(UsageError, match=r"there is no model firn@champion: run .* was deleted"):
        resolve_model("firn@champion")
    assert [run.info.run_id for run in runs_of(store.settings)] == [store.runs["fast"]]


def test_evaluate_takes_an_alias_and_logs_to_its_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.ask("promote", "fast", "--alias", "champion")
    result = CliRunner().invoke(app, ["evaluate", "firn@champion", "--split", "validation", "--json"])
    assert result.exit_code == 0, result.output
    (run,) = (run for run in runs_of(store.settings) if run.info.run_id == store.runs["fast"])
    assert f'"accuracy": {run.data.metrics["validation/accuracy"]}' in result.output


def test_the_registry_can_be_named_on_the_command_line(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT)
    status, said = store.call("list")
    assert (status, "there is no registry" in said) == (2, True), said
    assert len(store.listed("--registry", "sqlite:///mlflow.db")) == 2
