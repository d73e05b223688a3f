"""The registry: where MLflow records trainings and evaluations, and where models are found.

It is used where a recipe has a section `[registry]`, or where the environment variable MLFLOW_TRACKING_URI is set. MLflow is
imported inside the functions, and used only through its client: nothing here changes the process's MLflow state.
"""

import fcntl
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

from featurize.errors import JobError, UsageError, first_line
from featurize.foreign_text import without_secrets
from featurize.recipes.recipe import RegistrySettings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.store.entities import PagedList

ENVIRONMENT = "MLFLOW_TRACKING_URI"
DEFAULT_URL = "sqlite:///runs/mlflow.db"
ARTIFACTS_FOLDER = "mlartifacts"  # beside the SQLite file
MODEL_ID_TAG = "firn.model_id"
MODEL_URL_TAG = "firn.model_url"
_SQLITE = "sqlite:///"
_SQLITE_HEADER = b"SQLite format 3\0"
_CONNECT_TIMEOUT_S = 10.0
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
Result = TypeVar("Result")
_WRONG_CALLS = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS")


def used_registry(settings: RegistrySettings | None) -> RegistrySettings | None:
    """The registry to log to, with an absolute URL; None where neither the recipe nor the environment names one."""
    if settings is None and not os.environ.get(ENVIRONMENT):
        return None
    return registry_at(settings or RegistrySettings())


def check_registry(settings: RegistrySettings | None) -> None:
    """Checks, before a training, that the registry it will be logged to answers, or is an SQLite file that may be made or used.

    Raises:
        UsageError: It does not, or is not.
    """
    used = used_registry(settings)
    if used is None:
        return
    url = str(used.url)
    try:
        if not url.startswith(_SQLITE):
            _check_reachable(url)
            return
        with open(url.removeprefix(_SQLITE), "rb") as file:
            start = file.read(len(_SQLITE_HEADER))
    except FileNotFoundError:
        return  # it is made when the model is logged
    except (JobError, OSError) as error:
        raise UsageError(f"nothing was trained, as it could not be logged: {error}") from error
    if start not in (b"", _SQLITE_HEADER):
        raise UsageError(
            f"nothing was trained, as it could not be logged: the registry {shown(url)} is no SQLite file."
        )


def registry_at(settings: RegistrySettings) -> RegistrySettings:
    """`settings` with an absolute URL: their own, or else the environment's, or else the default."""
    return settings.model_copy(update={"url": absolute_registry(settings.url or os.environ.get(ENVIRONMENT))})


def absolute_registry(url: str | None) -> str:
    """An MLflow tracking URI that does not depend on the working directory; None means the default."""
    url = url or DEFAULT_URL
    if url.startswith(_SQLITE):
        return _SQLITE + os.path.abspath(url.removeprefix(_SQLITE))  # noqa: PTH100 - links must not be resolved
    return url


def shown(url: str | None) -> str:
    """`url` in a form to show and to store: without passwords and tokens."""
    return without_secrets(url or "")


def open_registry(url: str, *, create: bool = False) -> "MlflowClient":
    """A client of the registry at the absolute `url`.

    Args:
        url: MLflow's tracking URI.
        create: Whether to make an SQLite file that does not exist.

    Raises:
        UsageError: There is no such SQLite file.
        JobError: The URL does not answer.
    """
    if url.startswith(_SQLITE):
        file = Path(url.removeprefix(_SQLITE))
        if create:
            file.parent.mkdir(parents=True, exist_ok=True)
        elif not file.is_file():
            raise UsageError(
                f"there is no registry {url}. Name one with the environment variable {ENVIRONMENT}, or log a model: "
                "run `finetune fit` on a recipe with a section [registry]."
            )
    else:
        _check_reachable(url)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # by default MLflow reports usage to its makers
    with _one_maker(url), registry_errors(url):
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)  # or every step of making a database is logged
        client = MlflowClient(tracking_uri=url, registry_uri=os.environ.get("MLFLOW_REGISTRY_URI") or url)
        client.search_experiments(max_results=1)  # makes the tables
    return client


