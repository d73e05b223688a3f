"""Tables: built by a Spark job, shard by shard, into a staging folder, then published whole by a manifest.

A run that was killed is gone on with, a rerun with the same settings adds only the images that are missing, and other settings
in the same place are refused.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter, time
from typing import Any, TypeVar
from uuid import uuid4

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession

from featurize import staging, storage
from featurize.claims import CLAIM_NAME, claim_output
from featurize.digests import combine_digests, settings_digest
from featurize.errors import JobError, UsageError
from featurize.image_source import ImageSource
from featurize.known import compare, read_index, still_valid
from featurize.manifests import (
    MANIFEST_NAME,
    Manifest,
    ShardRecord,
    add_counts,
    differing_settings,
    library_versions,
    read_manifest,
    utc_now,
    write_manifest,
)
from featurize.plan import in_reading_order, plan_shards, write_plan
from featurize.progress import task_progress
from featurize.session import concurrent_tasks
from featurize.timings import Timings, add_timings
from featurize.worker import Run, ShardTask, Worker, make_hasher, make_worker

AnyManifest = TypeVar("AnyManifest", bound=Manifest)
MAX_REJECT_FRACTION = 0.05


@dataclass(frozen=True)
class BuildResult:
    """What a build did.

    Attributes:
        added: rows that this run made.
        rejected: rejects that this run made.
        skipped: images that were done before, be it by a run that was killed.
        changed: images whose bytes are not those they were; they were done again.
        removed: images that are in the table and no longer in the source.
        seconds: the whole build.
        job_seconds: the Spark job.
        launch_seconds: of these, until a worker began: Spark sends the job and the network, and starts Python.
        timings: where this run's time went.
        worker_memory_bytes: the most that a worker process of this run has had in memory, beside its decoders and its JVM.
        slots: tasks that ran at a time.
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
class _Work:
    """What a run finds: what is done, and what is to do."""

    published: list[ShardRecord]  # of the manifest, without those that hold an image that has changed
    taken_over: list[ShardRecord]  # finished by a run that was killed
    todo: pa.Table
    skipped: int
    changed: int
    removed: int


def build_table(
    spark: SparkSession,
    source: ImageSource,
    url: str,
    *,
    manifest_type: type[AnyManifest],
    settings: Mapping[str, Any],
    details: Mapping[str, Any],
    task: ShardTask[Any],
    max_reject_fraction: float,
    decode_timeout_s: float,
) -> BuildResult:
    """Builds the table at `url` from `source`, or adds to it what is missing.

    Args:
        settings: all that determines the values of the rows; its digest is the identity of the table.
        details: the fields of the manifest that are peculiar to its type.
        task: what is done with the images.
        max_reject_fraction: of all images in the table; if more are rejected, nothing is published.
        decode_timeout_s: seconds; an image that takes longer to decode is rejected.

    Raises:
        UsageError: something else is at `url`.
        JobError: another job is writing there, the job failed, or too many images could not be read.
    """
    started = perf_counter()
    url = storage.absolute_url(url)
    _check_apart(url, source)
    _check_target(url, manifest_type, settings)
    with storage.no_empty_folder(url), claim_output(url) as claim:
        existing = _check_target(url, manifest_type, settings)
        run = Run(url=url, name=uuid4().hex[:8], reader=source.reader, decode_timeout_s=decode_timeout_s)
        work = _find_work(spark, source, run, existing, settings)
        published = existing.shards if existing is not None else []
        if existing is not None and not work.todo.num_rows and not work.taken_over:
            staging.remove_others(url, [], published=_all_files(published))
            staging.remove_staging(url)
            seconds = perf_counter() - started
            return BuildResult(existing, skipped=work.skipped, removed=work.removed, seconds=seconds)
        # From here on this run's commits count, and what earlier runs left beside those taken over goes away.
        claim.verify()
        staging.write_state(url, settings=settings, run=run.name, records=work.taken_over)
        staging.remove_others(url, work.taken_over, published=_all_files(published))
        job_started, job_started_at = perf_counter(), time()
        with staging.removed_if_nothing_is_finished(url, run.name):
            made = _run_shards(spark, run, task, work.todo)
            new = [*work.taken_over, *made]
            _check_rejects(run, settings, work.published, new, max_reject_fraction)
        job_seconds = perf_counter() - job_started
        claim.verify()
        staging.place_files(url, new)
        manifest = manifest_type(
            **_contents([*work.published, *new], settings, source.classes),
            **_history(existing, made, perf_counter() - started),
            **details,
        )
        claim.verify()
        write_manifest(url, manifest)
        staging.remove_others(url, manifest.shards, published=set())  # what the new manifest replaced
        staging.remove_staging(url)
    return BuildResult(
        manifest=manifest,
        added=sum(record.row_count for record in made),
        rejected=sum(record.reject_count for record in made),
        skipped=work.skipped,
        changed=work.changed,
        removed=work.removed,
        seconds=perf_counter() - started,
        job_seconds=job_seconds,
        launch_seconds=max(0.0, min((record.began_at for record in made), default=0.0) - job_started_at),
        timings=add_timings(record.timings for record in made),
        worker_memory_bytes=max((record.memory_bytes for record in made), default=0),
        slots=concurrent_tasks(spark),
    )


