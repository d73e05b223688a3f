"""The images of a stream that arrive as messages of a Kafka topic, or whose URLs do.

Spark's connector decides which offsets are in which batch, and gives a repeated batch the same offsets again. Images that are
messages are first written by the executors to a table below the checkpoint, from which the workers read them like an images
table: the driver never sees their bytes. The table is removed when the batch is done, and rewritten when a batch is repeated.
"""

import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.errors import AnalysisException, StreamingQueryException
from pyspark.sql import DataFrame, SparkSession

from featurize import storage
from featurize.building.spark_jobs import collect, job_errors
from featurize.errors import JobError, UsageError, first_line
from featurize.sources.listing import LISTING_SCHEMA, ContentReader, ImageSource, listing_batch, make_listing
from featurize.sources.readers import TableReader
from featurize.sources.splits import SplitRule
from finetune.streams.allowed_urls import AllowedUrls
from finetune.streams.checkpoint import Checkpoint
from finetune.streams.folder import BatchImages
from finetune.streams.message_urls import Facts, MessageFileReader, UnansweredError, look_up, read_url
from finetune.streams.unread_urls import UnreadUrls, is_due

CONNECTOR = "org.apache.spark:spark-sql-kafka-0-10_2.12:3.5.7"
SCHEME = "kafka://"
Messages = Literal["images", "named-images", "urls"]
"""The kinds of messages: an image; an image whose key is its path; or the URL of an image."""
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_BROKER = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/,\[\]]+):(\d{1,5})")
_FIRNS_OPTIONS = {"kafka.bootstrap.servers", "subscribe", "subscribepattern", "assign", "maxoffsetspertrigger"}
_CONNECT_TIMEOUT_S = 10.0
_MAX_URL_BYTES = 4096  # the driver does not load longer messages, which may be images
_PLACE = "concat_ws('/', topic, cast(partition as string), cast(offset as string))"
_KEY = "CASE WHEN length(key) > 0 AND encode(decode(key, 'UTF-8'), 'UTF-8') = key THEN decode(key, 'UTF-8') END"
_GROUP_BYTES = 16 << 20  # a worker has one or two row groups in memory
STAGED_OPTIONS: dict[str, str | int] = {
    "compression": "none",  # images are compressed
    "parquet.enable.dictionary": "false",
    "parquet.block.size": _GROUP_BYTES,
    "parquet.page.size.row.check.min": 1,  # or Parquet checks the size of a row group only after 100 images
    "parquet.page.size.row.check.max": 16,
}
"""How Spark writes the messages of a batch before workers read them as images."""


@dataclass(frozen=True)
class KafkaImages:
    """The images in the messages of a topic: an `ArrivingImages`.

    Attributes:
        brokers: ``host:port,host:port``.
        options: Options for Spark's connector, by its names; they may hold secrets.
        allowed: The places that messages with URLs may name.
    """

    brokers: str
    topic: str
    messages: Messages
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    allowed: AllowedUrls | None = None

    @property
    def url(self) -> str:
        """See `ArrivingImages`."""
        return f"{SCHEME}{self.brokers}/{self.topic}"

    @property
    def place(self) -> str:
        """See `ArrivingImages`. Leaves out the brokers, which other brokers of the same cluster may replace one day."""
        return f"{SCHEME}/{self.topic}"

    def source(self) -> ImageSource:
        """See `ArrivingImages`."""
        return self._source(TableReader(), [])

    def open(self, spark: SparkSession, *, most_per_batch: int | None) -> DataFrame:
        """`ArrivingImages.open`: `path`, `partition`, `offset`; and `value`, or for images `stamp`, `bytes_size`, `content`.

        Messages without a value are skipped: they mean that something was deleted.

        Raises:
            UsageError: Spark has no connector.
            JobError: No broker answers.
        """
        options = {"startingOffsets": "earliest", **self.options}
        options |= {"kafka.bootstrap.servers": self.brokers, "subscribe": self.topic}
        if most_per_batch is not None:
            options["maxOffsetsPerTrigger"] = str(most_per_batch)
        with job_errors():
            try:
                rows = spark.readStream.format("kafka").options(**options).load().where("value IS NOT NULL")
            except AnalysisException as error:
                if "Failed to find data source" not in str(error):
                    raise
                raise UsageError(_missing_connector()) from error
        _check_reachable(self.brokers)
        place = ("partition", "offset")
        if self.messages == "urls":
            value = f"CASE WHEN length(value) <= {_MAX_URL_BYTES} THEN value END AS value"
            return rows.selectExpr(f"{_PLACE} AS path", *place, value)
        path = f"coalesce({_KEY}, {_PLACE})" if self.messages == "named-images" else _PLACE
        return rows.selectExpr(
            f"{path} AS path",
            *place,
            "sha2(value, 256) AS stamp",
            "length(value) AS bytes_size",
            "value AS content",
        )

    @contextmanager
    def of_batch(self, batch: DataFrame, batch_id: int, checkpoint: Checkpoint) -> Iterator[BatchImages]:
        """See `ArrivingImages`."""
        if self.messages == "urls":
            with self._of_urls(collect(batch), UnreadUrls(checkpoint.own_url)) as images:
                yield images
            return
        folder = storage.join_url(checkpoint.own_url, "messages")
        try:
            with job_errors():
                batch.write.mode("overwrite").options(**STAGED_OPTIONS).parquet(folder)
            yield self._of_staged(folder)
        finally:
            with suppress(OSError):  # a fault of the storage does no harm: the next batch overwrites the table
                storage.remove(folder)

    @contextmanager
    def failures(self) -> Iterator[None]:
        """See `ArrivingImages`. Names the topic, which Kafka's errors do not."""
        try:
            yield
        except StreamingQueryException as error:
            if "UnknownTopicOrPartitionException" in str(error):
                raise JobError(f"there is no topic {self.topic} at {self.brokers}.") from error
            raise

    def _of_staged(self, folder: str) -> BatchImages:
        files = [url for url in storage.list_files(folder) if url.endswith(".parquet")]
        rows = pa.concat_tables([_list_staged(url) for url in files]).sort_by(
            [("partition", "ascending"), ("offset", "ascending")]
        )
        first = {row["path"]: row for row in reversed(rows.to_pylist())}
        columns: dict[str, Sequence[Any]] = {
            name: [row[name] for row in first.values()] for name in LISTING_SCHEMA.names if name in rows.schema.names
        }
        source = self._source(TableReader(), [listing_batch(columns)])
        return BatchImages(source, found=rows.num_rows, repeated=rows.num_rows - len(first))

    @contextmanager
    def _of_urls(self, rows: list[Any], unread: UnreadUrls) -> Iterator[BatchImages]:
        """The files that messages name, and those that earlier ones named and whose storage did not answer then."""
        rows = sorted(rows, key=lambda row: (row["partition"], row["offset"]))
        named = [read_url(row["value"]) or str(row["path"]) for row in rows]
        waiting = unread.waiting()
        urls = dict.fromkeys((*named, *waiting))
        allowed = self.allowed or AllowedUrls(())
        answers = look_up([url for url in urls if url not in waiting or is_due(waiting[url])], allowed)
        known = {url: facts for url, facts in answers.items() if isinstance(facts, Facts)}
        sizes, stamps = zip(*known.values(), strict=True) if known else ((), ())
        batch = listing_batch({"path": list(known), "bytes_size": sizes, "stamp": stamps})
        left = unread.after(known, {url: str(why) for url, why in answers.items() if isinstance(why, UnansweredError)})
        messages = sum(url in known for url in named)
        once = len(known.keys() & set(named))
        yield BatchImages(
            self._source(MessageFileReader(allowed=allowed), [batch]),
            found=messages + len(known.keys() - set(named)) + len(left.dead),
            repeated=messages - once,
            gone=len(left.dead),
            waiting=len(left.waiting),
        )
        unread.record(left)

    def _source(self, reader: ContentReader, batches: list[pa.RecordBatch]) -> ImageSource:
        return ImageSource(
            listing=make_listing(batches),
            reader=reader,
            classes=(),
            split_rule=SplitRule(fractions=None),
            settings={"source": self.url, "layout": "messages", "messages": self.messages},
        )


