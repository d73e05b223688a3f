"""The command `featurize upload`."""

from typing import Annotated

import typer

from featurize.commands.options import JsonOption, print_result, reported_errors
from featurize.console import console, say


def upload_command(
    folder: Annotated[str, typer.Argument(help="The local folder to copy.")],
    url: Annotated[str, typer.Argument(help="The target, such as webhdfs://namenode:9870/path.")],
    threads: Annotated[int, typer.Option(min=1, max=64, help="Number of files sent at a time.")] = 4,
    user: Annotated[str | None, typer.Option(help="HDFS user name; default: HADOOP_USER_NAME, or yours.")] = None,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Also sends what links that lead out of the folder lead to.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Copies a local folder to HDFS over WebHDFS; files that are already there with the same size are skipped."""
    with reported_errors():
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

        from featurize.sources.webhdfs_upload import upload_folder

        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task("upload", total=None)
            result = upload_folder(
                folder,
                url,
                threads=threads,
                user=user,
                follow_links=follow_links,
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
