"""Models by name: a folder, the id of a run, or `name@alias` of a registered model."""

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from featurize import storage
from featurize.errors import FirnError, JobError, UsageError
from featurize.recipes.recipe import RegistrySettings
from featurize.storage.inner_path import check_inner_name
from finetune.models.folder import CARD_NAME, NETWORK_NAME, ModelCard, read_model_card
from finetune.registry.client import (
    MODEL_ID_TAG,
    MODEL_URL_TAG,
    all_experiments,
    find_run,
    open_registry,
    registered_aliases,
    registry_at,
    registry_errors,
    shown,
)
from finetune.registry.log_model import write_record
from finetune.registry.pyfunc_model import MODEL_FOLDER
from finetune.registry.pyfunc_saving import DATA_FOLDER
from finetune.registry.versions import logged_model_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_RUN_ID = re.compile(r"[0-9a-f]{32}")
_MODEL_OF_PYFUNC = f"data/{DATA_FOLDER}/{MODEL_FOLDER}"  # the model's folder inside the logged model


def resolve_model(text: str, *, registry: str | None = None) -> str:
    """The folder of the model that `text` names: a folder, the id of a run, or `name@alias`.

    If a run's folder is gone, or holds another model now, the model is copied from the registry into the user's cache.

    Args:
        text: The model's name.
        registry: MLflow's tracking URI; default: the environment's, or `sqlite:///runs/mlflow.db`.

    Returns:
        The URL of a folder with a model; `text` unchanged where it is a path, whether there is a model or not.

    Raises:
        UsageError: There is no model of that name; the message lists the known ones.
        JobError: The registry cannot be reached, or the model is gone there too.
    """
    if is_folder(text):
        return text
    settings = registry_at(RegistrySettings(url=registry))
    client = open_registry(str(settings.url))
    with registry_errors(str(settings.url)):
        return _folder_of(client, named_run(client, text, shown(settings.url)), text, str(settings.url))


def is_folder(text: str) -> bool:
    """Whether `text` names a folder and not something in a registry: it holds a model, or it can be nothing else."""
    is_of_registry = _RUN_ID.fullmatch(text) or ("@" in text and "/" not in text)
    return not is_of_registry or storage.exists(storage.join_url(text, CARD_NAME))


def find_model(client: "MlflowClient", text: str, url: str) -> "Run | None":
    """The run of a model, by its folder, run id or alias; None where a folder's model was not logged.

    Args:
        client: Client of the registry.
        text: The model's name.
        url: URL of the registry, for messages.

    Raises:
        UsageError: There is no model of that name.
    """
    if not is_folder(text):
        return named_run(client, text, url)
    return find_run(client, list(all_experiments(client)), read_folder(text).model_id)


def read_folder(text: str) -> ModelCard:
    """The description of the model in the folder `text`.

    Raises:
        UsageError: There is no model.
    """
    card = read_model_card(text)
    if card is None:
        raise UsageError(
            f"there is no model {text}: it is not a folder with {CARD_NAME}, a run id or a name@alias. "
            "Train one with `finetune fit`."
        )
    return card


def named_run(client: "MlflowClient", text: str, url: str) -> "Run":
    """The run with the id `text`, or the run behind `text`, a `name@alias`.

    Raises:
        UsageError: There is no such run, or it is not Firn's; the message lists the known models.
    """
    from mlflow.exceptions import MlflowException

    run_id = text if _RUN_ID.fullmatch(text) else _aliased_run(client, text, url)
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise UsageError(
            f"there is no model {text}: the registry {url} has no run {run_id}. {_known(client)}"
        ) from error
    if run.info.lifecycle_stage != "active" or MODEL_ID_TAG not in run.data.tags:
        found = "was deleted" if run.info.lifecycle_stage != "active" else "was not made by Firn"
        raise UsageError(f"there is no model {text}: run {run_id} of the registry {url} {found}. {_known(client)}")
    return run


def _aliased_run(client: "MlflowClient", text: str, url: str) -> str:
    name, _, alias = text.rpartition("@")
    aliases = registered_aliases(client).get(name)
    if aliases is None or alias not in aliases:
        missing = "no registered model" if aliases is None else f"a model {name} without the alias"
        raise UsageError(
            f"there is no model {text}: the registry {url} has {missing} {name if aliases is None else alias}. {_known(client)}"
        )
    run_id = client.get_model_version(name, aliases[alias]).run_id
    if not run_id:
        raise UsageError(f"{text} is version {aliases[alias]} of {name}, which was not made by a run of Firn.")
    return str(run_id)


def _known(client: "MlflowClient") -> str:
    """A list of the known models, for messages."""
    aliases = registered_aliases(client)
    known = [f"{name}@{alias}" for name, held in sorted(aliases.items()) for alias in sorted(held)]
    bare = [name for name, held in sorted(aliases.items()) if not held]
    parts = [f"Models with an alias: {', '.join(known)}" if known else "No model has an alias yet"]
    parts += [f"without an alias: {', '.join(bare)}"] if bare else []
    return "; ".join(parts) + ". `finetune models list` shows all runs."


def _folder_of(client: "MlflowClient", run: "Run", text: str, url: str) -> str:
    """The folder that a run's model was trained into, if it is still there, or else a copy of the logged model."""
    folder, model_id = str(run.data.tags.get(MODEL_URL_TAG, "")), str(run.data.tags[MODEL_ID_TAG])
    if folder and _may_open(folder, url) and _holds(folder, model_id):
        return folder
    logged = logged_model_of(run)
    if logged is None:
        raise JobError(
            f"{text} is run {run.info.run_id}, whose folder {folder} is gone or holds another model now, and which has "
            "not logged a model."
        )
    source = f"{client.get_logged_model(logged).artifact_location}/{_MODEL_OF_PYFUNC}"
    copy = _copy_of(source, model_id, url, f"{text}: its folder {folder} is gone, and so is its copy in {shown(url)}")
    experiment = client.get_experiment(run.info.experiment_id).name
    write_record(copy, RegistrySettings(url=url, experiment=experiment), model_id=model_id, run_id=run.info.run_id)
    return copy


def _may_open(folder: str, registry: str) -> bool:
    """Whether a folder that a registry names is looked at: a local one, or any if the registry is a file of the caller's own.

    Others could be anywhere, by the will of whoever may write to the registry; the registry's copy of the model is taken.
    """
    try:
        place = storage.absolute_url(folder)
    except UsageError:
        return False
    return registry.startswith("sqlite:") or storage.may_be_named(place, "file:///")


def _holds(folder: str, model_id: str) -> bool:
    try:
        card = read_model_card(folder)
    except (OSError, FirnError):  # a storage out of reach, or a damaged description: the copy remains
        return False
    return card is not None and card.model_id == model_id


def _copy_of(source: str, model_id: str, url: str, lost: str) -> str:
    """Folder with a copy of the logged model, which is made if it is not there yet."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "firn" / "models"
    try:
        copy = cache / check_inner_name(model_id)
    except ValueError as error:
        raise JobError(f"the registry {shown(url)} has a run whose model id {error}.") from error
    if not _holds(str(copy), model_id):
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".firn-", dir=cache) as temporary:
            try:
                found = download_artifacts(artifact_uri=source, dst_path=temporary, tracking_uri=url)
            except (MlflowException, OSError) as error:
                raise JobError(f"{lost}: {error}") from error
            copy.mkdir(exist_ok=True)
            for name in (NETWORK_NAME, CARD_NAME):  # the description last: it makes the model visible
                shutil.move(Path(found) / name, copy / name)
    return storage.absolute_url(str(copy))
