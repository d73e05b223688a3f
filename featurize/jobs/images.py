"""An images table in Python: its metadata as pandas or Spark, and a summary as `repr`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from featurize import storage
from featurize.errors import UsageError
from featurize.tables.description import SPLIT_ORDER, Description
from featurize.tables.manifests import ImagesManifest
from featurize.tables.publication import read_manifest
from featurize.tables.row_groups import open_parquet
from featurize.tables.schemas import IMAGES_SCHEMA

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame, SparkSession

    from featurize.building.build import BuildResult

COLUMNS = tuple(IMAGES_SCHEMA.names)
"""The columns of an images table; `content` is the image file itself."""


@dataclass(frozen=True, repr=False)
class Images:
    """An images table: one row per image that can be decoded. Its `repr` is a table, in a notebook too.

    Attributes:
        url: its URL.
        manifest: its manifest: settings, number of rows, files.
        build: what `ingest` did; None where the table was only opened.
    """

    url: str
    manifest: ImagesManifest
    build: "BuildResult | None" = field(default=None, compare=False)

    @property
    def rows(self) -> int:
        """The number of images."""
        return self.manifest.row_count

    @property
    def splits(self) -> dict[str, int]:
        """The number of images in each split."""
        there = [name for name in SPLIT_ORDER if self.manifest.split_rows(name)]
        return {name: self.manifest.split_rows(name) for name in there}

    @property
    def classes(self) -> list[str]:
        """The class labels, in the order of `label_index`."""
        return list(self.manifest.classes)

    def to_pandas(self, split: str | None = None, columns: Sequence[str] | None = None) -> "pd.DataFrame":
        """Rows as a pandas frame with a plain index, in the order of the files in the manifest.

        Args:
            split: the split to read; None: all.
            columns: some of `COLUMNS`, in this order; None: all but `content`, the image files themselves.

        Raises:
            UsageError: there is no such split or column.
            JobError: a file is missing or damaged.
        """
        names = [name for name in COLUMNS if name != "content"] if columns is None else list(columns)
        if unknown := [name for name in names if name not in COLUMNS]:
            raise UsageError(f"`columns` must be among {', '.join(COLUMNS)}. Got {unknown[0]!r}.")
        if split is not None and split not in self.splits:
            raise UsageError(f"`split` must be one of {', '.join(self.splits)}, which {self.url} has. Got {split!r}.")
        tables = []
        for file in self.manifest.files:
            with open_parquet(storage.join_url(self.url, file.path)) as parquet:
                tables.append(_with_all(parquet.read(columns=[*{*names, "split"}]), [*{*names, "split"}]))
        frame = pa.concat_tables(tables).to_pandas()
        kept = frame if split is None else frame[frame["split"] == split]
        chosen: pd.DataFrame = kept[names].reset_index(drop=True)
        return chosen

    def to_spark(self, spark: "SparkSession | None" = None) -> "DataFrame":
        """All rows as a Spark DataFrame with `COLUMNS`, in any order.

        Args:
            spark: the session; None: the active one.

        Raises:
            UsageError: there is no session.
        """
        from featurize.building.session import session_at_hand
        from featurize.sql.query import read_sql_table
        from featurize.sql.tables import images_table

        return read_sql_table(session_at_hand(spark), images_table(self.url, self.manifest))

    def describe(self) -> Description:
        """Rows per split and class, size and rejects, to show or, with its `as_dict`, as a document."""
        return Description(self.url, self.manifest)

    def __repr__(self) -> str:
        return repr(self.describe())

    def _repr_html_(self) -> str:
        return self.describe()._repr_html_()


def _with_all(rows: pa.Table, names: Sequence[str]) -> pa.Table:
    """The rows with all these columns; one that the file lacks, as files of older versions do, is null."""
    for name in names:
        if name not in rows.column_names:
            rows = rows.append_column(IMAGES_SCHEMA.field(name), pa.nulls(len(rows), IMAGES_SCHEMA.field(name).type))
    return rows.select(names)


def open_images(url: str | Path) -> Images:
    """Opens the images table at `url`.

    Raises:
        UsageError: there is no images table.
        JobError: its manifest is damaged.
    """
    absolute = storage.absolute_url(str(url))
    manifest = read_manifest(absolute)
    if not isinstance(manifest, ImagesManifest):
        raise UsageError(f"{absolute} is not an images table. Make one with `featurize ingest`.")
    return Images(absolute, manifest)
