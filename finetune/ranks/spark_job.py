"""The Spark job whose tasks hold the ranks. It has a tag of its own, so that it can be cancelled and no other job."""

import os
import posixpath
import re
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any

from featurize.building.session import concurrent_tasks
from featurize.errors import JobError, UsageError, first_line
from finetune.ranks.background import run_in_background

if TYPE_CHECKING:
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

Task = Callable[[int, Iterable[int]], Iterable[Any]]
_DESCRIPTION = "Firn: the ranks of a training"
_REPEAT_S = 0.5


class RankJob:
    """A Spark job of one task for each rank, which runs in a thread of its own.

    Args:
        context: the context of a session, which may have other jobs.
        num_ranks: the number of tasks.
        task: the function of each task, called with its number and no rows.
    """

    def __init__(self, context: "SparkContext", num_ranks: int, task: Task) -> None:
        self.tag = f"firn-ranks-{uuid.uuid4().hex}"
        self._context, self._num_ranks, self._task = context, num_ranks, _with_py_files(context, task)
        self._is_cancelled = threading.Event()

    def start(self) -> Future[list[Any]]:
        """Submits the job; the future has what its tasks yield, in the order of the tasks."""
        from pyspark import InheritableThread

        return run_in_background(self._collect, name="firn-spark-job", thread_class=InheritableThread)

    def cancel(self, ended: Future[list[Any]], *, timeout_s: float) -> None:
        """Cancels the job and waits until it has `ended`, but not longer than `timeout_s` seconds."""
        self._is_cancelled.set()
        for _ in range(max(1, round(timeout_s / _REPEAT_S))):  # repeatedly: it may be about to be submitted
            if ended.done():
                return
            self._context.cancelJobsWithTag(self.tag)
            self._context.cancelJobGroup(self.tag)
            wait([ended], timeout=_REPEAT_S)

    def _collect(self) -> list[Any]:
        from py4j.protocol import Py4JError
        from pyspark.errors import PySparkException

        try:
            return self._submit()
        except (PySparkException, Py4JError) as error:
            raise JobError(f"the Spark job of the ranks failed: {_reason(error)}") from error

    def _submit(self) -> list[Any]:
        tasks = self._context.range(0, numSlices=self._num_ranks).mapPartitionsWithIndex(self._task)
        if self._is_cancelled.is_set():
            raise JobError("the job of the ranks was cancelled before it was submitted.")
        if not _has_pinned_threads(self._context):
            # Only this call sets the group in the Java thread that submits the job. Spark 3.5 has no other for this mode.
            return tasks.collectWithJobGroup(self.tag, _DESCRIPTION, interruptOnCancel=True)
        self._context.addJobTag(self.tag)
        self._context.setInterruptOnCancel(True)
        self._context.setLocalProperty("spark.job.description", _DESCRIPTION)
        return tasks.collect()


def check_slots(session: "SparkSession", num_ranks: int) -> None:
    """Checks that `num_ranks` tasks can run at a time, if the number of slots is fixed, as it is with a local master.

    A cluster may still be starting its executors, or start more when there is work: there the launch finds out.

    Raises:
        UsageError: there are fewer slots than ranks.
    """
    context, slots = session.sparkContext, concurrent_tasks(session)
    if re.fullmatch(r"local(\[.*\])?", context.master or "") and slots < num_ranks:
        cpus = context.getConf().get("spark.task.cpus", "1")
        raise UsageError(
            f"{num_ranks} ranks need {num_ranks} Spark tasks that run at the same time, and this session runs {slots} at a time "
            f"(its master is {context.master}, and `spark.task.cpus` is {cpus}). Take fewer ranks or a session with more slots."
        )


def _reason(error: Exception) -> str:
    """The line of a long message that says most: the last error of a chain of causes."""
    text = str(error)
    raised = re.findall(r"^(?:: )?(?:[\w.]+\.)?(\w+(?:Error|Exception): .+)$", text, flags=re.MULTILINE)
    return raised[-1] if raised else first_line(error)


def _has_pinned_threads(context: "SparkContext") -> bool:
    """Whether each Python thread has a Java thread of its own (PYSPARK_PIN_THREAD, the default)."""
    from py4j.clientserver import ClientServer

    return isinstance(context._gateway, ClientServer)


def _with_py_files(context: "SparkContext", task: Task) -> Task:
    """`task`, with the files of `spark-submit --py-files` on the path of the processes that it starts.

    A rank is such a process, and Spark puts these files on the path of its own Python workers only. They lie in the working
    directory of every executor, which is that of the ranks too. The environment is restored after the task, as another job may
    get its process.
    """
    names = [posixpath.basename(path) for path in context.getConf().get("spark.submit.pyFiles", "").split(",") if path]

    def run(index: int, rows: Iterable[int]) -> Iterator[Any]:
        before = dict(os.environ)
        path = [*names, *filter(None, [before.get("PYTHONPATH")])]
        try:
            if path:
                os.environ["PYTHONPATH"] = os.pathsep.join(path)
            yield from task(index, rows)
        finally:
            os.environ.clear()
            os.environ.update(before)

    return run
