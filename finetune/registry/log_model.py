"""Logs a trained model and its evaluations to MLflow. What is there already stays: logging again adds what is missing."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurize import storage
from featurize.errors import FirnError, JobError, UsageError
from featurize.recipes.recipe import RegistrySettings
from featurize.storage.claims import claim_output, user_name
from featurize.tables.manifests import utc_now
from finetune.models.folder import CARD_NAME, ModelCard, read_model_card
from finetune.registry.client import (
    ENVIRONMENT,
    MODEL_ID_TAG,
    MODEL_URL_TAG,
    find_experiment,
    find_run,
    open_registry,
    registry_errors,
    shown,
    used_registry,
)
from finetune.registry.run_parts import write_evaluation, write_files, write_history, write_network, write_settings
from finetune.registry.run_values import read_evaluations
from finetune.registry.versions import NAME_TAG, register_version

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RECORD_NAME = "registry.json"  # in a model's folder: where the model was logged
FEATURES_TAG = "firn.features_url"
_LOGGED_TAG = "firn.logged_at"
_PATIENCE_S = 300.0  # longest wait for another process that logs the same model
_POLL_S = 0.5


@dataclass(frozen=True)
class LoggedModel:
    """The place where a model was logged.

    Attributes:
        url: URL of the registry, without a password.
        is_new: Whether this call made the run.
        version: Version of the registered model, if the settings name one.
        notice: A remark for the user, such as that the model takes no images.
    """

    url: str
    experiment: str
    run_id: str
    is_new: bool
    version: str | None = None
    notice: str | None = None


def log_fit(model_url: str, settings: RegistrySettings | None) -> LoggedModel | None:
    """Logs the model at `model_url` with its history, plots and evaluations, if a registry is named; only rank 0 calls it.

    Raises:
        JobError: It could not be logged. The model stays in its folder, and the same call logs what is missing.
    """
    registry = used_registry(settings)
    return None if registry is None else _log(model_url, registry, what="finetune fit")


def log_evaluation(model_url: str, evaluation: Mapping[str, Any]) -> LoggedModel | None:
    """Logs the result of `evaluate_model` to the registry that has the model, or else to the environment's, if any.

    Raises:
        JobError: It could not be logged. The evaluation stays where it was written.
    """
    registry = registry_of_model(model_url)
    return None if registry is None else _log(model_url, registry, evaluation=evaluation, what="finetune evaluate")


def log_to(model_url: str, registry: RegistrySettings) -> LoggedModel:
    """Logs the model at `model_url` to this registry.

    Raises:
        JobError: It could not be logged.
    """
    return _log(model_url, registry, what="finetune models promote")


def is_logged(model_url: str, registry: RegistrySettings, *, model_id: str) -> bool:
    """Whether a model's folder says that it was logged to this registry; the registry itself is not contacted."""
    try:
        record = storage.read_json(storage.join_url(model_url, RECORD_NAME))
    except (FileNotFoundError, ValueError):
        return False
    wanted = _record_of(registry, model_id=model_id)
    return isinstance(record, dict) and {key: record.get(key) for key in wanted} == wanted


def registry_of_model(model_url: str) -> RegistrySettings | None:
    """The registry that has the model, or else the environment's, if any."""
    try:
        record = storage.read_json(storage.join_url(model_url, RECORD_NAME))
        known = {key: record[key] for key in ("url", "experiment", "name", "backbone")}
        settings = RegistrySettings.model_validate(known)
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # no record, or a damaged one
        return used_registry(None)
    is_known = settings.url is not None or os.environ.get(ENVIRONMENT)  # a URL with a password is not recorded
    return used_registry(settings) if is_known else None


def _log(
    model_url: str, registry: RegistrySettings, *, evaluation: Mapping[str, Any] | None = None, what: str
) -> LoggedModel:
    url = storage.absolute_url(model_url)
    try:
        client = open_registry(str(registry.url), create=True)
        with _one_at_a_time(url), registry_errors(str(registry.url)):
            return _log_model(client, url, registry, evaluation)
    except (FirnError, OSError) as error:
        raise JobError(
            f"{url} is published, but logging it to the registry {shown(registry.url)} failed: {str(error).rstrip('.')}. "
            f"Run `{what}` again to log what is missing."
        ) from error


