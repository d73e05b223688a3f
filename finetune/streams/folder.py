"""The images of a stream: Spark notices the files that come into a folder, and Firn reads them as `finetune predict` does.

`ArrivingImages` is what every kind of stream gives; `FolderImages` are those of a folder.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from featurize import storage
from featurize.building.spark_jobs import collect
from featurize.errors import JobError
from featurize.sources.listing import ImageSource, listing_batch, make_listing
from featurize.sources.readers import FileReader
from featurize.sources.splits import SplitRule

_SCHEMA = "path string, modificationTime timestamp, length long, content binary"  # Spark wants the whole one
_FOR_EVER = "36500d"
# Looking at the files of a batch again, Spark would start a task for each, and one for every 32 images after that.
_LISTING_TASKS = 8
_OPEN_BYTES = 64 << 10
_GLOB = re.compile(r"([\\{}\[\]*?])")
_AUTHORITY = re.compile(r"^[a-z0-9]+:(//[^/]*)?")


@dataclass(frozen=True)
class BatchImages:
    """The images of a micro-batch.

    Attributes:
        found: by Spark, where an image may be twice.
    """

    source: ImageSource
    found: int


class ArrivingImages(Protocol):
    """Where the images of a stream come from."""

    @property
    def url(self) -> str:
        """Of the place they come from."""
        ...

    @property
    def place(self) -> str:
        """What of it may not change while a checkpoint is in use."""
        ...

    @property
    def messages(self) -> str | None:
        """What the messages of a topic are, which may not change either; None: it is none."""
        ...

    def source(self) -> ImageSource:
        """A source without an image."""
        ...

    def open(self, spark: SparkSession, *, most_per_batch: int | None) -> DataFrame:
        """A streaming frame of what arrives.

        Args:
            most_per_batch: images in a micro-batch; None: all that are there.
        """
        ...

    def of_batch(self, batch: DataFrame, staging_url: str) -> AbstractContextManager[BatchImages]:
        """The images of a micro-batch of the frame, to be read in a ``with`` block.

        Args:
            staging_url: of a folder for what they need meanwhile. What is left in it by a kill is overwritten by the next batch.
        """
        ...

    def failures(self) -> AbstractContextManager[None]:
        """Names the place in errors of Spark's that do not."""
        ...


@dataclass(frozen=True)
class FolderImages:
    """The images of a folder, at whatever depth: `ArrivingImages`."""

    url: str
    messages: None = None

    @property
    def place(self) -> str:
        """See `ArrivingImages`."""
        return self.url

    def source(self) -> ImageSource:
        """See `ArrivingImages`."""
        return files_source(self.url)

    def open(self, spark: SparkSession, *, most_per_batch: int | None) -> DataFrame:
        """See `ArrivingImages`."""
        return stream_files(spark, self.url, most_per_batch=most_per_batch)

    @contextmanager
    def of_batch(self, batch: DataFrame, staging_url: str) -> Iterator[BatchImages]:
        """See `ArrivingImages`."""
        rows = collect(batch)
        yield BatchImages(files_source(self.url, rows), found=len(rows))

    def failures(self) -> AbstractContextManager[None]:
        """See `ArrivingImages`."""
        return nullcontext()


def stream_files(spark: SparkSession, url: str, *, most_per_batch: int | None) -> DataFrame:
    """A streaming frame of the files in the folder at `url`, at any depth: `path`, `length` in bytes, `modified` in ms.

    No file is opened: their content is not selected. A file that was moved here may be older than those that are known by
    weeks, so Spark is to forget none of these and to pass over no old one, as it does otherwise.

    Args:
        most_per_batch: images in a micro-batch.
    """
    session = spark.newSession()  # the settings are for this stream
    session.conf.set("spark.sql.files.ignoreMissingFiles", "true")  # removed before its batch: nothing is left to label
    session.conf.set("spark.sql.sources.parallelPartitionDiscovery.parallelism", str(_LISTING_TASKS))
    session.conf.set("spark.sql.files.openCostInBytes", str(_OPEN_BYTES))
    reader = session.readStream.format("binaryFile").schema(_SCHEMA)
    reader = reader.option("recursiveFileLookup", "true").option("maxFileAge", _FOR_EVER)
    if most_per_batch is not None:
        reader = reader.option("maxFilesPerTrigger", most_per_batch)
    files = reader.load(_GLOB.sub(r"\\\1", url))  # Spark takes the path for a pattern
    return files.select("path", "length", F.expr("unix_millis(modificationTime)").alias("modified"))


def files_source(url: str, rows: Sequence[Any] = ()) -> ImageSource:
    """The images of a batch as a source.

    Args:
        url: of the folder.
        rows: of `stream_files`.

    Raises:
        JobError: a file that is not in the folder.
    """
    listed = {}
    for path, length, modified in rows:
        file = f"{url}/{_inner_path(path, url)}"
        listed[file] = _size_and_stamp(file, int(length), int(modified))
    sizes, stamps = zip(*listed.values(), strict=True) if listed else ((), ())
    return ImageSource(
        listing=make_listing([listing_batch({"path": list(listed), "bytes_size": sizes, "stamp": stamps})]),
        reader=FileReader(),
        classes=(),
        split_rule=SplitRule(fractions=None),
        settings={"source": url, "layout": "folders"},
    )


def _inner_path(path: str, url: str) -> str:
    """The path below the folder of a file as Spark names it: `file:/folder/name`, `hdfs://host:port/folder/name`."""
    found, folder = _AUTHORITY.sub("", path), _AUTHORITY.sub("", url) + "/"
    if not found.startswith(folder):
        raise JobError(f"Spark found {path}, which is not in {url}.")
    return found[len(folder) :]


def _size_and_stamp(file: str, length: int, modified_ms: int) -> tuple[int, str]:
    """As a walk over the folder would have it, to the nanosecond: or `finetune predict` would take it for a changed one."""
    if file.startswith("file://") and (found := storage.find_file(file)) is not None:
        return found.size, f"{found.size}:{found.modified}"
    return length, f"{length}:{modified_ms}"
