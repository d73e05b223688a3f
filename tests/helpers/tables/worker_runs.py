"""Shards made in this process, as a worker of Spark makes them; for the tests."""

import math
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pyspark import TaskContext
from pyspark.resource import ResourceInformation

from featurize.backbones.spec import BackboneSpec
from featurize.building.plan import write_plan
from featurize.building.shipped_backbone import ShippedBackbone
from featurize.building.staging import STAGING, plan_url
from featurize.building.worker import Run
from featurize.jobs.run_task import ColumnsOfFeatures, FeaturizeTask, TaskColumn
from featurize.recipes.recipe import FractionSplit
from featurize.sources.listing import ImageSource
from featurize.sources.splits import SplitRule
from featurize.tables.manifests import ShardRecord

RUN = "0123abcd"
PIXELS = BackboneSpec(
    name="pixels",
    network_sha256=None,
    layer=None,
    weights=None,
    weights_digest=None,
    preprocessing="none",
    resizing="x",
    height=4,
    width=5,
    channels=3,
    precision="float32",
    feature_shape=(4, 5, 3),
    feature_dtype="uint8",
)


def make_run(
    table: Path, source: ImageSource, *, cuts: Sequence[int] = (), decode_timeout_s: float = 60.0, reader: Any = None
) -> Run:
    """Writes the plan of a run over all images, which is cut into shards before the images of these numbers."""
    ends = [0, *cuts, source.images]
    write_plan(plan_url(str(table), RUN), source.listing, list(pairwise(ends)))
    return Run(url=str(table), name=RUN, reader=reader or source.reader, decode_timeout_s=decode_timeout_s)


def make_task(source: ImageSource, **changes: Any) -> FeaturizeTask:
    """Images to pixels. `changes` are fields of the task or of its backbone, by name."""
    shipped: dict[str, Any] = {"spec": PIXELS, "file": None, "sha256": None, "batch_size": 4}
    settings: dict[str, Any] = {
        "classes": source.classes,
        "split_rule": SplitRule(fractions=FractionSplit()),
        "features": only_column(ShippedBackbone(**{key: changes.pop(key, value) for key, value in shipped.items()})),
        "rows_per_group": 3,
    }
    return FeaturizeTask(**{**settings, **changes})


def only_column(backbone: ShippedBackbone) -> ColumnsOfFeatures:
    """The column `features` of one backbone."""
    spec = backbone.spec
    column = TaskColumn("features", 0, 0, math.prod(spec.feature_shape), spec.is_pixels)
    return ColumnsOfFeatures((backbone,), (column,))


def rows_of(table: Path, record: ShardRecord) -> dict[str, dict[str, Any]]:
    """The rows of a shard by the names of their images' files."""
    tables = [pq.ParquetFile(table / STAGING / file.path).read().to_pylist() for file in record.files]
    return {row["path"].rsplit("/", 1)[1]: row for rows in tables for row in rows}


def rejects_of(table: Path, record: ShardRecord) -> dict[str, dict[str, Any]]:
    """The rejects of a shard by the names of their images' files."""
    tables = [pq.ParquetFile(table / STAGING / file.path).read().to_pylist() for file in record.reject_files]
    return {row["path"].rsplit("/", 1)[1]: row for rows in tables for row in rows}


@contextmanager
def as_spark_task(attempt: int = 0, *, cpus: int = 1, gpus: Sequence[str] | None = None) -> Iterator[None]:
    """What PySpark tells its worker process of the task."""
    context = TaskContext()
    context._taskAttemptId, context._cpus = attempt, cpus
    context._resources = {} if gpus is None else {"gpu": ResourceInformation("gpu", list(gpus))}
    TaskContext._taskContext = context
    try:
        yield
    finally:
        TaskContext._taskContext = None


@contextmanager
def no_file_over(size: int) -> Iterator[None]:
    """No file may grow over `size` bytes, as on a disk that is full. The system's error is another, its place the same."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
