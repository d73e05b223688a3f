"""What commands report about a table that they have built."""

from typing import TYPE_CHECKING

from featurize.console import say, warn

if TYPE_CHECKING:
    from featurize.building.build import BuildResult


def build_numbers(result: "BuildResult") -> dict[str, object]:
    """The numbers of a build, for ``--json``."""
    images = result.added + result.rejected
    return {
        "rows": result.manifest.row_count,
        "rejects": result.manifest.reject_count,
        "skipped": result.skipped,
        "changed": result.changed,
        "removed": result.removed,
        "images_per_second": round(images / result.seconds, 2),
        "steady_images_per_second": round(_steady_rate(result), 2),
        "seconds": round(result.seconds, 2),
        "job_seconds": round(result.job_seconds, 2),
        "launch_seconds": round(result.launch_seconds, 2),
        "timings": result.timings.rounded(),
        "worker_memory_bytes": result.worker_memory_bytes,
    }


def _steady_rate(result: "BuildResult") -> float:
    """Images per second of the Spark job, without the time in which its workers started and loaded the network."""
    steady_s = result.job_seconds - result.launch_seconds - result.timings.startup / result.slots
    return (result.added + result.rejected) / steady_s if steady_s > 0 else 0.0


def report_build(result: "BuildResult", url: str, *, is_whole_source: bool = True) -> None:
    """Reports what a build of the table at `url` did.

    Args:
        is_whole_source: whether the source should list all images of the table, so that missing ones are reported.
    """
    from featurize.tables.description import notes_on_rows, summarize_rejects
    from featurize.tables.layout import REJECTS

    images = result.added + result.rejected
    if images == 0:
        say(f"{url}: nothing to do, all {result.skipped} images are there already.")
    else:
        rate = f"{images / result.seconds:.1f} a second"
        skipped = f", {result.skipped} were there already" if result.skipped else ""
        say(f"{url}: {result.added} images in {result.seconds:.1f} s ({rate}){skipped}.")
        say("time in the workers: " + ", ".join(f"{name} {s:.1f} s" for name, s in result.timings.rounded().items()))
    if result.manifest.reject_count:
        say(
            f"{result.manifest.reject_count} images were rejected; they are listed in {url}/{REJECTS}:\n"
            f"{summarize_rejects(result.manifest.rejects)}"
        )
    for note in notes_on_rows(result.manifest.rows, result.manifest.classes):
        warn(note)
    if result.changed:
        warn(f"{result.changed} images have changed; the shards they were in were made again.")
    if result.removed and is_whole_source:
        warn(f"{result.removed} images are in the table and no longer in the source.")
