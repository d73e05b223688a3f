"""What `test_ranks_in_a_session` runs: a user's process, with a Spark session that has a slow job of its own all the time.

``python session_program.py FOLDER STEP...`` does the steps, each a function of `Caller`, and prints as JSON what it saw.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pyspark import InheritableThread
from pyspark.sql import SparkSession

from featurize.building.session import make_session
from featurize.errors import FirnError
from finetune.ranks.horovod_ranks import open_ranks
from finetune.ranks.spark_ranks import run_on_spark

SLOTS = 4
TIMEOUT_S = 8.0
STEPS = 60
END_S = 20.0
GROUP = "mine"


def sum_steps(folder: str, fault: int, n_steps: int) -> float:
    """What a rank does. Rank 1 sends itself the signal `fault`, if it is not 0, in the last step but ten."""
    rank = os.environ["HOROVOD_RANK"]
    Path(folder, f"pid-{rank}").write_text(str(os.getpid()))
    with open_ranks(distributed=True, timeout_s=TIMEOUT_S) as ranks:
        import tensorflow as tf

        for step in range(n_steps):
            ranks.report(f"epoch 1, step {step}")
            if ranks.rank == 1 and fault and step == n_steps - 10:
                os.kill(os.getpid(), fault)
            (total,) = ranks.sum([tf.constant(ranks.rank + 1.0)])
            if step == STEPS:
                Path(folder, f"ready-{rank}").write_text("")
            time.sleep(0.05)
        return float(total)


def wait_for_file(folder: str, name: str, number: int) -> int:
    """A task that says that it has begun, and ends when a file is there."""
    with Path(folder, f"{name}-begun").open("a") as log:
        log.write(f"{number}\n")
    while not Path(folder, f"{name}-may-end").exists():
        time.sleep(0.1)
    return number * number


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Whether it became true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


class SlowJob:
    """A Spark job of the caller in another thread, whose tasks take a slot each until it is let go."""

    def __init__(self, session: SparkSession, folder: str, name: str, n_tasks: int) -> None:
        self._begun, self._may_end = Path(folder, f"{name}-begun"), Path(folder, f"{name}-may-end")
        self._result: list[int] = []
        rows = session.sparkContext.parallelize(range(1, n_tasks + 1), n_tasks)
        work = partial(wait_for_file, folder, name)
        self._thread = InheritableThread(target=lambda: self._result.extend(rows.map(work).collect()), daemon=True)
        self._thread.start()
        if not wait_until(lambda: self.begun() == n_tasks, 120):
            raise TimeoutError(f"{name} has not begun")

    def begun(self) -> int:
        """How often one of its tasks has begun."""
        return len(self._begun.read_text().splitlines()) if self._begun.exists() else 0

    def end(self) -> dict[str, Any]:
        """Lets it end, and says what came of it."""
        self._may_end.write_text("")
        self._thread.join(60)
        return {"result": sorted(self._result), "begun": self.begun()}


class Caller:
    """The steps; each returns what it saw."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.session = make_session("caller", slots=SLOTS)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # PySpark's own cancels all jobs of the session

    def killed(self) -> dict[str, Any]:
        return self._fails(signal.SIGKILL)

    def stopped(self) -> dict[str, Any]:
        return self._fails(signal.SIGSTOP)

    def sums(self) -> dict[str, Any]:
        return {"total": self._run(0, STEPS)}

    def interrupted(self) -> dict[str, Any]:
        """Ctrl-C while the ranks train."""

        def interrupt() -> None:
            ready = [Path(self.folder, f"ready-{rank}") for rank in range(2)]
            wait_until(lambda: all(path.exists() for path in ready), 120)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt, daemon=True).start()
        try:
            self._run(0, 10**6)
        except KeyboardInterrupt:
            return self._state() | {"raised": True}
        return {"raised": False}

    def trained(self) -> dict[str, Any]:
        """A real training, by a thread that is not the main one and has a job group."""
        seen: dict[str, Any] = {}

        def train() -> None:
            self.session.sparkContext.setJobGroup(GROUP, "a group of the caller")
            seen.update(self._train())

        thread = InheritableThread(target=train)
        thread.start()
        thread.join()
        return seen

    def busy(self) -> dict[str, Any]:
        """Other jobs have three of the four slots."""
        os.environ["HOROVOD_SPARK_START_TIMEOUT"] = "6"
        other = SlowJob(self.session, self.folder, "other", SLOTS - 2)
        seen = self._fails(0)
        del os.environ["HOROVOD_SPARK_START_TIMEOUT"]
        return seen | other.end()

    def _fails(self, fault: int) -> dict[str, Any]:
        try:
            self._run(fault, STEPS)
        except FirnError as error:
            return self._state() | {"error": str(error), "pid": self._pid(1), "class": type(error).__name__}
        return {"error": None}

    def _run(self, fault: int, n_steps: int) -> float:
        work = partial(sum_steps, self.folder, fault, n_steps)
        return run_on_spark(work, 2, spark=self.session, timeout_s=TIMEOUT_S)

    def _pid(self, rank: int) -> int:
        path = Path(self.folder, f"pid-{rank}")
        return int(path.read_text()) if path.exists() else 0

    def _state(self) -> dict[str, Any]:
        """Whether the session works, and whether anything of the ranks is left."""
        tracker = self.session.sparkContext.statusTracker()
        ended = wait_until(
            lambda: not any(self._pid(n) and Path(f"/proc/{self._pid(n)}").exists() for n in (0, 1)), END_S
        )
        alone = wait_until(lambda: len(tracker.getActiveJobsIds()) == 1, END_S)
        silent = wait_until(lambda: not any(thread.name.startswith("firn") for thread in threading.enumerate()), END_S)
        return {
            "rows": self.session.range(1000).count(),
            "ranks_ended": ended,
            "slow_job_alone": alone,
            "threads_ended": silent,
            "sigterm": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
        }

    def _train(self) -> dict[str, Any]:
        from featurize.recipes.recipe import FinetuneRecipe
        from finetune.training.launch import train_on_ranks
        from finetune.training.plan import plan_training

        url = f"{self.folder}/model"
        training = {"epochs": 3, "batch_size": 16, "learning_rate": 0.05}
        sections = {"features": {"url": f"{self.folder}/set"}, "model": {"url": url}, "training": training}
        epochs: list[float] = []
        groups: list[int] = []
        tracker = self.session.sparkContext.statusTracker()

        def on_epoch(entry: dict[str, float]) -> None:
            epochs.append(entry["epoch"])
            groups.append(len(tracker.getJobIdsForGroup(GROUP)))

        plan = plan_training(FinetuneRecipe.model_validate(sections), ranks=2)
        card = train_on_ranks(plan, spark=self.session, on_epoch=on_epoch)
        facts = {"ranks": card and card.ranks, "metrics": card and card.metrics}
        return self._state() | facts | {"told": epochs, "jobs_in_group": groups}


def main(folder: str, *steps: str) -> None:
    caller = Caller(folder)
    slow = SlowJob(caller.session, folder, "slow", 1)
    seen = {step: getattr(caller, step)() for step in steps}
    print(json.dumps(seen | {"slow": slow.end(), "rows": caller.session.range(10).count()}), flush=True)
    caller.session.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
