"""What every source of images gives: one DataFrame with the same columns, and what is known of it beforehand."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from featurize.cards import Card
from featurize.session import concurrent_tasks
from featurize.splits import SplitRule

ROWS_SCHEMA = "path string, label string, own_split string, content binary"
_ARROW_ROWS = pa.schema(
    [("path", pa.string()), ("label", pa.string()), ("own_split", pa.string()), ("content", pa.binary())]
)
_MIN_TASK_IMAGES, _MAX_TASK_IMAGES = 128, 4096
_MAX_TASK_BYTES = 512 << 20
_OPEN_COST_BYTES = 16 << 10


@dataclass(frozen=True)
class ImageSource:
    """Images to be read.

    Attributes:
        frame: `path`, `label` (null: in no class folder), `own_split` (null: none), `content`, `bytes_size` and `image_id`.
        classes: the labels, sorted; the place of one is its `label_index`.
        images: how many rows `frame` has.
        settings: what determines, with the bytes themselves, which rows come out; part of the identity of what is made of them.
    """

    frame: DataFrame
    classes: tuple[str, ...]
    images: int
    split_rule: SplitRule
    settings: dict[str, Any]
    card: Card | None = None
    lineage: dict[str, Any] = field(default_factory=dict)


def with_identity(frame: DataFrame) -> DataFrame:
    """`frame` with `image_id`, the SHA-256 of the content, and `bytes_size`; Spark computes them only where they are used."""
    return frame.withColumn("image_id", F.sha2("content", 256)).withColumn(
        "bytes_size", F.length("content").cast("long")
    )


def rows_batch(rows: Iterable[tuple[str, str | None, str | None, bytes]]) -> pa.RecordBatch:
    """Worker side: rows of (path, label, own_split, content), one at least, as an Arrow batch."""
    columns = zip(*rows, strict=True)
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, _ARROW_ROWS, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=_ARROW_ROWS)


def plan_partitions(spark: SparkSession, *, images: int, total_bytes: int) -> None:
    """Sizes the tasks by number and bytes of images. Spark counts 4 MB for each file it opens: one or two images a task."""
    slots = concurrent_tasks(spark)
    task_images = min(max(images // (slots * 3), _MIN_TASK_IMAGES), _MAX_TASK_IMAGES)
    mean_bytes = total_bytes // max(images, 1) + _OPEN_COST_BYTES
    spark.conf.set("spark.sql.files.openCostInBytes", str(_OPEN_COST_BYTES))
    spark.conf.set("spark.sql.files.maxPartitionBytes", str(min(task_images * mean_bytes, _MAX_TASK_BYTES)))
    spark.conf.set("spark.sql.files.minPartitionNum", str(slots))


def describe_rule(rule: SplitRule) -> dict[str, Any]:
    """The split rule, for the settings of a source."""
    if rule.fractions is not None:
        return rule.fractions.model_dump()
    return {"own": True, "validation_fraction": rule.validation_fraction, "seed": rule.seed}


def escape_glob(url: str) -> str:
    """`url` so that Hadoop takes its characters as they are, not as a pattern."""
    return re.sub(r"([\[\]{}*?\\])", r"\\\1", url)
