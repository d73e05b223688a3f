"""Tests of finetune.registry.client and its kin on real SQLite stores: what is logged, once, by whom, and what goes wrong."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from helpers.models.logged_models import (
    client_of,
    free_port,
    make_recipe,
    registry_in,
    runs_of,
    train_model,
    write_clusters,
)

from featurize.errors import JobError, UsageError
from featurize.recipes.recipe import FinetuneRecipe, RegistrySettings
from featurize.recipes.toml_settings import check_settings
from finetune.api.evaluating import evaluate
from finetune.evaluation.evaluate import evaluate_model
from finetune.models.folder import read_model_card
from finetune.registry.client import (
    ENVIRONMENT,
    absolute_registry,
    check_registry,
    open_registry,
    registry_at,
    shown,
    used_registry,
)
from finetune.registry.log_model import (
    RECORD_NAME,
    log_evaluation,
    log_fit,
    log_to,
    registry_for_evaluations,
    write_record,
)
from finetune.registry.run_values import flat_settings, recipe_toml
from finetune.registry.versions import logged_model_of
from finetune.training.plan import plan_training

TIMEOUT_S = 240
LOG_IT = (
    "import sys; from featurize.recipes.recipe import RegistrySettings; from finetune.registry.log_model import log_fit; "
    "print(log_fit(sys.argv[1], RegistrySettings(url=sys.argv[2], name='shared')).run_id)"
)


class Trained:
    """A feature set and a model on it; do not change what is in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.set = write_clusters(folder / "set")
        self.card = train_model(self.set, folder / "model")

    def copy_to(self, folder: Path) -> str:
        """The model in a folder of its own, which may be changed."""
        shutil.copytree(self.folder / "model", folder)
        return str(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("registry"))


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No registry but those that a test names, and no cache but its own."""
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def files_of_run(settings: RegistrySettings, run_id: str, folder: str | None = None) -> set[str]:
    return {file.path for file in client_of(settings).list_artifacts(run_id, folder) if not file.is_dir}


def test_a_run_has_the_settings_every_epoch_the_features_and_the_model(trained: Trained, tmp_path: Path) -> None:
    model, settings = trained.copy_to(tmp_path / "model"), registry_in(tmp_path, experiment="a/b ä")
    logged = log_fit(model, settings)
    assert logged is not None
    (run,) = runs_of(settings)
    assert (run.info.run_id, run.info.status, logged.is_new) == (logged.run_id, "FINISHED", True)
    assert run.data.params == flat_settings(trained.card)
    assert {"training.learning_rate": "0.05", "model.name": "softmax_head"}.items() <= run.data.params.items()
    history = client_of(settings).get_metric_history(run.info.run_id, "validation_loss")
    found = {point.step: point.value for point in history}
    assert found == {int(entry["epoch"]): entry["validation_loss"] for entry in trained.card.history}
    assert run.data.metrics["best_validation_accuracy"] == trained.card.metrics["validation_accuracy"]
    assert run.inputs is not None
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.name == "set"
    assert json.loads(dataset.dataset.source)["identity"] == trained.card.features.identity
    assert files_of_run(settings, run.info.run_id) == {"model.json", "recipe.toml", "history.png"}
    assert run.info.artifact_uri.startswith((tmp_path / "mlartifacts").as_uri())
    assert logged_model_of(run) is not None


def test_without_a_registry_nothing_is_logged_and_mlflow_is_not_imported(trained: Trained) -> None:
    code = (
        "import sys, finetune.__main__; from finetune.registry.log_model import log_evaluation, log_fit; "
        "found = log_fit(sys.argv[1], None), log_evaluation(sys.argv[1], {}); "
        "print(found, [name for name in ('mlflow', 'sqlalchemy', 'tensorflow', 'pyspark') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(trained.folder / "model")]
    environment = {key: value for key, value in os.environ.items() if key != ENVIRONMENT}
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True, env=environment)
    assert done.stdout.strip() == "(None, None) []"


def test_the_same_model_is_logged_once_wherever_it_lies(trained: Trained, tmp_path: Path) -> None:
    settings = registry_in(tmp_path, name="letters")
    models = [trained.copy_to(tmp_path / name) for name in ("one", "two")]
    logged = [log_fit(model, settings) for model in (models[0], models[0], models[1])]
    (run,) = runs_of(settings)
    assert [one.is_new for one in logged if one] == [True, False, False]
    assert {one.run_id for one in logged if one} == {run.info.run_id}
    assert {one.version for one in logged if one} == {"1"}
    client = client_of(settings)
    assert len(client.search_logged_models([run.info.experiment_id])) == 1
    assert len(client.search_model_versions()) == 1
    assert len(client.get_metric_history(run.info.run_id, "loss")) == len(trained.card.history)


@pytest.mark.slow
@pytest.mark.parametrize("names", [("one", "one"), ("one", "two")])
def test_two_who_log_the_same_model_at_once_make_one_run(
    trained: Trained, tmp_path: Path, names: tuple[str, str]
) -> None:
    models = {name: trained.copy_to(tmp_path / name) for name in sorted(set(names))}
    settings = registry_in(tmp_path)
    commands = [[sys.executable, "-c", LOG_IT, models[name], str(settings.url)] for name in names]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands
    ]
    said = [process.communicate(timeout=TIMEOUT_S) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    (run,) = runs_of(settings.model_copy(update={"experiment": "firn"}))
    assert [out.split()[-1] for out, _ in said] == [run.info.run_id] * 2
    client = client_of(settings)
    assert len(client.search_logged_models([run.info.experiment_id])) == 1
    assert [version.version for version in client.search_model_versions("name = 'shared'")] in (["1"], [1])


def test_a_registry_that_cannot_be_used_is_refused_before_the_training(tmp_path: Path) -> None:
    text = tmp_path / "text.db"
    text.write_text("no database")
    for url, words in (
        (f"http://127.0.0.1:{free_port()}", "no answer from"),
        (f"sqlite:///{text}", "is no SQLite file"),
    ):
        with pytest.raises(UsageError, match=f"^nothing was trained, as it could not be logged: .*{words}"):
            check_registry(RegistrySettings(url=url))
    new = tmp_path / "new.db"
    check_registry(RegistrySettings(url=f"sqlite:///{new}"))
    assert not new.exists()


def test_a_server_that_does_not_answer_costs_no_model_and_logging_is_made_up_for(
    trained: Trained, tmp_path: Path
) -> None:
    model, port = trained.copy_to(tmp_path / "model"), free_port()
    with pytest.raises(JobError) as caught:
        log_fit(model, RegistrySettings(url=f"http://127.0.0.1:{port}"))
    for part in ("model is published", f"no answer from 127.0.0.1:{port}", "Run `finetune fit` again"):
        assert part in str(caught.value)
    assert read_model_card(model) == trained.card
    logged = log_fit(model, registry_in(tmp_path))
    assert logged is not None
    assert logged.is_new


def test_what_was_cut_short_is_completed_in_the_same_run(trained: Trained, tmp_path: Path) -> None:
    model, settings = trained.copy_to(tmp_path / "model"), registry_in(tmp_path)
    (tmp_path / "mlartifacts").write_text("a file where a folder should be")
    with pytest.raises(JobError, match=r"is published, but logging it .* failed"):
        log_fit(model, settings)
    (run,) = runs_of(settings)
    assert (run.info.status, logged_model_of(run)) == ("RUNNING", None)
    (tmp_path / "mlartifacts").unlink()
    logged = log_fit(model, settings)
    (completed,) = runs_of(settings)
    assert logged is not None
    assert (completed.info.run_id, completed.info.status) == (run.info.run_id, "FINISHED")
    assert logged_model_of(completed) is not None
    assert "recipe.toml" in files_of_run(settings, completed.info.run_id)


def test_a_file_that_is_no_database_is_an_error_in_words(trained: Trained, tmp_path: Path) -> None:
    model = trained.copy_to(tmp_path / "model")
    (tmp_path / "mlflow.db").write_text(
        "no database, but text that is longer than the header of one, a hundred bytes of it"
    )
    with pytest.raises(JobError, match=r"is published, but logging it .*mlflow.db.* failed"):
        log_fit(model, registry_in(tmp_path))


def test_evaluations_are_logged_where_the_model_was(trained: Trained, tmp_path: Path) -> None:
    model, settings = trained.copy_to(tmp_path / "model"), registry_in(tmp_path)
    log_fit(model, settings)
    result = evaluate_model(model, None, "test", str(tmp_path / "elsewhere"))
    logged = log_evaluation(model, result, registry=settings)
    assert logged is not None
    (run,) = runs_of(settings)
    assert run.data.metrics["test/accuracy"] == result["accuracy"]
    names = {"evaluation-test.json", "confusion-test.csv", "confusion-test.png"}
    assert files_of_run(settings, run.info.run_id, "evaluation") == {f"evaluation/{name}" for name in names}


def test_evaluations_on_other_features_are_told_apart(trained: Trained, tmp_path: Path) -> None:
    model, settings = trained.copy_to(tmp_path / "model"), registry_in(tmp_path)
    log_fit(model, settings)
    shutil.copytree(trained.set, tmp_path / "other")
    log_evaluation(model, evaluate_model(model, None, "test", None), registry=settings)
    result = evaluate_model(model, str(tmp_path / "other"), "test", str(tmp_path / "out"))
    log_evaluation(model, result, registry=settings)
    (run,) = runs_of(settings)
    prefixes = {key.removesuffix("test/accuracy") for key in run.data.metrics if key.endswith("test/accuracy")}
    (other,) = prefixes - {""}
    assert len(prefixes) == 2
    assert run.data.tags[f"firn.{other.rstrip('/')}"] == (tmp_path / "other").as_uri()


def test_evaluations_of_before_are_logged_with_the_model(trained: Trained, tmp_path: Path) -> None:
    model, settings = trained.copy_to(tmp_path / "model"), registry_in(tmp_path)
    result = evaluate_model(model, None, "validation", None)
    assert log_evaluation(model, result) is None
    log_fit(model, settings)
    (run,) = runs_of(settings)
    assert run.data.metrics["validation/f1"] == result["f1"]


def test_the_identity_of_a_model_does_not_know_the_registry(trained: Trained, tmp_path: Path) -> None:
    plain = make_recipe(trained.set, tmp_path / "model")
    with_registry = plain.model_copy(update={"registry": registry_in(tmp_path, name="letters")})
    assert plan_training(plain, ranks=1).model_id == plan_training(with_registry, ranks=1).model_id
    assert with_registry.model_dump() == plain.model_dump()


def test_the_recipe_that_is_logged_gives_the_model_again(trained: Trained) -> None:
    odd = {**trained.card.recipe, "training": {**trained.card.recipe["training"], "class_weights": {'an "ant"': 2.0}}}
    for recipe in (trained.card.recipe, odd):
        card = trained.card.model_copy(update={"recipe": recipe})
        found = check_settings(FinetuneRecipe, tomllib.loads(recipe_toml(card)), origin="test")
        assert found.model_dump() == check_settings(FinetuneRecipe, recipe, origin="test").model_dump()


def test_settings_are_flat_and_keys_of_a_user_stay_together(trained: Trained) -> None:
    weights = {'an "ant"': 2.0, "bee": 1.0}
    recipe = {"training": {"class_weights": weights, "epochs": 3}, "model": {"options": {"units": 8}, "head": None}}
    flat = flat_settings(trained.card.model_copy(update={"recipe": recipe}))
    assert flat["model.options.units"] == "8"
    assert "model.head" not in flat
    assert json.loads(flat["training.class_weights"]) == weights


def test_the_recipe_comes_before_the_environment_and_both_before_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    default = f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert used_registry(None) is None
    assert registry_at(RegistrySettings()).url == default
    monkeypatch.setenv(ENVIRONMENT, "http://server:5000")
    assert [used.url for one in (None, RegistrySettings()) if (used := used_registry(one))] == [
        "http://server:5000"
    ] * 2
    used = used_registry(RegistrySettings(url="sqlite:///mine.db"))
    assert used is not None
    assert used.url == absolute_registry("sqlite:///mine.db") == f"sqlite:///{tmp_path}/mine.db"


def test_looking_makes_no_database(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no registry"):
        open_registry(f"sqlite:///{tmp_path / 'none.db'}")
    assert not list(tmp_path.glob("*.db"))


def test_a_password_is_neither_shown_nor_kept(trained: Trained, tmp_path: Path) -> None:
    url = f"postgresql://firn:secret@127.0.0.1:{free_port()}/models"
    assert shown(url) == url.replace("secret", "***")
    model = trained.copy_to(tmp_path / "model")
    with pytest.raises(JobError) as caught:
        log_fit(model, RegistrySettings(url=url))
    assert "secret" not in str(caught.value)
    assert not (tmp_path / "model" / RECORD_NAME).exists()


def test_a_record_never_holds_a_password(trained: Trained, tmp_path: Path) -> None:
    model = trained.copy_to(tmp_path / "model")
    settings = RegistrySettings(url="postgresql://firn:secret@127.0.0.1/models", experiment="mine")
    write_record(model, settings, model_id=trained.card.model_id, run_id="0" * 32)
    assert "secret" not in (tmp_path / "model" / RECORD_NAME).read_text()


def test_evaluations_go_to_the_registry_that_the_caller_names_and_to_no_other(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = trained.copy_to(tmp_path / "model")
    usual = absolute_registry(None)
    assert registry_for_evaluations(model) is None
    for url, expected in ((usual, usual), ("http://foreign:5000", None), ("sqlite:////foreign/mlflow.db", None)):
        write_record(model, RegistrySettings(url=url), model_id=trained.card.model_id, run_id="0" * 32)
        found = registry_for_evaluations(model)
        assert (None if found is None else found.url) == expected
    monkeypatch.setenv(ENVIRONMENT, "http://server:5000")
    for named, expected in (
        (None, "http://server:5000"),
        (RegistrySettings(url="http://mine:5000"), "http://mine:5000"),
    ):
        found = registry_for_evaluations(model, named)
        assert found is not None
        assert (found.url, found.experiment) == (expected, "firn")


def test_a_received_model_sends_nothing_to_the_registry_that_it_names(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = trained.copy_to(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        write_record(model, RegistrySettings(url=url), model_id=trained.card.model_id, run_id="0" * 32)
        assert evaluate(model).logged is None
        listener.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listener.accept()
    assert url in capsys.readouterr().err.replace("\n", "")


def test_files_that_an_evaluation_names_are_not_sent_to_the_registry(trained: Trained, tmp_path: Path) -> None:
    model, settings = trained.copy_to(tmp_path / "model"), registry_in(tmp_path)
    evaluate_model(model, None, "test", None)
    (tmp_path / "private.txt").write_text("private")
    evaluation = tmp_path / "model" / "evaluation-test.json"
    document = json.loads(evaluation.read_text())
    evaluation.write_text(json.dumps({**document, "files": {"table": (tmp_path / "private.txt").as_uri()}}))
    logged = log_to(model, settings)
    names = {"evaluation-test.json", "confusion-test.csv", "confusion-test.png"}
    assert files_of_run(settings, logged.run_id, "evaluation") == {f"evaluation/{name}" for name in names}
    evaluation.write_text(json.dumps({**document, "split": "../../x"}))
    with pytest.raises(JobError, match=r"evaluation-test\.json is damaged: split"):
        log_to(model, settings)
    evaluation.write_text(json.dumps({**document, "schema_version": 2}))
    with pytest.raises(JobError, match=r"evaluation-test\.json has schema version 2"):
        log_to(model, settings)


def test_an_experiment_that_was_deleted_is_named(trained: Trained, tmp_path: Path) -> None:
    model, settings = trained.copy_to(tmp_path / "model"), registry_in(tmp_path)
    log_fit(model, settings)
    client = client_of(settings)
    experiment = client.get_experiment_by_name("firn")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    with pytest.raises(JobError, match="'firn' was deleted"):
        log_fit(model, settings)
