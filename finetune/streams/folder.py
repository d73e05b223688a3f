"""The images of a stream from a folder: Spark notices arriving files, and Firn reads them as `finetune predict` does.

`ArrivingImages` is the interface of every kind of stream; `FolderImages` implements it for a folder.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from featurize import storage
from featurize.building.session import check_file_names
from featurize.building.spark_jobs import collect
from featurize.errors import JobError
from featurize.sources.listing import ImageSource, listing_batch, make_listing
from featurize.sources.names import is_left_out
from featurize.sources.readers import FileReader
from featurize.sources.splits import SplitRule

_SCHEMA = "path string, modificationTime timestamp, length long, content binary"  # Spark demands the complete one
_FOR_EVER = "36500d"
# Without this, Spark would start a task for each file of a batch, and one for every 32 images after that.
_LISTING_TASKS = 8
_OPEN_BYTES = 64 << 10
_GLOB = re.compile(r"([\\{}\[\]*?])")
_AUTHORITY = re.compile(r"^[a-z0-9]+:(//[^/]*)?")


@dataclass(frozen=True)
class BatchImages:
    """The images of a micro-batch.

    Attributes:
        found: Number of images that Spark found; one image may count twice.
    """

    source: ImageSource
    found: int


class ArrivingImages(Protocol):
    """The source of a stream's images."""

    @property
    def url(self) -> str:
        """URL of the place that the images come from."""
        ...

    @property
    def place(self) -> str:
        """The part of the URL that must not change while a checkpoint is in use."""
        ...

    @property
    def messages(self) -> str | None:
        """The kind of a topic's messages, which must not change either; None: the source is not a topic."""
        ...

    def source(self) -> ImageSource:
        """A source without any images."""
        ...

    def open(self, spark: SparkSession, *, most_per_batch: int | None) -> DataFrame:
        """A streaming data frame of what arrives.

        Args:
            most_per_batch: Most images in a micro-batch; None: no limit.
        """
        ...

    def of_batch(self, batch: DataFrame, staging_url: str) -> AbstractContextManager[BatchImages]:
        """The images of a micro-batch of the data frame, to be read in a ``with`` block.

        Args:
            staging_url: URL of a folder for temporary files, which the next batch overwrites where a kill left some, and for what
                the source must know of earlier batches.
        """
        ...

    def failures(self) -> AbstractContextManager[None]:
        """Adds the source's name to errors of Spark that lack it."""
        ...


@dataclass(frozen=True)
class FolderImages:
    """The images in a folder, at any depth: an `ArrivingImages`.

    Attributes:
        follow_links: Whether links that lead out of the folder are followed; otherwise they are rejects.
    """

    url: str
    messages: None = None
    follow_links: bool = False

    @property
    def place(self) -> str:
        """See `ArrivingImages`."""
        return self.url

    def source(self) -> ImageSource:
        """See `ArrivingImages`."""
        return files_source(self.url, follow_links=self.follow_links)

    def open(self, spark: SparkSession, *, most_per_batch: int | None) -> DataFrame:
        """See `ArrivingImages`."""
        check_file_names(spark, self.url)
        return stream_files(spark, self.url, most_per_batch=most_per_batch)

    @contextmanager
    def of_batch(self, batch: DataFrame, staging_url: str) -> Iterator[BatchImages]:
        """See `ArrivingImages`."""
        rows = [row for row in collect(batch) if not is_left_out(_inner_path(row[0], self.url))]
        yield BatchImages(files_source(self.url, rows, follow_links=self.follow_links), found=len(rows))

    def failures(self) -> AbstractContextManager[None]:
        """See `ArrivingImages`."""
        return nullcontext()


def stream_files(spark: SparkSession, url: str, *, most_per_batch: int | None) -> DataFrame:
    """A streaming data frame of the files in the folder at `url`, at any depth: `path`, `length` in bytes, `modified` in ms.

    No file is opened, as the content is not selected. A file that was moved here may be weeks older than the known files, so
    Spark must not forget any of these, nor skip old files, as it does by default.

    Args:
        most_per_batch: Most images in a micro-batch; None: no limit.
    """
    session = spark.newSession()  # so that the settings apply to this stream only
    session.conf.set("spark.sql.files.ignoreMissingFiles", "true")  # a file removed before its batch needs no label
    session.conf.set("spark.sql.sources.parallelPartitionDiscovery.parallelism", str(_LISTING_TASKS))
    session.conf.set("spark.sql.files.openCostInBytes", str(_OPEN_BYTES))
    reader = session.readStream.format("binaryFile").schema(_SCHEMA)
    reader = reader.option("recursiveFileLookup", "true").option("maxFileAge", _FOR_EVER)
    if most_per_batch is not None:
        reader = reader.option("maxFilesPerTrigger", most_per_batch)
    files = reader.load(_GLOB.sub(r"\\\1", url))  # Spark reads the path as a pattern
    return files.select("path", "length", F.expr("unix_millis(modificationTime)").alias("modified"))


def files_source(url: str, rows: Sequence[Any] = (), *, follow_links: bool = False) -> ImageSource:
    """The images of a batch as a source.

    Args:
        url: URL of the folder.
        rows: Rows of `stream_files`.
        follow_links: As for `FolderImages`.

    Raises:
        JobError: A file is not in the folder.
    """
    listed, inside = {}, None if follow_links else url
    for path, length, modified in rows:
        file = f"{url}/{_inner_path(path, url)}"
        listed[file] = _size_and_stamp(file, int(length), int(modified), inside)
    sizes, stamps = zip(*listed.values(), strict=True) if listed else ((), ())
    return ImageSource(
        listing=make_listing([listing_batch({"path": list(listed), "bytes_size": sizes, "stamp": stamps})]),
        reader=FileReader(inside=inside),
        classes=(),
        split_rule=SplitRule(fractions=None),
        settings={"source": url, "layout": "folders"},
    )


def _inner_path(path: str, url: str) -> str:
    """A file's path below the folder, from the name that Spark gives: `file:/folder/name`, `hdfs://host:port/folder/name`."""
    found, folder = _AUTHORITY.sub("", path), _AUTHORITY.sub("", url) + "/"
    if not found.startswith(folder):
        raise JobError(f"Spark found {path}, which is not in {url}.")
    return found[len(folder) :]


def _size_and_stamp(file: str, length: int, modified_ms: int, inside: str | None) -> tuple[int, str]:
    """Size and stamp to the nanosecond, as a walk over the folder gives them, or `finetune predict` would see a changed file."""
    if file.startswith("file://") and (found := storage.find_file(file, source=inside)) is not None:
        return found.size, f"{found.size}:{found.modified}"
    return length, f"{length}:{modified_ms}"
