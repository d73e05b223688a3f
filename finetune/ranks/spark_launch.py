"""Starts ranks in the tasks of a Spark job by Horovod's own services, with a limit to every wait.

It does what `horovod.spark.run` of Horovod 0.28.1, its last release, does with Gloo, and calls the same parts of it. That
function cannot be used in a session that has other users. It takes SIGINT and SIGTERM for itself and keeps them, which only
the main thread may do; it waits without end for a Spark job that does not end; it leaves its servers open; and it forks this
process and imports TensorFlow in the child to learn whether Gloo was built, which takes six seconds. Here this is not checked:
a rank without Gloo says so itself.
"""

import copy
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from featurize.console import warn
from featurize.errors import JobError
from finetune.ranks.background import run_in_background
from finetune.ranks.spark_job import RankJob, Task

if TYPE_CHECKING:
    from pyspark import SparkConf, SparkContext

Result = TypeVar("Result")
_CLOSES_NETWORK = ("spark.authenticate", "spark.network.crypto.enabled")


class NotStartedError(JobError):
    """Spark did not start all tasks in time. `started` is the number of those that it did start."""

    def __init__(self, started: int) -> None:
        super().__init__(f"{started} tasks were started in time.")
        self.started = started


class SparkLaunch(Generic[Result]):
    """One launch of ranks. `run` waits for them; the other methods, called from another thread, end what it waits for.

    Args:
        context: the context of a session, which may have other jobs.
        num_ranks: the number of ranks.
        work: the function of each rank.
        start_timeout_s: seconds in which Spark must start all tasks.
        host: the address that the services of the driver listen on.
        key: the secret of this job, which Spark takes to the tasks.
    """

    def __init__(
        self,
        context: "SparkContext",
        num_ranks: int,
        work: Callable[[], Result],
        *,
        start_timeout_s: int,
        host: str,
        key: bytes,
    ) -> None:
        from horovod.runner.common.util.settings import Settings
        from horovod.runner.common.util.timeout import Timeout

        from finetune.ranks.horovod_services import DriverService, Rendezvous

        self._context, self._key = context, key
        self._executable = context.pythonExec  # the executors' Python: the driver's own path may not exist there
        timeout = Timeout(start_timeout_s, message="Timed out waiting for {activity}.")
        self._settings = Settings(
            num_proc=num_ranks, key=self._key, start_timeout=timeout, run_func_mode=True, verbose=0
        )
        self._driver = DriverService(host, num_ranks, work, key)
        self._rendezvous = Rendezvous(host)
        self._job = RankJob(context, num_ranks, _make_task(self._driver.addresses(), key, self._settings))
        self._job_ended: Future[list[Any]] = Future()
        self._clients: list[Any] = []

    def run(self, on_launch: Callable[[], None]) -> list[Result]:
        """Starts the ranks and returns what each of them returns, by rank.

        Args:
            on_launch: called when all tasks run, before the first rank is started.

        Raises:
            NotStartedError: Spark did not start all tasks in time.
            JobError: a rank ended with another exit status than 0; or the Spark job failed.
        """
        from horovod.runner.common.util.timeout import TimeoutException
        from horovod.spark import runner

        self._job_ended = self._job.start()
        self._job_ended.add_done_callback(self._tell_driver)
        try:
            runner._notify_and_register_task_addresses(self._driver, self._settings)
            on_launch()
            statuses = _statuses(self._start_ranks())
        except TimeoutException as error:
            raise NotStartedError(len(self._driver.task_indices())) from error
        except Exception:  # Horovod has no error of its own for a Spark job that failed
            if self._job_ended.done():
                self._job_ended.result()  # raises the one that says why
            raise
        failed = {rank: status for rank, status in statuses.items() if status != 0}
        results = self._job_ended.result()
        if failed:
            listed = " and ".join(f"rank {rank} (exit status {status})" for rank, status in failed.items())
            raise JobError(f"the output above says why ranks failed: {listed}.")
        return [results[index] for index in runner._get_indices_in_rank_order(self._driver)]

    def abort(self) -> None:
        """Has Horovod end the ranks: by SIGTERM, and five seconds later by SIGKILL. It does not wait for that."""
        for client in self._clients:
            run_in_background(client.abort_command, name="firn-abort")

    def cancel(self, *, timeout_s: float) -> None:
        """Cancels the Spark job and waits for its end, but not longer than `timeout_s` seconds."""
        self._job.cancel(self._job_ended, timeout_s=timeout_s)

    def close(self) -> None:
        """Closes the servers of this launch."""
        self._driver.shutdown()
        if self._rendezvous._httpd is not None:
            self._rendezvous.stop()
            self._rendezvous._httpd.server_close()

    def _tell_driver(self, ended: "Future[list[Any]]") -> None:
        """Ends the wait for tasks to register, if the Spark job has failed."""
        if ended.exception() is not None:
            self._driver.notify_spark_job_failed()

    def _start_ranks(self) -> "dict[int, Future[int | None]]":
        """Has each task start its rank; the futures have the exit statuses, None where the task is gone."""
        from horovod.runner import gloo_run
        from horovod.runner.common.util import codec
        from horovod.runner.common.util.hosts import get_host_assignments, parse_hosts
        from horovod.spark.common.util import host_hash

        interfaces = self._driver.get_common_interfaces()
        tasks_of_hosts = self._tasks_of_hosts()
        if len({host_hash(), *tasks_of_hosts}) > 1:
            warn_of_open_network(self._context.getConf())
        hosts = parse_hosts(",".join(f"{host}:{len(tasks)}" for host, tasks in tasks_of_hosts.items()))
        slots = get_host_assignments(hosts, self._settings.num_proc)
        port = self._rendezvous.start_for(self._addresses_of_tasks())
        self._rendezvous.init(slots)
        settings = copy.copy(self._settings)
        settings.key = None  # not on a command line; ranks get it from their tasks
        program = [self._executable, "-m", "horovod.spark.task.gloo_exec_fn"]
        program += [codec.dumps_base64(self._driver.addresses()), codec.dumps_base64(settings)]
        server = self._driver.addresses()[next(iter(interfaces))][0][0]
        command = gloo_run.get_run_command(program, server, interfaces, port)
        make_command = gloo_run._slot_info_to_command_fn(command, {})
        return {
            slot.rank: run_in_background(
                partial(self._run_rank, tasks_of_hosts[slot.hostname][slot.local_rank], make_command(slot)),
                name=f"firn-rank-{slot.rank}",
            )
            for slot in slots
        }

    def _tasks_of_hosts(self) -> dict[str, list[int]]:
        """The numbers of the tasks on each host, by the hash of the host; that of task 0 comes first, as rank 0 is there."""
        tasks = self._driver.task_host_hash_indices()
        return {host: tasks[host] for host in sorted(tasks, key=lambda host: (0 not in tasks[host], host))}

    def _addresses_of_tasks(self) -> set[str]:
        every = [self._driver.all_task_addresses(index) for index in self._driver.task_indices()]
        return {address for task in every for interface in task.values() for address, _ in interface}

    def _run_rank(self, index: int, command: str) -> int | None:
        """Runs the command of a rank in task `index`, with its output on standard error, and returns its exit status."""
        from horovod.runner.common.service.task_service import StreamCommandStdErrRequest, StreamCommandStdOutRequest
        from horovod.spark.task.task_service import SparkTaskClient

        client = SparkTaskClient(index, self._driver.all_task_addresses(index), self._key, verbose=0)
        self._clients.append(client)
        for request in (StreamCommandStdOutRequest(), StreamCommandStdErrRequest()):
            streamed = run_in_background(partial(client._send, request, sys.stderr), name="firn-output")
            streamed.add_done_callback(partial(_abort_unread, client))
        client.run_command(command, {}, capture_stdout=True, capture_stderr=True)
        status: int | None = client.wait_for_command_exit_code()
        return status


