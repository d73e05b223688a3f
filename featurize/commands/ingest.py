"""The command `featurize ingest`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featurize import storage
from featurize.commands.options import (
    DecodeTimeoutOption,
    JsonOption,
    RejectFractionOption,
    print_result,
    reported_errors,
)
from featurize.console import warn
from featurize.defaults import DECODE_TIMEOUT_S, MAX_REJECT_FRACTION
from featurize.errors import UsageError
from featurize.progress import shown_progress

if TYPE_CHECKING:
    from featurize.building.build import BuildResult


def ingest_command(
    card: Annotated[str, typer.Argument(help="The TOML card of the data set, or its name in datasets/.")],
    output: Annotated[str, typer.Option(help="URL of the images table.")],
    source: Annotated[str | None, typer.Option(help="Where the data set lies; default: what the card says.")] = None,
    max_reject_fraction: RejectFractionOption = MAX_REJECT_FRACTION,
    decode_timeout_s: DecodeTimeoutOption = DECODE_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Packs a data set into an images table: decoded once to check it, with its metadata and splits."""
    with reported_errors(), shown_progress(as_json=as_json):
        from featurize.building.session import open_session
        from featurize.commands.build_report import build_numbers, report_build
        from featurize.jobs.ingest import ingest
        from featurize.sources.cards import find_card, read_card

        path = find_card(card, (Path("datasets"),))
        if path is None:
            raise UsageError(f"there is no card {card!r}: give the path of a .toml file, or a name in datasets/.")
        checked = read_card(path)
        with open_session("firn ingest") as session:
            result = ingest(
                session,
                checked,
                output,
                source=source,
                max_reject_fraction=max_reject_fraction,
                decode_timeout_s=decode_timeout_s,
            )
        url = storage.absolute_url(output)
        _warn_of_other_numbers(checked.expect.model_dump(exclude_none=True), result)
        report_build(result, url)
        print_result({"images": url, **build_numbers(result)}, as_json=as_json)


def _warn_of_other_numbers(expected: dict[str, int], result: "BuildResult") -> None:
    manifest = result.manifest
    found = {"images": manifest.row_count + manifest.reject_count, "classes": len(manifest.classes)}
    for name, number in expected.items():
        if found[name] != number:
            warn(f"the card expects {number} {name}; there are {found[name]}.")
