"""Tables of predictions: a table for each model below one URL, and views, which name the model that is shown.

    <output>/model_id=<model_id>/data/*.parquet     one row per image, see `PREDICTIONS_SCHEMA`
    <output>/model_id=<model_id>/manifest.json, rejects/, index/
    <output>/views.json                             the model of each view; published by one write
    <output>/drift/windows, drift/stream            what `finetune drift` and `finetune stream` found, a row for each window

`latest` is the champion's, or where there is no champion that of the model which has predicted last. `finetune predict` and
`finetune views` write all this.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError

from featurize import storage
from featurize.errors import JobError, UsageError
from featurize.tables.manifests import PredictionsManifest, read_manifest

PLAIN_COLUMNS = ("image_id", "path", "probability", "projection")
"""Of these, the columns whose values hardly repeat."""
ROWS_PER_GROUP = 1 << 14
VIEWS_NAME = "views.json"
PARTITION = "model_id="
LATEST, CHAMPION, ALL = "latest", "champion", "predictions"
DRIFT = "drift"
RESERVED = (LATEST, ALL, "images", "features", "rejects", DRIFT)
"""Names that SQL has for other tables: no alias is shown under them."""
WINDOWS_FOLDERS = {"drift": f"{DRIFT}/windows", "stream": f"{DRIFT}/stream"}
"""Below the output, by the command that writes there: Parquet of one schema; names that begin with `_` are not of the table."""
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
    published = find_views(output)
    if published is None:
        raise UsageError(f"{storage.absolute_url(output)} holds no predictions. Make some with `finetune predict`.")
    return published


def find_views(output: str) -> PublishedViews | None:
    """As `read_views`; None where there are no predictions."""
    url = storage.absolute_url(output)
    manifests = _read_manifests(url)
    if not manifests:
        return None
    views = read_views_file(url)
    if views.latest not in manifests:  # killed before the views were published, or a model's predictions were removed
        views = views.model_copy(update={"latest": latest_of(views.aliases, manifests)})
    there = {alias: model_id for alias, model_id in views.aliases.items() if model_id in manifests}
    return PublishedViews(url, views.model_copy(update={"aliases": there}), manifests, {})


def read_views_file(url: str) -> Views:
    """`views.json`, whatever predictions there are; no views where there is none.

    Raises:
        JobError: it is damaged.
    """
    views_url = storage.join_url(url, VIEWS_NAME)
    try:
        return Views.model_validate(storage.read_json(views_url))
    except (FileNotFoundError, NotADirectoryError):
        return Views()
    except (ValueError, ValidationError) as error:
        raise JobError(f"{views_url} is damaged. Remove it; `finetune views` makes it anew.") from error


def latest_of(aliases: Mapping[str, str], manifests: Mapping[str, PredictionsManifest]) -> str:
    """The model of the view `latest`: the champion, or else that which has predicted last."""
    if aliases.get(CHAMPION) in manifests:
        return aliases[CHAMPION]
    return max(manifests.values(), key=lambda manifest: (manifest.updated_at, manifest.model_id)).model_id


def _read_manifests(url: str) -> dict[str, PredictionsManifest]:
    """The predictions of each model below `url` that are published."""
    found = {}
    for folder in storage.list_folders(url):
        if folder.rsplit("/", 1)[1].startswith(PARTITION):
            manifest = read_manifest(folder)
            if isinstance(manifest, PredictionsManifest):
                found[manifest.model_id] = manifest
    return found
