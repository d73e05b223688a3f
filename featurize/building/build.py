"""Tables: built by a Spark job, shard by shard, into a staging folder, then published whole by a manifest.

A killed run is resumed, a rerun with the same settings adds only the images that are missing, and other settings in the same
place are refused.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter, time
from typing import Any
from uuid import uuid4

import pyarrow as pa
from pyspark.sql import SparkSession

from featurize import storage
from featurize.building import staging
from featurize.building.known_shards import IndexFiles
from featurize.building.missing_work import Work, find_work
from featurize.building.session import concurrent_tasks
from featurize.building.spark_jobs import run_plan
from featurize.building.targets import AnyManifest, check_apart, check_target, check_unfinished
from featurize.building.worker import Run, ShardTask, make_worker
from featurize.digests import combine_digests, settings_digest
from featurize.errors import JobError
from featurize.progress import stage
from featurize.sources.listing import ImageSource
from featurize.storage.claims import Claim, claim_output
from featurize.tables.description import summarize_rejects
from featurize.tables.layout import REJECTS
from featurize.tables.manifests import Manifest, ShardRecord, add_counts, library_versions, utc_now
from featurize.tables.publication import publish, read_manifest
from featurize.timings import Timings, add_timings


@dataclass(frozen=True)
class BuildResult:
    """What a build did.

    Attributes:
        added: rows that this run made.
        rejected: rejects that this run made.
        skipped: images that an earlier run had done, also one that was killed.
        changed: images whose bytes have changed; they were done again.
        removed: images of the table that are no longer in the source.
        seconds: time of the whole build.
        job_seconds: time of the Spark job.
        launch_seconds: the part of `job_seconds` until a worker began: Spark sends the job and the network, and starts Python.
        timings: where this run's time went.
        worker_memory_bytes: peak memory of a worker process of this run, without its decoders and its JVM.
        slots: number of tasks that ran at the same time.
    """

    manifest: Manifest
    added: int = 0
    rejected: int = 0
    skipped: int = 0
    changed: int = 0
    removed: int = 0
    seconds: float = 0.0
    job_seconds: float = 0.0
    launch_seconds: float = 0.0
    timings: Timings = field(default_factory=Timings)
    worker_memory_bytes: int = 0
    slots: int = 1


@dataclass(frozen=True)
class _Made:
    """What the Spark job made, when it started, in seconds since 1970, and how many seconds it took."""

    records: list[ShardRecord]
    started_at: float
    seconds: float


def build_table(
    spark: SparkSession,
    source: ImageSource,
    url: str,
    *,
    manifest_type: type[AnyManifest],
    settings: Mapping[str, Any],
    details: Mapping[str, Any],
    task: ShardTask[Any],
    max_reject_fraction: float | None,
    decode_timeout_s: float,
    held: Claim | None = None,
    files_read: IndexFiles | None = None,
    is_partial: bool = False,
    networks: Mapping[str, Path] | None = None,
) -> BuildResult:
    """Builds the table at `url` from `source`, or adds to it what is missing.

    Args:
        settings: everything that determines the values of the rows; its digest is the identity of the table.
        details: the fields that only this type of manifest has.
        task: what workers do with the images.
        max_reject_fraction: largest share of rejects in the table; above it nothing is published. None: no limit.
        decode_timeout_s: seconds; an image that takes longer to decode is rejected.
        held: the claim on `url`, if the caller already holds it.
        files_read: index files of the table, for a caller who builds it again and again; see `read_index`.
        is_partial: whether the source lists only some images of a larger one. Then a known image stays as it is, even if it has
            changed: its shard would be made again without those of its images that are not listed.
        networks: local files, by name, that are kept in the table's folder `networks`; None: those there stay.

    Raises:
        UsageError: `url` holds something else.
        JobError: another job is writing there, the job failed, or too many images could not be read.
    """
    started = perf_counter()
    url = storage.absolute_url(url)
    check_apart(url, source)
    check_target(url, manifest_type, settings=settings)
    with storage.no_empty_folder(url), claim_output(url) if held is None else nullcontext(held) as claim:
        existing = check_target(url, manifest_type, settings=settings)
        unfinished = check_unfinished(url, settings, existing)
        published = existing.shards if existing is not None else []
        run = Run(url=url, name=uuid4().hex[:8], reader=source.reader, decode_timeout_s=decode_timeout_s)
        work = find_work(
            spark,
            source,
            run=run,
            published=published,
            unfinished=unfinished,
            files_read=files_read,
            is_partial=is_partial,
        )
        if existing is not None and not work.todo.num_rows and not work.taken_over:
            staging.remove_staging(url)
            return BuildResult(existing, skipped=work.skipped, removed=work.removed, seconds=perf_counter() - started)
        if networks is not None:
            staging.keep_networks(url, networks)
        claim.verify()
        begin = partial(staging.write_state, url, settings=settings, there=existing)
        begin(run=run.name, records=work.taken_over)
        staging.remove_others(url, work.taken_over)
        with staging.removed_if_nothing_is_finished(url, run.name):
            made = _make_shards(spark, run, task, work.todo)
            if max_reject_fraction is not None:
                new = [*work.taken_over, *made.records]
                _check_rejects(run, work.published, new, max_reject_fraction, keep=partial(_keep, claim, begin))
        new = [*work.taken_over, *made.records]
        stage("publishing")
        claim.verify()
        staging.place_files(url, new)
        manifest = manifest_type(
            **_contents(existing, work.published, new, settings=settings, classes=source.classes),
            **_history(existing, made.records, perf_counter() - started),
            **details,
        )
        claim.verify()
        manifest = publish(url, manifest, after=existing)
        staging.remove_staging(url)
    stage("")
    return _result(manifest, work, made=made, seconds=perf_counter() - started, slots=concurrent_tasks(spark))


def settings_in_place(url: str) -> Mapping[str, Any] | None:
    """The settings of the table at `url`, or of the unfinished run there; None where there is neither."""
    manifest = read_manifest(url)
    return manifest.settings if manifest is not None else staging.unfinished_settings(url)


def _make_shards(spark: SparkSession, run: Run, task: ShardTask[Any], todo: pa.Table) -> _Made:
    """Runs the Spark job."""
    started, started_at = perf_counter(), time()
    records = _run_shards(spark, run, task, todo)
    return _Made(records, started_at, perf_counter() - started)


def _run_shards(spark: SparkSession, run: Run, task: ShardTask[Any], todo: pa.Table) -> list[ShardRecord]:
    """Makes and commits the shards of all images in `todo`."""
    if not todo.num_rows:
        return []
    plan_url = staging.plan_url(run.url, run.name)
    rows = run_plan(spark, plan_url, rows=todo, make_worker=partial(make_worker, run, task))
    records = [ShardRecord.model_validate_json(row["record"]) for row in rows]
    found = sum(record.row_count + record.reject_count for record in records)
    if found != todo.num_rows:
        raise JobError(f"the workers returned {found} of {todo.num_rows} images; nothing was published.")
    return records


def _keep(claim: Claim, begin: Callable[..., None], records: Sequence[ShardRecord]) -> None:
    """Leaves shards to the next run: from now on nothing else that this run made counts."""
    claim.verify()
    begin(run=uuid4().hex[:8], records=records)


def _check_rejects(
    run: Run,
    published: Sequence[ShardRecord],
    new: Sequence[ShardRecord],
    max_fraction: float,
    *,
    keep: Callable[[Sequence[ShardRecord]], None],
) -> None:
    """Refuses to publish if there are too many rejects, as then something is wrong with the source: the table stays as it was.

    The next run takes over the new shards, except those with images that could not be read from storage: it reads these again.
    """
    rejected = sum(record.reject_count for record in (*published, *new))
    images = rejected + sum(record.row_count for record in (*published, *new))
    if not new or (rejected <= max_fraction * images and rejected < images):
        return
    keep([record for record in new if not record.unread])
    allowed = f", more than `max_reject_fraction` = {max_fraction:g} allows" if rejected < images else ""
    raise JobError(
        f"{rejected} of {images} images could not be read{allowed}; nothing was published. The new ones are listed in "
        f"{storage.join_url(run.url, staging.STAGING, REJECTS)}:\n{summarize_rejects(_add_rejects({}, new))}\n"
        "Repair or remove them, or set a higher `max_reject_fraction`; what could be read is kept for the next run."
    )


def _contents(
    existing: Manifest | None,
    kept: Sequence[ShardRecord],
    new: Sequence[ShardRecord],
    *,
    settings: Mapping[str, Any],
    classes: Sequence[str],
) -> dict[str, Any]:
    """The fields of a manifest that describe the table's content: those kept of the existing shards, then the new ones.

    Where all are kept, the new ones are added to its sums, so that a small addition to a large table stays small.
    """
    counted, rows, rejects, digests = new, list[Mapping[str, Mapping[str, int]]](), dict[str, int](), list[str]()
    if existing is not None and len(kept) == len(existing.shards):
        rows, rejects, digests = [existing.rows], existing.rejects, [existing.content_digest]
    else:
        counted = [*kept, *new]
    return {
        "identity": settings_digest(settings),
        "settings": dict(settings),
        "classes": list(classes),
        "rows": add_counts([*rows, *(record.rows for record in counted)]),
        "rejects": dict(sorted(_add_rejects(rejects, counted).items())),
        "content_digest": combine_digests([*digests, *(record.content_digest for record in counted)]),
        "shards": [*kept, *new],
        "versions": library_versions(),
    }


def _history(existing: Manifest | None, made: Sequence[ShardRecord], seconds: float) -> dict[str, Any]:
    """The fields of a manifest that describe the runs that made the table; their times are added up."""
    before = [existing.timings] if existing is not None else []
    now = utc_now()
    return {
        "created_at": existing.created_at if existing is not None else now,
        "updated_at": now,
        "seconds": round(seconds + (existing.seconds if existing is not None else 0.0), 3),
        "timings": add_timings([*before, *(record.timings for record in made)]).rounded(),
    }


def _add_rejects(before: Mapping[str, int], records: Sequence[ShardRecord]) -> dict[str, int]:
    rejects = dict(before)
    for record in records:
        for reason, count in record.rejects.items():
            rejects[reason] = rejects.get(reason, 0) + count
    return rejects


def _result(manifest: Manifest, work: Work, *, made: _Made, seconds: float, slots: int) -> BuildResult:
    began_at = min((record.began_at for record in made.records), default=0.0)
    return BuildResult(
        manifest=manifest,
        added=sum(record.row_count for record in made.records),
        rejected=sum(record.reject_count for record in made.records),
        skipped=work.skipped,
        changed=work.changed,
        removed=work.removed,
        seconds=seconds,
        job_seconds=made.seconds,
        launch_seconds=max(0.0, began_at - made.started_at),
        timings=add_timings(record.timings for record in made.records),
        worker_memory_bytes=max((record.memory_bytes for record in made.records), default=0),
        slots=slots,
    )
