"""Trainings, and the log of a registry, whose calls of the file system fail; see `helpers.faults`."""

from pathlib import Path
from typing import Any

import pytest
from helpers.faults import Job, check_every_fault
from helpers.models.heads import make_recipe
from helpers.models.logged_models import client_of, registry_in, runs_of, train_model, write_clusters

from featurize.recipes.recipe import FinetuneRecipe
from finetune.models.folder import CARD_NAME, load_model
from finetune.ranks.communicator import SingleRank
from finetune.registry.client import open_registry
from finetune.registry.log_model import log_fit
from finetune.training.plan import find_trained, plan_training
from finetune.training.train import train

pytestmark = pytest.mark.faults
TIMES = ("seconds", "per_second")


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clusters(tmp_path_factory.mktemp("features"))


def fit(recipe: FinetuneRecipe) -> None:
    plan = plan_training(recipe, ranks=1)
    if find_trained(plan, overwrite=True) is None:
        train(plan, SingleRank(), overwrite=True, resume=True)


def model_in(folder: Path) -> Any:
    """What another process loads; None where there is no model."""
    if not (folder / CARD_NAME).exists():
        return None
    network, card = load_model(str(folder))
    history = [{key: value for key, value in entry.items() if not key.endswith(TIMES)} for entry in card.history]
    return [weights.tolist() for weights in network.get_weights()], history, card.model_id, card.metrics


@pytest.mark.parametrize("there", [None, 0.01])
def test_fit(features: Path, tmp_path: Path, there: float | None) -> None:
    """A model is trained, or put in place of another."""

    def prepare(folder: Path) -> None:
        if there is not None:
            fit(make_recipe(features, folder, epochs=2, learning_rate=there))

    def act(folder: Path) -> None:
        fit(make_recipe(features, folder, epochs=2, learning_rate=0.1))

    assert check_every_fault(Job(prepare, act, model_in), tmp_path / "model", most_trials=6) > 20


def test_log_to_a_registry(features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The artifacts and the model's folder fail. The database does not: MLflow keeps those that it has opened."""
    databases = list[Path]()

    def begin() -> None:
        """A new registry."""
        databases.append(tmp_path / f"database {len(databases)}")
        databases[-1].mkdir()
        open_registry(str(registry_in(databases[-1]).url), create=True)

    def prepare(folder: Path) -> None:
        train_model(features, folder / "model")

    def act(folder: Path) -> None:
        log_fit(str(folder / "model"), registry_in(databases[-1], name="clusters", artifacts=str(folder / "artifacts")))

    def look(folder: Path) -> Any:
        """The run, its files, and the files of the version; models that are marked as failed do not count."""
        settings = registry_in(databases[-1])
        versions = client_of(settings).search_model_versions("name = 'clusters'")
        if len(versions) != 1:
            return None
        (run,) = runs_of(settings)
        of_version = [one.model_id for one in run.outputs.model_outputs] if run.outputs else []
        files = [path for path in (folder / "artifacts").rglob("*") if path.is_file()]
        counted = sorted(path.name for path in files if {*of_version, run.info.run_id} & set(path.parts))
        return run.data.metrics, run.data.params, counted, len(of_version)

    job = Job(prepare, act, look, lambda state, before, wanted: True, begin)
    monkeypatch.chdir(tmp_path)
    assert check_every_fault(job, tmp_path / "place", most_trials=6) > 20
