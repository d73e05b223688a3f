"""Streams: images are labelled as they arrive in a folder or a topic, in micro-batches, each as `finetune predict` does it.

Spark's checkpoint knows which image is in which batch. The table of predictions knows which images it has, so that a batch that
is repeated after a kill labels only what is missing. The model of a batch is recorded before the batch begins
(`finetune.streams.checkpoint`), so that a batch is always labelled by one model.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from time import monotonic, sleep

from pyspark.errors import StreamingQueryException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from featurize import storage
from featurize.building.build import BuildResult
from featurize.building.spark_jobs import job_errors
from featurize.defaults import DECODE_TIMEOUT_S
from featurize.errors import UsageError, first_line
from featurize.progress import stage, without_stages
from featurize.storage.claims import claim_output
from featurize.tables.manifests import NAMES, Manifest, PredictionsManifest
from featurize.tables.predictions import PublishedViews
from featurize.tables.publication import read_manifest
from finetune.drift.check import CheckedWindow
from finetune.prediction.predict import PredictionPlan, check_output, label_planned
from finetune.streams.account import Account
from finetune.streams.checkpoint import Checkpoint, StreamRecord
from finetune.streams.current_model import StreamModels, plan_labelling
from finetune.streams.drift_windows import StreamDrift, WindowSettings
from finetune.streams.folder import ArrivingImages, BatchImages, FolderImages, check_name
from finetune.streams.kafka import SCHEME, open_topic

__all__ = ["LabelledBatch", "StreamPlan", "Streamed", "plan_stream", "run_stream"]
_POLL_S, _STOPPING_POLL_S = 0.5, 0.05
_SPARKS_LOG = "org.apache.spark.sql.execution.streaming.MicroBatchExecution"


@dataclass(frozen=True)
class StreamPlan:
    """A stream that is ready to begin: its source, output, checkpoint and model.

    Attributes:
        first: The first model, as it was found; its source has no images yet.
        windows: The windows that are tested for drift; None: none.
    """

    arriving: ArrivingImages
    output: str
    checkpoint: Checkpoint
    first: PredictionPlan
    windows: WindowSettings | None = None

    @property
    def record(self) -> StreamRecord:
        """The record of this stream for its checkpoint."""
        return StreamRecord(images=self.arriving.place, output=self.output, messages=self.arriving.messages)


@dataclass(frozen=True)
class LabelledBatch:
    """A micro-batch that is done.

    Attributes:
        account: What became of the images that were found for it; the numbers add up.
        views: The views on the predictions; None where they could not be updated, see `views_fault`.
        views_fault: Why the views could not be updated, or None.
        windows: The drift windows that the batch has filled, with their results.
        drift_fault: Why no window could be tested, or None.
        seconds: Duration of the batch, without what Spark does before and after it.
    """

    batch_id: int
    model_id: str
    account: Account
    views: PublishedViews | None
    views_fault: str | None
    windows: tuple[CheckedWindow, ...]
    drift_fault: str | None
    seconds: float


@dataclass
class Streamed:
    """The totals of a stream since it was started.

    Attributes:
        added: Number of labelled images by `model_id`.
        account: What became of all images that were found.
        windows: Number of windows that were tested for drift.
        alarms: Number of these that raised an alarm.
        views: The views on the predictions, as published last.
    """

    batches: int = 0
    added: dict[str, int] = field(default_factory=dict)
    account: Account = field(default_factory=Account)
    windows: int = 0
    alarms: int = 0
    is_stopped: bool = False
    views: PublishedViews | None = None

    def count(self, batch: LabelledBatch) -> None:
        """Adds a batch to the totals."""
        self.batches += 1
        self.added[batch.model_id] = self.added.get(batch.model_id, 0) + batch.account.labelled
        self.account = self.account.plus(batch.account)
        self.windows += len(batch.windows)
        self.alarms += sum(window.result.alarm for window in batch.windows)
        self.views = batch.views or self.views


def plan_stream(
    model: str,
    images: str,
    output: str,
    checkpoint: str,
    *,
    messages: str | None = None,
    kafka_options: str | None = None,
    allow_urls: Sequence[str] | None = None,
    target_precision: float | None = None,
    follow_links: bool = False,
    windows: WindowSettings | None = None,
) -> StreamPlan:
    """Finds the model and checks that a stream can go from `images` to `output`. Needs neither Spark nor TensorFlow.

    Args:
        model: A folder, the id of a run, ``name@alias``, or a node of ZooKeeper, ``zk://host:port/path``.
        images: A folder in which images arrive, at any depth, or ``kafka://host:port,host:port/topic``.
        output: URL of the predictions.
        checkpoint: A folder that only this stream uses.
        messages: What a topic's messages are; one of `kafka.Messages`.
        kafka_options: Path of a local file of options for Spark's connector; for a topic only.
        allow_urls: The folders whose files the messages of a topic may name; see `kafka.open_topic`.
        target_precision: The target precision, as for `plan_prediction`.
        follow_links: Whether links that lead out of a folder are followed; otherwise they are rejects.
        windows: The windows to test for drift; None: none.

    Raises:
        UsageError: There is no such model or folder, an unknown kind of message, a place within another, a checkpoint of another
            stream, or windows that cannot be tested.
    """
    if windows is not None:
        windows.check()
    storage.give(output, checkpoint, None if images.startswith(SCHEME) else images)
    output, checkpoint = storage.absolute_url(output), storage.absolute_url(checkpoint)
    arriving: ArrivingImages
    if images.startswith(SCHEME):
        arriving = open_topic(images, messages, kafka_options, allow_urls)
    elif messages is None and kafka_options is None and not allow_urls:
        arriving = replace(
            _open_folder(storage.absolute_url(images), output=output, checkpoint=checkpoint), follow_links=follow_links
        )
    else:
        raise UsageError(
            f"`messages`, `kafka_options` and `allow_urls` need a topic, {SCHEME}host:port/topic. Got {images}."
        )
    if storage.is_within(output, checkpoint) or storage.is_within(checkpoint, output):
        raise UsageError(f"`output` {output} and `checkpoint` {checkpoint} must not lie within each other.")
    check_output(output)
    first = plan_labelling(model, arriving.source(), output, target_precision)
    plan = StreamPlan(arriving, output, Checkpoint(checkpoint), first, windows)
    plan.checkpoint.check(plan.record)
    return plan


def _open_folder(url: str, *, output: str, checkpoint: str) -> FolderImages:
    """The folder as a source. Raises UsageError where there is no such folder, or it cannot be watched."""
    check_name(url)
    if not storage.is_folder(url):
        raise UsageError(f"there is no folder {url}. A stream watches a folder: make it, and move images into it.")
    manifest = read_manifest(url)
    if manifest is not None:
        raise UsageError(
            f"{url} is {NAMES[manifest.kind]}; a stream watches a folder into which image files are moved."
        )
    for option, other in (("output", output), ("checkpoint", checkpoint)):
        if storage.is_within(other, url):
            raise UsageError(
                f"`{option}` {other} is in the folder of the images, {url}: its files would be taken for images."
            )
    return FolderImages(url)


def run_stream(
    spark: SparkSession,
    plan: StreamPlan,
    *,
    once: bool = False,
    trigger_s: float = 10.0,
    most_per_batch: int | None = None,
    decode_timeout_s: float = DECODE_TIMEOUT_S,
    is_asked_to_stop: Callable[[], bool] = lambda: False,
    on_batch: Callable[[LabelledBatch], None] = lambda _: None,
) -> Streamed:
    """Labels the images that are there and those that arrive, until it is asked to stop.

    Args:
        once: Whether to label what is there and end.
        trigger_s: Seconds between checks for new images; where a batch takes longer, the next check comes at its end.
        most_per_batch: Most images in a micro-batch; None: no limit.
        decode_timeout_s: Seconds; an image that takes longer to decode is rejected.
        is_asked_to_stop: Called twice a second; when it returns true, the current batch is finished first.
        on_batch: Called after each batch, in a thread of its own.

    Raises:
        UsageError: The model's backbone cannot be rebuilt identically, the output holds other predictions, Spark has no
            connector, or there is no reference to test windows against.
        JobError: A batch failed or does not add up, no broker answers, or another stream uses this checkpoint or labels with this
            model. The stream resumes when started again.
    """
    done = Streamed()
    frame = plan.arriving.open(spark, most_per_batch=most_per_batch)
    with (
        storage.no_empty_folder(plan.output),
        storage.no_empty_folder(plan.checkpoint.url),
        claim_output(plan.checkpoint.own_url),
        closing(StreamModels(spark, plan.first, plan.checkpoint, plan.windows)) as models,
    ):
        plan.checkpoint.begin(plan.record)
        labeller = _Labeller(plan, models, done, decode_timeout_s=decode_timeout_s, on_batch=on_batch)
        writer = frame.writeStream.foreachBatch(labeller)
        trigger = {"availableNow": True} if once else {"processingTime": f"{trigger_s * 1000:.0f} milliseconds"}
        _silence(spark)
        stage("")
        with job_errors(), plan.arriving.failures():
            location = _with_authority(spark, plan.checkpoint.url)
            query = writer.option("checkpointLocation", location).trigger(**trigger).start()
            _wait(query, labeller, is_asked_to_stop)
    done.is_stopped = labeller.is_stopping
    return done


class _StoppingError(Exception):
    """Keeps a batch from beginning when the stream is to end; Spark repeats the batch at the stream's next start."""


