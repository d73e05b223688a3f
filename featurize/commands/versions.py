"""The commands `featurize vacuum` and `featurize upgrade`."""

from dataclasses import asdict
from typing import Annotated

import typer

from featurize.commands.options import JsonOption, print_result, reported_errors
from featurize.console import say

UrlArgument = Annotated[str, typer.Argument(help="URL of a table, or of the predictions of several models.")]


def vacuum_command(
    url: UrlArgument,
    older_than: Annotated[
        str, typer.Option(metavar="TIME", help="Versions replaced within this time stay: a number of s, m, h or d.")
    ] = "7d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only counts what would be removed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Removes the files that only older versions of a table need, and what killed jobs left."""
    with reported_errors():
        from featurize.upkeep.versions import vacuum

        done = vacuum(url, older_than=older_than, dry_run=dry_run)
        for one in done:
            would = "would be removed" if dry_run else "removed"
            say(
                f"{one.url}: {one.files} files, {one.bytes / 1e6:,.1f} MB, {would}; versions {one.oldest} to {one.version} can "
                "be read."
            )
        print_result({"tables": [asdict(one) for one in done], "dry_run": dry_run}, as_json=as_json)


def upgrade_command(url: UrlArgument, as_json: JsonOption = False) -> None:
    """Makes a table of Firn 0.1 a Delta table; its files stay as they are."""
    with reported_errors():
        from featurize.upkeep.versions import upgrade

        done = upgrade(url)
        for one in done:
            say(f"{one.url}: {'now a Delta table' if one.is_new else 'a Delta table already'}, version {one.version}.")
        print_result({"tables": [asdict(one) for one in done]}, as_json=as_json)
