"""The command `featurize add-column`."""

from typing import TYPE_CHECKING, Annotated, cast

import typer

from featurize.commands.options import JsonOption, SetOption, print_result, reported_errors
from featurize.progress import shown_progress

if TYPE_CHECKING:
    from featurize.building.build import BuildResult


def add_column_command(
    recipe: Annotated[str, typer.Argument(help="The TOML recipe; it names all columns, those that exist too.")],
    where: Annotated[
        str | None,
        typer.Option(
            help="A condition in SQL: columns are computed anew for these rows. Default: missing columns, all rows."
        ),
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="With --where, a column to compute; repeatable. Default: all.")
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Adds to a feature set the columns that its recipe names and it lacks; or computes columns anew for some rows."""
    with reported_errors(), shown_progress(as_json=as_json):
        import featurize
        from featurize.commands.build_report import build_numbers
        from featurize.console import say, show_logs

        show_logs()
        features = featurize.add_column(recipe, where=where, columns=column or (), overrides=overrides)
        build = cast("BuildResult", features.build)
        names = ", ".join(features.manifest.column_names)
        say(
            f"{features.url}: computed {build.added:,} rows in {build.seconds:.1f} s, kept {build.skipped:,}; columns {names}."
        )
        print_result(
            {"features": features.url, **build_numbers(build), "columns": features.manifest.column_names},
            as_json=as_json,
        )
