"""The Spark session: finding Java, tasks that fit the machine, and the settings that work on images needs."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep

from py4j.protocol import Py4JError
from pyspark import SparkContext
from pyspark.sql import SparkSession

from featurize import storage
from featurize.backbones.lean_keras import LEAN_KERAS
from featurize.errors import UsageError
from featurize.java import archive_options, find_java, name_files_in_utf8
from featurize.progress import stage

_LOG_SETTINGS = Path(__file__).with_name("log4j2.properties")
_TASK_TRIES = 4  # as on a cluster; Spark's own local default is one
_TASKS_END_S = 10.0  # how long cancelled tasks may take to end; Spark kills their Python workers after 2 s
_JAVA_IN_HASTE = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
# PySpark sets these in the thread that makes a session. They are set before, as a new variable may move the whole environment
# in memory while another thread reads it.
_SET_BY_PYSPARK = {"SPARK_AUTH_SOCKET_TIMEOUT": "15", "SPARK_BUFFER_SIZE": "65536"}


def make_session(name: str, *, slots: int | None = None, java_computes: bool = False) -> SparkSession:
    """The Spark session of a job, or the one that `spark-submit` or a notebook has started.

    Without `spark-submit` it runs on this machine, on all cores that this process may use. A featurizing task is one Python
    worker with one network in memory and a thread for each core of the task, so one task has all the cores.

    Args:
        slots: run this many tasks at the same time, each with its share of the cores, even if there are fewer cores: ranks
            wait for each other.
        java_computes: whether Spark itself works on rows, as it does for SQL. Otherwise Python does the work, and Java compiles
            its code quickly and optimizes it less, which halves the processor time until a job is under way.

    Raises:
        JobError: no Java was found.
    """
    return session_builder(name, slots=slots, java_computes=java_computes).getOrCreate()


def session_builder(name: str, *, slots: int | None = None, java_computes: bool = False) -> SparkSession.Builder:
    """The builder of the session of `make_session`. It sets the environment, so that a thread may make the session.

    Raises:
        JobError: no Java was found.
    """
    builder = SparkSession.builder.appName(name).config("spark.sql.session.timeZone", "UTC")  # whatever TZ says
    if SparkSession.getActiveSession() is None:
        stage("starting Spark")
        builder = builder.config(f"spark.executorEnv.{LEAN_KERAS}", "1")
        for variable, value in _SET_BY_PYSPARK.items():
            os.environ.setdefault(variable, value)
    if not is_submitted():
        java = find_java()
        name_files_in_utf8()
        os.environ["PYSPARK_PYTHON"] = sys.executable
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
        os.environ.setdefault(
            "SPARK_LAUNCHER_OPTS", " ".join(_JAVA_IN_HASTE)
        )  # of the Java that only finds the command
        cores = len(os.sched_getaffinity(0))
        if slots is None:
            builder = builder.master(f"local[{cores},{_TASK_TRIES}]").config("spark.task.cpus", cores)
        else:
            share = max(1, cores // slots)
            builder = builder.master(f"local[{slots * share}]").config("spark.task.cpus", share)
        log_settings = f"-Dlog4j2.configurationFile={_LOG_SETTINGS.as_uri()}"
        builder = builder.config("spark.ui.enabled", "false").config("spark.ui.showConsoleProgress", "false")
        builder = builder.config("spark.driver.host", "127.0.0.1").config(
            "spark.driver.extraJavaOptions",
            " ".join([log_settings, *archive_options(java), *([] if java_computes else _JAVA_IN_HASTE)]),
        )
        builder = builder.config("spark.driver.memory", "2g")
    return builder


@contextmanager
def open_session(name: str, *, slots: int | None = None, java_computes: bool = False) -> Iterator[SparkSession]:
    """The session of a command, stopped when the command ends; otherwise the executors would log errors at their end."""
    session = make_session(name, slots=slots, java_computes=java_computes)
    try:
        yield session
    finally:
        stop_session(session)


def stop_session(session: SparkSession) -> None:
    """Stops a session that Firn has made, its jobs first: Spark prints Java traces for a task that outlives its session."""
    context = session.sparkContext
    if context._jsc is not None and is_local(session):
        with suppress(Py4JError):  # the JVM is gone, and its tasks with it
            context.cancelAllJobs()
            deadline = monotonic() + _TASKS_END_S
            while count_running_tasks(context) and monotonic() < deadline:
                sleep(0.05)
    session.stop()


@contextmanager
def borrowed_session(spark: SparkSession | None, name: str, *, slots: int | None = None) -> Iterator[SparkSession]:
    """The session of a call: `spark`, or else the active session, neither of which is stopped; or else one made for this call.

    Args:
        name: name of the application, if a session is made.
        slots: see `make_session`; an existing session keeps its own.

    Raises:
        JobError: a session must be made, and no Java was found.
    """
    there = spark if spark is not None else SparkSession.getActiveSession()
    if there is not None:
        yield there
        return
    with open_session(name, slots=slots) as session:
        yield session


def session_at_hand(spark: SparkSession | None) -> SparkSession:
    """`spark`, or else the active session.

    Raises:
        UsageError: there is neither.
    """
    there = spark if spark is not None else SparkSession.getActiveSession()
    if there is None:
        raise UsageError("`spark` must be a Spark session, as none is active. Got None.")
    return there


def check_file_names(session: SparkSession, *urls: str) -> None:
    """Checks that Spark's Java can read the local files at `urls`, whose names may have any letters.

    Raises:
        UsageError: it takes names for another encoding than UTF-8, and would miss files silently.
    """
    jvm = session.sparkContext._jvm
    if jvm is None or not any(storage.is_local(url) for url in urls):
        return
    encoding = str(jvm.java.lang.System.getProperty("sun.jnu.encoding"))
    if "UTF" not in encoding.upper():
        raise UsageError(
            f"the Java of this Spark session takes file names for {encoding}, and would miss those with other letters. "
            "Start Spark with LC_ALL=C.UTF-8 in its environment, and executors with spark.executorEnv.LC_ALL=C.UTF-8."
        )


def concurrent_tasks(session: SparkSession) -> int:
    """Number of tasks of this session that run at the same time."""
    conf = session.sparkContext.getConf()
    return max(1, session.sparkContext.defaultParallelism // int(conf.get("spark.task.cpus", "1") or 1))


def count_running_tasks(context: SparkContext) -> int:
    """The number of tasks of this session that run now, in all its jobs."""
    java = context._jsc
    if java is None:
        return 0
    # The scheduler's own count: that of the status tracker lags behind, and may stay so until the next task begins or ends.
    by_executor = java.sc().taskScheduler().runningTasksByExecutors().values().mkString(" ")
    return sum(map(int, by_executor.split()))


def is_local(session: SparkSession) -> bool:
    """Whether the tasks of this session run inside the driver's Java, whose standard error is the driver's."""
    return (session.sparkContext.master or "").startswith("local")


def is_submitted() -> bool:
    """Whether `spark-submit` or a notebook has chosen the master already."""
    return "PYSPARK_GATEWAY_PORT" in os.environ or SparkSession.getActiveSession() is not None
