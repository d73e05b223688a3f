"""Registered models: their versions and aliases; listing, promoting and archiving models."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from featurize.errors import JobError, UsageError
from featurize.tables.manifests import utc_now
from finetune.registry.client import (
    MODEL_ID_TAG,
    MODEL_URL_TAG,
    all_experiments,
    page_through,
    registered_aliases,
    search_runs,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

NAME_TAG = "firn.name"  # tag of a run: the registered model that its recipe names
ARCHIVED_TAG = "firn.archived_at"
ALIASES = ("champion", "challenger")


@dataclass(frozen=True)
class Version:
    """A version of a registered model, and the aliases that point to it now."""

    name: str
    version: str
    aliases: list[str]


@dataclass(frozen=True)
class ListedModel:
    """A logged model: a run of Firn.

    Attributes:
        model: The folder it was trained into.
        name: Name of its network, such as softmax_head.
        archived_at: When it was archived; None: it was not.
    """

    run_id: str
    run_name: str
    model_id: str
    model: str
    name: str
    experiment: str
    created_at: str
    metrics: dict[str, float]
    versions: list[Version]
    archived_at: str | None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def list_models(
    client: "MlflowClient", *, experiment: str | None = None, with_archived: bool = False
) -> list[ListedModel]:
    """The models of a registry, newest first.

    Args:
        client: Client of the registry.
        experiment: Name of the only experiment to list; None: all.
        with_archived: Whether to list archived models too.

    Raises:
        UsageError: There is no such experiment; the message lists the known ones.
    """
    names = all_experiments(client)
    if experiment is not None and experiment not in names.values():
        raise UsageError(f"there is no experiment {experiment!r}. There are {', '.join(sorted(names.values()))}.")
    ids = [number for number, name in names.items() if experiment in (None, name)]
    versions = _versions_by_run(client)
    runs = search_runs(client, ids)
    models = [listed(run, names[str(run.info.experiment_id)], versions.get(str(run.info.run_id), [])) for run in runs]
    return [model for model in reversed(models) if with_archived or model.archived_at is None]


def listed(run: "Run", experiment: str, versions: list[Version]) -> ListedModel:
    """The entry of a run in the list of models."""
    tags, started = run.data.tags, int(run.info.start_time) / 1000
    return ListedModel(
        run_id=str(run.info.run_id),
        run_name=str(run.info.run_name),
        model_id=str(tags[MODEL_ID_TAG]),
        model=str(tags.get(MODEL_URL_TAG, "")),
        name=str(run.data.params.get("model.name", "")),
        experiment=experiment,
        created_at=datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        metrics={key: float(value) for key, value in sorted(run.data.metrics.items())},
        versions=versions,
        archived_at=tags.get(ARCHIVED_TAG),
    )


def register_version(client: "MlflowClient", run: "Run", name: str) -> str:
    """The version of the registered model `name` that a run's model is; both are made where they are missing.

    Raises:
        JobError: The run has logged no model.
    """
    from mlflow.exceptions import MlflowException

    for version in versions_of(client, run):
        if version.name == name:
            return version.version
    run = client.get_run(run.info.run_id)  # includes what it has logged in the meantime
    model_id = logged_model_of(run)
    if model_id is None:
        raise JobError(f"run {run.info.run_id} has logged no model. Log it again with `finetune fit`.")
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {MODEL_ID_TAG: run.data.tags[MODEL_ID_TAG]}
    source = client.get_logged_model(
        model_id
    ).artifact_location  # "models:/..." would be looked up in the process's own registry
    made = client.create_model_version(name, source=source, run_id=run.info.run_id, tags=tags, model_id=model_id)
    return str(made.version)


def logged_model_of(run: "Run") -> str | None:
    """The id of the MLflow model that a run has logged completely; None where there is none."""
    outputs = run.outputs.model_outputs if run.outputs else []
    return str(outputs[0].model_id) if outputs else None


def versions_of(client: "MlflowClient", run: "Run") -> list[Version]:
    """The registered versions that a run's model is, with their aliases."""
    return _versions_by_run(client, f"run_id = '{run.info.run_id}'").get(str(run.info.run_id), [])


def promote(client: "MlflowClient", run: "Run", alias: str, *, name: str | None = None) -> tuple[Version, str | None]:
    """Gives `alias` of a registered model to a run's model, which becomes a version of it and is no longer archived.

    Args:
        client: Client of the registry.
        run: The run of the model.
        alias: The alias to give.
        name: Name of the registered model; default: the one that the model is a version of, or that its recipe names, or the
            experiment's name.

    Returns:
        The version, and the one that had the alias before, if it was another.

    Raises:
        UsageError: The model is a version of several registered models, and no name is given.
    """
    name = name or _usual_name(client, run)
    before = registered_aliases(client).get(name, {}).get(alias)
    version = register_version(client, run, name)
    client.set_registered_model_alias(name, alias, version)
    if ARCHIVED_TAG in run.data.tags:
        client.delete_tag(run.info.run_id, ARCHIVED_TAG)
    now = next(found for found in versions_of(client, run) if found.name == name)
    return now, before if before != version else None


def archive(client: "MlflowClient", run: "Run", *, force: bool = False) -> list[Version]:
    """Marks a run's model as archived, so that `finetune models list` no longer shows it. Nothing is removed.

    Args:
        client: Client of the registry.
        run: The run of the model.
        force: Whether to take its aliases away. Otherwise a model with aliases is not archived.

    Returns:
        Its versions as they were.

    Raises:
        UsageError: It has aliases.
    """
    versions = versions_of(client, run)
    held = [(version.name, alias) for version in versions for alias in version.aliases]
    if held and not force:
        names = ", ".join(f"{name}@{alias}" for name, alias in held)
        raise UsageError(
            f"run {run.info.run_id} is {names}. Promote another model first, or archive it with `force=True` (--force)."
        )
    for name, alias in held:
        client.delete_registered_model_alias(name, alias)
    if ARCHIVED_TAG not in run.data.tags:
        client.set_tag(run.info.run_id, ARCHIVED_TAG, utc_now())
    return versions


def _usual_name(client: "MlflowClient", run: "Run") -> str:
    names = sorted({version.name for version in versions_of(client, run)})
    if len(names) > 1:
        raise UsageError(
            f"run {run.info.run_id} is a version of {' and of '.join(names)}. Choose one with `name` (--name)."
        )
    usual = names[0] if names else run.data.tags.get(NAME_TAG)
    return str(usual or client.get_experiment(run.info.experiment_id).name)


def _versions_by_run(client: "MlflowClient", filter_string: str | None = None) -> dict[str, list[Version]]:
    """All versions that pass the filter, by the run that logged the model."""
    aliases = registered_aliases(client)
    found = dict[str, list[Version]]()
    for version in page_through(client.search_model_versions, filter_string, max_results=1000):
        found.setdefault(str(version.run_id), []).append(_version(version, aliases))
    return found


def _version(version: "ModelVersion", aliases: dict[str, dict[str, str]]) -> Version:
    """A version with its aliases, which not every store returns from a search."""
    held = aliases.get(str(version.name), {})
    mine = sorted(alias for alias, number in held.items() if number == str(version.version))
    return Version(str(version.name), str(version.version), mine)
