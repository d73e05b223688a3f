"""Models by name: a folder, the id of a run, `name@alias` of a registered model, or a node of ZooKeeper.

A node holds one of the other names. Whoever may write to it chooses which model that is, and neither a host nor what a relative
path means; `finetune.streams.current_model` follows it by a watch.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from featurize import storage
from featurize.connectors.zookeeper import is_node, read_node
from featurize.errors import FirnError, JobError, UsageError
from featurize.foreign_text import shown as shown_text
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
_SHOWN = 200  # characters of what a node holds, in messages
_MODEL_OF_PYFUNC = f"data/{DATA_FOLDER}/{MODEL_FOLDER}"  # the model's folder inside the logged model


def resolve_model(text: str, *, registry: str | None = None) -> str:
    """The folder of the model that `text` names: a folder, the id of a run, `name@alias`, or a node that holds one of these.

    If a run's folder is gone, or holds another model now, the model is copied from the registry into the user's cache.

    Args:
        text: The model's name.
        registry: MLflow's tracking URI; default: the environment's, or `sqlite:///runs/mlflow.db`.

    Returns:
        The URL of a folder with a model; `text` unchanged where it is a path, whether there is a model or not.

    Raises:
        UsageError: There is no model of that name; the message lists the known ones.
        JobError: The registry or ZooKeeper cannot be reached, or the model is gone there too.
    """
    if is_node(text):
        return resolve_held(read_node(text), text, registry=registry)
    return text if is_folder(text) else _from_registry(text, registry)


def _from_registry(text: str, registry: str | None) -> str:
    """The folder of the model that a run id or `name@alias` means."""
    settings = registry_at(RegistrySettings(url=registry))
    client = open_registry(str(settings.url))
    with registry_errors(str(settings.url)):
        return _folder_of(client, named_run(client, text, shown(settings.url)), text, str(settings.url))


def resolve_held(name: str, node: str, *, registry: str | None = None) -> str:
    """The folder of the model that a node of ZooKeeper names.

    Args:
        name: What the node holds.
        node: URL of the node.
        registry: As for `resolve_model`.

    Raises:
        UsageError: The node does not name a model, or it names a place that it may not name.
        JobError: The registry cannot be reached, or the model is gone there too.
    """
    with _held(name, node):
        checked = _checked_name(name)
        folder = _from_registry(checked, registry) if _is_of_registry(checked) else checked
        read_folder(folder)
    return folder


def without_node(text: str) -> str:
    """`text`, or the name that a node holds where `text` is the URL of one: a folder, the id of a run, or `name@alias`.

    Raises:
        UsageError: There is no such node, or it holds no name, or that of a place that it may not name.
        JobError: ZooKeeper cannot be reached.
    """
    if not is_node(text):
        return text
    name = read_node(text)
    with _held(name, text):
        return _checked_name(name)


@contextmanager
def _held(name: str, node: str) -> Iterator[None]:
    """Has errors say which node holds what."""
    try:
        yield
    except FirnError as error:
        raise type(error)(f"the node {node} holds {shown_text(name[:_SHOWN])!r}: {error}") from error


def _checked_name(name: str) -> str:
    """What a node holds, as the name of a model that it may name.

    Raises:
        UsageError: It is none.
    """
    if _is_of_registry(name):
        return name
    if not name.startswith(("/", "file:/", "hdfs://")):
        raise UsageError(
            "that is no absolute path or URL of a folder, no id of a run and no name@alias, of which a node holds one."
        )
    place = storage.absolute_url(name)
    if not storage.may_be_named(place, "file:///"):
        raise UsageError(
            "that is on a host that only the node names; it is not opened. Allow it with the environment variable "
            "FIRN_ALLOW_URLS."
        )
    return place


def is_folder(text: str) -> bool:
    """Whether `text` names a folder and not something in a registry or a node: it holds a model, or it can be nothing else."""
    if is_node(text):
        return False
    return not _is_of_registry(text) or storage.exists(storage.join_url(text, CARD_NAME))


def _is_of_registry(text: str) -> bool:
    return _RUN_ID.fullmatch(text) is not None or ("@" in text and "/" not in text)


def find_model(client: "MlflowClient", text: str, url: str) -> "Run | None":
    """The run of a model, by its folder, run id, alias or node; None where a folder's model was not logged.

    Args:
        client: Client of the registry.
        text: The model's name.
        url: URL of the registry, for messages.

    Raises:
        UsageError: There is no model of that name.
    """
    text = without_node(text)
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
            f"there is no model {text}: it is not a folder with {CARD_NAME}, a run id, a name@alias or zk://host:port/path. "
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
