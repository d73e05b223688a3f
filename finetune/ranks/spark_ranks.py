"""The driver's part of ranks that are tasks of a Spark job: waits for them, hears of them, and ends what is left of them."""

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any, TypeVar

from featurize.building.session import concurrent_tasks
from featurize.errors import FirnError, JobError, first_line
from finetune.ranks.background import run_in_background
from finetune.ranks.hub import Hub
from finetune.ranks.hub_messages import Address, process_name
from finetune.ranks.signals import stop_on_signals
from finetune.ranks.spark_job import check_slots, count_running_tasks
from finetune.ranks.spark_launch import NotStartedError, SparkLaunch

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Result = TypeVar("Result")
_START_TIMEOUT_S = "50"  # for Spark to start all tasks
# After a verdict: to end by themselves, by Horovod's abort (five seconds of it between SIGTERM and SIGKILL), by the end of the
# Spark job. In all, with the timeout before them, less than a minute.
_BY_THEMSELVES_S, _ABORTED_S, _CANCELLED_S = 2.0, 10.0, 4.0


class SparkRanks:
    """Ranks in the free slots of a Spark session. The hub is in this process, the driver; after its verdict they are ended.

    The session goes on as it was: only the job of these ranks is ever cancelled. Everything that may wait without end does so in
    threads that this process need not wait for.

    Args:
        session: may have other jobs.
        num_ranks: how many ranks.
        timeout_s: a rank that is not heard of for so long is stalled.
        standstill_s: ranks that live and report nothing new for so long are stuck.
        on_told: called with what ranks tell the driver.
    """

    def __init__(
        self,
        session: "SparkSession",
        num_ranks: int,
        *,
        timeout_s: float,
        standstill_s: float,
        on_told: Callable[[dict[str, float]], None] | None = None,
    ) -> None:
        self._session, self._num_ranks = session, num_ranks
        self._timeout_s, self._standstill_s, self._on_told = timeout_s, standstill_s, on_told
        self._to_see = threading.Event()  # that the launch has ended, or that there is a verdict

    def run(self, make_work: Callable[[Address], Callable[[], Result]]) -> list[Result]:
        """Runs on each rank what `make_work` makes of the hub's address, and returns what each of them returns.

        Raises:
            UsageError: the session never has so many slots.
            JobError: a rank or its task died, stalled or failed, or did not start.
        """
        check_slots(self._session, self._num_ranks)
        context = self._session.sparkContext
        hub = Hub(
            self._num_ranks,
            name=process_name("the driver"),
            timeout_s=self._timeout_s,
            standstill_s=self._standstill_s,
            on_verdict=lambda message, rank_says_it: self._to_see.set(),
            on_told=self._on_told,
        )
        with hub, stop_on_signals(signal.SIGTERM, on_signal=hub.pass_on_signal):
            address = hub.address(context.getConf().get("spark.driver.host", ""))
            start_s = int(os.environ.get("HOROVOD_SPARK_START_TIMEOUT", _START_TIMEOUT_S))
            launch = SparkLaunch(context, self._num_ranks, make_work(address), start_timeout_s=start_s)
            launched = run_in_background(lambda: launch.run(hub.expect_ranks), name="firn-launch")
            launched.add_done_callback(lambda _: self._to_see.set())
            try:
                return self._wait_for(launched, launch, hub)
            except NotStartedError as error:
                raise JobError(self._why_not_started(error.started, start_s)) from error
            finally:
                run_in_background(launch.close, name="firn-close")
                launch.cancel(timeout_s=_CANCELLED_S)  # where it has not ended, as after Ctrl-C

    def _wait_for(self, launched: "Future[list[Result]]", launch: "SparkLaunch[Result]", hub: Hub) -> list[Result]:
        """The results, or the error that says best what has happened. Returns some seconds after a verdict, whatever hangs."""
        self._to_see.wait()
        if not _has_ended(launched, _BY_THEMSELVES_S):
            launch.abort()
            _has_ended(launched, _ABORTED_S)
        if hub.verdict is not None:
            raise JobError(hub.verdict)
        error = launched.exception()
        if error is None or isinstance(error, FirnError):
            return launched.result()
        raise JobError(f"the Spark job of the ranks failed: {first_line(error)}") from error

    def _why_not_started(self, started: int, start_s: int) -> str:
        slots, ranks = concurrent_tasks(self._session), self._num_ranks
        others = max(0, count_running_tasks(self._session.sparkContext) - started)
        return (
            f"{ranks} ranks need {ranks} Spark tasks that run at the same time, and {started} were started within {start_s} s: "
            f"this session runs {slots} at a time, and other jobs have {others} of them. Wait for those jobs, take fewer ranks, "
            "give the session more executors, or set HOROVOD_SPARK_START_TIMEOUT to wait longer."
        )


def _has_ended(future: "Future[Any]", timeout_s: float) -> bool:
    """Whether it has a result or an error, `timeout_s` seconds from now at the latest."""
    return not wait([future], timeout=timeout_s).not_done
