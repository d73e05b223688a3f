"""Logs a trained model and its evaluations to MLflow. What is there already stays: logging again adds what is missing."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from featurize import storage
from featurize.console import warn
from featurize.errors import FirnError, JobError, UsageError
from featurize.recipes.recipe import RegistrySettings
from featurize.storage.claims import claim_output, user_name
from featurize.storage.inner_path import InnerName
from featurize.tables.documents import DamagedDocumentError, read_document
from featurize.tables.manifests import utc_now
from finetune.models.folder import CARD_NAME, ModelCard, read_model_card
from finetune.registry.client import (
    ENVIRONMENT,
    MODEL_ID_TAG,
    MODEL_URL_TAG,
    all_experiments,
    find_experiment,
    find_run,
    open_registry,
    registry_at,
    registry_errors,
    shown,
    used_registry,
)
from finetune.registry.run_parts import (
    files_of_evaluation,
    write_evaluation,
    write_files,
    write_history,
    write_network,
    write_settings,
)
from finetune.registry.run_values import read_evaluations
from finetune.registry.versions import NAME_TAG, register_version

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RECORD_NAME = (
    "registry.json"  # in a model's folder: where the model was logged; nothing is ever sent to an address in it
)
SCHEMA_VERSION = 1
FEATURES_TAG = "firn.features_url"
_LOGGED_TAG = "firn.logged_at"
_PATIENCE_S = 300.0  # longest wait for another process that logs the same model
_POLL_S = 0.5


class RegistryRecord(BaseModel):
    """`registry.json`: whether a model was logged to a registry that the caller names.

    Attributes:
        url: URL of the registry; None where it has a password.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    schema_version: int = SCHEMA_VERSION
    model_id: InnerName
    url: str | None
    experiment: str
    name: str | None
    backbone: bool
    run_id: InnerName


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


def log_evaluation(
    model_url: str, evaluation: Mapping[str, Any], *, registry: RegistrySettings | None = None
) -> LoggedModel | None:
    """Logs the result of `evaluate_model`, if there is a registry to log to; see `registry_for_evaluations`.

    Args:
        model_url: URL of the model's folder.
        evaluation: The result.
        registry: The registry that the caller names, if any.

    Raises:
        JobError: It could not be logged. The evaluation stays where it was written.
    """
    registry = registry_for_evaluations(model_url, registry)
    return None if registry is None else _log(model_url, registry, evaluation=evaluation, what="finetune evaluate")


def log_to(model_url: str, registry: RegistrySettings) -> LoggedModel:
    """Logs the model at `model_url` to this registry.

    Raises:
        JobError: It could not be logged.
    """
    return _log(model_url, registry, what="finetune models promote")


def is_logged(model_url: str, registry: RegistrySettings, *, model_id: str) -> bool:
    """Whether a model's folder says that it was logged to this registry; the registry itself is not contacted."""
    record = _read_record(model_url)
    wanted = _record_of(registry, model_id=model_id)
    return record is not None and {key: getattr(record, key) for key in wanted} == wanted


def registry_for_evaluations(model_url: str, named: RegistrySettings | None = None) -> RegistrySettings | None:
    """The registry that evaluations of a model are logged to: the one that the caller names, or else the environment's.

    Without either it is the default one, if the model was logged there. The folder of a model may come from a stranger, so its
    `registry.json` never gives an address: with it, the stranger would be sent the evaluation, and the password of the caller.
    """
    if named is not None or os.environ.get(ENVIRONMENT):
        return registry_at(named or RegistrySettings())
    record, usual = _read_record(model_url), registry_at(RegistrySettings())
    if record is None or record.url == usual.url:
        return None if record is None else usual
    warn(
        f"{model_url} says that it was logged to {shown(record.url) or 'a registry with a password'}, which nobody has named "
        f"here: the evaluation is not logged. Name the registry, with `registry` (--registry) or {ENVIRONMENT}."
    )
    return None


def _read_record(model_url: str) -> RegistryRecord | None:
    """The content of `registry.json`; None where there is none, or a damaged one.

    Raises:
        JobError: It has another schema version.
    """
    try:
        return read_document(storage.join_url(model_url, RECORD_NAME), RegistryRecord, version=SCHEMA_VERSION)
    except DamagedDocumentError:
        return None


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
    known = None if evaluation is None else find_run(client, list(all_experiments(client)), card.model_id)
    run, is_new = _find_or_create_run(client, registry, card, url) if known is None else (known, False)
    run_id, notice = str(run.info.run_id), None
    if _LOGGED_TAG not in run.data.tags:
        write_settings(client, run, card)
        write_history(client, run_id, card)
        write_files(client, run_id, card, url)
        notice = write_network(client, run, card, url, registry)
    is_moved = run.data.tags.get(MODEL_URL_TAG) != url
    if is_moved and evaluation is None:  # an evaluated model may be a copy
        client.set_tag(run_id, MODEL_URL_TAG, url)
    for found in read_evaluations(url).values():
        if found["model_id"] == card.model_id:
            write_evaluation(client, run, card, found, files_of_evaluation(url, found["split"]))
    if evaluation is not None:
        write_evaluation(client, run, card, evaluation, evaluation["files"])
    if _LOGGED_TAG not in run.data.tags:
        client.set_tag(run_id, _LOGGED_TAG, utc_now())
        client.set_terminated(run_id)
    version = register_version(client, run, registry.name) if registry.name else None
    if known is None:
        write_record(url, registry, model_id=card.model_id, run_id=run_id)
    experiment = client.get_experiment(run.info.experiment_id).name
    return LoggedModel(shown(registry.url), experiment, run_id, is_new, version=version, notice=notice)


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
    """Records where the model was logged; never records a database password."""
    record = RegistryRecord(**_record_of(registry, model_id=model_id), run_id=run_id)
    if _read_record(url) != record:
        storage.write_json(storage.join_url(url, RECORD_NAME), record.model_dump())


def _record_of(registry: RegistrySettings, *, model_id: str) -> dict[str, Any]:
    return {
        "model_id": model_id,
        "url": registry.url if shown(registry.url) == registry.url else None,
        "experiment": registry.experiment,
        "name": registry.name,
        "backbone": registry.backbone,
    }