def open_topic(
    url: str, messages: str | None, options_file: str | None, allow_urls: Sequence[str] | None = None
) -> KafkaImages:
    """The images of the topic at ``kafka://host:port,host:port/topic``.

    Args:
        messages: One of `Messages`.
        options_file: Path of a local file of lines ``name=value``: options for Spark's connector.
        allow_urls: The folders whose files messages may name, by path or URL; for URLs, which need it, only.

    Raises:
        UsageError: One of the arguments is invalid.
    """
    brokers, _, topic = url.removeprefix(SCHEME).partition("/")
    if not all(map(_BROKER.fullmatch, brokers.split(","))) or not _TOPIC.fullmatch(topic):
        raise UsageError(f"a topic must be named as {SCHEME}host:port,host:port/topic. Got {url}.")
    kinds = {str(kind): kind for kind in get_args(Messages)}
    if messages not in kinds:
        raise UsageError(f"`messages` must name the kind of messages: {', '.join(kinds)}. Got {messages or 'none'}.")
    if (messages == "urls") != bool(allow_urls):
        raise UsageError(
            "`allow_urls` must name the folders whose files messages may name, if `messages` is urls, and only then: who writes "
            f"to the topic would otherwise choose any file of this user. Got `messages` {messages}."
        )
    options = {} if options_file is None else _read_options(Path(options_file))
    return KafkaImages(brokers, topic, kinds[messages], options, AllowedUrls.of(allow_urls) if allow_urls else None)


def _read_options(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"`kafka_options`: {path} cannot be read: {first_line(error)}.") from error
    options = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, separator, value = (part.strip() for part in line.partition("="))
        if not name or not separator:
            raise UsageError(
                f"{path}, line {number} must be `name=value`."
            )  # without the line, which may hold a secret
        if name.lower() in _FIRNS_OPTIONS:
            raise UsageError(f"{path}, line {number}: {name} is set by `finetune stream` itself; leave it out.")
        options[name] = value
    return options


def _missing_connector() -> str:
    return (
        f"Spark has no connector for Kafka. Start the stream with its Maven coordinates, {CONNECTOR}:\n"
        f"  PYSPARK_SUBMIT_ARGS='--packages {CONNECTOR} pyspark-shell' finetune stream ...\n"
        f"  spark-submit --packages {CONNECTOR} ... finetune/__main__.py stream ..."
    )


def _check_reachable(brokers: str) -> None:
    """Fails within seconds where the connector would retry for minutes."""
    reasons = []
    for broker in brokers.split(","):
        host, _, port = broker.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
        except (OSError, OverflowError) as error:
            reasons.append(f"{broker}: {first_line(error)}")
        else:
            return
    raise JobError(f"no Kafka broker answers: {'; '.join(reasons)}.")


def _list_staged(url: str) -> pa.Table:
    """The rows of a file of staged messages, without the images."""
    with storage.open_input(url) as file:
        rows = pq.ParquetFile(file).read(columns=["path", "partition", "offset", "stamp", "bytes_size"])
    places = pa.table({"container": [url] * rows.num_rows, "position": range(rows.num_rows)})
    return pa.table({name: table.column(name) for table in (rows, places) for name in table.column_names})
