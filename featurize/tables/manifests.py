"""Manifests: what describes a version of a table completely.

A table is a folder: a Delta log, and in Parquet `data/`, `rejects/` and `index/`, from which a later run knows what is there.
Files that the manifest does not list are not part of the version. `publication` reads and publishes them.
"""

import difflib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, PrivateAttr

from featurize.digests import settings_digest
from featurize.errors import UsageError
from featurize.storage.inner_path import InnerPath
from featurize.tables.row_edits import RowEdits
from featurize.timings import Timings

SCHEMA_VERSION = 3
MANIFEST_NAME = "manifest.json"  # of tables of Firn 0.1
FEATURES_COLUMN = "features"
"""The column of features of a set with one, and of any set as its readers in Python see it."""
_RECORDED_LIBRARIES = (
    "firn",
    "pyspark",
    "tensorflow",
    "tensorflow-cpu",
    "keras",
    "openvino",
    "onnxruntime",
    "pyarrow",
    "numpy",
    "pillow",
)


class DataFile(BaseModel):
    """A Parquet file of a table; `path` is relative to the table."""

    path: InnerPath
    rows: int
    bytes: int
    split: str | None = None


class ShardRecord(BaseModel):
    """The output of a task: its files, the counts for the manifest, and where its time went.

    `unread` counts the rejects that could not be read from storage; a later attempt may succeed.
    """

    files: list[DataFile]
    reject_files: list[DataFile]
    index_file: DataFile
    rows: dict[str, dict[str, int]]
    rejects: dict[str, int]
    unread: int
    content_digest: str
    timings: Timings
    began_at: float = 0.0  # seconds since 1970, by the worker's clock
    memory_bytes: int = 0  # the most memory that the worker process used, without its decoders

    @property
    def all_files(self) -> list[DataFile]:
        """Every file of the shard."""
        return [*self.files, *self.reject_files, self.index_file]

    @property
    def row_count(self) -> int:
        """Rows in all splits."""
        return sum(sum(classes.values()) for classes in self.rows.values())

    @property
    def reject_count(self) -> int:
        """Number of images that gave no row."""
        return sum(self.rejects.values())


class Version(BaseModel):
    """A version of a table in its Delta log.

    Attributes:
        number: counts from 0; -1: not published, or by Firn 0.1.
        token: the random name of its commit.
        table_id: a UUID, the same in all versions.
        oldest: the oldest version whose files have not been removed.
        vacuumed: the number of the last version that a vacuum published; -1: there was none.
    """

    model_config = ConfigDict(frozen=True)

    number: int = -1
    token: str = ""
    table_id: str = ""
    oldest: int = 0
    vacuumed: int = -1


