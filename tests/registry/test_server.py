"""Tests of the registry on a real MLflow tracking server, and of who logs when there are several ranks."""

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.models.logged_models import client_of, free_port, post, registry_in, running, runs_of, write_clusters
from helpers.project import Firn
from helpers.tables.feature_sets import write_recipe

from featurize.recipes.recipe import RegistrySettings
from finetune.registry.resolve import resolve_model
from finetune.registry.versions import logged_model_of

pytestmark = pytest.mark.slow
TRAINING = {"epochs": 2, "batch_size": 32, "learning_rate": 0.05}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a tracking server that keeps the artifacts itself."""
    folder, url = tmp_path_factory.mktemp("server"), f"http://127.0.0.1:{free_port()}"
    arguments = ["server", "--backend-store-uri", f"sqlite:///{folder}/server.db", "--host", "127.0.0.1"]
    arguments += [
        "--artifacts-destination",
        str(folder / "artifacts"),
        "--workers",
        "1",
        "--port",
        url.rsplit(":", 1)[1],
    ]
    with running(arguments, folder, f"{url}/health"):
        yield url


def test_fit_and_evaluate_log_to_a_server_and_models_come_back_from_it(
    server: str, firn: Firn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clusters(tmp_path / "set")
    write_recipe(tmp_path / "recipe.toml", features="set", model="model", **TRAINING)
    with_server = ["--set", f"registry.url={server}", "--set", "registry.name=letters"]
    done = firn("finetune", "fit", "recipe.toml", "--json", *with_server)
    assert done.returncode == 0, done.stderr
    assert f"of experiment firn in {server}" in done.stderr
    done = firn("finetune", "evaluate", "model", "--json", "--registry", server)
    assert done.returncode == 0, done.stderr
    accuracy = json.loads(done.stdout.splitlines()[-1])["accuracy"]
    settings = RegistrySettings(url=server)
    (run,) = runs_of(settings)
    assert run.data.metrics["test/accuracy"] == accuracy
    assert logged_model_of(run) is not None
    done = firn("finetune", "models", "promote", "model", "--alias", "champion", "--registry", server)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(tmp_path / "model")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    copy = resolve_model("letters@champion", registry=server)
    assert copy.startswith((tmp_path / "cache").as_uri())
    status, found = post(
        f"{server}/ajax-api/2.0/mlflow/runs/search", {"experiment_ids": [run.info.experiment_id], "max_results": 5}
    )
    assert (status, [one["info"]["run_id"] for one in found["runs"]]) == (200, [run.info.run_id])
    with urllib.request.urlopen(f"{server}/", timeout=30) as page:  # what a browser gets
        assert b"<html" in page.read()


def test_a_server_that_is_not_there_is_refused_before_the_training(firn: Firn, tmp_path: Path) -> None:
    write_clusters(tmp_path / "set")
    write_recipe(tmp_path / "recipe.toml", features="set", model="model", **TRAINING)
    there = ["--set", f"registry.url=http://127.0.0.1:{free_port()}"]
    done = firn("finetune", "fit", "recipe.toml", "--json", *there)
    assert (done.returncode, done.stdout) == (2, "")
    assert "nothing was trained, as it could not be logged" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "model").exists()


def test_a_registry_that_fails_costs_no_model_and_the_same_command_logs_it(firn: Firn, tmp_path: Path) -> None:
    write_clusters(tmp_path / "set")
    write_recipe(tmp_path / "recipe.toml", features="set", model="model", **TRAINING)
    (tmp_path / "mlartifacts").write_text("a file where a folder should be")
    command = ("finetune", "fit", "recipe.toml", "--json", "--set", "registry.url=sqlite:///mlflow.db")
    done = firn(*command)
    assert done.returncode == 1
    assert "is published, but logging it" in done.stderr
    assert "Traceback" not in done.stderr
    model_id = json.loads(done.stdout.splitlines()[-1])["model_id"]
    (tmp_path / "mlartifacts").unlink()
    done = firn(*command)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["reused"]
    (run,) = runs_of(registry_in(tmp_path))
    assert run.data.tags["firn.model_id"] == model_id


@pytest.mark.horovod
def test_of_two_ranks_one_logs(tmp_path: Path) -> None:
    write_clusters(tmp_path / "set")
    write_recipe(tmp_path / "recipe.toml", features="set", model="model", **TRAINING)
    program = [sys.executable, str(Path(sys.executable).with_name("horovodrun")), "-np", "2", "--gloo"]
    command = [*program, sys.executable, "-m", "finetune", "fit", "recipe.toml"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout + done.stderr).count("logged: run") == 1
    (run,) = runs_of(registry_in(tmp_path))
    assert run.data.params["ranks"] == "2"
    assert len(client_of(registry_in(tmp_path)).search_logged_models([run.info.experiment_id])) == 1
