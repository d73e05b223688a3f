"""The archive of Java classes: a session uses it, and one that does not fit does no harm."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from featurize.java import ARCHIVE_VERSION, archive_options, class_archive, find_java

_COUNT = """
import sys
sys.prefix = sys.argv[1]
from featurize.building.session import open_session
with open_session("firn tests") as session:
    print(session.range(3).count())
"""


def count_rows(prefix: Path | str, log: Path) -> "subprocess.CompletedProcess[str]":
    """Counts the rows of a small table in a session that looks for its archive in `prefix`, and logs the classes it loads."""
    environment = {**os.environ, "SPARK_SUBMIT_OPTS": f"-Xlog:class+load:file={log}"}
    command = [sys.executable, "-c", _COUNT, str(prefix)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment)


def source_of_spark_context(log: Path) -> str:
    lines = log.read_text().splitlines()
    return next(line for line in lines if "org.apache.spark.SparkContext source:" in line).split("source:")[1].strip()


@pytest.mark.spark
def test_a_session_takes_sparks_classes_from_the_archive(tmp_path: Path) -> None:
    if find_java() != ARCHIVE_VERSION or not class_archive().exists():
        pytest.skip("there is no archive of Java classes: scripts/archive_java_classes.py writes one for Java 17")
    counted = count_rows(sys.prefix, tmp_path / "log")
    assert (counted.stdout, counted.stderr) == ("3\n", "")
    assert source_of_spark_context(tmp_path / "log") == "shared objects file (top)"


@pytest.mark.spark
def test_an_archive_that_does_not_fit_is_left_aside_without_a_word(tmp_path: Path) -> None:
    archive = tmp_path / class_archive().relative_to(sys.prefix)
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"of another Java" * 1000)
    counted = count_rows(tmp_path, tmp_path / "log")
    assert (counted.stdout, counted.stderr) == ("3\n", "")
    assert source_of_spark_context(tmp_path / "log").startswith("file:")


def test_other_versions_of_java_get_no_options_that_they_do_not_know() -> None:
    assert archive_options(8) == archive_options(11) == []