class Manifest(BaseModel):
    """The fields that the manifests of all tables share.

    `identity` is the digest of `settings`, which hold everything that determines the values in the table. `content_digest` is
    the multiset digest of the rows: two tables with equal identity and equal content digest hold the same rows.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA_VERSION
    kind: Literal["images", "features", "predictions"]
    identity: str
    settings: dict[str, Any]
    classes: list[str]
    rows: dict[str, dict[str, int]]  # split -> class -> rows
    rejects: dict[str, int]  # "stage: error" -> images
    content_digest: str
    shards: list[ShardRecord]
    created_at: str
    updated_at: str
    seconds: float
    timings: Timings
    versions: dict[str, str]
    _version: Version = PrivateAttr(default=Version())

    @property
    def version(self) -> Version:
        """The version of the table that this manifest describes."""
        return self._version

    def set_version(self, version: Version) -> None:
        """Says which version of the table this manifest describes; only its publication knows."""
        self._version = version

    @property
    def files(self) -> list[DataFile]:
        """The Parquet files that hold the rows."""
        return [file for shard in self.shards for file in shard.files]

    @property
    def reject_files(self) -> list[DataFile]:
        """The Parquet files of the rejects table."""
        return [file for shard in self.shards for file in shard.reject_files]

    @property
    def row_count(self) -> int:
        """Rows in all splits."""
        return sum(count for classes in self.rows.values() for count in classes.values())

    @property
    def reject_count(self) -> int:
        """Number of images that could not be read."""
        return sum(self.rejects.values())

    @property
    def byte_count(self) -> int:
        """Bytes of Parquet, without the rejects."""
        return sum(file.bytes for file in self.files)

    def split_rows(self, split: str) -> int:
        """Rows in one split."""
        return sum(self.rows.get(split, {}).values())


class ImagesManifest(Manifest):
    """The manifest of an images table."""

    kind: Literal["images"] = "images"
    card: dict[str, Any] | None = None


class FeatureColumn(BaseModel):
    """A column of features in a set that has several.

    `backbone`, `preparation_id`, `feature_shape` and `feature_dtype` are as in `FeaturesManifest`; `settings` is the section
    `[backbone]` of a recipe that would make this column alone.
    """

    name: str
    preparation_id: str
    backbone: dict[str, Any]
    feature_shape: list[int]
    feature_dtype: Literal["float32", "uint8"]
    settings: dict[str, Any]


class FeaturesManifest(Manifest):
    """The manifest of a feature set.

    `preparation_id` is the digest of the parts of `backbone` that determine an image's features: feature sets that share it can
    be mixed, and a model trained on one can be used on another. Where `columns` is empty, there is one column, `features`;
    otherwise these four fields, as published, are those of the first column, and `of_column` gives those of another.
    """

    kind: Literal["features"] = "features"
    preparation_id: str
    backbone: dict[str, Any]
    feature_shape: list[int]
    feature_dtype: Literal["float32", "uint8"]
    rows_per_group: int
    recipe: dict[str, Any]
    lineage: dict[str, Any]
    columns: list[FeatureColumn] = []
    _edits: RowEdits | None = PrivateAttr(default=None)
    _column: str | None = PrivateAttr(default=None)

    @property
    def column_names(self) -> list[str]:
        """The names of the columns of features."""
        return [column.name for column in self.columns] or [FEATURES_COLUMN]

    @property
    def column(self) -> str | None:
        """The column that readers take features from; None: there are several, and none was chosen."""
        return self._column or (self.column_names[0] if len(self.column_names) == 1 else None)

    @property
    def identity_of_features(self) -> str:
        """The identity of a set that has only the column that readers take features from, as `features`."""
        if not self.columns or self.column is None:
            return self.identity
        settings = {key: value for key, value in self.settings.items() if key != "columns"}
        return settings_digest({**settings, "backbone": self.settings["columns"][self.column]})

    def of_column(self, name: str | None, url: str) -> "FeaturesManifest":
        """A copy for readers of one column, with its backbone and the shape of its features. It must not be written.

        Args:
            name: the column; None: the only one.
            url: URL of the set, for messages.

        Raises:
            UsageError: there is no such column, or no name was given and there are several.
        """
        if name is None and self.column is None:
            raise UsageError(
                f"`features.column` is required: {url} has the columns {', '.join(self.column_names)}. Name one of them."
            )
        chosen = name or self.column
        if chosen not in self.column_names:
            close = difflib.get_close_matches(str(chosen), self.column_names, n=1)
            hint = f"Did you mean {close[0]}?" if close else f"Its columns are {', '.join(self.column_names)}."
            raise UsageError(f"`features.column`: {url} has no column of features {chosen!r}. {hint}")
        return self._reading(next((column for column in self.columns if column.name == chosen), None))

    def made_by(self, preparation_id: str) -> "FeaturesManifest":
        """A copy for readers of the column with this `preparation_id`; unchanged where there is none."""
        return self._reading(next((one for one in self.columns if one.preparation_id == preparation_id), None))

    def _reading(self, column: FeatureColumn | None) -> "FeaturesManifest":
        if column is None:
            return self
        fields = {
            name: getattr(column, name) for name in FeatureColumn.model_fields if name not in ("name", "settings")
        }
        recipe = {**self.recipe, "backbone": column.settings}
        reading = self.model_copy(update={**fields, "recipe": recipe})
        reading._column = column.name
        return reading

    @property
    def is_for_readers(self) -> bool:
        """Whether this manifest has edits or is of one column, and so does not describe the files."""
        return self._edits is not None or self._column is not None

    @property
    def edits(self) -> RowEdits | None:
        """The edits to apply when reading the files; `rows` then counts the edited rows. None: no edits."""
        return self._edits

    def with_edits(self, edits: RowEdits, rows: dict[str, dict[str, int]]) -> "FeaturesManifest":
        """A copy for readers, with `edits` and the row counts that they lead to. It must not be written."""
        edited = self.model_copy(update={"rows": rows})
        edited._edits = edits
        return edited


class PredictionsManifest(Manifest):
    """The manifest of one model's predictions: the table at ``model_id=<model_id>``.

    `rows` counts labels under the split `PREDICTED`; images without a label, as the model abstained, are under "".

    Attributes:
        model: `model_id`, `url`, `name` as the caller gave it, `network_sha256`, `backbone`.
        threshold: The probability below which there is no label, and its origin; None where every image has a label.
        source: The input of the last run: `url`, and `kind`, "images" or "features".
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    kind: Literal["predictions"] = "predictions"
    model_id: str
    preparation_id: str
    model: dict[str, Any]
    threshold: dict[str, Any] | None
    source: dict[str, Any]


PREDICTED = "predicted"
NAMES = {"images": "an images table", "features": "a feature set", "predictions": "a table of predictions"}
"""The kinds of tables in messages."""


def differing_settings(there: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """A line for each setting that differs; none where the settings are equal."""
    if settings_digest(there) == settings_digest(asked):
        return []
    old, new = _flatten(there), _flatten(asked)
    differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return [f"  - {key}: existing {_shorten(old.get(key))}, requested {_shorten(new.get(key))}" for key in differing]


def library_versions() -> dict[str, str]:
    """Versions of the libraries that could change a result."""
    found = {}
    for name in _RECORDED_LIBRARIES:
        with suppress(PackageNotFoundError):  # TensorFlow is distributed under two names
            found[name] = version(name)
    return found


def utc_now() -> str:
    """The current time, as ISO 8601 text in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def add_counts(parts: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """The sum of counts by split and class."""
    total: dict[str, dict[str, int]] = {}
    for part in parts:
        for split, classes in part.items():
            sums = total.setdefault(split, {})
            for label, count in classes.items():
                sums[label] = sums.get(label, 0) + count
    return {split: dict(sorted(total[split].items())) for split in sorted(total)}


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {
        key: inner
        for name, part in value.items()
        for key, inner in _flatten(part, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def _shorten(value: Any) -> str:
    if isinstance(value, list) and len(value) > 8:
        return f"{len(value)} values"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"
