"""Views on predictions: which model's are shown under the name of an alias, and as `latest`.

    <output>/views.json     the model of each view; published by one write

A view is the name of a model's part of the predictions. `latest` is the champion's, or where there is no champion that of the
model which has predicted last. The aliases are those of one registered model, read from the registry whenever predictions are
made and by `finetune views`; without a registry they are set by hand. An alias that moves to a model which has predicted nothing
here yet shows what it showed before, and whoever publishes views is told.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from featurize import storage
from featurize.errors import JobError, UsageError
from featurize.manifests import PredictionsManifest, read_manifest, utc_now
from featurize.recipe import RegistrySettings
from finetune.registry import MODEL_ID_TAG, open_registry, registered_aliases, registry_at, registry_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient

VIEWS_NAME = "views.json"
PARTITION = "model_id="
LATEST, CHAMPION, ALL = "latest", "champion", "predictions"
RESERVED = (LATEST, ALL)
SCHEMA_VERSION = 1


class Views(BaseModel):
    """`views.json`.

    Attributes:
        registered_model: whose aliases the views follow; None: they are set by hand.
        aliases: the model of each alias, by `model_id`.
        latest: that of the view `latest`; None where nothing is predicted yet.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA_VERSION
    registered_model: str | None = None
    aliases: dict[str, str] = {}
    latest: str | None = None
    updated_at: str = ""

    def by_name(self) -> dict[str, str]:
        """The model of every view."""
        return {**self.aliases, **({LATEST: self.latest} if self.latest is not None else {})}


@dataclass(frozen=True)
class PublishedViews:
    """Views, and the predictions that they are of.

    Attributes:
        manifests: by `model_id`; of all models that have predicted here.
        missing: aliases whose model has predicted nothing here, with its `model_id`.
    """

    url: str
    views: Views
    manifests: dict[str, PredictionsManifest]
    missing: dict[str, str]


def partition_url(output: str, model_id: str) -> str:
    """Where the predictions of a model lie."""
    return storage.join_url(storage.absolute_url(output), f"{PARTITION}{model_id}")


def read_views(output: str) -> PublishedViews:
    """The views on the predictions at `output`, as they were published last.

    Raises:
        UsageError: there are no predictions.
        JobError: `views.json` is damaged.
    """
    url = storage.absolute_url(output)
    manifests = _read_manifests(url)
    if not manifests:
        raise UsageError(f"{url} holds no predictions. Make some with `finetune predict`.")
    views = _read(url)
    if views.latest not in manifests:  # killed before the views were published, or a model's predictions were removed
        views = views.model_copy(update={"latest": _latest(views.aliases, manifests)})
    there = {alias: model_id for alias, model_id in views.aliases.items() if model_id in manifests}
    return PublishedViews(url, views.model_copy(update={"aliases": there}), manifests, {})


def publish_views(
    output: str,
    *,
    registered_model: str | None = None,
    registry: str | None = None,
    set_aliases: Mapping[str, str] = {},
) -> PublishedViews:
    """Brings the views on the predictions at `output` up to date.

    All but `set_aliases` follows from the manifests and the registry: of two who do this at once it does not matter who is last.

    Args:
        registered_model: whose aliases the views are to follow from now on; None: as before.
        registry: MLflow's tracking URI; default: that of the environment, or `sqlite:///runs/mlflow.db`.
        set_aliases: the model of an alias, by `model_id`, where the views follow no registry.

    Raises:
        UsageError: no predictions, no such registered model, or aliases set by hand where a registry has them.
        JobError: the registry does not answer.
    """
    before = read_views(output)
    name = registered_model or before.views.registered_model
    if name is not None and set_aliases:
        raise UsageError(
            f"the views of {before.url} follow the registered model {name}. Use `finetune models promote`."
        )
    wanted = {**before.views.aliases, **set_aliases} if name is None else aliases_of(name, registry)
    wanted = {alias: model_id for alias, model_id in wanted.items() if alias not in RESERVED}
    missing = {alias: model_id for alias, model_id in wanted.items() if model_id not in before.manifests}
    if name is None and missing:
        raise UsageError(f"{before.url} holds no predictions of the model {min(missing.values())}.")
    kept = {alias: before.views.aliases[alias] for alias in missing if alias in before.views.aliases}
    aliases = {alias: model_id for alias, model_id in sorted((wanted | kept).items()) if model_id in before.manifests}
    views = Views(
        registered_model=name, aliases=aliases, latest=_latest(aliases, before.manifests), updated_at=utc_now()
    )
    if views.model_copy(update={"updated_at": before.views.updated_at}) != _read(before.url):
        storage.write_json(storage.join_url(before.url, VIEWS_NAME), views.model_dump())
    return PublishedViews(before.url, views, before.manifests, missing)


def aliases_of(name: str, registry: str | None = None) -> dict[str, str]:
    """The aliases of a registered model, each with the `model_id` of its version.

    Raises:
        UsageError: there is no such registered model.
        JobError: the registry does not answer.
    """
    settings = registry_at(RegistrySettings(url=registry))
    client = open_registry(str(settings.url))
    with registry_errors(str(settings.url)):
        known = registered_aliases(client)
        if name not in known:
            raise UsageError(f"there is no registered model {name}. There are {', '.join(sorted(known)) or 'none'}.")
        return {
            alias: model_id
            for alias, version in known[name].items()
            if (model_id := _model_id_of(client, name, version)) is not None
        }


def _model_id_of(client: "MlflowClient", name: str, version: str) -> str | None:
    run_id = client.get_model_version(name, version).run_id
    model_id = client.get_run(run_id).data.tags.get(MODEL_ID_TAG) if run_id else None
    return None if model_id is None else str(model_id)


def _latest(aliases: Mapping[str, str], manifests: Mapping[str, PredictionsManifest]) -> str:
    """The model of the view `latest`: the champion, or else that which has predicted last."""
    if aliases.get(CHAMPION) in manifests:
        return aliases[CHAMPION]
    return max(manifests.values(), key=lambda manifest: (manifest.updated_at, manifest.model_id)).model_id


def _read(url: str) -> Views:
    views_url = storage.join_url(url, VIEWS_NAME)
    try:
        return Views.model_validate(storage.read_json(views_url))
    except (FileNotFoundError, NotADirectoryError):
        return Views()
    except (ValueError, ValidationError) as error:
        raise JobError(f"{views_url} is damaged. Remove it; `finetune views` makes it anew.") from error


def _read_manifests(url: str) -> dict[str, PredictionsManifest]:
    """The predictions of each model below `url` that are published."""
    found = {}
    for folder in storage.list_folders(url):
        if folder.rsplit("/", 1)[1].startswith(PARTITION):
            manifest = read_manifest(folder)
            if isinstance(manifest, PredictionsManifest):
                found[manifest.model_id] = manifest
    return found