def settings_in_place(url: str) -> Mapping[str, Any] | None:
    """The settings of the table at `url`, be it finished or in the making; None where there is neither."""
    manifest = read_manifest(url)
    return manifest.settings if manifest is not None else staging.unfinished_settings(url)


def summarize_rejects(rejects: Mapping[str, int], most: int = 8) -> str:
    """The reasons for rejects, most frequent first, a line each."""
    ranked = sorted(rejects.items(), key=lambda item: (-item[1], item[0]))
    lines = [f"  - {count} x {reason}" for reason, count in ranked[:most]]
    return "\n".join(lines + ([f"  - and {len(ranked) - most} more reasons"] if len(ranked) > most else []))


def _check_apart(url: str, source: ImageSource) -> None:
    """The table may not lie in the folder it is made from, whose next listing would find it as a class."""
    folder = str(source.settings.get("source", ""))
    if source.settings["layout"] == "folders" and (url + "/").startswith(folder + "/"):
        raise UsageError(f"{url} is in the folder of the images, {folder}. Write the table elsewhere.")


def _check_target(url: str, manifest_type: type[AnyManifest], settings: Mapping[str, Any]) -> AnyManifest | None:
    """The manifest that is there already, if it may be added to."""
    existing = read_manifest(url)
    if existing is None:
        _check_free(url)
    elif not isinstance(existing, manifest_type):
        raise UsageError(f"{url} holds a table of {existing.kind}; write to another URL.")
    elif lines := differing_settings(existing.settings, settings):
        raise UsageError(
            f"{url} holds a table made with other settings; a mixture is refused. Write to another URL, or remove that "
            "one.\n" + "\n".join(lines)
        )
    unfinished = staging.unfinished_settings(url)
    if unfinished is not None and (lines := differing_settings(unfinished, settings)):
        raise UsageError(
            f"{url} holds the work of an unfinished run with other settings. Finish it, write to another URL, or remove "
            f"{storage.join_url(url, staging.STAGING)}.\n" + "\n".join(lines)
        )
    return existing


def _check_free(url: str) -> None:
    """A folder without a manifest may hold what a killed job left, and nothing else."""
    if storage.exists(url) and not storage.is_folder(url):
        raise UsageError(f"{url} is a file. Write to another URL.")
    for file in storage.list_files(url):
        inner = file[len(url) + 1 :]
        if not staging.is_ours(inner) and not inner.startswith((CLAIM_NAME, MANIFEST_NAME)):
            raise UsageError(f"{url} is not empty and holds no table of Firn's: {inner}. Write to another URL.")


