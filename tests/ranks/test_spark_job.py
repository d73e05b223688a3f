"""Tests of finetune.ranks.spark_job, in the session of the tests: it runs one task at a time."""

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from helpers.services.processes import wait_until
from pyspark.sql import SparkSession

from featurize.building.session import count_running_tasks
from featurize.errors import JobError, UsageError
from finetune.ranks.horovod_ranks import open_ranks
from finetune.ranks.spark_job import RankJob
from finetune.ranks.spark_ranks import run_on_spark

pytestmark = pytest.mark.spark
END_S = 60.0


def test_a_local_session_with_too_few_slots_is_refused_at_once(spark: SparkSession) -> None:
    def work() -> int:
        with open_ranks(distributed=True) as ranks:
            return ranks.size

    started = time.monotonic()
    with pytest.raises(
        UsageError, match=r"2 ranks need 2 Spark tasks .* this session runs 1 at a time \(its master is local"
    ):
        run_on_spark(work, 2, spark=spark)
    assert time.monotonic() - started < 5
    assert spark.range(10).count() == 10


def test_tasks_yield_by_their_number_and_leave_no_environment(spark: SparkSession) -> None:
    def task(index: int, rows: Iterable[int]) -> Iterator[tuple[int, str | None]]:
        before = os.environ.get("FIRN_TEST")
        os.environ["FIRN_TEST"] = "left"
        yield index, before

    ended = RankJob(spark.sparkContext, 3, task).start()
    assert ended.result(timeout=END_S) == [(0, None), (1, None), (2, None)]


def test_an_error_of_a_task_is_named(spark: SparkSession) -> None:
    def task(index: int, rows: Iterable[int]) -> Iterator[int]:
        raise ValueError(f"boom {index}")

    ended = RankJob(spark.sparkContext, 1, task).start()
    with pytest.raises(JobError, match=r"^the Spark job of the ranks failed: ValueError: boom 0$"):
        ended.result(timeout=END_S)


def test_it_is_cancelled_alone(spark: SparkSession, tmp_path: Path) -> None:
    def wait(index: int, rows: Iterable[int]) -> Iterator[int]:
        Path(tmp_path, "begun").write_text("")
        time.sleep(1000)
        yield index

    def square(index: int, rows: Iterable[int]) -> Iterator[int]:
        yield index * index

    job, other = (RankJob(spark.sparkContext, n, task) for n, task in ((1, wait), (3, square)))
    ended = job.start()
    wait_until(Path(tmp_path, "begun").exists, "the first job", timeout_s=END_S)
    of_other = other.start()  # waits for the slot
    wait_until(lambda: count_running_tasks(spark.sparkContext) == 1, "Spark's word on it", timeout_s=END_S)
    job.cancel(ended, timeout_s=END_S)
    with pytest.raises(JobError, match="cancelled"):
        ended.result(timeout=0)
    assert of_other.result(timeout=END_S) == [0, 1, 4]


def test_it_is_not_submitted_once_it_is_cancelled(spark: SparkSession, tmp_path: Path) -> None:
    def task(index: int, rows: Iterable[int]) -> Iterator[int]:
        Path(tmp_path, "begun").write_text("")
        yield index

    job = RankJob(spark.sparkContext, 1, task)
    first = job.start()
    assert first.result(timeout=END_S) == [0]
    Path(tmp_path, "begun").unlink()
    job.cancel(first, timeout_s=END_S)
    with pytest.raises(JobError, match="cancelled before"):
        job.start().result(timeout=END_S)
    assert not Path(tmp_path, "begun").exists()