class _Labeller:
    """Labels one micro-batch after another: the function that Spark calls, in a thread of its own."""

    def __init__(
        self,
        plan: StreamPlan,
        models: StreamModels,
        done: Streamed,
        *,
        decode_timeout_s: float,
        on_batch: Callable[[LabelledBatch], None],
    ) -> None:
        self._plan, self._models, self._done = plan, models, done
        self._decode_timeout_s, self._on_batch = decode_timeout_s, on_batch
        self._lock, self._is_busy = threading.Lock(), False
        self.is_stopping = False
        self.failure: Exception | None = None

    def __call__(self, batch: DataFrame, batch_id: int) -> None:
        """Labels the images that `batch`, a part of the data frame of `ArrivingImages`, lists."""
        with self._lock:
            if self.is_stopping:
                raise _StoppingError
            self._is_busy = True
        try:
            labelled = self._label(batch, batch_id)
            self._done.count(labelled)
            self._on_batch(labelled)
        except Exception as error:  # Spark would merge it with its trace into one text: `_wait` raises it unchanged
            self.failure = error
            raise
        finally:
            self._is_busy = False

    def stop(self) -> bool:
        """Lets no further batch begin. Returns whether none is in progress."""
        with self._lock:
            self.is_stopping = True
            return not self._is_busy

    def _label(self, batch: DataFrame, batch_id: int) -> LabelledBatch:
        started = monotonic()
        checkpoint = self._plan.checkpoint
        with self._plan.arriving.of_batch(batch, batch_id, checkpoint) as images, without_stages():
            model = self._models.for_batch(batch_id, checkpoint.query_id())
            made = label_planned(
                batch.sparkSession,
                replace(model.plan, source=images.source),
                model.shipped,
                max_reject_fraction=None,  # corrupt images stay where they are: with a limit, the stream could never resume
                decode_timeout_s=self._decode_timeout_s,
                held=model.claim,
                files_read=model.files_read,
                is_partial=True,
            )
            account = _account(images, made.result)
            account.check(batch_id)  # while the batch can be repeated
        windows, drift_fault = _test_windows(model.drift, made.result.manifest)
        return LabelledBatch(
            batch_id,
            model.model_id,
            account,
            made.views,
            made.views_fault,
            windows,
            drift_fault,
            monotonic() - started,
        )


