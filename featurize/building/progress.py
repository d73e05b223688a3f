"""How far a Spark job is, for people, while it runs."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from pyspark import SparkContext

from featurize.console import say

_POLL_S = 1.0
_FIRST_LINE_S = 15.0


@contextmanager
def task_progress(context: SparkContext) -> Iterator[None]:
    """Says on standard error how many tasks are done: first after 15 seconds, then after ever longer pauses."""
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(context, stop), name="firn-progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()


def _watch(context: SparkContext, stop: threading.Event) -> None:
    started, next_line = perf_counter(), _FIRST_LINE_S
    tracker = context.statusTracker()
    while not stop.wait(_POLL_S):
        elapsed = perf_counter() - started
        if elapsed < next_line:
            continue
        stages = [tracker.getStageInfo(stage) for stage in tracker.getActiveStageIds()]
        for stage in stages:
            if stage is not None:
                say(
                    f"{stage.numCompletedTasks} of {stage.numTasks} tasks done, {stage.numActiveTasks} running, {elapsed:.0f} s"
                )
        next_line = max(elapsed * 1.5, elapsed + _FIRST_LINE_S)
