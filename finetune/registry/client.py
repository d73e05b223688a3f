"""The registry: where MLflow keeps what was trained and evaluated, and how models are found there.

It is used where a recipe has the table `[registry]`, or where the environment variable MLFLOW_TRACKING_URI is set. MLflow is
imported inside the functions, and only through its client: nothing here changes the state that MLflow keeps for a process.
"""

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from featurize.errors import JobError, UsageError, first_line
from featurize.recipes.recipe import RegistrySettings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

ENVIRONMENT = "MLFLOW_TRACKING_URI"
DEFAULT_URL = "sqlite:///runs/mlflow.db"
ARTIFACTS_FOLDER = "mlartifacts"  # beside the SQLite file
MODEL_ID_TAG = "firn.model_id"
MODEL_URL_TAG = "firn.model_url"
_SQLITE = "sqlite:///"
_CONNECT_TIMEOUT_S = 10.0
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
_WRONG_CALLS = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS")


def used_registry(settings: RegistrySettings | None) -> RegistrySettings | None:
    """The registry to log to, with an absolute URL; None where neither the recipe nor the environment names one."""
    if settings is None and not os.environ.get(ENVIRONMENT):
        return None
    return registry_at(settings or RegistrySettings())


def registry_at(settings: RegistrySettings) -> RegistrySettings:
    """`settings` with its URL, or else that of the environment, or else the default, which means the same anywhere."""
    return settings.model_copy(update={"url": absolute_registry(settings.url or os.environ.get(ENVIRONMENT))})


def absolute_registry(url: str | None) -> str:
    """An MLflow tracking URI that means the same in any working directory; None is the default."""
    url = url or DEFAULT_URL
    if url.startswith(_SQLITE):
        return _SQLITE + os.path.abspath(url.removeprefix(_SQLITE))  # noqa: PTH100 - links are left alone
    return url


def shown(url: str | None) -> str:
    """`url` as it may be shown and kept: without the password of a database."""
    password = urlsplit(url or "").password
    return (url or "").replace(f":{password}@", ":***@") if password else url or ""


def open_registry(url: str, *, create: bool = False) -> "MlflowClient":
    """A client of the registry at the absolute `url`.

    Args:
        create: an SQLite file that is not there is made.

    Raises:
        UsageError: there is no such SQLite file.
        JobError: nobody answers at the URL.
    """
    if url.startswith(_SQLITE):
        file = Path(url.removeprefix(_SQLITE))
        if create:
            file.parent.mkdir(parents=True, exist_ok=True)
        elif not file.is_file():
            raise UsageError(
                f"there is no registry {url}. Name one by the environment variable {ENVIRONMENT}, or log a model: "
                "`finetune fit` of a recipe with the table [registry]."
            )
    else:
        _check_reachable(url)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow reports to its makers by default
    with _one_maker(url), registry_errors(url):
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)  # or the making of a database is told line by line
        client = MlflowClient(tracking_uri=url, registry_uri=os.environ.get("MLFLOW_REGISTRY_URI") or url)
        client.search_experiments(max_results=1)  # makes the tables
    return client


@contextmanager
def _one_maker(url: str) -> Iterator[None]:
    """Lets one process at a time make the tables of an SQLite file: MLflow lets two begin, and the second fails."""
    if not url.startswith(_SQLITE) or not os.access(Path(url.removeprefix(_SQLITE)).parent, os.W_OK):
        yield
        return
    with open(f"{url.removeprefix(_SQLITE)}.lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # given back when the file is closed
        yield


@contextmanager
def registry_errors(url: str) -> Iterator[None]:
    """Makes Firn's errors of MLflow's: UsageError of what the caller named wrongly, JobError of all else.

    Raises:
        UsageError: MLflow says that the call is wrong, or that there is no such thing.
        JobError: the registry cannot be reached, read or written.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except MlflowException as error:
        kind = UsageError if error.error_code in _WRONG_CALLS else JobError
        raise kind(f"the registry {shown(url)}: {first_line(error)}") from error
    except (SQLAlchemyError, OSError) as error:  # OSError: of `requests` too
        raise JobError(f"the registry {shown(url)} cannot be used: {first_line(error)}") from error


def find_experiment(client: "MlflowClient", settings: RegistrySettings) -> str:
    """The id of the experiment that `settings` name; it is made where it is missing.

    Raises:
        UsageError: it was deleted.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(settings.experiment)
    if found is None:
        try:
            return str(client.create_experiment(settings.experiment, artifact_location=_artifacts(settings)))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = client.get_experiment_by_name(settings.experiment)  # another process has made it meanwhile
    if found is None or found.lifecycle_stage != "active":
        raise UsageError(
            f"`registry.experiment`: {settings.experiment!r} was deleted from {shown(settings.url)}. "
            "Restore it with MLflow, or name another."
        )
    return str(found.experiment_id)


def search_runs(client: "MlflowClient", experiment_ids: list[str], filter_string: str = "") -> "list[Run]":
    """All runs of Firn's in these experiments that pass the filter, the oldest first."""
    condition = f"tags.`{MODEL_ID_TAG}` LIKE '%'"
    runs, token = list["Run"](), None
    while True:
        page = client.search_runs(
            experiment_ids,
            filter_string=f"{condition} AND {filter_string}" if filter_string else condition,
            order_by=["attributes.start_time ASC"],
            max_results=1000,
            page_token=token,
        )
        runs += page
        token = page.token
        if not token:
            return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))


def find_run(client: "MlflowClient", experiment_ids: list[str], model_id: str) -> "Run | None":
    """The run of a model: the first, for anybody who looks."""
    runs = search_runs(client, experiment_ids, f"tags.`{MODEL_ID_TAG}` = '{model_id}'")
    return client.get_run(runs[0].info.run_id) if runs else None  # what is found by a search lacks inputs and outputs


def all_experiments(client: "MlflowClient") -> dict[str, str]:
    """The names of all experiments, by id."""
    found, token = dict[str, str](), None
    while True:
        page = client.search_experiments(max_results=1000, page_token=token)
        found |= {str(experiment.experiment_id): str(experiment.name) for experiment in page}
        token = page.token
        if not token:
            return found


def registered_aliases(client: "MlflowClient") -> dict[str, dict[str, str]]:
    """The registered models, each with its aliases and the versions that these are of."""
    found, token = dict[str, dict[str, str]](), None
    while True:
        page = client.search_registered_models(max_results=100, page_token=token)
        found |= {str(model.name): {alias: str(version) for alias, version in model.aliases.items()} for model in page}
        token = page.token
        if not token:
            return found


def _artifacts(settings: RegistrySettings) -> str | None:
    """Where the files of an experiment go; None: the server knows."""
    url, name = str(settings.url), quote(settings.experiment, safe=" ")
    if settings.artifacts is not None:
        folder = settings.artifacts if "://" in settings.artifacts else Path(settings.artifacts).absolute().as_uri()
        return f"{folder.rstrip('/')}/{quote(name)}"
    if not url.startswith(_SQLITE):
        return None
    return (Path(url.removeprefix(_SQLITE)).parent / ARTIFACTS_FOLDER / name).as_uri()


def _check_reachable(url: str) -> None:
    """Fails at once where MLflow's client would go on trying for minutes."""
    parts: Any = urlsplit(url)
    kind = parts.scheme.partition("+")[0]
    if not parts.hostname or kind not in _PORTS:
        return
    port = parts.port or _PORTS[kind]
    try:
        socket.create_connection((parts.hostname, port), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise JobError(
            f"the registry {shown(url)} cannot be reached: nobody answers at {parts.hostname}:{port}: "
            f"{error.strerror or error}."
        ) from error