@contextmanager
def _one_maker(url: str) -> Iterator[None]:
    """Lets one process at a time make the tables of an SQLite file: if two begin, MLflow fails in the second."""
    if not url.startswith(_SQLITE) or not os.access(Path(url.removeprefix(_SQLITE)).parent, os.W_OK):
        yield
        return
    with open(f"{url.removeprefix(_SQLITE)}.lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
        yield


@contextmanager
def registry_errors(url: str) -> Iterator[None]:
    """Turns MLflow's errors into Firn's: UsageError where the caller named something wrongly, JobError for all others.

    Raises:
        UsageError: MLflow says that the call is invalid, or that the named thing does not exist.
        JobError: The registry cannot be reached, read or written.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except MlflowException as error:
        kind = UsageError if error.error_code in _WRONG_CALLS else JobError
        raise kind(f"the registry {shown(url)}: {first_line(error)}") from error
    except (SQLAlchemyError, OSError) as error:  # `requests` raises OSError
        raise JobError(f"the registry {shown(url)} cannot be used: {first_line(error)}") from error


def find_experiment(client: "MlflowClient", settings: RegistrySettings) -> str:
    """The id of the experiment that `settings` name; made where it is missing.

    Raises:
        UsageError: It was deleted.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(settings.experiment)
    if found is None:
        try:
            return str(client.create_experiment(settings.experiment, artifact_location=_artifacts(settings)))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = client.get_experiment_by_name(settings.experiment)  # another process made it in the meantime
    if found is None or found.lifecycle_stage != "active":
        raise UsageError(
            f"`registry.experiment`: {settings.experiment!r} was deleted from {shown(settings.url)}. "
            "Restore it with MLflow, or name another."
        )
    return str(found.experiment_id)


def search_runs(client: "MlflowClient", experiment_ids: list[str], filter_string: str = "") -> "list[Run]":
    """All of Firn's runs in these experiments that pass the filter, oldest first."""
    condition = f"tags.`{MODEL_ID_TAG}` LIKE '%'"
    runs = page_through(
        client.search_runs,
        experiment_ids,
        filter_string=f"{condition} AND {filter_string}" if filter_string else condition,
        order_by=["attributes.start_time ASC"],
        max_results=1000,
    )
    return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))


def find_run(client: "MlflowClient", experiment_ids: list[str], model_id: str) -> "Run | None":
    """The run of a model; of several the oldest, so that all callers agree."""
    runs = search_runs(client, experiment_ids, f"tags.`{MODEL_ID_TAG}` = '{model_id}'")
    return client.get_run(runs[0].info.run_id) if runs else None  # a run from a search lacks inputs and outputs


def all_experiments(client: "MlflowClient") -> dict[str, str]:
    """The names of all experiments, by id."""
    found = page_through(client.search_experiments, max_results=1000)
    return {str(experiment.experiment_id): str(experiment.name) for experiment in found}


def registered_aliases(client: "MlflowClient") -> dict[str, dict[str, str]]:
    """The registered models, each with its aliases and their versions."""
    found = page_through(client.search_registered_models, max_results=100)
    return {str(model.name): {alias: str(version) for alias, version in model.aliases.items()} for model in found}


def page_through(search: "Callable[..., PagedList[Result]]", *args: Any, **options: Any) -> "Iterator[Result]":
    """All results of a search of MLflow, page after page.

    Args:
        search: A method of `MlflowClient` that takes a `page_token`.
        args: Its arguments.
        options: Its other arguments by name; `max_results` is the size of a page.
    """
    token = None
    while True:
        page = search(*args, **options, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _artifacts(settings: RegistrySettings) -> str | None:
    """URL of the folder for an experiment's files; None: the server decides."""
    url, name = str(settings.url), quote(settings.experiment, safe=" ")
    if settings.artifacts is not None:
        folder = settings.artifacts if "://" in settings.artifacts else Path(settings.artifacts).absolute().as_uri()
        return f"{folder.rstrip('/')}/{quote(name)}"
    if not url.startswith(_SQLITE):
        return None
    return (Path(url.removeprefix(_SQLITE)).parent / ARTIFACTS_FOLDER / name).as_uri()


def _check_reachable(url: str) -> None:
    """Fails at once where MLflow's client would retry for minutes."""
    parts: Any = urlsplit(url)
    kind = parts.scheme.partition("+")[0]
    if not parts.hostname or kind not in _PORTS:
        return
    port = parts.port or _PORTS[kind]
    try:
        socket.create_connection((parts.hostname, port), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise JobError(
            f"the registry {shown(url)} cannot be reached: no answer from {parts.hostname}:{port}: "
            f"{error.strerror or error}."
        ) from error
