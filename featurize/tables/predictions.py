"""Tables of predictions: one table for each model below one URL, and views, which name the models to show.

    <output>/model_id=<model_id>/data/*.parquet     one row per image, see `PREDICTIONS_SCHEMA`
    <output>/model_id=<model_id>/manifest.json, rejects/, index/
    <output>/views.json                             the model of each view; published in one write
    <output>/drift/windows, drift/stream            results of `finetune drift` and `finetune stream`, a row for each window

`latest` shows the champion's predictions, or without a champion those of the model that has predicted last. `finetune predict`
and `finetune views` write all this.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from featurize import storage
from featurize.errors import UsageError
from featurize.storage.inner_path import InnerName
from featurize.tables.documents import read_document
from featurize.tables.manifests import PredictionsManifest
from featurize.tables.publication import read_manifest

PLAIN_COLUMNS = ("image_id", "path", "probability", "projection")
"""The prediction columns whose values hardly repeat."""
ROWS_PER_GROUP = 1 << 14
VIEWS_NAME = "views.json"
PARTITION = "model_id="
LATEST, CHAMPION, ALL = "latest", "champion", "predictions"
DRIFT = "drift"
RESERVED = (LATEST, ALL, "images", "features", "rejects", DRIFT)
"""Names that SQL uses for other tables: an alias of such a name gets no view."""
WINDOWS_FOLDERS = {"drift": f"{DRIFT}/windows", "stream": f"{DRIFT}/stream"}
"""Folders below the output, by the command that writes there: Parquet files of one schema; other files begin with `_`."""
SCHEMA_VERSION = 1


class Views(BaseModel):
    """The content of `views.json`.

    Attributes:
        registered_model: The registered model whose aliases the views follow; None: aliases are set by hand.
        aliases: The `model_id` of each alias.
        latest: The `model_id` of the view `latest`; None where nothing is predicted yet.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA_VERSION
    registered_model: str | None = None
    aliases: dict[str, InnerName] = {}
    latest: InnerName | None = None
    updated_at: str = ""

    def by_name(self) -> dict[str, str]:
        """The `model_id` of every view."""
        return {**self.aliases, **({LATEST: self.latest} if self.latest is not None else {})}


@dataclass(frozen=True)
class PublishedViews:
    """Views, and the predictions that they show.

    Attributes:
        url: URL of the predictions.
        views: The content of `views.json`.
        manifests: Manifests of all models that have predicted here, by `model_id`.
        missing: Aliases whose model has predicted nothing here, with its `model_id`.
    """

    url: str
    views: Views
    manifests: dict[str, PredictionsManifest]
    missing: dict[str, str]


def partition_url(output: str, model_id: str) -> str:
    """URL of a model's predictions."""
    return storage.join_url(storage.absolute_url(output), f"{PARTITION}{model_id}")


def read_views(output: str) -> PublishedViews:
    """The views on the predictions at `output`, as they were published last.

    Raises:
        UsageError: There are no predictions.
        JobError: `views.json` is damaged, or has another schema version.
    """
    published = find_views(output)
    if published is None:
        raise UsageError(f"{storage.absolute_url(output)} holds no predictions. Make some with `finetune predict`.")
    return published


def find_views(output: str) -> PublishedViews | None:
    """The views on the predictions at `output`, like `read_views`; None where there are no predictions."""
    url = storage.absolute_url(output)
    manifests = _read_manifests(url)
    if not manifests:
        return None
    views = read_views_file(url)
    if views.latest not in manifests:  # a job was killed before publishing views, or a model's predictions were removed
        views = views.model_copy(update={"latest": latest_of(views.aliases, manifests)})
    there = {alias: model_id for alias, model_id in views.aliases.items() if model_id in manifests}
    return PublishedViews(url, views.model_copy(update={"aliases": there}), manifests, {})


def read_views_file(url: str) -> Views:
    """The content of `views.json`, whatever predictions there are; no views where there is no such file.

    Raises:
        JobError: It is damaged, or has another schema version.
    """
    remedy = "Remove it; `finetune views` makes it again."
    return read_document(storage.join_url(url, VIEWS_NAME), Views, version=SCHEMA_VERSION, remedy=remedy) or Views()


def latest_of(aliases: Mapping[str, str], manifests: Mapping[str, PredictionsManifest]) -> str:
    """The model of the view `latest`: the champion, or else the one that has predicted last."""
    if aliases.get(CHAMPION) in manifests:
        return aliases[CHAMPION]
    return max(manifests.values(), key=lambda manifest: (manifest.updated_at, manifest.model_id)).model_id


def _read_manifests(url: str) -> dict[str, PredictionsManifest]:
    """The manifest of each model's published predictions below `url`."""
    found = {}
    for folder in storage.list_folders(url):
        if folder.rsplit("/", 1)[1].startswith(PARTITION):
            manifest = read_manifest(folder)
            if isinstance(manifest, PredictionsManifest):
                found[manifest.model_id] = manifest
    return found
