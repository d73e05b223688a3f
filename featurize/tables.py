"""Tables: built by a Spark job into a staging folder, then published whole by a manifest.

A rerun with the same settings adds only the images that are missing; other settings in the same place are refused.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeVar
from uuid import uuid4

import pyarrow as pa
from py4j.protocol import Py4JJavaError
from pyspark import TaskContext
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from featurize import storage
from featurize.claims import CLAIM_NAME, claim_output
from featurize.digests import combine_digests, settings_digest
from featurize.errors import JobError, UsageError
from featurize.image_source import ImageSource, escape_glob
from featurize.manifests import (
    MANIFEST_NAME,
    DataFile,
    Manifest,
    add_counts,
    check_identity,
    library_versions,
    read_manifest,
    utc_now,
    write_manifest,
)
from featurize.progress import task_progress
from featurize.shards import ShardRecord

AnyManifest = TypeVar("AnyManifest", bound=Manifest)
Worker = Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]
STAGING = "_staging"
_PART_NAME = re.compile(r"part-[0-9a-f]{8}-\d{5}-\d+\.parquet")
_RECORD_SCHEMA = pa.schema([("record", pa.string())])
_IMAGES_PER_ARROW_BATCH = 32


@dataclass(frozen=True)
class BuildResult:
    """What a build did. `removed` counts images that are in the table and no longer in the source."""

    manifest: Manifest
    added: int
    rejected: int
    skipped: int
    removed: int
    seconds: float


def build_table(
    spark: SparkSession,
    source: ImageSource,
    url: str,
    *,
    manifest_type: type[AnyManifest],
    settings: Mapping[str, Any],
    details: Mapping[str, Any],
    make_worker: Callable[[str], Worker],
) -> BuildResult:
    """Builds the table at `url` from `source`, or adds to it what is missing.

    Args:
        settings: all that determines the values of the rows; its digest is the identity of the table.
        details: the fields of the manifest that are peculiar to its type.
        make_worker: from the URL of the staging folder to the function that Spark runs on every partition.

    Raises:
        UsageError: something else is at `url`.
        JobError: another job is writing there, the job failed, or no image could be read.
    """
    started = perf_counter()
    url = storage.absolute_url(url)
    _check_apart(url, source)
    _check_target(url, manifest_type, settings)
    with storage.no_empty_folder(url), claim_output(url) as claim:
        existing = _check_target(url, manifest_type, settings)
        _remove_leftovers(url, existing)
        frame, skipped, removed, wanted = source.frame, 0, 0, source.images
        if existing is not None:
            frame, skipped, removed, wanted = _without_known(spark, source, url, existing)
        if existing is not None and wanted == 0:
            return BuildResult(existing, 0, 0, skipped, removed, perf_counter() - started)
        staging = storage.join_url(url, STAGING, uuid4().hex[:8])
        try:
            records = _run(spark, frame, make_worker(staging))
            manifest = _merge(manifest_type, existing, records, source, settings, details, perf_counter() - started)
            if manifest.row_count == 0:
                raise JobError(f"none of the {source.images} images could be read:\n{summarize_rejects(manifest)}")
            claim.verify()
            _publish(url, staging, manifest, records)
        finally:
            storage.remove(staging)  # this job's: one that took over the claim may have its own beside it
            storage.remove_if_empty(storage.join_url(url, STAGING))
    added = sum(sum(classes.values()) for record in records for classes in record.rows.values())
    rejected = sum(sum(record.rejects.values()) for record in records)
    return BuildResult(manifest, added, rejected, skipped, removed, perf_counter() - started)


def shard_name(staging: str) -> str:
    """Worker side: a name for what this attempt of this task writes."""
    context = TaskContext.get()
    partition, attempt = (context.partitionId(), context.taskAttemptId()) if context is not None else (0, 0)
    return f"{staging.rsplit('/', 1)[1]}-{partition:05d}-{attempt}"


def record_batch(record: ShardRecord) -> pa.RecordBatch:
    """Worker side: the record of a task, as the one row that it returns."""
    return pa.RecordBatch.from_arrays([pa.array([record.model_dump_json()])], schema=_RECORD_SCHEMA)


def summarize_rejects(manifest: Manifest, most: int = 8) -> str:
    """The reasons for rejects, most frequent first, a line each."""
    ranked = sorted(manifest.rejects.items(), key=lambda item: (-item[1], item[0]))
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
        return None
    if not isinstance(existing, manifest_type):
        raise UsageError(f"{url} holds a table of {existing.kind}; write to another URL.")
    check_identity(url, existing, settings)
    return existing


def _check_free(url: str) -> None:
    """A folder without a manifest may hold what a killed job left, and nothing else."""
    if storage.exists(url) and not storage.is_folder(url):
        raise UsageError(f"{url} is a file. Write to another URL.")
    for file in storage.list_files(url):
        inner = file[len(url) + 1 :]
        ours = inner.startswith(f"{STAGING}/") or inner.startswith((CLAIM_NAME, MANIFEST_NAME))
        parts = inner.startswith(("data/", "rejects/")) and _PART_NAME.fullmatch(inner.rsplit("/", 1)[1])
        if not ours and not parts:
            raise UsageError(f"{url} is not empty and holds no table of Firn's: {inner}. Write to another URL.")


def _remove_leftovers(url: str, existing: Manifest | None) -> None:
    """Removes what a killed job left: its staging folder, and files that no manifest lists."""
    storage.remove(storage.join_url(url, STAGING))
    listed = {file.path for file in (*existing.files, *existing.reject_files)} if existing is not None else set()
    for folder in ("data", "rejects"):
        for file in storage.list_files(storage.join_url(url, folder)):
            if file[len(url) + 1 :] not in listed and _PART_NAME.fullmatch(file.rsplit("/", 1)[1]):
                storage.remove(file)


def _without_known(
    spark: SparkSession, source: ImageSource, url: str, existing: Manifest
) -> tuple[DataFrame, int, int, int]:
    """The rows of `source` that are not in the table yet; and how many are in it, no longer in the source, to be added."""
    files = [storage.join_url(url, file.path) for file in (*existing.files, *existing.reject_files)]
    known = spark.read.parquet(*(escape_glob(file) for file in files)).select(
        "path", F.col("image_id").alias("known_id")
    )
    present = source.frame.select("path", "image_id").withColumn("present", F.lit(True))
    compared = present.join(known, "path", "full_outer").select(
        F.count_if(F.col("known_id") == F.col("image_id")).alias("unchanged"),
        F.count_if(F.col("known_id") != F.col("image_id")).alias("changed"),
        F.count_if(F.col("known_id").isNull()).alias("new"),
        F.count_if(F.col("present").isNull()).alias("removed"),
        F.first(F.when(F.col("known_id") != F.col("image_id"), F.col("path")), ignorenulls=True).alias("example"),
    )
    row = _collect(compared)[0]
    if row["changed"]:
        raise JobError(
            f"{row['changed']} images have changed since {url} was written, {row['example']} among them. "
            "Write to another URL, or remove this one."
        )
    frame = source.frame.join(F.broadcast(known.select("path")), "path", "left_anti").select(*source.frame.columns)
    return frame, row["unchanged"], row["removed"], row["new"]


def _run(spark: SparkSession, frame: DataFrame, worker: Worker) -> list[ShardRecord]:
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", str(_IMAGES_PER_ARROW_BATCH))
    with task_progress(spark.sparkContext):
        rows = _collect(frame.mapInArrow(worker, "record string"))
    return [ShardRecord.model_validate_json(row["record"]) for row in rows]


def _collect(frame: DataFrame) -> list[Any]:
    """The rows of `frame`; a failure inside Spark becomes one message, the worker's own."""
    try:
        return frame.collect()
    except (PySparkException, Py4JJavaError) as error:
        text = str(error)
        raised = re.findall(r"^(?:[\w.]+\.)?(\w+(?:Error|Exception)): (.+)$", text, flags=re.MULTILINE)
        reason = f"{raised[-1][0]}: {raised[-1][1]}" if raised else text.strip().splitlines()[0]
        raise JobError(f"the Spark job failed: {reason}") from error