def _account(images: BatchImages, result: BuildResult) -> Account:
    """What became of the images of a batch, counted where it happened."""
    return Account(
        found=images.found,
        labelled=result.added,
        rejected=result.rejected,
        gone=images.gone,
        labelled_before=result.skipped + images.repeated,
        waiting=images.waiting,
    )


def _test_windows(drift: StreamDrift | None, manifest: Manifest) -> tuple[tuple[CheckedWindow, ...], str | None]:
    """The windows that a batch has filled, or why they could not be tested."""
    if drift is None or not isinstance(manifest, PredictionsManifest):
        return (), None
    try:
        return drift.check(manifest), None
    except Exception as error:  # whatever the fault, labelling continues; a repeated batch would fail for ever
        return (), first_line(error)


def _wait(query: StreamingQuery, labeller: _Labeller, is_asked_to_stop: Callable[[], bool]) -> None:
    """Waits for the end of the stream, or for the end of the current batch once it is asked to stop.

    Raises:
        Exception: The error that ended a batch, or Spark's own.
    """
    try:
        while not query.awaitTermination(_POLL_S):  # type: ignore[arg-type]  # takes fractions
            if not is_asked_to_stop():
                continue
            while query.isActive and not (labeller.stop() and not query.status["isTriggerActive"]):
                sleep(_STOPPING_POLL_S)
            break
    except StreamingQueryException:
        if labeller.failure is not None:
            raise labeller.failure from None
        if not labeller.is_stopping:
            raise
    finally:
        if query.isActive:
            query.stop()


def _with_authority(spark: SparkSession, url: str) -> str:
    """The URL with its host added where it names none, as in ``hdfs:///checkpoint``: Spark's checkpoints need it."""
    path = spark.sparkContext._jvm.org.apache.hadoop.fs.Path(url)  # type: ignore[union-attr]
    hadoop = spark.sparkContext._jsc.hadoopConfiguration()
    return str(path.getFileSystem(hadoop).makeQualified(path).toString())


def _silence(spark: SparkSession) -> None:
    """Keeps Spark from logging a trace for an error that is reported anyway, or is none: a batch not begun at the end."""
    log4j = spark.sparkContext._jvm.org.apache.logging.log4j  # type: ignore[union-attr]
    log4j.core.config.Configurator.setLevel(_SPARKS_LOG, log4j.Level.OFF)
