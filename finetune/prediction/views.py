"""Publishing views on predictions: which model's predictions an alias and `latest` show.

The aliases are those of one registered model. They are read from the registry by every prediction run and by `finetune views`;
without a registry they are set by hand. When an alias moves to a model that has not predicted anything here yet, its view stays
as it was, and the publisher is warned.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from featurize import storage
from featurize.errors import UsageError
from featurize.recipes.recipe import RegistrySettings
from featurize.tables.manifests import utc_now
from featurize.tables.predictions import (
    RESERVED,
    VIEWS_NAME,
    PublishedViews,
    Views,
    latest_of,
    read_views,
    read_views_file,
)
from finetune.registry.client import MODEL_ID_TAG, open_registry, registered_aliases, registry_at, registry_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient


def publish_views(
    output: str,
    *,
    registered_model: str | None = None,
    first_registered_model: str | None = None,
    registry: str | None = None,
    set_aliases: Mapping[str, str] = {},
) -> PublishedViews:
    """Updates the views on the predictions at `output`.

    All but `set_aliases` follows from the manifests and the registry, so concurrent calls may finish in any order.

    Args:
        registered_model: The registered model whose aliases the views follow from now on; None: as before.
        first_registered_model: The registered model to follow if the views follow none yet.
        registry: MLflow's tracking URI; default: the environment's, or `sqlite:///runs/mlflow.db`.
        set_aliases: The `model_id` for each alias, for views that follow no registry.

    Raises:
        UsageError: There are no predictions, there is no such registered model, or aliases were set by hand although the views
            follow a registry.
        JobError: The registry does not answer.
    """
    before = read_views(output)
    name = registered_model or before.views.registered_model or first_registered_model
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
        registered_model=name, aliases=aliases, latest=latest_of(aliases, before.manifests), updated_at=utc_now()
    )
    if views.model_copy(update={"updated_at": before.views.updated_at}) != read_views_file(before.url):
        storage.write_json(storage.join_url(before.url, VIEWS_NAME), views.model_dump())
    return PublishedViews(before.url, views, before.manifests, missing)


def aliases_of(name: str, registry: str | None = None) -> dict[str, str]:
    """The aliases of a registered model, each with the `model_id` of its version.

    Raises:
        UsageError: There is no such registered model.
        JobError: The registry does not answer.
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