def _merge(
    manifest_type: type[AnyManifest],
    existing: AnyManifest | None,
    records: list[ShardRecord],
    source: ImageSource,
    settings: Mapping[str, Any],
    details: Mapping[str, Any],
    seconds: float,
) -> AnyManifest:
    """The manifest of what was there and what was added."""
    rejects: dict[str, int] = dict(existing.rejects) if existing is not None else {}
    for record in records:
        for reason, count in record.rejects.items():
            rejects[reason] = rejects.get(reason, 0) + count
    before: list[DataFile] = existing.files if existing is not None else []
    rejects_before: list[DataFile] = existing.reject_files if existing is not None else []
    digests = [existing.content_digest] if existing is not None else []
    now = utc_now()
    return manifest_type(
        identity=settings_digest(settings),
        settings=dict(settings),
        classes=list(source.classes),
        rows=add_counts([*([existing.rows] if existing is not None else []), *(record.rows for record in records)]),
        rejects=dict(sorted(rejects.items())),
        content_digest=combine_digests(digests + [record.content_digest for record in records]),
        files=before + [file for record in records for file in record.files],
        reject_files=rejects_before + [file for record in records for file in record.reject_files],
        created_at=existing.created_at if existing is not None else now,
        updated_at=now,
        seconds=round(seconds + (existing.seconds if existing is not None else 0.0), 3),
        versions=library_versions(),
        **details,
    )


def _publish(url: str, staging: str, manifest: Manifest, records: list[ShardRecord]) -> None:
    """Moves the committed files into their places, then writes the manifest: the moment the table changes."""
    committed = {file.path for record in records for file in (*record.files, *record.reject_files)}
    staged_files = {file[len(staging) + 1 :] for file in storage.list_files(staging)}
    if missing := committed - staged_files:
        raise JobError(f"{staging}/{min(missing)} was written and is gone; nothing was published.")
    for path in staged_files - committed:
        storage.remove(storage.join_url(staging, path))  # of an attempt that failed or came second
    for folder in ("data", "rejects"):
        staged, final = storage.join_url(staging, folder), storage.join_url(url, folder)
        if not storage.exists(staged):
            continue
        storage.remove_if_empty(final)
        if not storage.exists(final):
            storage.move(staged, final)  # one rename: also who reads the folder by itself sees all or nothing
            continue
        for path in sorted(path for path in committed if path.startswith(folder + "/")):
            storage.move(storage.join_url(staging, path), storage.join_url(url, path))
    write_manifest(url, manifest)
