"""Streams: images are labelled as they arrive in a folder or a topic, in micro-batches, each as `finetune predict` does it.

Spark's checkpoint knows which image is in which batch. The table of predictions knows which images it has, so that a batch that
is run again after a kill labels what is missing and doubles nothing. The model of a batch is written down before the batch
begins (`finetune.streams.checkpoint`), so that it is one model's whatever happens.
"""

import threading
from collections.abc import Callable
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
from featurize.storage.claims import claim_output
from featurize.tables.manifests import NAMES, Manifest, PredictionsManifest, read_manifest
from featurize.tables.predictions import PublishedViews
from finetune.drift.check import CheckedWindow
from finetune.prediction.predict import PredictionPlan, check_output, label_planned
from finetune.streams.checkpoint import Checkpoint, StreamRecord
from finetune.streams.current_model import StreamModels, plan_labelling
from finetune.streams.drift_windows import StreamDrift, WindowSettings
from finetune.streams.folder import ArrivingImages, FolderImages
from finetune.streams.kafka import SCHEME, open_topic

__all__ = ["LabelledBatch", "StreamPlan", "Streamed", "plan_stream", "run_stream"]
_POLL_S, _STOPPING_POLL_S = 0.5, 0.05
_SPARKS_LOG = "org.apache.spark.sql.execution.streaming.MicroBatchExecution"


@dataclass(frozen=True)
class StreamPlan:
    """A stream that may begin: from where, to which output, by which model, with which memory.

    Attributes:
        first: the model as it was found; its source has no images yet.
        windows: that are tested for drift; None: none.
    """

    arriving: ArrivingImages
    output: str
    checkpoint: Checkpoint
    first: PredictionPlan
    windows: WindowSettings | None = None

    @property
    def record(self) -> StreamRecord:
        """What its checkpoint says of it."""
        return StreamRecord(images=self.arriving.place, output=self.output, messages=self.arriving.messages)


@dataclass(frozen=True)
class LabelledBatch:
    """A micro-batch that is done.

    Attributes:
        images: that Spark found for it.
        result: what was done; an image that was found again in the same batch is among those that were skipped.
        views: on the predictions; None where they could not be brought up to date, for `views_fault`.
        windows: that it has filled, and what was found in them.
        drift_fault: why none could be tested; None: they could.
        seconds: the whole of it, but for what Spark does before and after.
    """

    batch_id: int
    model_id: str
    images: int
    result: BuildResult
    views: PublishedViews | None
    views_fault: str | None
    windows: tuple[CheckedWindow, ...]
    drift_fault: str | None
    seconds: float


@dataclass
class Streamed:
    """What a stream has done since it was started.

    Attributes:
        added: labelled images by model.
        skipped: images that were in the predictions already.
        windows: that were tested for drift.
        alarms: of these, those that gave alarm.
        views: on the predictions, as they were published last.
    """

    batches: int = 0
    added: dict[str, int] = field(default_factory=dict)
    rejected: int = 0
    skipped: int = 0
    windows: int = 0
    alarms: int = 0
    is_stopped: bool = False
    views: PublishedViews | None = None

    def count(self, batch: LabelledBatch) -> None:
        """Adds a batch."""
        self.batches += 1
        self.added[batch.model_id] = self.added.get(batch.model_id, 0) + batch.result.added
        self.rejected += batch.result.rejected
        self.skipped += batch.result.skipped
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
    target_precision: float | None = None,
    windows: WindowSettings | None = None,
) -> StreamPlan:
    """Finds the model and sees that a stream may go from `images` to `output`. Needs neither Spark nor TensorFlow.

    Args:
        model: a folder, the id of a run, or ``name@alias``.
        images: a folder in which images arrive, at whatever depth, or ``kafka://host:port,host:port/topic``.
        checkpoint: a folder of the stream's own.
        messages: of a topic: what they are; one of `stream_kafka.Messages`.
        kafka_options: of a topic: a local file of options for Spark's connector.
        target_precision: as for `plan_prediction`.
        windows: that are to be tested for drift; None: none.

    Raises:
        UsageError: no such model, folder or kind of message, places within each other, a checkpoint of another stream, or no such
            windows.
    """
    if windows is not None:
        windows.check()
    output, checkpoint = storage.absolute_url(output), storage.absolute_url(checkpoint)
    arriving: ArrivingImages
    if images.startswith(SCHEME):
        arriving = open_topic(images, messages, kafka_options)
    elif messages is None and kafka_options is None:
        arriving = _open_folder(storage.absolute_url(images), output=output, checkpoint=checkpoint)
    else:
        raise UsageError(f"`--messages` and `--kafka-options` go with a topic, {SCHEME}host:port/topic. Got {images}.")
    if storage.is_within(output, checkpoint) or storage.is_within(checkpoint, output):
        raise UsageError(f"`--output` {output} and `--checkpoint` {checkpoint} lie within each other.")
    check_output(output)
    first = plan_labelling(model, arriving.source(), output, target_precision)
    plan = StreamPlan(arriving, output, Checkpoint(checkpoint), first, windows)
    plan.checkpoint.check(plan.record)
    return plan


