"""Sessions that start in a thread; each test has a process of its own, as the tests' session is there already."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from featurize.building.starting_session import ready_session

pytestmark = pytest.mark.spark

_USED = """
import json, os, signal, sys, threading
from pyspark import SparkContext
from pyspark.sql import SparkSession
from featurize.building.session import make_session
from featurize.building.spark_jobs import run_tasks
from featurize.building.starting_session import start_session

def look(batches):
    import json, os, sys
    import pyarrow as pa
    for batch in batches:
        found = [name in sys.modules for name in ("keras", "sklearn")]
        yield pa.RecordBatch.from_arrays([pa.array([json.dumps(found)])], names=["found"])

before = signal.getsignal(signal.SIGINT)
with start_session("firn tests", warm_up="tensorflow") as starting:
    session = starting.wait()
    active = SparkSession.getActiveSession() is session
    same = make_session("another") is session
    for thread in threading.enumerate():  # the driver is faster here than workers import Keras
        if thread.name == "firn-session":
            thread.join()
    worker = json.loads(run_tasks(session, look, tasks=1)[0]["found"])
ended = SparkContext._active_spark_context is None
print(json.dumps([active, same, worker, ended, signal.getsignal(signal.SIGINT) is before]))
"""
_LEFT_BY_AN_ERROR = """
from pyspark import SparkContext
from featurize.building.starting_session import start_session
try:
    with start_session("firn tests", warm_up="tensorflow"):
        raise ValueError("the backbone is wrong")
except ValueError as error:
    print(error, SparkContext._active_spark_context is None)
"""
_LEFT_WITH_A_TASK = """
import sys, threading, time
from contextlib import suppress
from pathlib import Path
from featurize.building.session import open_session

running = Path(sys.argv[1])

def wait(batches):
    import time
    running.touch()
    time.sleep(600)
    yield from batches

def work(session):
    with suppress(Exception):
        session.range(0, 1, 1, 1).mapInArrow(wait, "id long").collect()

with open_session("firn tests") as session:
    threading.Thread(target=work, args=[session], daemon=True).start()
    while not running.exists():
        time.sleep(0.05)
print("left")
"""
_NO_SPARK = """
from pyspark.errors import PySparkRuntimeError
from featurize.building.starting_session import ready_session, start_session
try:
    with start_session("firn tests") as starting:
        ready_session(starting)
except PySparkRuntimeError as error:
    print(error.getErrorClass())
"""


def run(program: str, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", program, *arguments]
    variables = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=variables, timeout=120)


def test_a_session_is_active_where_it_is_waited_for_and_its_workers_have_keras() -> None:
    made = run(_USED)
    assert json.loads(made.stdout) == [True, True, [True, False], True, True]
    assert made.stderr == ""


def test_a_session_that_is_still_starting_is_stopped_when_the_block_fails() -> None:
    made = run(_LEFT_BY_AN_ERROR)
    assert made.stdout == "the backbone is wrong True\n"
    assert made.stderr == ""


def test_a_session_that_is_left_with_a_task_at_work_ends_without_traces_of_java(tmp_path: Path) -> None:
    left = run(_LEFT_WITH_A_TASK, str(tmp_path / "running"))
    assert left.stdout == "left\n"
    assert "\tat " not in left.stderr
    assert "Exception" not in left.stderr


def test_what_keeps_spark_from_starting_is_raised_where_it_is_waited_for() -> None:
    assert run(_NO_SPARK, PYSPARK_SUBMIT_ARGS="--no-such-option pyspark-shell").stdout == "JAVA_GATEWAY_EXITED\n"


def test_a_session_that_is_given_is_used_as_it_is(spark: SparkSession) -> None:
    assert ready_session(spark) is spark


def test_a_session_whose_java_would_miss_files_is_refused() -> None:
    """It was started by others, in a locale in which Java sees no file with other letters than those of ASCII."""
    program = """
from pyspark.sql import SparkSession
from featurize.building.session import check_file_names
from featurize.errors import UsageError
from featurize.java import find_java

find_java()
session = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
check_file_names(session, "hdfs://node:8020/images")
try:
    check_file_names(session, "file:///images")
except UsageError as error:
    print(error)
session.stop()
"""
    said = run(program, LC_ALL="POSIX").stdout
    assert "takes file names for ANSI_X3.4-1968" in said
    assert "LC_ALL=C.UTF-8" in said
