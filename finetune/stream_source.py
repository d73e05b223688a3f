"""The images of a stream: Spark notices the files that come into a folder, and Firn reads them as `finetune predict` does."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from featurize import storage
from featurize.errors import JobError
from featurize.image_source import ImageSource, listing_batch, make_listing
from featurize.readers import FileReader
from featurize.splits import SplitRule

_SCHEMA = "path string, modificationTime timestamp, length long, content binary"  # Spark wants the whole one
_FOR_EVER = "36500d"
# Looking at the files of a batch again, Spark would start a task for each, and one for every 32 images after that.
_LISTING_TASKS = 8
_OPEN_BYTES = 64 << 10
_GLOB = re.compile(r"([\\{}\[\]*?])")
_AUTHORITY = re.compile(r"^[a-z0-9]+:(//[^/]*)?")


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
    if storage.absolute_url(file).startswith("file://"):
        try:
            status = Path(file.removeprefix("file://")).stat()
        except OSError:  # gone by now: the reader will say so
            return length, f"{length}:{modified_ms}"
        return status.st_size, f"{status.st_size}:{status.st_mtime_ns}"
    return length, f"{length}:{modified_ms}"
