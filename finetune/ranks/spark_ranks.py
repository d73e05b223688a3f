"""The driver's part of ranks that are tasks of a Spark job: starts them, hears from them, and ends those that are left."""

import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

from featurize.building.session import concurrent_tasks, count_running_tasks, is_local, open_session
from featurize.errors import FirnError, JobError, first_line
from finetune.ranks.background import run_in_background
from finetune.ranks.horovod_ranks import HUB_VARIABLE, PEER_GONE, TIMEOUT_S
from finetune.ranks.hub import STANDSTILL_S, Hub
from finetune.ranks.hub_address import LOOPBACK
from finetune.ranks.hub_messages import Address, hub_key, process_name
from finetune.ranks.signals import stop_on_signals
from finetune.ranks.spark_job import check_slots
from finetune.ranks.spark_launch import NotStartedError, SparkLaunch

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Result = TypeVar("Result")
_START_TIMEOUT_S = "50"  # for Spark to start all tasks
# After a verdict ranks may end by themselves, then by Horovod's abort (five seconds of it between SIGTERM and SIGKILL), then by
# the end of the Spark job. In all, with the timeout before them, less than a minute.
_BY_THEMSELVES_S, _ABORTED_S, _CANCELLED_S = 2.0, 10.0, 4.0


def run_on_spark(
    work: Callable[[], Result],
    num_ranks: int,
    *,
    spark: "SparkSession | None" = None,
    timeout_s: float = TIMEOUT_S,
    standstill_s: float = STANDSTILL_S,
    on_told: Callable[[dict[str, float]], None] | None = None,
) -> Result:
    """Runs `work` on `num_ranks` ranks, each a task of a Spark job, and returns what rank 0 returns.

    SIGTERM to this process is passed on to all ranks, each of which decides how it ends.

    Args:
        work: the function of each rank, which first calls `open_ranks`.
        num_ranks: the number of ranks, each of which takes a free slot of the session.
        spark: the session; it is not stopped, and no other jobs of it are touched. Default: the active one, or else one that is
            made for these ranks and stopped after them.
        timeout_s: seconds after which a rank that is not heard of counts as stalled.
        standstill_s: seconds after which ranks that live but report nothing new count as stuck.
        on_told: called with the numbers that ranks `tell`.

    Raises:
        UsageError: the session has fewer slots than there are ranks.
        JobError: a rank failed; the message is its own, or says which rank died or stalled. Or not all ranks were started.
    """
    with _session_for(spark, num_ranks) as session:
        ranks = SparkRanks(session, num_ranks, timeout_s=timeout_s, standstill_s=standstill_s, on_told=on_told)
        results = ranks.run(lambda hub: _reporting_errors(work, hub))
    messages = [message for message, _ in results if message is not None]
    if messages:
        raise JobError(next((message for message in messages if message != PEER_GONE), messages[0]))
    return cast(Result, results[0][1])


