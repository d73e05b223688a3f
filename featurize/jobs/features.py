"""A feature set in Python: its rows as pandas, NumPy or Spark, the nearest images, and a summary as `repr`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurize import storage
from featurize.errors import UsageError
from featurize.similar.nearest import Metric
from featurize.tables.description import SPLIT_ORDER, Description
from featurize.tables.manifests import FEATURES_COLUMN, FeaturesManifest
from featurize.tables.readable import read_features_manifest
from featurize.tables.row_groups import RowGroup, features_of, iterate_row_groups, list_row_groups, row_shape

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame, SparkSession

    from featurize.building.build import BuildResult
    from featurize.jobs.similar_images import SimilarImages

FACTS = ("image_id", "path", "label", "label_index", "split", "width", "height")
"""The columns of a feature set besides those of features. No file has `split`: it is the name of the files' folder."""


@dataclass(frozen=True, repr=False)
class Features:
    """A feature set: one row per image. Its `repr` is a table, in a notebook too.

    Corrections of labels made before the set was opened are applied. `to_pandas` and `to_numpy` return rows in the same order:
    train, validation, test; within a split by the order of the files in the manifest, and within a file in its own order. The
    order stays the same until the set changes.

    Attributes:
        url: its URL.
        manifest: its manifest: settings, number of rows, files.
        build: what `run` did; None where the set was only opened.
    """

    url: str
    manifest: FeaturesManifest
    build: "BuildResult | None" = field(default=None, compare=False)

    @property
    def rows(self) -> int:
        """The number of images."""
        return self.manifest.row_count

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns: `FACTS`, then `features`, or each of several columns of features."""
        return (*FACTS, *self.manifest.column_names)

    @property
    def splits(self) -> dict[str, int]:
        """The number of images in each split, in the order in which splits are read."""
        there = [name for name in SPLIT_ORDER if self.manifest.split_rows(name)]
        return {name: self.manifest.split_rows(name) for name in there}

    @property
    def classes(self) -> list[str]:
        """The class labels, in the order of `label_index`."""
        return list(self.manifest.classes)

    def to_pandas(self, split: str | None = None, columns: Sequence[str] | None = None) -> "pd.DataFrame":
        """Rows as a pandas frame with a plain index.

        Args:
            split: the split to read; None: all.
            columns: some of the set's `columns`, in this order; None: all. In one of features each row holds an array: float32
                ``(feature_dim,)``, or with the backbone `pixels` uint8 ``(height, width, channels)``.

        Raises:
            UsageError: there is no such split or column.
            JobError: a file is missing or damaged.
        """
        import pandas as pd

        names = self._check_columns(columns)
        parts = {name: self._read(name, names) for name in self._check_split(split)}
        tables = [table for table, _ in parts.values()]
        frame = pa.concat_tables(tables).to_pandas()
        if "split" in names:
            frame["split"] = [name for name, (table, _) in parts.items() for _ in range(len(table))]
        for column in set(names) & set(self.manifest.column_names):
            frame[column] = pd.Series([row for _, x in parts.values() for row in x[column]], dtype=object)
        chosen: pd.DataFrame = frame[list(names)]
        return chosen

    def to_numpy(self, split: str, column: str | None = None) -> tuple[NDArray[Any], NDArray[np.int32]]:
        """Features and labels of a split as arrays.

        Args:
            split: the split to read.
            column: the column of features; None: the only one.

        Returns:
            x: float32 ``(n_images, feature_dim)``; with the backbone `pixels` uint8 ``(n_images, height, width, channels)``.
            y: int32 ``(n_images,)``, the position of each label in `classes`.

        Raises:
            UsageError: there is no such split or column, or there are several columns and none was named.
            JobError: a file is missing or damaged.
        """
        (name,) = self._check_split(split)
        chosen = str(self.manifest.of_column(column, self.url).column)
        table, x = self._read(name, ("label_index", chosen))
        return x[chosen], table["label_index"].to_numpy().astype(np.int32, copy=False)

    def to_spark(self, spark: "SparkSession | None" = None, split: str | None = None) -> "DataFrame":
        """Rows as a Spark DataFrame with all `columns`, in any order; features are lists of floats, or bytes for `pixels`.

        Here labels corrected after the set was opened are applied, too.

        Args:
            spark: the session; None: the active one.
            split: the split to read; None: all.

        Raises:
            UsageError: there is no such split, or no session.
        """
        from featurize.building.session import session_at_hand
        from featurize.sql.query import read_sql_table
        from featurize.sql.tables import features_table

        table = features_table(self.url, self.manifest, splits=self._check_split(split))
        return read_sql_table(session_at_hand(spark), table).select(*self.columns)

    def similar(
        self,
        image: str | Path,
        *,
        k: int = 10,
        metric: Metric = "cosine",
        splits: Sequence[str] | None = None,
        column: str | None = None,
    ) -> "SimilarImages":
        """The `k` images nearest to `image`; see `find_similar`."""
        from featurize.jobs.similar_images import find_similar

        return find_similar(self, image, k=k, metric=metric, splits=splits, column=column)

    def describe(self) -> Description:
        """Backbone, rows per split and class, size and rejects, to show or, with its `as_dict`, as a document."""
        return Description(self.url, self.manifest)

    def __repr__(self) -> str:
        return repr(self.describe())

    def _repr_html_(self) -> str:
        return self.describe()._repr_html_()

    def _check_split(self, split: str | None) -> list[str]:
        """The splits to read: `split`, or all if it is None."""
        if split is not None and split not in self.splits:
            raise UsageError(f"`split` must be one of {', '.join(self.splits)}, which {self.url} has. Got {split!r}.")
        return list(self.splits) if split is None else [split]

    def _check_columns(self, columns: Sequence[str] | None) -> tuple[str, ...]:
        if columns is None:
            return self.columns
        names = (columns,) if isinstance(columns, str) else tuple(columns)
        if unknown := [name for name in names if name not in self.columns]:
            raise UsageError(f"`columns` must be among {', '.join(self.columns)}. Got {unknown[0]!r}.")
        if not names or len(set(names)) < len(names):
            raise UsageError(f"`columns` must name at least one column, and each once. Got {list(names)!r}.")
        return names

    def _read(self, split: str, columns: Sequence[str]) -> tuple[pa.Table, dict[str, NDArray[Any]]]:
        """Columns of a split, and by name those of features: ``(n_images, *row_shape)``."""
        stored = [name for name in columns if name not in ("split", *self.manifest.column_names)] or ["label_index"]
        rows = self.manifest.split_rows(split)
        wanted = {
            name: self.manifest.of_column(name, self.url) for name in columns if name in self.manifest.column_names
        }
        x = {name: np.empty((rows, *row_shape(one)), one.feature_dtype) for name, one in wanted.items()}
        tables, start = [], 0
        for group, table in self._row_groups(split, [*stored, *wanted]):
            stop = start + table.num_rows
            for name, one in wanted.items():
                only = table.select([name]).rename_columns([FEATURES_COLUMN])
                x[name][start:stop] = features_of(only, one, origin=group.url)
            tables.append(table.select(stored))
            start = stop
        return pa.concat_tables(tables), x

    def _row_groups(self, split: str, columns: Sequence[str]) -> Iterator[tuple[RowGroup, pa.Table]]:
        """Row groups with columns by the names that they have in the files."""
        groups = [replace(one, column=FEATURES_COLUMN) for one in list_row_groups(self.url, self.manifest, split)]
        return zip(groups, iterate_row_groups(groups, columns), strict=True)


def open_features(url: str | Path, *, version: int | None = None) -> Features:
    """Opens the feature set at `url`, with all corrections of labels made so far.

    Args:
        url: URL of the feature set.
        version: an older version; None: the last one.

    Raises:
        UsageError: there is no feature set, or no such version.
        JobError: it or its corrections are damaged.
    """
    absolute = storage.absolute_url(str(url))
    return Features(absolute, read_features_manifest(absolute, version))