def _open_folder(url: str, *, output: str, checkpoint: str) -> FolderImages:
    """Raises UsageError: there is no such folder, or it is not one to be watched."""
    if not storage.is_folder(url):
        raise UsageError(f"there is no folder {url}. A stream watches a folder; make it, and move images into it.")
    manifest = read_manifest(url)
    if manifest is not None:
        raise UsageError(
            f"{url} is {NAMES[manifest.kind]}; a stream watches a folder into which image files are moved."
        )
    for option, other in (("output", output), ("checkpoint", checkpoint)):
        if storage.is_within(other, url):
            raise UsageError(
                f"`--{option}` {other} is in the folder of the images, {url}: its own files would be taken for images."
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
    """Labels what is there and then what comes, until it is asked to stop.

    Args:
        once: label what is there and end.
        trigger_s: seconds between looks; where a batch takes longer, the next look is at its end.
        most_per_batch: images in a micro-batch; None: all that are there.
        decode_timeout_s: seconds; an image that takes longer to decode is rejected.
        is_asked_to_stop: asked twice a second; the batch under way is finished first.
        on_batch: called after each batch, in a thread of its own.

    Raises:
        UsageError: the model's backbone cannot be had as it was, other predictions are there, Spark has no connector, or there is
            no reference to test windows against.
        JobError: a batch failed, no broker answers, or another stream has this checkpoint or labels with this model. Started
            again, it goes on.
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
        with job_errors(), plan.arriving.failures():
            location = _with_authority(spark, plan.checkpoint.url)
            query = writer.option("checkpointLocation", location).trigger(**trigger).start()
            _wait(query, labeller, is_asked_to_stop)
    done.is_stopped = labeller.is_stopping
    return done


class _StoppingError(Exception):
    """Keeps a batch from beginning when the stream is to end; Spark gives it again when the stream is started the next time."""


class _Labeller:
    """Labels one micro-batch after the other: the function that Spark calls, in a thread of its own."""

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
        """Labels the images that `batch`, of the frame of `ArrivingImages`, lists."""
        with self._lock:
            if self.is_stopping:
                raise _StoppingError
            self._is_busy = True
        try:
            labelled = self._label(batch, batch_id)
            self._done.count(labelled)
            self._on_batch(labelled)
        except Exception as error:  # Spark would make one text of it and its trace: `_wait` raises it as it is
            self.failure = error
            raise
        finally:
            self._is_busy = False

    def stop(self) -> bool:
        """Lets no further batch begin. Returns whether none is under way."""
        with self._lock:
            self.is_stopping = True
            return not self._is_busy

    def _label(self, batch: DataFrame, batch_id: int) -> LabelledBatch:
        started = monotonic()
        checkpoint = self._plan.checkpoint
        with self._plan.arriving.of_batch(batch, checkpoint.own_url) as images:
            model = self._models.for_batch(batch_id, checkpoint.query_id())
            made = label_planned(
                batch.sparkSession,
                replace(model.plan, source=images.source),
                model.shipped,
                max_reject_fraction=None,  # corrupt images stay where they are: a limit would end the stream for ever
                decode_timeout_s=self._decode_timeout_s,
                held=model.claim,
                files_read=model.files_read,
                is_partial=True,
            )
        windows, drift_fault = _test_windows(model.drift, made.result.manifest)
        return LabelledBatch(
            batch_id,
            model.model_id,
            images.found,
            replace(made.result, skipped=made.result.skipped + images.found - images.source.images),
            made.views,
            made.views_fault,
            windows,
            drift_fault,
            monotonic() - started,
        )


def _test_windows(drift: StreamDrift | None, manifest: Manifest) -> tuple[tuple[CheckedWindow, ...], str | None]:
    """The windows that a batch has filled, or why they could not be tested."""
    if drift is None or not isinstance(manifest, PredictionsManifest):
        return (), None
    try:
        return drift.check(manifest), None
    except Exception as error:  # whatever it is, images go on being labelled; run again, the batch would fail for ever
        return (), first_line(error)


def _wait(query: StreamingQuery, labeller: _Labeller, is_asked_to_stop: Callable[[], bool]) -> None:
    """Waits for the end of the stream, or for the end of the batch under way once it is asked to stop.

    Raises:
        Exception: that which ended a batch, or Spark's own.
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
    """A URL with the host that it means where it names none, as in ``hdfs:///checkpoint``: Spark's checkpoints need it."""
    path = spark.sparkContext._jvm.org.apache.hadoop.fs.Path(url)  # type: ignore[union-attr]
    hadoop = spark.sparkContext._jsc.hadoopConfiguration()
    return str(path.getFileSystem(hadoop).makeQualified(path).toString())


def _silence(spark: SparkSession) -> None:
    """Keeps Spark from logging a trace for an error that is told, or is no error: a batch that is not begun at the end."""
    log4j = spark.sparkContext._jvm.org.apache.logging.log4j  # type: ignore[union-attr]
    log4j.core.config.Configurator.setLevel(_SPARKS_LOG, log4j.Level.OFF)