def _log_model(
    client: "MlflowClient", url: str, registry: RegistrySettings, evaluation: Mapping[str, Any] | None
) -> LoggedModel:
    card = read_model_card(url)
    if card is None:
        raise UsageError(f"{url} is not a model: it has no {CARD_NAME}.")
    run, is_new = _find_or_create_run(client, registry, card, url)
    run_id, notice = str(run.info.run_id), None
    if _LOGGED_TAG not in run.data.tags:
        write_settings(client, run, card)
        write_history(client, run_id, card)
        write_files(client, run_id, card, url)
        notice = write_network(client, run, card, url, registry)
    is_moved = run.data.tags.get(MODEL_URL_TAG) != url
    if is_moved and evaluation is None:  # an evaluated model may be a copy
        client.set_tag(run_id, MODEL_URL_TAG, url)
    evaluations = [found for found in read_evaluations(url).values() if found["model_id"] == card.model_id]
    for found in (*evaluations, *([evaluation] if evaluation is not None else [])):
        write_evaluation(client, run, card, found, url)
    if _LOGGED_TAG not in run.data.tags:
        client.set_tag(run_id, _LOGGED_TAG, utc_now())
        client.set_terminated(run_id)
    version = register_version(client, run, registry.name) if registry.name else None
    write_record(url, registry, model_id=card.model_id, run_id=run_id)
    return LoggedModel(shown(registry.url), registry.experiment, run_id, is_new, version=version, notice=notice)


def _find_or_create_run(
    client: "MlflowClient", registry: RegistrySettings, card: ModelCard, url: str
) -> tuple["Run", bool]:
    """The one run of a model, and whether this call made it.

    MLflow guarantees uniqueness only for ids that it makes itself. So two processes that make a run at once both look again and
    agree on the first.
    """
    experiment = find_experiment(client, registry)
    if (run := find_run(client, [experiment], card.model_id)) is not None:
        return run, False
    name = f"{card.recipe['model']['name']}-{card.model_id[:8]}"
    tags = {
        MODEL_ID_TAG: card.model_id,
        MODEL_URL_TAG: url,
        FEATURES_TAG: card.features.url,
        "mlflow.user": user_name(),
        **({NAME_TAG: registry.name} if registry.name else {}),
        **{f"firn.version.{library}": version for library, version in card.versions.items()},
    }
    made = client.create_run(experiment, tags=tags, run_name=name)
    first = find_run(client, [experiment], card.model_id)
    if first is None or first.info.run_id == made.info.run_id:
        return made, True
    client.delete_run(made.info.run_id)
    return _wait_for(client, first), False


def _wait_for(client: "MlflowClient", run: "Run") -> "Run":
    """The run of another process once it is complete; as it is, if that takes too long."""
    deadline = time.monotonic() + _PATIENCE_S
    while _LOGGED_TAG not in run.data.tags and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        run = client.get_run(run.info.run_id)
    return run


@contextmanager
def _one_at_a_time(url: str) -> Iterator[None]:
    """Holds the claim on a model's folder, so that nobody replaces it; waits for another process that logs the model.

    Raises:
        JobError: The other process takes too long.
    """
    deadline = time.monotonic() + _PATIENCE_S
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(claim_output(url))
                break
            except JobError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_S)
        yield


def write_record(url: str, registry: RegistrySettings, *, model_id: str, run_id: str) -> None:
    """Records where the model was logged, so that its evaluations go there too; never records a database password."""
    record = {**_record_of(registry, model_id=model_id), "run_id": run_id}
    record_url = storage.join_url(url, RECORD_NAME)
    if not storage.exists(record_url) or storage.read_json(record_url) != record:
        storage.write_json(record_url, record)


def _record_of(registry: RegistrySettings, *, model_id: str) -> dict[str, Any]:
    return {
        "model_id": model_id,
        "url": registry.url if shown(registry.url) == registry.url else None,
        "experiment": registry.experiment,
        "name": registry.name,
        "backbone": registry.backbone,
    }
