"""The command `featurize serve`: Spark's SQL server, with all tables of a recipe, for BI tools."""

import os
import signal
from threading import Event
from types import FrameType
from typing import Annotated

import typer

from featurize.commands.options import JsonOption, SetOption, print_result, reported_errors
from featurize.commands.sql import named_tables
from featurize.console import say


def serve_command(
    recipe: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="A recipe that names the tables not given below.")
    ] = None,
    images: Annotated[str | None, typer.Option(help="URL of an images table, which SQL calls `images`.")] = None,
    features: Annotated[str | None, typer.Option(help="URL of a feature set, which SQL calls `features`.")] = None,
    predictions: Annotated[str | None, typer.Option(help="URL of predictions, which SQL calls `predictions`.")] = None,
    table: Annotated[
        list[str] | None, typer.Option(metavar="NAME=URL", help="Any other table, or folder of Parquet; repeatable.")
    ] = None,
    overrides: SetOption = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0: any that is free.")] = 10000,
    host: Annotated[
        str, typer.Option(help="Address to listen on; one that other hosts can reach needs --password-file.")
    ] = "127.0.0.1",
    password_file: Annotated[
        str | None,
        typer.Option(help="File with a line NAME:PASSWORD for each who may connect. Default: everybody may."),
    ] = None,
    database: Annotated[str, typer.Option(help="Database of the tables.")] = "default",
    metastore: Annotated[
        str | None,
        typer.Option(metavar="URL", help="thrift://HOST:PORT of a Hive metastore, or a folder to keep one in."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Serves tables to BI tools (JDBC, ODBC, beeline, PyHive), as they are published, until Ctrl-C or SIGTERM."""
    with reported_errors():
        from featurize.jobs.views import find_named_tables
        from featurize.recipes.recipe import read_recipe
        from featurize.sql.passwords import read_passwords
        from featurize.sql.server import ServerSettings, open_server
        from featurize.sql.tables import SqlTable, SqlView

        passwords = None if password_file is None else read_passwords(password_file)
        settings = ServerSettings(host, port, database, metastore, passwords)
        settings.check()
        named = named_tables(table or ())
        read = None if recipe is None else read_recipe(recipe, overrides)

        def find() -> list[SqlTable | SqlView]:
            return find_named_tables(
                images=images, features=features, predictions=predictions, tables=named, recipe=read
            )

        tables = find()
        is_over = Event()
        _set_on_signals(is_over)
        with open_server(settings, tables, slots=len(os.sched_getaffinity(0))) as server:
            _set_on_signals(is_over)  # once more: PySpark has taken Ctrl-C for itself
            names = server.views.names
            say(f"jdbc:hive2://{host}:{server.port}/{database}: {', '.join(names)}. Ctrl-C ends it.")
            ready = {"host": host, "port": server.port, "database": database, "tables": names}
            print_result(ready, as_json=as_json)
            server.follow(find, is_over, on_change=lambda changed: say(f"Published: {', '.join(changed)}."))


def _set_on_signals(is_over: Event) -> None:
    """Lets the first SIGTERM or Ctrl-C set the event; the second ends the process at once."""
    numbers = (signal.SIGTERM, signal.SIGINT)

    def receive(_: int, __: FrameType | None) -> None:
        is_over.set()
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)

    for number in numbers:
        signal.signal(number, receive)
