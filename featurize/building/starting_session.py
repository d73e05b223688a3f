"""A Spark session that starts in a thread, while the driver imports TensorFlow and prepares the network."""

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress

import pyarrow as pa
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from featurize.backbones.tensorflow_log import standard_error
from featurize.building.session import concurrent_tasks, is_submitted, session_builder, stop_session
from featurize.building.spark_jobs import run_tasks
from featurize.building.worker import Worker, use_task_resources
from featurize.engines.engine import NAMES, Engine, import_engine
from featurize.progress import stage

_WARM_UP = "firn warm-up"


class StartingSession:
    """A session that is starting. The thread that makes this object looks for Java and sets the environment.

    Args:
        name: name of the Spark application.
        slots: see `make_session`.
        warm_up: the engine that the Python workers of a local session import as soon as the session has started.

    Raises:
        JobError: no Java was found.
    """

    def __init__(self, name: str, *, slots: int | None = None, warm_up: Engine | None = None) -> None:
        self._builder = session_builder(name, slots=slots)
        self._warm_up = None if is_submitted() else warm_up
        self._is_closed = threading.Event()
        self._session: Future[SparkSession] = Future()
        self._thread = threading.Thread(target=self._start, name="firn-session", daemon=True)
        self._thread.start()

    def wait(self) -> SparkSession:
        """Waits for the session, makes it active in the calling thread, and returns it.

        Raises:
            Exception: whatever kept Spark from starting.
        """
        if not self._session.done():
            stage("waiting for Spark")
        session = self._session.result()
        # Each thread has its own active session, and another thread made this one.
        jvm = session.sparkContext._jvm
        if jvm is not None:
            jvm.org.apache.spark.sql.SparkSession.setActiveSession(session._jsparkSession)
        return session

    def stop(self) -> None:
        """Stops the session, also one that is still starting; one that could not start is nothing to stop."""
        self._is_closed.set()
        if self._session.exception() is not None:
            return
        session = self._session.result()
        if self._thread.is_alive():
            session.sparkContext.cancelJobGroup(_WARM_UP)
            self._thread.join()
        stop_session(session)

    def _start(self) -> None:
        try:
            with standard_error:  # Java keeps the standard error of this moment
                session = self._builder.getOrCreate()
        except BaseException as error:  # it is raised where the session is waited for
            self._session.set_exception(error)
            return
        self._session.set_result(session)
        if self._warm_up is not None and not self._is_closed.is_set():
            with suppress(Py4JError, PySparkException):  # a worker that cannot import fails in the job itself, too
                _warm_up(session, self._warm_up)


@contextmanager
def start_session(name: str, *, slots: int | None = None, warm_up: Engine | None = None) -> Iterator[StartingSession]:
    """A session that starts while the block runs, and is stopped when it ends. For the arguments see `StartingSession`."""
    starting = StartingSession(name, slots=slots, warm_up=warm_up)
    try:
        yield starting
    finally:
        starting.stop()


@contextmanager
def borrowed_or_starting(
    spark: SparkSession | None, name: str, *, warm_up: Engine | None = None
) -> Iterator[SparkSession | StartingSession]:
    """The session of a call: `spark`, or else the active session, neither of which is stopped; or one that starts for this call.

    Raises:
        JobError: a session must be made, and no Java was found.
    """
    there = spark if spark is not None else SparkSession.getActiveSession()
    if there is not None:
        yield there
        return
    with start_session(name, warm_up=warm_up) as starting:
        yield starting


def ready_session(spark: SparkSession | StartingSession) -> SparkSession:
    """The session itself; waits for one that is still starting."""
    return spark.wait() if isinstance(spark, StartingSession) else spark


def _warm_up(session: SparkSession, engine: Engine) -> None:
    """Makes each worker process import what it will need. Spark keeps the processes for the job that follows."""
    # Without interrupts, of which Java would write a trace: Spark ends the worker of a cancelled task after 2 s.
    session.sparkContext.setJobGroup(_WARM_UP, f"workers import {NAMES[engine]}")
    slots = concurrent_tasks(session)
    run_tasks(session, _importer(engine), tasks=slots)


def _importer(engine: Engine) -> Worker:
    def import_it(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        use_task_resources(tensorflow=engine == "tensorflow")
        import_engine(engine)
        yield from batches

    return import_it
