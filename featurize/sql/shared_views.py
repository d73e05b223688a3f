"""Firn's tables as views of a database, which every session of a Spark application or a Hive metastore sees.

    <database>.features           a view: the rows of the published files, with `split` and with corrected labels
    <database>_files.features_*   what it reads: a table for each folder of files, and one of corrected labels

Spark's permanent views are text, and a table on a folder also holds the files of unfinished runs; so a view selects its rows by
the names of files. A new version gets new tables, and the view is replaced in one statement: a query that runs is not disturbed.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any
from urllib.parse import unquote
from uuid import uuid4

from pyspark.sql import SparkSession
from pyspark.sql.pandas.types import from_arrow_schema

from featurize import storage
from featurize.building.session import check_file_names
from featurize.errors import JobError
from featurize.sql.query import LITERAL_PATHS, spark_errors
from featurize.sql.tables import CorrectedLabels, Part, SqlTable, SqlView

_MADE_HERE = re.compile("[a-z0-9_]+_[0-9a-f]{8}_[0-9]+")
_HOST = re.compile("^[a-z][a-z0-9+.-]*:(//[^/]*)?")


class SharedViews:
    """The views of a database, and the tables below them.

    Args:
        spark: The session that makes them.
        database: Name of the database; it is made if there is none.
    """

    def __init__(self, spark: SparkSession, database: str) -> None:
        self._spark = spark
        self._database, self._files = database, f"{database}_files"
        self._token, self._numbers = uuid4().hex[:8], count(1)
        self._shown: dict[str, SqlTable | SqlView] = {}
        self._below: dict[str, list[str]] = {}
        self._replaced: list[str] = []
        warehouse = spark.catalog.getDatabase("default").locationUri.rstrip("/")
        for name in (database, self._files):
            location = _text(f"{warehouse}/{name}.db")
            spark.sql(f"CREATE DATABASE IF NOT EXISTS {_name(name)} LOCATION {location}")
        self._left = [name for name in self._tables_below() if _MADE_HERE.fullmatch(name)]

    @property
    def names(self) -> list[str]:
        """The names of the views."""
        return list(self._shown)

    def show(self, tables: Sequence[SqlTable | SqlView]) -> list[str]:
        """Makes the views show `tables`, as they are given, and nothing else; returns the names of those that changed.

        The tables below a view that was replaced stay until the next change, for queries that have just been asked.

        Raises:
            JobError: Files of a table are missing, or Spark cannot make it.
        """
        wanted = {table.name: table for table in tables}
        changed = {name for name, table in wanted.items() if self._shown.get(name) != table}
        changed |= {name for name, table in wanted.items() if isinstance(table, SqlView) and table.table in changed}
        gone = [name for name in self._shown if name not in wanted]
        if not changed and not gone:
            return []
        with spark_errors("the tables cannot be shown"):
            obsolete, self._replaced = self._replaced, []
            for name in [*gone[::-1], *(name for name in wanted if name in changed)]:
                self._replaced += self._below.pop(name, [])
                if name in wanted:
                    self._create(wanted[name])
                else:
                    self._spark.sql(f"DROP VIEW IF EXISTS {self._view(name)}")
                    del self._shown[name]
            for name in [*obsolete, *self._left]:
                self._spark.sql(f"DROP TABLE IF EXISTS {_name(self._files)}.{_name(name)}")
            self._left = []
        return [*gone, *(name for name in wanted if name in changed)]

    def _create(self, table: SqlTable | SqlView) -> None:
        if isinstance(table, SqlView):
            query = f"SELECT * FROM {self._view(table.table)} WHERE {_name(table.column)} = {_text(table.value)}"
        else:
            query = self._query_of(table)
        self._spark.sql(f"CREATE OR REPLACE VIEW {self._view(table.name)} AS {query}")
        self._shown[table.name] = table

    def _query_of(self, table: SqlTable) -> str:
        """The query on the tables below a view, which it makes."""
        if not table.parts:
            return self._empty_query(table)
        for part in table.parts:
            for file in part.files:
                storage.check_url(file)  # Spark opens them itself
            check_file_names(self._spark, *(file for file in part.files if not file.isascii()))
        union = "\nUNION ALL\n".join(self._part_query(table, part) for part in table.parts)
        if table.corrected is None:
            return union
        corrected = self._corrected(table.name, table.corrected)
        shown = {
            "label": "coalesce(c.`_label`, t.`label`) AS `label`",
            "label_index": "coalesce(c.`_label_index`, t.`label_index`) AS `label_index`",
        }
        columns = ", ".join(shown.get(name, f"t.{_name(name)}") for name in (*table.columns.names, *table.partition))
        return (
            f"SELECT /*+ BROADCAST(c) */ {columns} FROM ({union}) AS t "
            f"LEFT JOIN {corrected} AS c ON t.`image_id` = c.`_image_id`"
        )

    def _part_query(self, table: SqlTable, part: Part) -> str:
        below = self._new_name(table.name)
        columns = ", ".join(f"{_name(name)} {kind}" for name, kind in self._columns(table))
        # `recursiveFileLookup`: columns are not guessed from names of folders.
        options = f"{_text(LITERAL_PATHS[0])} {_text(LITERAL_PATHS[1])}, 'recursiveFileLookup' 'true'"
        self._spark.sql(
            f"CREATE TABLE {below} ({columns}) USING parquet OPTIONS ({options}) LOCATION {_text(str(part.folder))}"
        )
        values = (f"{_text(value)} AS {_name(name)}" for name, value in zip(table.partition, part.values, strict=True))
        shown = ", ".join((*(_name(name) for name in table.columns.names), *values))
        files = ", ".join(_text(file) for file in self._listed(table, part, below))
        return f"SELECT {shown} FROM {below} WHERE `_metadata`.`file_path` IN ({files})"

    def _empty_query(self, table: SqlTable) -> str:
        nulls = [f"CAST(NULL AS {kind}) AS {_name(name)}" for name, kind in self._columns(table)]
        nulls += [f"CAST(NULL AS STRING) AS {_name(name)}" for name in table.partition]
        return f"SELECT {', '.join(nulls)} WHERE false"

    def _corrected(self, name: str, corrected: CorrectedLabels) -> str:
        """A table of the corrected labels; of thousands of them in the text of the view, every query would read all."""
        indices = {label: index for index, label in enumerate(corrected.classes)}
        rows = [(image_id, label, indices[label]) for image_id, label in corrected.labels.items()]
        below = self._new_name(name)
        frame = self._spark.createDataFrame(rows, "_image_id string, _label string, _label_index int")
        frame.coalesce(1).write.saveAsTable(below)
        return below

    def _columns(self, table: SqlTable) -> Iterator[tuple[str, str]]:
        """The name of each column in the files, and its type as SQL writes it."""
        jvm: Any = self._spark.sparkContext._jvm
        for field in from_arrow_schema(table.columns):
            yield field.name, str(jvm.org.apache.spark.sql.types.DataType.fromJson(field.dataType.json()).sql())

    def _listed(self, table: SqlTable, part: Part, below: str) -> list[str]:
        """The files of a part as `_metadata.file_path` names them: a name of another form would select nothing.

        Raises:
            JobError: A file is missing. Spark itself would answer without its rows.
        """
        listed = {_path(unquote(file)): file for file in self._spark.table(below).inputFiles()}
        for file in part.files:
            if _path(file) not in listed:
                raise JobError(f"{file}, a file of the table `{table.name}`, is missing.")
        jvm: Any = self._spark.sparkContext._jvm
        path = jvm.org.apache.hadoop.fs.Path
        # As Spark makes it: the encoding of the path in its short form, `file:/` for `file:///`.
        shorts = (path(jvm.java.net.URI(listed[_path(file)])).toString() for file in part.files)
        return [str(path(short).toUri().toString()) for short in shorts]

    def _view(self, name: str) -> str:
        return f"{_name(self._database)}.{_name(name)}"

    def _new_name(self, view: str) -> str:
        """The full name of a new table below a view."""
        name = f"{view}_{self._token}_{next(self._numbers)}"
        self._below.setdefault(view, []).append(name)
        return f"{_name(self._files)}.{_name(name)}"

    def _tables_below(self) -> list[str]:
        return [row["tableName"] for row in self._spark.sql(f"SHOW TABLES IN {_name(self._files)}").collect()]


def _path(url: str) -> str:
    """The path in a URL; Spark writes the host of a URL in other forms than Firn."""
    return _HOST.sub("", url)


def _name(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def _text(text: str) -> str:
    """A text literal of Spark SQL."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
