"""The images of a stream from a folder: Spark notices arriving files, and Firn reads them as `finetune predict` does.

`ArrivingImages` is the interface of every kind of stream; `FolderImages` implements it for a folder.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Protocol

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from featurize import storage
from featurize.building.session import check_file_names
from featurize.building.spark_jobs import collect
from featurize.errors import JobError, UsageError
from featurize.sources.listing import ImageSource, listing_batch, make_listing
from featurize.sources.names import is_left_out, spelled_out
from featurize.sources.readers import FileReader
from featurize.sources.splits import SplitRule
from finetune.streams.checkpoint import Checkpoint
from finetune.streams.spark_log import files_of_batch

_SCHEMA = "path string, modificationTime timestamp, length long, content binary"  # Spark demands the complete one
_FOR_EVER = "36500d"
# Without this, Spark would start a task for each file of a batch, and one for every 32 images after that.
_LISTING_TASKS = 8
_OPEN_BYTES = 64 << 10
_GLOB = re.compile(r"([\\{}\[\]*?])")
_logger = logging.getLogger(__name__)
_AUTHORITY = re.compile(r"^[a-z0-9]+:(//[^/]*)?")


@dataclass(frozen=True)
class BatchImages:
    """The images of a micro-batch.

    Those found are the source's, the repeated ones and those that are gone.

    Attributes:
        source: Each image once, if it can be read or is known to be a reject.
        found: Number of images that Spark found, or messages.
        repeated: Number of these that name an image of the source again.
        gone: Number of these that are not in the source: a file that is not there any more, a URL that is given up.
        waiting: Number of URLs, not among those found, that a later batch will try again.
    """

    source: ImageSource
    found: int
    repeated: int = 0
    gone: int = 0
    waiting: int = 0


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

    def of_batch(self, batch: DataFrame, batch_id: int, checkpoint: Checkpoint) -> AbstractContextManager[BatchImages]:
        """The images of a micro-batch of the data frame, to be read in a ``with`` block.

        Args:
            batch_id: Spark's number of the batch.
            checkpoint: The stream's checkpoint. Firn's part of it is for temporary files, which the next batch overwrites where a
                kill left some, and for what the source must know of earlier batches.
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
    _told: set[str] = field(default_factory=set, repr=False, compare=False)

    @property
    def place(self) -> str:
        """See `ArrivingImages`."""
        return self.url

    def source(self) -> ImageSource:
        """See `ArrivingImages`."""
        return files_source(self.url, {}, follow_links=self.follow_links)

    def open(self, spark: SparkSession, *, most_per_batch: int | None) -> DataFrame:
        """See `ArrivingImages`."""
        check_file_names(spark, self.url)
        if unseen := self._unseen():
            _logger.warning(
                "%d files have names that are not UTF-8, such as %s. Spark does not see them; the next batch rejects them.",
                *(len(unseen), min(unseen)),
            )
        return stream_files(spark, self.url, most_per_batch=most_per_batch)

    @contextmanager
    def of_batch(self, batch: DataFrame, batch_id: int, checkpoint: Checkpoint) -> Iterator[BatchImages]:
        """`ArrivingImages.of_batch`: the files that Spark has listed for it, also those of which it has no row.

        Spark leaves files out of a batch that are gone or empty when the batch begins. The latter are images like others. Files
        whose names are not UTF-8, which Spark never lists, are rejects, as in `finetune predict`.
        """
        rows = {_inner_path(path, self.url): (int(length), int(modified)) for path, length, modified in collect(batch)}
        listed = [_inner_path(path, self.url) for path in files_of_batch(checkpoint.url, batch_id)]
        there, gone = dict[str, tuple[int, str]](), list[str]()
        for inner in (inner for inner in dict.fromkeys((*listed, *rows)) if not is_left_out(inner)):
            file = f"{self.url}/{inner}"
            facts = _size_and_stamp(file, rows.get(inner), None if self.follow_links else self.url)
            if facts is not None:
                there[file] = facts
            elif not storage.exists(file):  # or else it is a pipe, or a folder by now: no image
                gone.append(inner)
        if gone:
            _logger.warning("%d files were gone before batch %d began, such as %s.", len(gone), batch_id, gone[0])
        found = len(gone) + sum(f"{self.url}/{inner}" in there for inner in listed)
        if unseen := {file: facts for file, facts in self._unseen().items() if file not in self._told}:
            _logger.warning(
                "%d files have names that are not UTF-8, such as %s. Rename them.", len(unseen), min(unseen)
            )
            self._told.update(unseen)
            there |= unseen
            found += len(unseen)
        yield BatchImages(files_source(self.url, there, follow_links=self.follow_links), found, gone=len(gone))

    def failures(self) -> AbstractContextManager[None]:
        """See `ArrivingImages`."""
        return nullcontext()

    def _unseen(self) -> dict[str, tuple[int, str]]:
        """Size and stamp of the files that Java cannot name: it leaves them out without a word. By their URLs, spelled out."""
        if not storage.is_local(self.url):
            return {}
        found = dict[str, tuple[int, str]]()
        with suppress(FileNotFoundError):  # of a folder that was removed meanwhile; the next batch looks again
            for file in storage.walk_source(self.url, follow_links=self.follow_links):
                inner = spelled_out(file.inner)
                is_hidden = is_left_out(inner) or inner.startswith("_") or "/_" in inner
                if inner != file.inner and not is_hidden:
                    found[f"{self.url}/{inner}"] = file.size, f"{file.size}:{file.modified}"
        return found


