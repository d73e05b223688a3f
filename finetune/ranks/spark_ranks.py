"""The driver's part of ranks that are tasks of a Spark job: Horovod's launcher, with an end to everything it waits for."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from featurize.errors import JobError, first_line
from finetune.ranks.hub import Hub
from finetune.ranks.hub_messages import Address, end_process, process_name

if TYPE_CHECKING:
    from pyspark import SparkContext

Result = TypeVar("Result")
_START_TIMEOUT_S = "50"  # for Spark to start all tasks
# After a verdict: to end by themselves, by Horovod's abort (five seconds of it between SIGTERM and SIGKILL), by the end of the
# Spark job. In all, with the timeout before them, less than a minute.
_END_STEPS_S = (2.0, 10.0, 4.0)


class SparkRanks:
    """A job of ranks on Spark. The hub is in this process, the driver; after its verdict whatever is left of the job is ended.

    Args:
        context: of a session that is this job's own.
        num_proc: how many ranks.
        timeout_s: a rank that is not heard of for so long is stalled.
        standstill_s: ranks that live and report nothing new for so long are stuck.
        on_told: called with what ranks tell the driver.
    """

    def __init__(
        self,
        context: "SparkContext",
        num_proc: int,
        *,
        timeout_s: float,
        standstill_s: float,
        on_told: Callable[[dict[str, float]], None] | None = None,
    ) -> None:
        self._context, self._num_proc = context, num_proc
        self._abort = threading.Event()
        self._finished = threading.Event()
        self._spark_error: BaseException | None = None
        name = process_name("the driver")
        self._hub = Hub(
            num_proc,
            name=name,
            timeout_s=timeout_s,
            standstill_s=standstill_s,
            on_verdict=self._on_verdict,
            on_told=on_told,
        )

    def run(self, make_work: Callable[[Address], Callable[[], Result]]) -> list[Result]:
        """Runs on each rank what `make_work` makes of the hub's address, and gives what each returns.

        Raises:
            JobError: a rank or its task died, stalled or failed, or did not start.
        """
        import horovod.spark
        from horovod.runner.common.util.timeout import TimeoutException

        start_s = int(os.environ.get("HOROVOD_SPARK_START_TIMEOUT", _START_TIMEOUT_S))
        address = self._hub.address(self._context.getConf().get("spark.driver.host", ""))
        try:
            with self._hub, self._horovod_tamed():
                results: list[Result] = horovod.spark.run(
                    make_work(address),
                    num_proc=self._num_proc,
                    use_gloo=True,
                    executable=self._context.pythonExec,  # the executors' Python: the driver's own path may not exist there
                    start_timeout=start_s,
                    stdout=sys.stderr,
                    stderr=sys.stderr,
                    verbose=0,
                )
        except TimeoutException as error:
            raise JobError(
                f"{self._num_proc} ranks are as many Spark tasks that run at a time, and Spark did not start all of them "
                f"within {start_s} s. Give the job more executors, or set HOROVOD_SPARK_START_TIMEOUT to wait longer."
            ) from error
        except Exception as error:  # Horovod has no error of its own here, and says nothing of the cause
            raise JobError(self._hub.verdict or self._what_failed(error)) from error
        return results

    def _what_failed(self, error: Exception) -> str:
        cause = self._spark_error or error
        lines = [line for line in str(cause).splitlines() if line.startswith(("Process name", "Exit code"))]
        return f"a rank failed, and its output is above: {'; '.join(lines) or first_line(cause)}"

    def _on_verdict(self, message: str, rank_says_it: bool) -> None:
        threading.Thread(target=self._end_job, args=(message,), name="firn-end", daemon=True).start()

    def _end_job(self, message: str) -> None:
        """Ends the ranks and tasks that do not end by themselves, and in the end this process: no hang, ever."""
        by_themselves_s, aborted_s, cancelled_s = _END_STEPS_S
        if self._finished.wait(by_themselves_s):
            return
        self._abort.set()
        if self._finished.wait(aborted_s):
            return
        self._context.cancelAllJobs()  # of this command's own session
        if not self._finished.wait(cancelled_s):
            end_process(message)

    @contextmanager
    def _horovod_tamed(self) -> Iterator[None]:
        """Horovod's driver with an end that can be reached, signals that come through, and no trace of a job it cancels itself.

        Horovod takes SIGINT and SIGTERM for itself when it launches the ranks, keeps them for ever, and kills the ranks five
        seconds later. The event by which it does so is replaced by one that `_end_job` sets.
        """
        from horovod.runner import gloo_run

        def launch_event() -> threading.Event:
            self._hub.expect_ranks()
            return self._abort

        taken, hook, before = gloo_run.register_shutdown_event, threading.excepthook, signal.getsignal(signal.SIGTERM)
        gloo_run.register_shutdown_event = launch_event
        threading.excepthook = self._keep_spark_error
        signal.signal(signal.SIGTERM, lambda number, _: self._hub.pass_on_signal(number))
        try:
            yield
        finally:
            self._finished.set()
            signal.signal(signal.SIGTERM, before)
            threading.excepthook = hook
            gloo_run.register_shutdown_event = taken

    def _keep_spark_error(self, arguments: "threading.ExceptHookArgs") -> None:
        """The thread that waits for the Spark job fails when the job does, for which there is a better message."""
        if arguments.thread is not None and "run_spark" in arguments.thread.name:
            self._spark_error = arguments.exc_value
        else:
            threading.__excepthook__(arguments)
