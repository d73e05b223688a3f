"""A sweep on Spark: every group of trials is a task."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from typing import TYPE_CHECKING

from featurize.errors import FirnError, JobError
from featurize.jobs import job_errors
from featurize.worker import log, use_task_resources
from finetune.sweep_plan import PlannedTrial, group_trials
from finetune.trials import MOST_TOGETHER, Outcome, Trainer

if TYPE_CHECKING:
    from pyspark import SparkContext

_trainers: list[Trainer] = []  # that of this Python worker, which Spark gives one task after another


class OnSpark:
    """Trains groups of trials as tasks of Spark, some at a time. Each writes its models where all can read them.

    Args:
        tasks: how many groups are under way at a time.
    """

    def __init__(self, context: "SparkContext", *, tasks: int) -> None:
        self._context, self._tasks = context, tasks

    def run(self, trials: Sequence[PlannedTrial]) -> Iterator[Outcome]:
        """As `TrialRunner` says. A task that dies with its executor is tried again by Spark, and finds what it had published."""
        fair_share = -(-len(trials) // self._tasks)  # rounded up: no task is without work
        groups = list(group_trials(trials, most=min(MOST_TOGETHER, fair_share)))
        with ThreadPoolExecutor(self._tasks) as threads:
            under_way = [threads.submit(self._run_group, group) for group in groups]
            try:
                for done in as_completed(under_way):
                    yield done.result()
            except BaseException:
                for waiting in under_way:
                    waiting.cancel()
                self._context.cancelAllJobs()  # of this command's own session
                raise

    def _run_group(self, group: list[PlannedTrial]) -> Outcome:
        with job_errors():
            outcome: Outcome | str = self._context.parallelize([0], 1).map(partial(_train_in_task, group)).first()
        if isinstance(outcome, str):
            raise JobError(outcome)
        return outcome


def _train_in_task(group: list[PlannedTrial], _: int) -> Outcome | str:
    """The outcome, or what is wrong: raised, it would arrive as a trace."""
    if not _trainers:
        log(f"sweep, {use_task_resources()} threads")
        _trainers.append(Trainer())
    try:
        return _trainers[0].train(group)
    except (FirnError, OSError) as error:
        return str(error)
