"""Images in folders: ``<class>/**`` or, where the source brings its split, ``<split>/<class>/**``.

Spark reads the files. It passes over empty ones and over names that begin with ``_``, so those are read by Firn's own hand:
an empty file is to be found among the rejects. Names that begin with a dot are hidden files, and stay so.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from featurize import storage
from featurize.errors import JobError, UsageError
from featurize.image_source import (
    ROWS_SCHEMA,
    ImageSource,
    describe_rule,
    escape_glob,
    plan_partitions,
    rows_batch,
    with_identity,
)
from featurize.recipe import Split
from featurize.splits import SplitRule

SPLIT_FOLDERS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}
_FILES_PER_TASK = 1000
_COPYING = "._COPYING_"  # the ending of a file that HDFS is still being given


@dataclass
class FolderListing:
    """What a walk over the folder found.

    Attributes:
        files: by label and own split.
        bytes: of all files.
        passed_over: path below the folder, label and own split of each file that Spark would not read.
        unknown_tops: first-level folders that are no split, where splits are wanted.
    """

    files: Counter[tuple[str | None, str | None]] = field(default_factory=Counter)
    bytes: int = 0
    passed_over: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    unknown_tops: set[str] = field(default_factory=set)


def open_folder(spark: SparkSession, url: str, split: Split, validation_fraction: float) -> ImageSource:
    """The images in the folder at `url`.

    Args:
        validation_fraction: of train, set aside where the split is by folders and there is none for validation.

    Raises:
        UsageError: no files, no class folders, or no train folder where the split is by folders.
    """
    by_folders = split == "folders"
    listing = list_folder(url, by_folders=by_folders)
    _check_listing(url, listing, by_folders=by_folders)
    images = sum(listing.files.values())
    plan_partitions(spark, images=images, total_bytes=listing.bytes)
    if split == "folders":
        has_validation = any(own_split == "validation" for _, own_split in listing.files)
        rule = SplitRule(fractions=None, validation_fraction=0.0 if has_validation else validation_fraction)
    else:
        rule = SplitRule(fractions=split)
    return ImageSource(
        frame=with_identity(_read_files(spark, url, listing, by_folders=by_folders)),
        classes=tuple(sorted({label for label, _ in listing.files if label is not None})),
        images=images,
        split_rule=rule,
        settings={"source": url, "layout": "folders", "split": describe_rule(rule)},
    )


def list_folder(url: str, *, by_folders: bool) -> FolderListing:
    """Walks the folder at `url`; no file is opened.

    Raises:
        JobError: a folder cannot be listed.
    """
    listing = FolderListing()
    try:
        for inner, size in storage.walk_files(url):
            parts = inner.split("/")
            if any(part.startswith(".") for part in parts) or inner.endswith(_COPYING):
                continue
            label, own_split = _place(parts, by_folders=by_folders)
            if by_folders and own_split is None and len(parts) > 1:
                listing.unknown_tops.add(parts[0])
            listing.files[label, own_split] += 1
            listing.bytes += size
            if size == 0 or any(part.startswith("_") and "=" not in part for part in parts):
                listing.passed_over.append((inner, label, own_split))
    except OSError as error:
        raise JobError(f"{url} cannot be listed: {error}.") from error
    return listing


def _place(parts: list[str], *, by_folders: bool) -> tuple[str | None, str | None]:
    """Label and own split of a file, from the parts of its path. `_read_files` says the same in Spark's words."""
    own_split = SPLIT_FOLDERS.get(parts[0]) if by_folders and len(parts) > 1 else None
    depth = 1 if by_folders else 0
    return (parts[depth] if len(parts) > depth + 1 else None), own_split


def _check_listing(url: str, listing: FolderListing, *, by_folders: bool) -> None:
    if not listing.files:
        raise UsageError(f"{url} holds no files.")
    if listing.unknown_tops:
        names = ", ".join(sorted(listing.unknown_tops))
        raise UsageError(
            f'{url}: with split = "folders" the first level must be {", ".join(SPLIT_FOLDERS)}. Got {names}.'
        )
    if by_folders and not any(own_split == "train" for _, own_split in listing.files):
        raise UsageError(f'{url}: with split = "folders" a folder train/<class> is needed.')
    if not any(label is not None for label, _ in listing.files):
        raise UsageError(f"{url} has no class folders with images in them: a folder per class is wanted.")


def _read_files(spark: SparkSession, url: str, listing: FolderListing, *, by_folders: bool) -> DataFrame:
    root = "file:" + url.removeprefix("file://") if url.startswith("file://") else url  # as Spark spells it
    files = spark.read.format("binaryFile").option("recursiveFileLookup", "true").load(escape_glob(url))
    # In two steps: within one, Spark would take `path` for the new column of that name.
    inner = files.select(F.expr(f"substring(path, {len(root.rstrip('/')) + 2})").alias("inner"), "content")
    parts = F.split("inner", "/")
    depth = 1 if by_folders else 0
    label = F.when(F.size(parts) > depth + 1, parts[depth])
    splits = F.create_map(*[F.lit(text) for pair in SPLIT_FOLDERS.items() for text in pair])
    own_split = F.when(F.size(parts) > 1, splits[parts[0]]) if by_folders else F.lit(None).cast("string")
    path = F.concat(F.lit(url.rstrip("/") + "/"), F.col("inner"))
    frame = inner.select(path.alias("path"), label.alias("label"), own_split.alias("own_split"), "content")
    if not listing.passed_over:
        return frame
    return frame.unionByName(_read_passed_over(spark, url, listing))


def _read_passed_over(spark: SparkSession, url: str, listing: FolderListing) -> DataFrame:
    rows = [(storage.join_url(url, inner), label, own_split) for inner, label, own_split in listing.passed_over]
    tasks = 1 + len(rows) // _FILES_PER_TASK
    named = spark.createDataFrame(rows, "path string, label string, own_split string").repartition(tasks)
    return named.mapInArrow(_read_named, ROWS_SCHEMA)


def _read_named(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Worker side: the content of the files that the rows name."""
    for batch in batches:
        for row in batch.to_pylist():
            yield rows_batch([(row["path"], row["label"], row["own_split"], storage.read_bytes(row["path"]))])
