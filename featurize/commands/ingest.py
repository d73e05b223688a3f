"""The command `featurize ingest`."""

from typing import TYPE_CHECKING, Annotated, cast

import typer

from featurize.commands.options import (
    DecodeTimeoutOption,
    FollowLinksOption,
    JsonOption,
    RejectFractionOption,
    print_result,
    reported_errors,
)
from featurize.defaults import DECODE_TIMEOUT_S, MAX_REJECT_FRACTION
from featurize.progress import shown_progress

if TYPE_CHECKING:
    from featurize.building.build import BuildResult


def ingest_command(
    card: Annotated[str, typer.Argument(help="The TOML card of the data set, or its name in datasets/.")],
    output: Annotated[str, typer.Option(help="URL of the images table.")],
    source: Annotated[
        str | None, typer.Option(help="Folder or URL of the data set; default: the card's own source.")
    ] = None,
    follow_links: FollowLinksOption = False,
    max_reject_fraction: RejectFractionOption = MAX_REJECT_FRACTION,
    decode_timeout_s: DecodeTimeoutOption = DECODE_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Packs a data set into an images table, with metadata and split of each image; every image is decoded once to check it."""
    with reported_errors(), shown_progress(as_json=as_json):
        import featurize
        from featurize.commands.build_report import build_numbers, report_build
        from featurize.console import show_logs

        show_logs()
        images = featurize.ingest(
            card,
            output,
            source=source,
            follow_links=follow_links,
            max_reject_fraction=max_reject_fraction,
            decode_timeout_s=decode_timeout_s,
        )
        build = cast("BuildResult", images.build)
        report_build(build, images.url)
        print_result({"images": images.url, **build_numbers(build)}, as_json=as_json)