def _make_task(driver: dict[str, list[tuple[str, int]]], key: bytes, settings: Any) -> Task:
    """The function of each task; Horovod's settings leave out their key when they are pickled, so it goes beside them."""

    def run(index: int, _: Iterable[int]) -> Iterator[Any]:
        from finetune.ranks.horovod_services import serve_rank

        yield serve_rank(index, driver, key, settings)

    return run


def warn_of_open_network(conf: "SparkConf") -> None:
    """Says that others on the network can read or disturb the ranks, where Spark does not keep their key from them."""
    missing = [name for name in _CLOSES_NETWORK if conf.get(name, "false").lower() != "true"]
    if missing:
        warn(
            f"the ranks are on several hosts and {' and '.join(f'`{name}`' for name in missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set: whoever reaches their network can read the key of this training "
            "and what its ranks exchange, and can end it. See `On a cluster` in the documentation."
        )


def _abort_unread(client: Any, streamed: "Future[Any]") -> None:
    """Ends a rank whose output can no longer be read: it would wait without end once its pipe is full."""
    if streamed.exception() is not None:
        run_in_background(client.abort_command, name="firn-abort")


def _statuses(ranks: "dict[int, Future[int | None]]") -> dict[int, int | None]:
    """The exit statuses of all ranks, once all have ended."""
    wait(ranks.values())
    return {rank: None if ended.exception() is not None else ended.result() for rank, ended in ranks.items()}
