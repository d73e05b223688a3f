"""The command `featurize sql`: Spark SQL over images, features, predictions and rejects; and statements for other engines."""

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from featurize.commands.options import JsonOption, SetOption, print_result, reported_errors
from featurize.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from featurize.sql.query import QueryResult
    from featurize.sql.tables import SqlTable, SqlView

_WIDTH = 60  # characters of a value that are shown


def sql_command(
    query: Annotated[str | None, typer.Argument(metavar="[QUERY]", help="A query in Spark SQL.")] = None,
    images: Annotated[str | None, typer.Option(help="URL of an images table, which SQL calls `images`.")] = None,
    features: Annotated[str | None, typer.Option(help="URL of a feature set, which SQL calls `features`.")] = None,
    predictions: Annotated[str | None, typer.Option(help="URL of predictions, which SQL calls `predictions`.")] = None,
    table: Annotated[
        list[str] | None, typer.Option(metavar="NAME=URL", help="Any other table, or folder of Parquet; repeatable.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="A recipe that names the tables not given here.")] = None,
    overrides: SetOption = None,
    version: Annotated[
        int | None, typer.Option(min=0, help="An older version of the feature set, or else of the images table.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most rows to print.")] = 100,
    output: Annotated[str | None, typer.Option(help="A .csv or .parquet file to write all rows to.")] = None,
    print_ddl: Annotated[
        Literal["hive", "impala", "duckdb"] | None,
        typer.Option("--print-ddl", help="Prints statements that create the tables in this engine; takes no query."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Runs Spark SQL over images, features, predictions and rejects, as they are published."""
    with reported_errors():
        from featurize.jobs.views import find_named_tables
        from featurize.recipes.recipe import read_recipe

        if (query is None) == (print_ddl is None):
            raise UsageError("`QUERY` is required, or else `--print-ddl`; they cannot be combined.")
        tables = find_named_tables(
            images=images,
            features=features,
            predictions=predictions,
            tables=named_tables(table or ()),
            recipe=None if recipe is None else read_recipe(recipe, overrides),
            version=version,
        )
        if print_ddl is not None:
            _print_ddl(tables, print_ddl, as_json=as_json)
        elif query is not None:
            print_result(_run(tables, query, limit=limit, output=output, as_json=as_json), as_json=as_json)


def _print_ddl(
    tables: "Sequence[SqlTable | SqlView]", dialect: Literal["hive", "impala", "duckdb"], *, as_json: bool
) -> None:
    from featurize.sql.ddl import make_ddl

    text = make_ddl(tables, dialect)
    if not as_json:
        sys.stdout.write(text)
    print_result({"dialect": dialect, "tables": [table.name for table in tables], "ddl": text}, as_json=as_json)


def _run(
    tables: "Sequence[SqlTable | SqlView]", query: str, *, limit: int, output: str | None, as_json: bool
) -> dict[str, Any]:
    """Runs the query; returns the result for ``--json``."""
    from featurize import storage
    from featurize.building.session import open_session
    from featurize.console import make_console, say
    from featurize.sql.query import check_output, fetch, plain_value, register_views, run_query, write_answer

    url = storage.absolute_url(output) if output is not None else None
    if url is not None:
        check_output(url)
    with open_session("firn sql", slots=len(os.sched_getaffinity(0)), java_computes=True) as session:
        register_views(session, tables)
        frame = run_query(session, query)
        columns = [{"name": name, "type": kind} for name, kind in frame.dtypes]
        if url is not None:
            count = write_answer(frame, url)
            say(f"{url}: {count:,} rows.")
            return {"output": url, "columns": columns, "rows": [], "is_cut": count > 0, "written": count}
        result = fetch(frame, limit=limit)
    if not as_json:
        make_console().print(_table(result), highlight=False)
        if result.is_cut:
            say(f"The first {limit} rows; --limit shows more, --output writes all.")
    rows = [{name: plain_value(value) for name, value in row.asDict().items()} for row in result.rows]
    return {"output": None, "columns": columns, "rows": rows, "is_cut": result.is_cut}


def _table(result: "QueryResult") -> "Table":
    """Rows for a terminal; long values are cut."""
    from rich.table import Table

    from featurize.display import as_cell

    table = Table(*(as_cell(name) for name, _ in result.types), box=None, padding=(0, 2), header_style="bold")
    for (_, kind), column in zip(result.types, table.columns, strict=True):
        column.overflow = "fold"
        if kind in ("tinyint", "smallint", "int", "bigint", "float", "double") or kind.startswith("decimal"):
            column.justify = "right"
    for row in result.rows:
        table.add_row(*(as_cell(shown_value(value)) for value in row))
    return table


def shown_value(value: Any) -> str:
    """A value as a line of text: of bytes only their number, of long lists only the first values."""
    from featurize.sql.query import plain_value

    if value is None:
        return ""
    if isinstance(value, bytes | bytearray):
        return f"{len(value)} bytes"
    if isinstance(value, float):
        return f"{value:.6g}"
    plain = plain_value(value)
    text = json.dumps(plain, ensure_ascii=False) if isinstance(plain, list | dict) else str(plain)
    if len(text) <= _WIDTH or not isinstance(plain, list | dict):
        return text
    return f"{text[:_WIDTH]}... ({len(plain)} values)"


def named_tables(tables: Sequence[str]) -> dict[str, str]:
    """The URL for each name, from texts of the form ``NAME=URL``."""
    named: dict[str, str] = {}
    for text in tables:
        name, equals, url = text.partition("=")
        if not equals or not url or name in named:
            raise UsageError(f"`--table` must be NAME=URL, each name once. Got {text!r}.")
        named[name] = url
    return named
