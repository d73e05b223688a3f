"""Ranks in a Spark session of the caller: whatever becomes of them, the session, its other jobs and the process go on."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.project import ROOT
from helpers.services.processes import java_environment
from helpers.tables.feature_sets import make_clusters, write_feature_set

pytestmark = [pytest.mark.spark, pytest.mark.horovod, pytest.mark.slow]
PROGRAM = ROOT / "tests" / "helpers" / "services" / "session_program.py"
HOST = re.escape(socket.gethostname())
GOES_ON = {"rows": 1000, "ranks_ended": True, "slow_job_alone": True, "threads_ended": True, "sigterm": True}


def run_program(folder: Path, *steps: str, **variables: str) -> dict[str, Any]:
    """What a process saw that did these steps in its own session."""
    features, label_index = make_clusters(333, dim=9, n_classes=3, spread=3.0)
    write_feature_set(folder / "set", features, label_index)
    environment = java_environment() | {"TF_CPP_MIN_LOG_LEVEL": "2"} | variables
    command = [sys.executable, str(PROGRAM), str(folder), *steps]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=420, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process saw in which two ranks failed in every way, one after the other, and trained in between."""
    steps = ("killed", "trained", "stopped", "busy", "interrupted")
    return run_program(tmp_path_factory.mktemp("session"), *steps)


def assert_goes_on(step: dict[str, Any]) -> None:
    assert {key: step[key] for key in GOES_ON} == GOES_ON


@pytest.mark.parametrize(
    ("step", "ending"),
    [("killed", "is gone: killed or crashed."), ("stopped", "has not been heard of for 8 s: stalled.")],
)
def test_a_rank_that_is_lost_is_an_error_that_names_it(seen: dict[str, Any], step: str, ending: str) -> None:
    wanted = rf"rank 1 \(process {seen[step]['pid']} on {HOST}\), last in epoch 1, step \d+ {re.escape(ending)}"
    assert re.fullmatch(wanted, seen[step]["error"])
    assert seen[step]["class"] == "JobError"
    assert_goes_on(seen[step])


def test_a_process_that_has_lost_a_rank_trains_in_the_same_session(seen: dict[str, Any]) -> None:
    assert seen["trained"]["ranks"] == 2
    assert seen["trained"]["told"] == [1.0, 2.0, 3.0]
    assert seen["trained"]["jobs_in_group"] == [1, 1, 1]
    assert seen["trained"]["metrics"]["accuracy"] > 0.5
    assert_goes_on(seen["trained"])


def test_slots_that_other_jobs_have_are_named(seen: dict[str, Any]) -> None:
    error = seen["busy"]["error"]
    assert "2 ranks need 2 Spark tasks" in error
    assert "1 were started within 6 s: this session runs 4 at a time, and other jobs use 3 of them." in error
    assert seen["busy"]["result"] == [1, 4]
    assert seen["busy"]["begun"] == 2


def test_ctrl_c_ends_the_ranks_alone(seen: dict[str, Any]) -> None:
    assert seen["interrupted"]["raised"]
    assert_goes_on(seen["interrupted"])


def test_another_job_of_the_session_is_never_disturbed(seen: dict[str, Any]) -> None:
    assert seen["slow"] == {"result": [1], "begun": 1}
    assert seen["rows"] == 10


def test_without_pinned_threads_the_ranks_job_alone_is_cancelled(tmp_path: Path) -> None:
    """Then a Python thread has no Java thread of its own, and what it sets need not be on the job that it starts."""
    seen = run_program(tmp_path, "interrupted", "sums", PYSPARK_PIN_THREAD="false")
    assert seen["interrupted"]["raised"]
    assert_goes_on(seen["interrupted"])
    assert seen["sums"] == {"total": 3.0}
    assert seen["slow"] == {"result": [1], "begun": 1}
