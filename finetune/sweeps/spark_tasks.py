"""A sweep on Spark: every group of trials is a Spark task."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING
from uuid import uuid4

from featurize.building.spark_jobs import job_errors
from featurize.building.worker import use_task_resources
from featurize.errors import FirnError, JobError
from finetune.sweeps.plan import PlannedTrial
from finetune.sweeps.trials import OpenedData, Outcome, Trainer, fair_groups, train_groups

if TYPE_CHECKING:
    from pyspark import SparkContext

_trainers: list[Trainer] = []  # the trainer of this Python worker, which Spark gives one task after another


class OnSpark:
    """Trains groups of trials as Spark tasks, several at a time. Each writes its models to storage that all can read.

    Args:
        start: Returns the Spark context; called once there is something to train.
        tasks: Number of groups in progress at a time.
    """

    def __init__(self, start: Callable[[], "SparkContext"], *, tasks: int) -> None:
        self._start, self._tasks = cache(start), tasks
        self._group = f"firn-sweep-{uuid4().hex}"

    def run(self, trials: Sequence[PlannedTrial]) -> Iterator[Outcome]:
        """See `TrialRunner`. When a task dies with its executor, Spark tries it again, and it finds what it had published."""
        context = self._start()
        return train_groups(
            fair_groups(trials, self._tasks),
            self._run_group,
            self._tasks,
            stop=lambda: context.cancelJobGroup(self._group),
        )

    def _run_group(self, group: list[PlannedTrial]) -> Outcome:
        context = self._start()
        context.setJobGroup(
            self._group, "finetune sweep", interruptOnCancel=True
        )  # set for this thread only, so that no other job is ever cancelled
        with job_errors():
            outcome: Outcome | str = context.parallelize([0], 1).map(partial(_train_in_task, group)).first()
        if isinstance(outcome, str):
            raise JobError(outcome)
        return outcome


def _train_in_task(group: list[PlannedTrial], _: int) -> Outcome | str:
    """The outcome, or the error as text: if raised, it would arrive as a stack trace."""
    if not _trainers:
        use_task_resources()
        _trainers.append(Trainer(OpenedData()))
    try:
        return _trainers[0].train(group)
    except (FirnError, OSError) as error:
        return str(error)