class SparkRanks:
    """Ranks in the free slots of a Spark session. The hub is in this process, the driver; after its verdict they are ended.

    The session stays as it was: only the job of these ranks is ever cancelled. Everything that may wait without end does so in
    threads that this process need not wait for.

    Args:
        session: the session, which may have other jobs.
        num_ranks: the number of ranks.
        timeout_s: seconds after which a rank that is not heard of counts as stalled.
        standstill_s: seconds after which ranks that live but report nothing new count as stuck.
        on_told: called with the numbers that ranks tell the driver.
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
        self._to_see = threading.Event()  # set when the launch has ended, or when there is a verdict

    def run(self, make_work: Callable[[Address], Callable[[], Result]]) -> list[Result]:
        """Runs on each rank the function that `make_work` makes from the hub's address; returns the results by rank.

        Raises:
            UsageError: the session has fewer slots than there are ranks.
            JobError: a rank or its task died, stalled or failed, or did not start.
        """
        from pyspark import InheritableThread

        from finetune.ranks.horovod_services import listening_address

        check_slots(self._session, self._num_ranks)
        context = self._session.sparkContext
        known_as = context.getConf().get("spark.driver.host", "")
        bound = context.getConf().get("spark.driver.bindAddress") or known_as
        host, key = listening_address(bound, is_local=is_local(self._session)), secrets.token_bytes(32)
        hub = Hub(
            self._num_ranks,
            name=process_name("the driver"),
            timeout_s=self._timeout_s,
            standstill_s=self._standstill_s,
            on_verdict=lambda message, rank_says_it: self._to_see.set(),
            on_told=self._on_told,
            host=host,
            key=hub_key(key),
        )
        with hub, stop_on_signals(signal.SIGTERM, on_signal=hub.pass_on_signal):
            address = hub.address(host if host == LOOPBACK else known_as)
            start_s = int(os.environ.get("HOROVOD_SPARK_START_TIMEOUT", _START_TIMEOUT_S))
            launch = SparkLaunch(
                context, self._num_ranks, make_work(address), start_timeout_s=start_s, host=host, key=key
            )
            # It inherits what the caller's thread has set, such as its scheduler pool and its job group: who cancels that group
            # cancels the job of the ranks too.
            launched = run_in_background(
                lambda: launch.run(hub.expect_ranks), name="firn-launch", thread_class=InheritableThread
            )
            launched.add_done_callback(lambda _: self._to_see.set())
            try:
                return self._wait_for(launched, launch, hub)
            except NotStartedError as error:
                raise JobError(self._why_not_started(error.started, start_s)) from error
            finally:
                run_in_background(launch.close, name="firn-close")
                launch.cancel(timeout_s=_CANCELLED_S)  # where it has not ended, as after Ctrl-C

    def _wait_for(self, launched: "Future[list[Result]]", launch: "SparkLaunch[Result]", hub: Hub) -> list[Result]:
        """The results, or the error that says most. Returns some seconds after a verdict, whatever hangs."""
        self._to_see.wait()
        if not _has_ended(launched, _BY_THEMSELVES_S):
            launch.abort()
            _has_ended(launched, _ABORTED_S)
        error = launched.exception() if launched.done() else None
        if launched.done() and error is None:  # the ranks say themselves what their errors were
            return launched.result()
        if hub.verdict is not None:
            raise JobError(hub.verdict) from error
        if isinstance(error, FirnError):
            raise error
        why = first_line(error) if error is not None else "the job does not end"
        raise JobError(f"the ranks could not be started: {why}") from error

    def _why_not_started(self, started: int, start_s: int) -> str:
        slots, ranks = concurrent_tasks(self._session), self._num_ranks
        others = max(0, count_running_tasks(self._session.sparkContext) - started)
        return (
            f"{ranks} ranks need {ranks} Spark tasks that run at the same time, and {started} were started within {start_s} s: "
            f"this session runs {slots} at a time, and other jobs use {others} of them. Wait for those jobs, take fewer ranks, "
            "give the session more executors, or set HOROVOD_SPARK_START_TIMEOUT to wait longer."
        )


def _has_ended(future: "Future[Any]", timeout_s: float) -> bool:
    """Waits for a result or an error, but not longer than `timeout_s` seconds; returns whether there is one."""
    return not wait([future], timeout=timeout_s).not_done


@contextmanager
def _session_for(spark: "SparkSession | None", num_ranks: int) -> Iterator["SparkSession"]:
    """The session that was given, or the active one, neither of which is stopped; or else a new one for these ranks."""
    from pyspark.sql import SparkSession

    session = spark or SparkSession.getActiveSession()
    if session is not None:
        yield session
    else:
        with open_session("firn fit", slots=num_ranks) as own:
            yield own


def _reporting_errors(work: Callable[[], Result], hub: Address) -> Callable[[], tuple[str | None, Result | None]]:
    """`work`, returning the message of a Firn error; if it were raised, it would arrive as a stack trace."""

    def wrapped() -> tuple[str | None, Result | None]:
        os.environ[HUB_VARIABLE] = str(hub)
        try:
            return None, work()
        except FirnError as error:
            return str(error), None

    return wrapped
