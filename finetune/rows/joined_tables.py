"""The tables that a `where` query can use besides the feature set: one row for each image, joined by `image_id`."""

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurize import storage
from featurize.errors import UsageError, first_line
from featurize.recipes.recipe import FeaturesSettings
from featurize.sources.names import notes_on_classes
from featurize.sql.tables import Part, SqlTable, SqlView, find_tables
from featurize.tables.predictions import LATEST
from featurize.tables.row_groups import RowGroup, iterate_row_groups, read_footer
from finetune.rows.csv_files import parse_csv

_KEY, _LABEL = "image_id", "label"
_CONTENT = "content"  # the column with the image files
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class JoinedTable:
    """A table with at most one row for each image.

    Attributes:
        name: The table's name in the query.
        table: The rows, with `image_id`.
    """

    name: str
    table: pa.Table

    @property
    def columns(self) -> list[str]:
        """The columns that describe an image."""
        return [name for name in self.table.column_names if name != _KEY]


def read_joined_tables(features: FeaturesSettings) -> list[JoinedTable]:
    """The tables that a recipe names besides its feature set, without the images themselves.

    Raises:
        UsageError: A URL holds no such table, or a table of labels names an image twice.
        JobError: Files are damaged.
    """
    found = []
    if features.predictions is not None:
        found.append(JoinedTable("predictions", _once(_read_predictions(features.predictions))))
    if features.images is not None:
        table = _first_table(find_tables(images=features.images))
        found.append(JoinedTable("images", _once(read_parts(table, table.parts))))
    if features.labels is not None:
        found.append(JoinedTable("labels", read_label_table(features.labels)))
    return found


def read_label_table(url: str) -> pa.Table:
    """A table of labels from a CSV or Parquet file: `image_id` as text, and any other columns.

    Raises:
        UsageError: There is no table, an `image_id` is missing or empty, or an image or a column occurs twice.
    """
    try:
        content = storage.read_bytes(url)
        if url.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(content))
        else:
            table = parse_csv(content, f"`features.labels`: {url}").as_arrow(text=[_KEY])
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UsageError(
            f"`features.labels`: there is no table {url}; it must be one .csv or .parquet file."
        ) from error
    except pa.ArrowException as error:
        raise UsageError(f"`features.labels`: {url} cannot be read: {first_line(error)}") from error
    names = [name.lower() for name in table.column_names]
    if _KEY not in table.column_names or len(names) < 2:
        raise UsageError(f"`features.labels`: {url} must have the column {_KEY} and others. Got {table.column_names}.")
    if doubled := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"`features.labels`: {url} has the column {doubled[0]} more than once.")
    ids = table[_KEY].cast(pa.string())
    counts = pc.value_counts(ids)
    twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist()
    if twice or ids.null_count:
        wrong = f"names the image {twice[0]} more than once" if twice and twice[0] is not None else f"lacks an {_KEY}"
        raise UsageError(f"`features.labels`: {url} {wrong}.")
    _note_odd_labels(table, url)
    return table.set_column(table.column_names.index(_KEY), _KEY, ids)


def _note_odd_labels(table: pa.Table, url: str) -> None:
    """Says what is odd about the texts in the column `label`, as about the names of class folders."""
    values = table[_LABEL].unique().to_pylist() if _LABEL in table.column_names else []
    classes = {value for value in values if isinstance(value, str)}
    for note in notes_on_classes(classes, splits_by_folders=None):
        _logger.warning("`features.labels`: %s: %s", url, note)


def _read_predictions(url: str) -> pa.Table:
    """The rows that the view `latest` shows."""
    tables = find_tables(predictions=url)
    table = _first_table(tables)
    shown = [view.value for view in tables if isinstance(view, SqlView) and view.name == LATEST]
    return read_parts(table, [part for part in table.parts if not shown or part.values == (shown[0],)])


def _first_table(tables: Sequence[SqlTable | SqlView]) -> SqlTable:
    """The table itself; views on it come after it."""
    return next(table for table in tables if isinstance(table, SqlTable))


def read_parts(table: SqlTable, parts: Sequence[Part]) -> pa.Table:
    """The rows of some parts, without the images themselves, in the order of the files; with the columns that are in no file."""
    names = [name for name in table.columns.names if name != _CONTENT]
    if _KEY not in names:
        raise UsageError(f"{table.sources[0]} has no column {_KEY}.")
    tables = []
    for part in parts:
        for url in part.files:
            footer = read_footer(url)
            groups = [RowGroup(url, index, footer) for index in range(footer.num_row_groups)]
            for rows in iterate_row_groups(groups, names):
                for name, value in zip(table.partition, part.values, strict=True):
                    rows = rows.append_column(name, pa.array([value] * len(rows), pa.string()))
                tables.append(rows)
    if tables:
        return pa.concat_tables(tables)
    fields = [table.columns.field(name) for name in names] + [pa.field(name, pa.string()) for name in table.partition]
    return pa.schema(fields).empty_table()


def _once(table: pa.Table) -> pa.Table:
    """The first row of each image, by path: rows of equal images differ in nothing else."""
    keys = [name for name in (_KEY, "path") if name in table.column_names]
    order = pc.sort_indices(table, [(name, "ascending") for name in keys]).to_numpy()
    ids = np.array(table[_KEY].to_pylist(), dtype=object)[order]
    first = np.ones(len(ids), np.bool_)
    first[1:] = ids[1:] != ids[:-1]
    return table.take(pa.array(np.sort(order[first])))
