"""`finetune relabel`: corrects labels of a feature set, and shows what was corrected."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from featurize.commands.options import JsonOption, print_result, reported_errors
from featurize.console import say
from featurize.errors import UsageError

if TYPE_CHECKING:
    from featurize.tables.corrections import Corrections

_DIGITS = 12  # of an image_id on the screen


def relabel_command(
    table: Annotated[
        str | None, typer.Argument(metavar="[TABLE.csv]", help="The corrections: columns image_id and label.")
    ] = None,
    *,
    features: Annotated[str, typer.Option(help="The URL of the feature set.")],
    reason: Annotated[str | None, typer.Option(help="The reason, kept with each correction.")] = None,
    by: Annotated[str | None, typer.Option(help="The person who corrects; default: you.")] = None,
    show: Annotated[bool, typer.Option("--list", help="Lists the corrections made so far; takes no table.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Corrects labels. Corrections are added to a log; every later read sees the last label of an image."""
    with reported_errors():
        if show:
            if table is not None:
                raise UsageError("`--list` lists the corrections made so far; it takes no table.")
            _show(features, as_json=as_json)
            return
        if table is None or reason is None:
            raise UsageError("a table and `--reason` are required, or `--list`.")
        from finetune.api.checking import relabel

        done = relabel(table, features, reason=reason, by=by)
        if done.number is None:
            say(f"{done.features}: all {done.unchanged} images have these labels already; nothing was written.")
        else:
            say(
                f"{done.features}: {done.corrected} labels corrected, {done.unchanged} images had these labels already."
            )
        print_result(
            {
                "features": done.features,
                "number": done.number,
                "corrected": done.corrected,
                "unchanged": done.unchanged,
            },
            as_json=as_json,
        )


def _show(features: str, *, as_json: bool) -> None:
    from featurize.storage import absolute_url
    from featurize.tables.corrections import read_corrections
    from featurize.tables.publication import read_published_features

    url = absolute_url(features)
    read_published_features(url)
    log = read_corrections(url)
    if as_json:
        rows: list[dict[str, Any]] = log.entries.to_pylist()
        entries = [{**row, "corrected_at": row["corrected_at"].isoformat()} for row in rows]
        print_result({"features": url, "corrections": entries}, as_json=True)
    elif len(log.entries):
        Console().print(_table(log), highlight=False)
    else:
        say(f"{url}: no label was ever corrected.")


def _table(log: "Corrections") -> Table:
    table = Table("", "image", "old", "new", "by", "at", "reason", box=None, padding=(0, 2), header_style="bold")
    for row in log.entries.to_pylist():
        at = row["corrected_at"].isoformat(timespec="seconds")
        shown = (row["image_id"][:_DIGITS], row["old_label"], row["new_label"], row["corrected_by"], at, row["reason"])
        table.add_row(str(row["number"]), *(escape(value) for value in shown))
    return table
