"""Models that were trained in a moment and logged to a real registry; for the tests."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from featurize.recipes.recipe import FinetuneRecipe, RegistrySettings
from featurize.recipes.toml_settings import check_settings
from finetune.models.folder import ModelCard
from finetune.ranks.communicator import SingleRank
from finetune.registry.client import open_registry, search_runs
from finetune.training.plan import plan_training
from finetune.training.train import train
from helpers.tables.feature_sets import make_clusters, write_feature_set

STARTING_S = 180


def make_recipe(features: Path, model: Path, *, name: str = "softmax_head", **training: Any) -> FinetuneRecipe:
    settings = {"epochs": 3, "batch_size": 32, "learning_rate": 0.05, **training}
    document = {"features": {"url": str(features)}, "model": {"url": str(model), "name": name}, "training": settings}
    return check_settings(FinetuneRecipe, document, origin="test")


def train_model(features: Path, model: Path, **training: Any) -> ModelCard:
    card = train(plan_training(make_recipe(features, model, **training), ranks=1), SingleRank())
    assert card is not None
    return card


def write_clusters(folder: Path) -> Path:
    """A feature set of three classes, whose manifest does not say how its backbone was made."""
    features, label_index = make_clusters(200, dim=6, spread=3.0)
    write_feature_set(folder, features, label_index)
    return folder


def registry_in(folder: Path, **changes: Any) -> RegistrySettings:
    """Of an SQLite file in `folder`."""
    return RegistrySettings(url=f"sqlite:///{folder / 'mlflow.db'}", **changes)


def client_of(settings: RegistrySettings) -> MlflowClient:
    return open_registry(str(settings.url))


def runs_of(settings: RegistrySettings) -> list[Run]:
    """All runs of Firn's in the experiment, whole."""
    client = client_of(settings)
    experiment = client.get_experiment_by_name(settings.experiment)
    assert experiment is not None
    return [client.get_run(run.info.run_id) for run in search_runs(client, [experiment.experiment_id])]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(arguments: Sequence[str], folder: Path, health: str, **env: str) -> Iterator[None]:
    """`mlflow` with these arguments in a process of its own, from the moment it answers at the URL `health`."""
    log = folder / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *arguments],
            stdout=output,
            stderr=output,
            cwd=folder,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "PATH": path_with_python(), **env},
            start_new_session=True,
        )
    try:
        wait_for(server, health, log)
        yield
    finally:
        os.killpg(server.pid, 15)
        server.wait(timeout=30)


def path_with_python() -> str:
    """The path with the programs that are installed beside this Python, as in an activated environment."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def wait_for(server: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + STARTING_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise AssertionError(f"nobody answers at {url}:\n{log.read_text()[-3000:]}")


def post(url: str, document: Any) -> tuple[int, Any]:
    """The status and the JSON that a server answers with."""
    request = urllib.request.Request(url, json.dumps(document).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status), json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