def _find_work(
    spark: SparkSession, source: ImageSource, run: Run, existing: Manifest | None, settings: Mapping[str, Any]
) -> _Work:
    """Compares the source with the table and with what a killed run left."""
    published = existing.shards if existing is not None else []
    index = read_index([storage.join_url(run.url, shard.index_file.path) for shard in published])
    compared = compare(source.listing, index)
    changed = _find_changed(spark, run, source.listing, compared.suspect, compared.suspect_ids)
    outdated = _shards_with(published, index, {source.listing["path"][row].as_py() for row in changed})
    kept = [shard for number, shard in enumerate(published) if number not in outdated]
    missing = _without(source.listing, [storage.join_url(run.url, shard.index_file.path) for shard in kept])
    taken_over = _take_over(run.url, missing, settings, {shard.index_file.path for shard in published})
    todo = _without(missing, [_index_url(run.url, record) for record in taken_over])
    return _Work(
        published=kept,
        taken_over=taken_over,
        todo=todo,
        skipped=source.images - todo.num_rows,
        changed=len(changed),
        removed=len(compared.removed),
    )


def _without(listing: pa.Table, index_urls: Sequence[str]) -> pa.Table:
    """The rows of a listing that are in none of the index files."""
    return listing.take(pa.array(compare(listing, read_index(index_urls)).new)) if index_urls else listing


def _find_changed(
    spark: SparkSession, run: Run, listing: pa.Table, suspect: NDArray[np.int64], known_ids: Sequence[str | None]
) -> list[int]:
    """Those of the suspect rows of a listing whose bytes are not the known ones; the workers read them to see."""
    if not len(suspect):
        return []
    plan_url = storage.join_url(run.url, staging.STAGING, f"suspects-{run.name}.parquet")
    rows = listing.take(pa.array(suspect))
    found = dict(_run_plan(spark, plan_url, rows, make_hasher(plan_url, run.reader), "path string, image_id string"))
    storage.remove(plan_url)
    paths = rows["path"].to_pylist()
    return [int(row) for row, path, known_id in zip(suspect, paths, known_ids, strict=True) if found[path] != known_id]


def _shards_with(shards: Sequence[ShardRecord], index: pa.Table, paths: set[str]) -> set[int]:
    """The numbers of the shards that hold any of `paths`; `index` holds the rows of all, one after the other."""
    if not paths:
        return set()
    owner = np.repeat(np.arange(len(shards)), [shard.index_file.rows for shard in shards])
    return {int(number) for number, path in zip(owner, index["path"].to_pylist(), strict=True) if path in paths}


def _take_over(url: str, listing: pa.Table, settings: Mapping[str, Any], published: set[str]) -> list[ShardRecord]:
    """The shards that a killed run finished, if their images are still what they were, and all in `listing`.

    An image may be in one of them and in the table too: one beside it had changed, and has been put back since.
    """
    state = staging.read_state(url)
    if state is None:
        return []
    if state.identity != settings_digest(settings) and staging.finished_records(url, state):
        raise JobError(f"a run with other settings has just finished a shard at {url}; run this again to hear which.")
    records = [
        record
        for record in staging.finished_records(url, state)
        if record.index_file.path not in published  # killed after it had published them
    ]
    return still_valid(records, [_index_url(url, record) for record in records], listing)


def _index_url(url: str, record: ShardRecord) -> str:
    staged = storage.join_url(url, staging.STAGING, record.index_file.path)
    return staged if storage.exists(staged) else storage.join_url(url, record.index_file.path)


def _all_files(shards: Sequence[ShardRecord]) -> set[str]:
    return {file.path for shard in shards for file in shard.all_files}