def check_name(url: str) -> None:
    """Checks that Spark can watch the folder at `url`.

    Raises:
        UsageError: Its name is not UTF-8, or Spark would take it for a pattern that Hadoop cannot parse.
    """
    path = _AUTHORITY.sub("", url)
    if spelled_out(path) != path:
        raise UsageError(f"`images`: the name of the folder {spelled_out(path)} is not UTF-8. Rename it.")
    if ":" in path and (signs := sorted(set(_GLOB.findall(path)))):
        raise UsageError(
            f"`images`: Spark cannot watch the folder {path}: it takes a path with {' '.join(signs)} for a pattern, and that "
            "cannot have a colon. Rename a folder of this path, or name a link to the folder whose own path lacks one of them."
        )


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


def files_source(url: str, files: Mapping[str, tuple[int, str]], *, follow_links: bool = False) -> ImageSource:
    """The images of a batch as a source.

    Args:
        url: URL of the folder.
        files: Size and stamp of each file, by its URL.
        follow_links: As for `FolderImages`.
    """
    sizes, stamps = zip(*files.values(), strict=True) if files else ((), ())
    return ImageSource(
        listing=make_listing([listing_batch({"path": list(files), "bytes_size": sizes, "stamp": stamps})]),
        reader=FileReader(inside=None if follow_links else url),
        classes=(),
        split_rule=SplitRule(fractions=None),
        settings={"source": url, "layout": "folders"},
    )


def _inner_path(path: str, url: str) -> str:
    """A file's path below the folder, from the name that Spark gives: `file:/folder/name`, `hdfs://host:port/folder/name`.

    Raises:
        JobError: The file is not in the folder.
    """
    found, folder = _AUTHORITY.sub("", path), _AUTHORITY.sub("", url) + "/"
    if not found.startswith(folder):
        raise JobError(f"Spark found {path}, which is not in {url}.")
    return found[len(folder) :]


def _size_and_stamp(file: str, row: tuple[int, int] | None, inside: str | None) -> tuple[int, str] | None:
    """Size and stamp as a walk over the folder gives them, or `finetune predict` would see a changed file; None: there is none.

    Args:
        row: Size, and time in ms, from Spark, which are exact on HDFS; None: it has no row of the file.
        inside: URL of the folder that links must not lead out of; None: all links are followed.
    """
    if row is not None and not storage.is_local(file):
        return row[0], f"{row[0]}:{row[1]}"
    found = storage.find_file(file, source=inside)
    return None if found is None else (found.size, f"{found.size}:{found.modified}")
