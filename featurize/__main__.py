"""The command `featurize`; also `python -m featurize` and `spark-submit featurize/__main__.py`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

if not __package__:  # run by path, as spark-submit does: the folder above is where the packages are
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import typer
from rich.console import Console

from featurize.cli import (
    DecodeTimeoutOption,
    JsonOption,
    RejectFractionOption,
    SetOption,
    console,
    make_app,
    print_result,
    reported_errors,
    say,
    warn,
)
from featurize.defaults import DECODE_TIMEOUT_S, MAX_REJECT_FRACTION
from featurize.describe import describe, print_description
from featurize.errors import UsageError
from featurize.export_command import export_command
from featurize.manifests import FeaturesManifest, read_manifest
from featurize.recipe import read_recipe, upper_half
from featurize.reporting import build_numbers, report_build
from featurize.row_edits import correct_rows
from featurize.similar_command import similar_command
from featurize.sql_command import sql_command
from featurize.storage import absolute_url
from featurize.tables import BuildResult

if TYPE_CHECKING:
    from featurize.backbones import PreparedBackbone

app = make_app("Images to features, on Spark.")
app.command("export")(export_command)
app.command("similar")(similar_command)
app.command("sql")(sql_command)


@app.command("ingest")
def ingest_command(
    card: Annotated[str, typer.Argument(help="The TOML card of the data set, or its name in datasets/.")],
    output: Annotated[str, typer.Option(help="URL of the images table.")],
    source: Annotated[str | None, typer.Option(help="Where the data set lies; default: what the card says.")] = None,
    max_reject_fraction: RejectFractionOption = MAX_REJECT_FRACTION,
    decode_timeout_s: DecodeTimeoutOption = DECODE_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Packs a data set into an images table: decoded once to check it, with its metadata and splits."""
    with reported_errors():
        from featurize.cards import find_card, read_card
        from featurize.images import ingest
        from featurize.session import open_session

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
        url = absolute_url(output)
        _warn_of_other_numbers(checked.expect.model_dump(exclude_none=True), result)
        report_build(result, url)
        print_result({"images": url, **build_numbers(result)}, as_json=as_json)


@app.command("run")
def run_command(
    recipe: Annotated[str, typer.Argument(help="The TOML recipe; its upper half is read.")],
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Runs images through a frozen backbone: an images table or source folder becomes a feature set."""
    with reported_errors():
        settings = upper_half(read_recipe(recipe, overrides or ()), origin=recipe)
        from featurize.features import featurize
        from featurize.session import open_session

        folders = (Path("datasets"), Path(recipe).absolute().parent.parent / "datasets")
        with open_session("firn featurize") as session:
            result, backbone = featurize(session, settings, card_folders=folders, on_backbone=_announce)
        url = absolute_url(settings.features.url)
        report_build(result, url)
        numbers = {
            "features": url,
            **build_numbers(result),
            "weights": backbone.spec.weights,
            "precision": backbone.spec.precision,
        }
        print_result(numbers, as_json=as_json)


@app.command("describe")
def describe_command(
    url: Annotated[str, typer.Argument(help="A feature set, an images table, or the predictions of a model.")],
    as_json: JsonOption = False,
) -> None:
    """Says what a table is, on one screen: a feature set, an images table, or the predictions of a model."""
    with reported_errors():
        manifest = read_manifest(url)
        if manifest is None:
            raise UsageError(f"{absolute_url(url)} holds neither a feature set nor an images table.")
        if isinstance(manifest, FeaturesManifest):
            manifest = correct_rows(url, manifest)
        if as_json:
            print_result(describe(absolute_url(url), manifest), as_json=True)
        else:
            print_description(absolute_url(url), manifest, Console())


@app.command("upload")
def upload_command(
    folder: Annotated[str, typer.Argument(help="A local folder.")],
    url: Annotated[str, typer.Argument(help="Where to: webhdfs://namenode:9870/path.")],
    threads: Annotated[int, typer.Option(min=1, max=64, help="Files sent at a time.")] = 4,
    user: Annotated[str | None, typer.Option(help="Whom HDFS is told; default: HADOOP_USER_NAME, or you.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Copies a local folder to HDFS over WebHDFS; files that are there with the same size are left as they are."""
    with reported_errors():
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

        from featurize.upload import upload_folder

        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task("upload", total=None)
            result = upload_folder(
                folder,
                url,
                threads=threads,
                user=user,
                on_bytes=lambda count: progress.advance(bar, count),
                on_total=lambda count: progress.update(bar, total=count),
            )
        say(f"{url}: {result.uploaded} files sent, {result.skipped} were there already.")
        print_result(
            {
                "url": url,
                "uploaded": result.uploaded,
                "skipped": result.skipped,
                "bytes": result.bytes,
                "seconds": round(result.seconds, 2),
            },
            as_json=as_json,
        )


def _announce(backbone: "PreparedBackbone") -> None:
    """Says what the images will go through."""
    spec = backbone.spec
    shape = " x ".join(str(size) for size in spec.feature_shape)
    where = f" at {spec.layer}, weights {spec.weights}, {spec.precision}" if not spec.is_pixels else ""
    say(f"backbone {spec.name}{where}: {shape} features from {spec.height} x {spec.width} images")
    if backbone.report is not None and backbone.report.notice:
        warn(backbone.report.notice)


def _warn_of_other_numbers(expected: dict[str, int], result: BuildResult) -> None:
    manifest = result.manifest
    found = {"images": manifest.row_count + manifest.reject_count, "classes": len(manifest.classes)}
    for name, number in expected.items():
        if found[name] != number:
            warn(f"the card expects {number} {name}; there are {found[name]}.")


def main() -> None:
    """Entry point of the command."""
    app()


if __name__ == "__main__":
    main()
