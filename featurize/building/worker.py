"""The work on a shard, the same in all jobs: read and decode its images ahead in threads, write the results, commit."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from time import perf_counter, time
from typing import Any, Generic, Protocol, TypeVar

import pyarrow as pa
from pyspark import TaskContext

from featurize import storage
from featurize.backbones.keras_network import set_threads
from featurize.backbones.lean_keras import leave_out_in_own_worker
from featurize.building import staging
from featurize.building.image_reports import ReportTo, ShardReport, make_report, reporting
from featurize.building.plan import read_planned
from featurize.building.shard_files import ShardWriter
from featurize.decoding.decode import DecodeError
from featurize.decoding.decoder_process import Decoder, DecoderPool
from featurize.foreign_text import shown
from featurize.map_ahead import map_ahead
from featurize.memory import peak_memory_bytes
from featurize.sources.listing import ContentReader, Fetch, ImageReadError, PlannedImage
from featurize.tables.manifests import ShardRecord
from featurize.timings import Timings

Value = TypeVar("Value")
Worker = Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]
_RECORD_SCHEMA = pa.schema([("record", pa.string())])
READS_BESIDE = 4
"""Further threads, as some wait for storage while others decode."""
DECODERS: list[DecoderPool] = []
"""The pool of this worker process, kept from task to task: one at most."""


@dataclass(frozen=True)
class Run:
    """What a worker needs to know of the run: the table's URL, the run's name, and how to read and decode images."""

    url: str
    name: str
    reader: ContentReader
    decode_timeout_s: float


@dataclass(frozen=True, slots=True)
class Loaded(Generic[Value]):
    """An image that was read and decoded, with what the task made of it."""

    image: PlannedImage
    image_id: str
    value: Value


@dataclass(frozen=True, slots=True)
class _Rejected:
    image: PlannedImage
    image_id: str | None
    bytes_size: int | None
    stage: str
    error: str


@dataclass(frozen=True, slots=True)
class _Outcome(Generic[Value]):
    result: Loaded[Value] | _Rejected
    read_s: float
    decode_s: float


class ShardTask(Protocol[Value]):
    """The work that differs between jobs. It travels inside the function that Spark sends to workers."""

    def make_writer(self, staging_url: str, name: str) -> ShardWriter:
        """The writer of one shard."""
        ...

    def ahead(self, threads: int) -> int:
        """How many images may be held in memory before they are used."""
        ...

    @property
    def needs_labels(self) -> bool:
        """Whether an image without a label is a reject."""
        ...

    def load(self, image: PlannedImage, image_id: str, content: bytes, decoder: Decoder) -> Value:
        """Makes the value of an image from its bytes; called in threads, ahead. Raises DecodeError if they cannot be decoded."""
        ...

    def consume(self, loaded: Iterator[Loaded[Value]], writer: ShardWriter, timings: Timings) -> None:
        """Writes rows for all of `loaded`."""
        ...


def make_worker(run: Run, task: ShardTask[Any], report_to: ReportTo | None = None) -> Worker:
    """The function that Spark runs on each partition: it takes numbers of shards and returns their records.

    Args:
        report_to: where it reports its progress; None: nowhere.
    """
    return make_record_worker(partial(make_shard, run, task, report_to=report_to))


def make_record_worker(make_record: Callable[[int], ShardRecord]) -> Worker:
    """The function that Spark runs on each partition: it takes numbers of shards and returns what `make_record` makes of each."""

    def work_on_shards(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for shard in batch.column(0).to_pylist():
                record = make_record(shard)
                yield pa.RecordBatch.from_arrays([pa.array([record.model_dump_json()])], schema=_RECORD_SCHEMA)

    return work_on_shards


def make_hasher(plan_url: str, reader: ContentReader, report_to: ReportTo | None = None) -> Worker:
    """The function that Spark runs to find changed images: it returns path and SHA-256 of each, null if it cannot be read.

    Args:
        report_to: as for `make_worker`.
    """

    def hash_shards(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for shard in batch.column(0).to_pylist():
                images = read_planned(plan_url, shard)
                digests = _identify_all(reader, images, shard=shard, report_to=report_to)
                columns = [pa.array([image.path for image in images]), pa.array(digests, type=pa.string())]
                yield pa.RecordBatch.from_arrays(columns, names=["path", "image_id"])

    return hash_shards


def _identify_all(
    reader: ContentReader, images: list[PlannedImage], *, shard: int, report_to: ReportTo | None
) -> list[str | None]:
    threads = worker_threads() + READS_BESIDE
    items = zip(images, reader.open(images), strict=True)
    digests: list[str | None] = []
    attempt = task_attempt()

    def look() -> ShardReport:
        return make_report(shard, attempt, done=len(digests), rejected=0, timings=Timings())

    with reporting(report_to, look):
        for digest in map_ahead(partial(_identify, reader), items, threads=threads, ahead=2 * threads):
            digests.append(digest)  # one by one: `look` counts them
    return digests


def _identify(reader: ContentReader, item: tuple[PlannedImage, Fetch]) -> str | None:
    image, fetch = item
    try:
        return reader.identify(image, fetch())
    except ImageReadError:
        return None


def make_shard(run: Run, task: ShardTask[Value], shard: int, *, report_to: ReportTo | None = None) -> ShardRecord:
    """Makes one shard of the plan and commits it; returns its record."""
    timings, began_at, attempt = Timings(), time(), task_attempt()

    def look() -> ShardReport:
        return make_report(shard, attempt, done=writer.images, rejected=writer.rejects, timings=timings)

    with timings.measure("tasks"):
        writer = task.make_writer(storage.join_url(run.url, staging.STAGING), part_name(run.name, shard))
        try:
            images = read_planned(staging.plan_url(run.url, run.name), shard)
            with reporting(report_to, look):
                task.consume(_load_all(run, task, images, writer, timings), writer, timings)
            with timings.measure("write"):
                record = writer.close()
        except BaseException:
            writer.abandon()
            raise
    seen = {"timings": timings, "began_at": began_at, "memory_bytes": peak_memory_bytes()}
    record = record.model_copy(update=seen)
    return staging.commit(run.url, run.name, shard, record)


def worker_threads() -> int:
    """Number of cores that Spark gave this task, `spark.task.cpus`; 1 outside a task."""
    context = TaskContext.get()
    return max(1, context.cpus()) if context is not None else 1


def assigned_gpus() -> list[str] | None:
    """The addresses of the GPUs that Spark assigned to this task; None if Spark manages no GPUs."""
    context = TaskContext.get()
    gpus = context.resources().get("gpu") if context is not None else None
    return list(gpus.addresses) if gpus is not None else None


def use_task_resources(*, tensorflow: bool = True) -> int:
    """Gives this process the cores and GPUs of its task, before anything is computed.

    Args:
        tensorflow: whether TensorFlow is used, and is told the number of threads; it is not imported otherwise.

    Returns:
        The number of threads.
    """
    threads = worker_threads()
    if (gpus := assigned_gpus()) is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    if tensorflow:
        leave_out_in_own_worker()
        set_threads(threads)
    return threads


def log(text: str) -> None:
    """Writes a line to the log of the executor."""
    sys.stderr.write(f"firn worker {os.getpid()}: {shown(text)}\n")


def _load_all(
    run: Run, task: ShardTask[Value], images: list[PlannedImage], writer: ShardWriter, timings: Timings
) -> Iterator[Loaded[Value]]:
    """Yields the images that can be read and decoded; `writer` gets the others as rejects."""
    threads = worker_threads()
    decoders = decoder_pool(threads, run.decode_timeout_s)

    def load(item: tuple[PlannedImage, Fetch]) -> _Outcome[Value]:
        return _load(task, run.reader, *item, decoders)

    items = zip(images, run.reader.open(images), strict=True)
    outcomes = map_ahead(load, items, threads=threads + READS_BESIDE, ahead=task.ahead(threads))
    while True:
        with timings.measure("wait"):
            outcome = next(outcomes, None)
        if outcome is None:
            return
        timings.read += outcome.read_s
        timings.decode += outcome.decode_s
        if isinstance(outcome.result, _Rejected):
            _reject(writer, outcome.result)
        else:
            yield outcome.result


def _load(
    task: ShardTask[Value], reader: ContentReader, image: PlannedImage, fetch: Fetch, decoders: DecoderPool
) -> _Outcome[Value]:
    started = perf_counter()
    try:
        content = fetch()
    except ImageReadError as error:
        return _Outcome(_Rejected(image, None, image.bytes_size, "read", str(error)), perf_counter() - started, 0.0)
    image_id = reader.identify(image, content)
    read = perf_counter()
    result: Loaded[Value] | _Rejected
    if task.needs_labels and image.label is None:
        result = _Rejected(image, image_id, len(content), "layout", "not in a class folder")
    else:
        try:
            with decoders.lend() as decoder:
                result = Loaded(image, image_id, task.load(image, image_id, content, decoder))
        except DecodeError as error:
            result = _Rejected(image, image_id, len(content), "decode", str(error))
    return _Outcome(result, read - started, perf_counter() - read)


def _reject(writer: ShardWriter, rejected: _Rejected) -> None:
    writer.reject(
        path=rejected.image.path,
        image_id=rejected.image_id,
        bytes_size=rejected.bytes_size,
        stamp=rejected.image.stamp,
        stage=rejected.stage,
        error=rejected.error,
    )


def decoder_pool(size: int, timeout_s: float) -> DecoderPool:
    """The decoders of this worker process."""
    if not DECODERS or DECODERS[0].timeout_s != timeout_s:
        while DECODERS:
            DECODERS.pop().close()
        DECODERS.append(DecoderPool(size, timeout_s=timeout_s))
    return DECODERS[0]


def part_name(run: str, shard: int) -> str:
    """The name of the files that this attempt at a shard writes."""
    return f"{run}-{shard:05d}-{task_attempt()}"


def task_attempt() -> int:
    """Spark's number of this attempt at a task; 0 outside a task."""
    context = TaskContext.get()
    return context.taskAttemptId() if context is not None else 0