def _run_shards(spark: SparkSession, run: Run, task: ShardTask[Any], todo: pa.Table) -> list[ShardRecord]:
    """Makes and commits shards of all that is to do."""
    if not todo.num_rows:
        return []
    rows = _run_plan(spark, staging.plan_url(run.url, run.name), todo, make_worker(run, task), "record string")
    records = [ShardRecord.model_validate_json(row["record"]) for row in rows]
    found = sum(record.row_count + record.reject_count for record in records)
    if found != todo.num_rows:
        raise JobError(f"of {todo.num_rows} images {found} came back from the workers; nothing was published.")
    return records


def _run_plan(spark: SparkSession, plan_url: str, rows: pa.Table, worker: Worker, schema: str) -> list[Any]:
    """Cuts `rows` into shards, writes the plan and has Spark give each shard to a task."""
    rows = in_reading_order(rows)
    shards = plan_shards(rows, slots=concurrent_tasks(spark))
    write_plan(plan_url, rows, shards)
    with task_progress(spark.sparkContext):
        return _collect(spark.range(0, len(shards), 1, len(shards)).mapInArrow(worker, schema))


def _collect(frame: DataFrame) -> list[Any]:
    """The rows of `frame`; a failure inside Spark becomes one message, the worker's own."""
    try:
        return frame.collect()
    except (PySparkException, Py4JJavaError) as error:
        text = str(error)
        raised = re.findall(r"^(?:[\w.]+\.)?(\w+(?:Error|Exception)): (.+)$", text, flags=re.MULTILINE)
        reason = f"{raised[-1][0]}: {raised[-1][1]}" if raised else text.strip().splitlines()[0]
        raise JobError(
            f"the Spark job failed: {reason}\nWhat it had finished is kept; run it again to go on."
        ) from error


def _check_rejects(
    run: Run,
    settings: Mapping[str, Any],
    published: Sequence[ShardRecord],
    new: Sequence[ShardRecord],
    max_fraction: float,
) -> None:
    """Too many rejects mean that something is wrong with the source: the table stays as it was.

    The next run takes over what is new, but for shards with images that storage failed to give: it is to ask for them again.
    """
    rejected = sum(record.reject_count for record in (*published, *new))
    images = rejected + sum(record.row_count for record in (*published, *new))
    if not new or (rejected <= max_fraction * images and rejected < images):
        return
    staging.write_state(
        run.url, settings=settings, run=uuid4().hex[:8], records=[record for record in new if not record.unread]
    )
    allowed = f", more than `max_reject_fraction` = {max_fraction:g} allows" if rejected < images else ""
    raise JobError(
        f"{rejected} of {images} images could not be read{allowed}; nothing was published. The new ones are listed in "
        f"{storage.join_url(run.url, staging.STAGING, 'rejects')}:\n{summarize_rejects(_add_rejects(new))}\n"
        "Mend or remove them, or allow more; what could be read is kept for the next run."
    )


def _contents(records: Sequence[ShardRecord], settings: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """The fields of a manifest that say what is in the table."""
    return {
        "identity": settings_digest(settings),
        "settings": dict(settings),
        "classes": list(classes),
        "rows": add_counts(record.rows for record in records),
        "rejects": dict(sorted(_add_rejects(records).items())),
        "content_digest": combine_digests(record.content_digest for record in records),
        "shards": list(records),
        "versions": library_versions(),
    }


def _history(existing: Manifest | None, made: Sequence[ShardRecord], seconds: float) -> dict[str, Any]:
    """The fields of a manifest that say how it came to be; times of several runs are added up."""
    before = [existing.timings] if existing is not None else []
    now = utc_now()
    return {
        "created_at": existing.created_at if existing is not None else now,
        "updated_at": now,
        "seconds": round(seconds + (existing.seconds if existing is not None else 0.0), 3),
        "timings": add_timings([*before, *(record.timings for record in made)]).rounded(),
    }


def _add_rejects(records: Sequence[ShardRecord]) -> dict[str, int]:
    rejects: dict[str, int] = {}
    for record in records:
        for reason, count in record.rejects.items():
            rejects[reason] = rejects.get(reason, 0) + count
    return rejects
