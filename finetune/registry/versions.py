"""Registered models: their versions and aliases; and the models of a registry listed, promoted and archived."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from featurize.errors import JobError, UsageError
from featurize.tables.manifests import utc_now
from finetune.registry.client import MODEL_ID_TAG, MODEL_URL_TAG, all_experiments, registered_aliases, search_runs

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

NAME_TAG = "firn.name"  # of a run: the registered model that its recipe names
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
    """A model that was logged: a run of Firn's.

    Attributes:
        model: the folder it was trained into.
        name: of its network, such as softmax_head.
        archived_at: when it was archived; None: it was not.
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
    """The models of a registry, the newest first.

    Args:
        experiment: only those of the experiment of this name.
        with_archived: archived ones too.

    Raises:
        UsageError: there is no such experiment; it names those there are.
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
    """What is listed of a run."""
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
    """The version that the model of a run is of the registered model `name`; both are made where they are missing.

    Raises:
        JobError: the run has logged no model.
    """
    from mlflow.exceptions import MlflowException

    for version in versions_of(client, run):
        if version.name == name:
            return version.version
    run = client.get_run(run.info.run_id)  # what it has logged meanwhile
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
    ).artifact_location  # "models:/..." would be looked up in the process's registry
    made = client.create_model_version(name, source=source, run_id=run.info.run_id, tags=tags, model_id=model_id)
    return str(made.version)


def logged_model_of(run: "Run") -> str | None:
    """The id of the MLflow model that a run has logged whole."""
    outputs = run.outputs.model_outputs if run.outputs else []
    return str(outputs[0].model_id) if outputs else None


def versions_of(client: "MlflowClient", run: "Run") -> list[Version]:
    """The versions of registered models that the model of a run is, with their aliases."""
    return _versions_by_run(client, f"run_id = '{run.info.run_id}'").get(str(run.info.run_id), [])


def promote(client: "MlflowClient", run: "Run", alias: str, *, name: str | None = None) -> tuple[Version, str | None]:
    """Gives `alias` of a registered model to the model of a run, which becomes a version of it, and is archived no more.

    Args:
        name: of the registered model; left out: the one it is a version of, that its recipe names, or that of its experiment.

    Returns:
        The version, and the one that had the alias before, if that was another.

    Raises:
        UsageError: it is a version of several registered models, and no name is given.
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
    """Marks the model of a run as archived: `finetune models list` does not show it any more. Nothing is removed.

    Args:
        force: its aliases are taken away. Without, a model that has any is not archived.

    Returns:
        Its versions as they were.

    Raises:
        UsageError: it has aliases.
    """
    versions = versions_of(client, run)
    held = [(version.name, alias) for version in versions for alias in version.aliases]
    if held and not force:
        names = ", ".join(f"{name}@{alias}" for name, alias in held)
        raise UsageError(f"run {run.info.run_id} is {names}. Promote another model first, or archive it with --force.")
    for name, alias in held:
        client.delete_registered_model_alias(name, alias)
    if ARCHIVED_TAG not in run.data.tags:
        client.set_tag(run.info.run_id, ARCHIVED_TAG, utc_now())
    return versions


def _usual_name(client: "MlflowClient", run: "Run") -> str:
    names = sorted({version.name for version in versions_of(client, run)})
    if len(names) > 1:
        raise UsageError(f"run {run.info.run_id} is a version of {' and of '.join(names)}. Say which: --name.")
    usual = names[0] if names else run.data.tags.get(NAME_TAG)
    return str(usual or client.get_experiment(run.info.experiment_id).name)


def _versions_by_run(client: "MlflowClient", filter_string: str | None = None) -> dict[str, list[Version]]:
    """All versions that pass the filter, by the run that logged the model."""
    aliases, token = registered_aliases(client), None
    found = dict[str, list[Version]]()
    while True:
        page = client.search_model_versions(filter_string, max_results=1000, page_token=token)
        for version in page:
            found.setdefault(str(version.run_id), []).append(_version(version, aliases))
        token = page.token
        if not token:
            return found


def _version(version: "ModelVersion", aliases: dict[str, dict[str, str]]) -> Version:
    """With its aliases, which a search of versions does not tell in every store."""
    held = aliases.get(str(version.name), {})
    mine = sorted(alias for alias, number in held.items() if number == str(version.version))
    return Version(str(version.name), str(version.version), mine)
