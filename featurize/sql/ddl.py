"""SQL statements that create Firn's tables in Hive, Impala and DuckDB, limited to published files."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import pyarrow as pa

from featurize.errors import UsageError
from featurize.foreign_text import printable
from featurize.sql.tables import Part, SqlTable, SqlView
from featurize.tables.manifests import utc_now

Dialect = Literal["hive", "impala", "duckdb"]
DIALECTS: tuple[Dialect, ...] = ("hive", "impala", "duckdb")
_FILES = "_files"  # suffix of an external table's name, after that of its view


class _Types(NamedTuple):
    """The names of column types in a dialect."""

    text: str
    binary: str
    list: str
    map: str
    struct: str
    field: str
    timestamp: str


_HIVE = _Types("STRING", "BINARY", "ARRAY<{}>", "MAP<{}, {}>", "STRUCT<{}>", "`{}`: {}", "TIMESTAMP")
_TYPES: dict[Dialect, _Types] = {
    "hive": _HIVE,
    "impala": _HIVE._replace(binary="STRING", field="{}: {}"),  # not every version has BINARY; all read it as text
    "duckdb": _Types("VARCHAR", "BLOB", "{}[]", "MAP({}, {})", "STRUCT({})", '"{}" {}', "TIMESTAMP"),
}
_NUMBERS = {
    pa.bool_(): "BOOLEAN",
    pa.int8(): "TINYINT",
    pa.int16(): "SMALLINT",
    pa.int32(): "INT",
    pa.int64(): "BIGINT",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    pa.date32(): "DATE",
}


def make_ddl(tables: Sequence[SqlTable | SqlView], dialect: Dialect) -> str:
    """The statements, each ended by a semicolon, with a comment that names the tables and the time.

    For Hive and Impala: an external table on the folders, and a view on it that shows the published files. For DuckDB: a view on
    these files. They are valid at this moment: after the next run that adds rows they must be made again.

    Raises:
        UsageError: A table cannot be expressed in this dialect.
    """
    lines = [f"-- Firn's tables for {dialect}, as published at {utc_now()}. After another run, print them again."]
    for table in tables:
        if isinstance(table, SqlView):
            statements = _selection(table, dialect)
        else:
            lines.append(printable(f"-- {table.name}: {', '.join(table.sources)}"))
            statements = _duckdb_view(table) if dialect == "duckdb" else _external_table(table, dialect)
        lines += [f"{statement};" for statement in statements]
    return "\n".join(lines) + "\n"


def _selection(view: SqlView, dialect: Dialect) -> Iterator[str]:
    name, text = _name(view.name, dialect), _duckdb_text if dialect == "duckdb" else _hive_text
    if dialect != "duckdb":
        yield f"DROP VIEW IF EXISTS {name}"
    create = "CREATE OR REPLACE VIEW" if dialect == "duckdb" else "CREATE VIEW"
    where = f"{_name(view.column, dialect)} = {text(view.value)}"
    yield f"{create} {name} AS SELECT * FROM {_name(view.table, dialect)} WHERE {where}"


def _duckdb_view(table: SqlTable) -> Iterator[str]:
    selects = [_duckdb_select(table, part) for part in table.parts] or [_empty_select(table)]
    yield f"CREATE OR REPLACE VIEW {_name(table.name, 'duckdb')} AS\n  " + "\n  UNION ALL ".join(selects)


def _duckdb_select(table: SqlTable, part: Part) -> str:
    """The rows of a part. It lists files, so that others in their folders are not seen."""
    pairs = zip(part.values, table.partition, strict=True)
    values = "".join(f", {_duckdb_text(value)} AS {_name(name, 'duckdb')}" for value, name in pairs)
    files = ", ".join(_duckdb_text(_duckdb_path(file)) for file in part.files)
    columns = ", ".join(_shown(table, name, "duckdb") for name in table.columns.names)
    return f"SELECT {columns}{values} FROM read_parquet([{files}], hive_partitioning = false)"


def _empty_select(table: SqlTable) -> str:
    columns = [
        f"CAST(NULL AS {_type(field.type, 'duckdb', table.name)}) AS {_name(field.name, 'duckdb')}"
        for field in table.columns
    ]
    columns += [f"CAST(NULL AS VARCHAR) AS {_name(name, 'duckdb')}" for name in table.partition]
    return f"SELECT {', '.join(columns)} WHERE false"


def _external_table(table: SqlTable, dialect: Dialect) -> Iterator[str]:
    """The table on the folders, its partitions, and the view on its files."""
    files_name, view = _name(table.name + _FILES, dialect), _name(table.name, dialect)
    columns = ", ".join(
        f"{_name(field.name, dialect)} {_type(field.type, dialect, table.name)}" for field in table.columns
    )
    _check_folders(table, dialect)
    yield f"DROP VIEW IF EXISTS {view}"
    yield f"DROP TABLE IF EXISTS {files_name}"  # dropping an external table drops only its name
    create = f"CREATE EXTERNAL TABLE {files_name} ({columns})\n  "
    if table.partition:
        create += f"PARTITIONED BY ({', '.join(f'{_name(name, dialect)} STRING' for name in table.partition)})\n  "
    yield f"{create}STORED AS PARQUET LOCATION {_hive_text(_common_folder(table))}"
    for part in table.parts if table.partition else ():
        pairs = zip(table.partition, part.values, strict=True)
        values = ", ".join(f"{_name(name, dialect)} = {_hive_text(value)}" for name, value in pairs)
        yield f"ALTER TABLE {files_name} ADD PARTITION ({values}) LOCATION {_hive_text(part.folder)}"
    names = [_hive_text(file.rpartition("/")[2]) for part in table.parts for file in part.files]
    shown = ", ".join(_shown(table, name, dialect) for name in (*table.columns.names, *table.partition))
    counted = (
        f"regexp_extract(INPUT__FILE__NAME, '[^/]+$', 0) IN ({', '.join(sorted(set(names)))})" if names else "false"
    )
    yield f"CREATE VIEW {view} AS SELECT {shown} FROM {files_name}\n  WHERE {counted}"


def _shown(table: SqlTable, name: str, dialect: Dialect) -> str:
    """A column in the form that a view shows: label and label index are corrected."""
    column, corrected = _name(name, dialect), table.corrected
    if corrected is None or name not in ("label", "label_index"):
        return column
    text = _duckdb_text if dialect == "duckdb" else _hive_text
    cases = [
        f"WHEN {_name('image_id', dialect)} IN ({', '.join(text(image_id) for image_id in images)}) THEN "
        + (text(label) if name == "label" else str(corrected.classes.index(label)))
        for label, images in corrected.by_class().items()
    ]
    return f"CASE {' '.join(cases)} ELSE {column} END AS {column}"


def _check_folders(table: SqlTable, dialect: Dialect) -> None:
    """Checks that each partition of an external table, or the table without partitions, has one folder."""
    places = [part.values for part in table.parts]
    if len(set(places)) < len(places):
        raise UsageError(
            f"`dialect` (--print-ddl) {dialect}: the files of {table.name} are in several folders for one partition."
        )


def _common_folder(table: SqlTable) -> str:
    """The folder of the table: that of its only part, or a folder above all parts in which the table has no files."""
    if not table.partition and table.parts:
        return table.parts[0].folder
    return table.sources[0]


def _type(kind: pa.DataType, dialect: Dialect, table: str) -> str:
    """The name of an Arrow type in a dialect.

    Raises:
        UsageError: The dialect has no such type.
    """
    types = _TYPES[dialect]
    if kind in _NUMBERS:
        return _NUMBERS[kind]
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return types.text
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return types.binary
    if pa.types.is_timestamp(kind):
        return types.timestamp
    if pa.types.is_dictionary(kind):
        return _type(kind.value_type, dialect, table)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return types.list.format(_type(kind.value_type, dialect, table))
    if pa.types.is_map(kind):
        return types.map.format(_type(kind.key_type, dialect, table), _type(kind.item_type, dialect, table))
    if pa.types.is_struct(kind):
        fields = (types.field.format(field.name, _type(field.type, dialect, table)) for field in kind)
        return types.struct.format(", ".join(fields))
    raise UsageError(f"`dialect` (--print-ddl) {dialect} does not have the type {kind}, which a column of {table} has.")


def _name(name: str, dialect: Dialect) -> str:
    return '"' + name.replace('"', '""') + '"' if dialect == "duckdb" else "`" + name.replace("`", "``") + "`"


def _hive_text(text: str) -> str:
    """A text literal of HiveQL."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace(";", "\\073") + "'"


def _duckdb_text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _duckdb_path(url: str) -> str:
    """A file's path for DuckDB: without the scheme where it is local, and with pattern characters escaped."""
    path = url.removeprefix("file://")
    return "".join(f"[{character}]" if character in "*?[" else character for character in path)
