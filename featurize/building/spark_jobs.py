"""The Spark side of a build: a plan on storage, a task for each of its shards, and the rows that the tasks return."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession

from featurize.building.image_reports import ReportTo
from featurize.building.plan import in_reading_order, plan_shards, write_plan
from featurize.building.progress import image_progress
from featurize.building.session import concurrent_tasks
from featurize.building.worker import Worker
from featurize.errors import JobError
from featurize.progress import stage


def run_plan(
    spark: SparkSession,
    plan_url: str,
    *,
    rows: pa.Table,
    make_worker: Callable[[ReportTo | None], Worker],
    what: str = "images",
    shards: Sequence[tuple[int, int]] | None = None,
) -> list[dict[str, Any]]:
    """Cuts `rows` of a listing into shards, writes the plan and has Spark give each shard to a task.

    Args:
        plan_url: URL to which the plan is written and from which workers read it.
        make_worker: makes the worker, given the address to which it reports its progress.
        what: the unit in which progress is shown, as in ``images``.
        shards: the first row of each shard, and the row after its last; None: they are planned here.

    Raises:
        JobError: the job failed.
    """
    if shards is None:
        rows = in_reading_order(rows)
        shards = plan_shards(rows, slots=concurrent_tasks(spark))
    write_plan(plan_url, rows, shards)
    stage("starting workers")
    with (
        image_progress(spark.sparkContext, [stop - start for start, stop in shards], what=what) as report_to,
        job_errors(),
    ):
        return run_tasks(spark, make_worker(report_to), tasks=len(shards))


def run_tasks(spark: SparkSession, worker: Worker, *, tasks: int) -> list[dict[str, Any]]:
    """Gives each number below `tasks` to a task of its own, and returns the rows that `worker` makes of it.

    It does without Spark SQL, as Java needs two seconds of processor time for the first query of a session.

    Raises:
        Py4JJavaError: a task failed.
    """

    def work(numbers: Iterable[int]) -> Iterator[dict[str, Any]]:
        for made in worker([pa.RecordBatch.from_arrays([pa.array(list(numbers), pa.int64())], names=["id"])]):
            yield from made.to_pylist()

    return spark.sparkContext.parallelize(range(tasks), tasks).mapPartitions(work).collect()


def collect(frame: DataFrame) -> list[Any]:
    """The rows of `frame`; a failure inside Spark becomes one message, that of the worker.

    Raises:
        JobError: the job failed.
    """
    with job_errors():
        return frame.collect()


@contextmanager
def job_errors() -> Iterator[None]:
    """Turns a failure inside Spark into one message, that of the worker.

    Raises:
        JobError: the job failed.
    """
    try:
        yield
    except (PySparkException, Py4JJavaError) as error:
        text = str(error)
        raised = re.findall(r"^(?:[\w.]+\.)?(\w+(?:Error|Exception)): (.+)$", text, flags=re.MULTILINE)
        reason = f"{raised[-1][0]}: {raised[-1][1]}" if raised else text.strip().splitlines()[0]
        raise JobError(
            f"the Spark job failed: {reason}\nWhat it had finished is kept; run it again to resume."
        ) from error
