"""The tables that SQL sees, with their Parquet files and columns: taken from manifests, so without unfinished runs."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from urllib.parse import unquote

import pyarrow as pa

from featurize import storage
from featurize.building.staging import STAGING
from featurize.errors import UsageError
from featurize.tables.corrections import read_corrections
from featurize.tables.delta_log import LOG
from featurize.tables.manifests import FEATURES_COLUMN, DataFile, FeaturesManifest, ImagesManifest
from featurize.tables.predictions import DRIFT, PARTITION, WINDOWS_FOLDERS, find_views
from featurize.tables.publication import read_manifest, read_published_features
from featurize.tables.row_groups import read_footer
from featurize.tables.schemas import IMAGES_SCHEMA, PREDICTIONS_SCHEMA, REJECTS_SCHEMA

IMAGES, FEATURES, PREDICTIONS, REJECTS = "images", "features", "predictions", "rejects"
_MODEL = "model_id"
_NAME = re.compile("[a-z_][a-z0-9_]*")


@dataclass(frozen=True)
class Part:
    """Files of a table that share a folder and the values of the partition columns, which are in no file.

    Attributes:
        values: One value for each of `SqlTable.partition`.
        folder: URL; it may hold other files too, which are not part of the table.
        files: URLs of the files.
    """

    values: tuple[str, ...]
    folder: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class SqlTable:
    """A table as SQL sees it.

    Attributes:
        columns: Columns in the files.
        corrected: Corrected labels that replace those of the files; None: there are none.
        partition: Names of further columns, whose values belong to the parts; all are text.
        sources: URLs where the table was found.
    """

    name: str
    columns: pa.Schema
    partition: tuple[str, ...]
    parts: tuple[Part, ...]
    sources: tuple[str, ...]
    corrected: "CorrectedLabels | None" = None


@dataclass(frozen=True)
class CorrectedLabels:
    """Labels that replace those in the files.

    Attributes:
        labels: Labels by `image_id`.
        classes: The class labels, in the order of `label_index`.
    """

    labels: Mapping[str, str]
    classes: tuple[str, ...]

    def by_class(self) -> dict[str, list[str]]:
        """The images for each corrected label."""
        images: dict[str, list[str]] = {}
        for image_id, label in self.labels.items():
            images.setdefault(label, []).append(image_id)
        return images


@dataclass(frozen=True)
class SqlView:
    """The rows of a table with a given value in a text column."""

    name: str
    table: str
    column: str
    value: str


@dataclass(frozen=True)
class _Found:
    """A table, views on it, its rejects, and tables beside it."""

    table: SqlTable
    rejects: tuple[Part, ...]
    views: tuple[SqlView, ...] = ()
    beside: tuple[SqlTable, ...] = ()


def find_tables(
    *,
    images: str | None = None,
    features: str | None = None,
    predictions: str | None = None,
    others: Mapping[str, str] | None = None,
    version: int | None = None,
) -> list[SqlTable | SqlView]:
    """The tables at some URLs, named `images`, `features` and `predictions`; `rejects` of all three; and others.

    Predictions also have the views `latest` and those of the aliases, see `tables.predictions`, and, where windows of them were
    tested for drift, the table `drift`.

    Args:
        images: URL of an images table.
        features: URL of a feature set.
        predictions: URL of predictions.
        others: URLs by name: images tables, feature sets, or any folder of Parquet files.
        version: an older version of the feature set, or of the images table where no feature set is given.

    Raises:
        UsageError: A URL holds no such table, or a name is invalid or taken.
        JobError: A manifest or a file is damaged.
    """
    if version is not None and images is None and features is None:
        raise UsageError("`version` is of a feature set or an images table; neither is given.")
    of_features, of_images = (version, None) if features is not None else (None, version)
    finders: dict[str, tuple[Callable[[str, str], _Found], str | None]] = {
        IMAGES: (partial(_images, version=of_images), images),
        FEATURES: (partial(_features, version=of_features), features),
        PREDICTIONS: (_predictions, predictions),
    }
    found = {name: find(storage.absolute_url(url), name) for name, (find, url) in finders.items() if url is not None}
    tables: list[SqlTable | SqlView] = [one.table for one in found.values()]
    if found:
        parts = tuple(part for one in found.values() for part in one.rejects)
        sources = tuple(source for one in found.values() for source in one.table.sources)
        tables.append(SqlTable(REJECTS, REJECTS_SCHEMA, ("rejected_by",), parts, sources))
        tables += [view for one in found.values() for view in one.views]
        tables += [table for one in found.values() for table in one.beside]
    for name, url in (others or {}).items():
        if _NAME.fullmatch(name) is None or name in {table.name for table in tables}:
            raise UsageError(f"the name of a table must be new and consist of a-z, 0-9 and _. Got {name!r}.")
        tables.append(_any_table(storage.absolute_url(url), name))
    return tables


def images_table(url: str, manifest: ImagesManifest) -> SqlTable:
    """The images table at `url`, of the files that its manifest lists."""
    return _images_of(manifest, url, IMAGES).table


def features_table(url: str, manifest: FeaturesManifest, *, splits: Sequence[str]) -> SqlTable:
    """Some splits of the feature set at `url`, of the files that its manifest lists, with all corrections of labels so far."""
    table = _features_of(manifest, url, FEATURES).table
    return replace(table, parts=tuple(part for part in table.parts if part.values[0] in splits))


def _images(url: str, name: str, *, version: int | None) -> _Found:
    manifest = read_manifest(url, version)
    if not isinstance(manifest, ImagesManifest):
        raise UsageError(f"{url} is not an images table. Make one with `featurize ingest`.")
    return _images_of(manifest, url, name)


def _images_of(manifest: ImagesManifest, url: str, name: str) -> _Found:
    parts = _parts(url, manifest.files, ())
    table = SqlTable(name, _columns_of(parts, IMAGES_SCHEMA), (), parts, (url,))
    return _Found(table, _parts(url, manifest.reject_files, (name,)))


def _features(url: str, name: str, *, version: int | None) -> _Found:
    return _features_of(read_published_features(url, version), url, name)


def _features_of(manifest: FeaturesManifest, url: str, name: str) -> _Found:
    last = read_corrections(url).last()
    labels = dict(zip(last["image_id"].to_pylist(), last["label"].to_pylist(), strict=True))
    corrected = CorrectedLabels(labels, tuple(manifest.classes)) if labels else None
    parts = tuple(
        part
        for split in manifest.rows
        for part in _parts(url, [file for file in manifest.files if file.split == split], (split,))
    )
    table = SqlTable(name, _columns_of(parts, _empty_features(manifest)), ("split",), parts, (url,), corrected)
    return _Found(table, _parts(url, manifest.reject_files, (name,)))


def _predictions(url: str, name: str) -> _Found:
    """Predictions have a manifest for each model, and views; where there is no manifest, every file is part of the table."""
    if not storage.is_folder(url):
        raise UsageError(f"{url} holds no predictions. Make some with `finetune predict`.")
    published = find_views(url)
    if published is None:
        return _Found(_any_table(url, name), ())
    parts, rejects = list[Part](), list[Part]()
    for model_id, manifest in published.manifests.items():
        folder = storage.join_url(url, f"{PARTITION}{model_id}")
        parts += _parts(folder, manifest.files, (model_id,))
        rejects += _parts(folder, manifest.reject_files, (model_id,))
    views = tuple(SqlView(view, name, _MODEL, model_id) for view, model_id in published.views.by_name().items())
    table = SqlTable(name, _columns_of(parts, PREDICTIONS_SCHEMA), (_MODEL,), tuple(parts), (url,))
    return _Found(table, tuple(rejects), views, _windows(url))


def _windows(url: str) -> tuple[SqlTable, ...]:
    """The tables of the windows that each command tested for drift; none for a command that tested no window."""
    parts = []
    for command, path in WINDOWS_FOLDERS.items():
        folder = storage.join_url(url, path)
        files = [file for file in storage.list_files(folder) if _is_parquet(file, folder)]
        parts += [Part((command,), folder, tuple(files))] if files else []
    if not parts:
        return ()
    return (SqlTable(DRIFT, _columns_of(parts, pa.schema([])), ("tested_by",), tuple(parts), (url,)),)


def _any_table(url: str, name: str) -> SqlTable:
    """A table with a manifest, or else all Parquet files below a folder, with columns from ``key=value`` in the path."""
    manifest = read_manifest(url)
    if isinstance(manifest, ImagesManifest):
        return _images_of(manifest, url, name).table
    if isinstance(manifest, FeaturesManifest):
        return _features_of(manifest, url, name).table
    if manifest is not None:
        parts = _parts(url, manifest.files, ())
        return SqlTable(name, _columns_of(parts, PREDICTIONS_SCHEMA), (), parts, (url,))
    found_files = storage.list_source(url, follow_links=False)
    for file in found_files:
        if storage.leads_outside(file, url):
            raise UsageError(f"{file} is a link that leads out of {url}; it is not followed.")
    if any(f"/{STAGING}/" in file.removeprefix(url) for file in found_files):
        raise UsageError(
            f"{url}: nothing is published there yet, and a run of Firn is unfinished. Let it finish first."
        )
    files = [file for file in found_files if _is_parquet(file, url)]
    if not files:
        raise UsageError(f"{url} holds no table: there is neither a {LOG} nor a Parquet file.")
    keys = [_keys_of(file, url) for file in files]
    names = list(dict.fromkeys(key for found in keys for key in found))
    if any(list(found) != names for found in keys):
        raise UsageError(f"{url}: all files must be in folders with the same keys. Got {', '.join(names)} for some.")
    by_place: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for file, found in zip(files, keys, strict=True):
        by_place.setdefault((tuple(found.values()), file.rpartition("/")[0]), []).append(file)
    parts = tuple(Part(values, folder, tuple(group)) for (values, folder), group in by_place.items())
    return SqlTable(name, _columns_of(parts, pa.schema([])), tuple(names), parts, (url,))


def _parts(url: str, files: Iterable[DataFile], values: tuple[str, ...]) -> tuple[Part, ...]:
    """Files of a manifest, by their folder; files without rows are left out."""
    folders: dict[str, list[str]] = {}
    for file in files:
        if file.rows:
            path = storage.join_url(url, file.path)
            folders.setdefault(path.rpartition("/")[0], []).append(path)
    return tuple(Part(values, folder, tuple(paths)) for folder, paths in folders.items())


def _columns_of(parts: Sequence[Part], default: pa.Schema) -> pa.Schema:
    """The columns of the first file; `default` where there is none."""
    files = [file for part in parts for file in part.files]
    return read_footer(files[0]).schema.to_arrow_schema().remove_metadata() if files else default


def _empty_features(manifest: FeaturesManifest) -> pa.Schema:
    dtypes = {one.name: one.feature_dtype for one in manifest.columns} or {FEATURES_COLUMN: manifest.feature_dtype}
    kinds = {name: pa.binary() if dtype == "uint8" else pa.list_(pa.float32()) for name, dtype in dtypes.items()}
    text, number = pa.string(), pa.int32()
    names = {"image_id": text, "path": text, "label": text, "label_index": number, "width": number, "height": number}
    return pa.schema([*names.items(), *kinds.items()])


def _is_parquet(file: str, url: str) -> bool:
    """Whether it is a Parquet file, and neither it nor a folder below `url` has a name that Spark ignores."""
    return file.endswith(".parquet") and not any(
        part.startswith((".", "_")) for part in file.removeprefix(url).split("/")
    )


def _keys_of(file: str, url: str) -> dict[str, str]:
    """The columns in the names of folders, as Hive and Spark write them."""
    folders = file.removeprefix(url).split("/")[1:-1]
    pairs = (folder.partition("=") for folder in folders if "=" in folder)
    return {key: unquote(value) for key, _, value in pairs}
