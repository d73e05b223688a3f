"""Ranks through Horovod: under `horovodrun`, or as tasks of a Spark job. The only module that imports Horovod."""

import os
import posixpath
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from featurize.backbones import set_threads
from featurize.errors import FirnError, JobError, first_line
from finetune.fit import Communicator, SingleRank

if TYPE_CHECKING:
    from pyspark import SparkContext

Result = TypeVar("Result")
_START_TIMEOUT_S = 120
_PEER_GONE = "another rank is gone; its own output says why."


class HorovodRanks:
    """The ranks of a Horovod job that has been initialised."""

    def __init__(self) -> None:
        import horovod.tensorflow as hvd

        self._hvd = hvd
        self.rank: int = hvd.rank()
        self.size: int = hvd.size()

    def sum(self, tensor: Any) -> Any:
        """The sum of `tensor` over all ranks."""
        return self._hvd.allreduce(tensor, op=self._hvd.Sum)


def launched_by_horovodrun() -> bool:
    """Whether this process is a rank that `horovodrun` started."""
    return "HOROVOD_RANK" in os.environ and "HOROVOD_SIZE" in os.environ


@contextmanager
def open_ranks(*, distributed: bool) -> Iterator[Communicator]:
    """The communicator of this process, its TensorFlow given the cores that are its share."""
    cores = len(os.sched_getaffinity(0))
    if not distributed:
        set_threads(cores)
        yield SingleRank()
        return
    import horovod.tensorflow as hvd

    hvd.init()
    set_threads(max(1, cores // hvd.local_size()))
    import tensorflow as tf
    from horovod.common.exceptions import HorovodInternalError

    try:
        yield HorovodRanks()
    except (tf.errors.UnknownError, HorovodInternalError) as error:  # what a collective raises when a rank is gone
        raise JobError(_PEER_GONE) from error
    finally:
        hvd.shutdown()


def run_on_spark(work: Callable[[], Result], num_proc: int) -> Result:
    """Runs `work` on `num_proc` ranks, each a task of a Spark job, and returns what rank 0 returns.

    Raises:
        JobError: a rank failed; the message is the first failing rank's own.
    """
    import horovod.spark

    from featurize.session import open_session

    with open_session("firn fit", slots=num_proc) as session:
        _give_ranks_py_files(session.sparkContext)
        try:
            results = horovod.spark.run(
                _reporting_errors(work),
                num_proc=num_proc,
                use_gloo=True,
                executable=session.sparkContext.pythonExec,  # the executors' Python: the driver's own path may not exist there
                start_timeout=_START_TIMEOUT_S,
                stdout=sys.stderr,
                stderr=sys.stderr,
                verbose=0,
            )
        except Exception as error:  # Horovod has no error of its own here: a rank that died, a timeout, too few slots
            raise JobError(f"a rank failed, and its output is above: {first_line(error)}") from error
    messages = [message for message, _ in results if message is not None]
    if messages:
        raise JobError(next((message for message in messages if message != _PEER_GONE), messages[0]))
    result: Result = results[0][1]
    return result


def _give_ranks_py_files(context: "SparkContext") -> None:
    """Puts the files of `spark-submit --py-files` on the path of the ranks.

    A rank is a process that a Spark task starts, and Spark puts these files on the path of its own Python workers only. They
    lie in the working directory of every executor, which is that of the ranks too.
    """
    names = [posixpath.basename(path) for path in context.getConf().get("spark.submit.pyFiles", "").split(",") if path]
    if names:
        before = context.environment.get("PYTHONPATH")
        context.environment["PYTHONPATH"] = os.pathsep.join([*names, before] if before else names)


def _reporting_errors(work: Callable[[], Result]) -> Callable[[], tuple[str | None, Result | None]]:
    """`work`, returning the message of an error that Firn raised on purpose: raised, it would arrive as a trace."""

    def wrapped() -> tuple[str | None, Result | None]:
        try:
            return None, work()
        except FirnError as error:
            return str(error), None

    return wrapped
