"""Fetches Hadoop's own server code, one jar, for the tests that need a real HDFS, and prints its path.

If FIRN_MINICLUSTER_JAR names a jar, that one is used unchecked.
"""

import os
import sys
from pathlib import Path

from maven_jars import TOOLS, FetchError, Jar, fetch_jars, print_found

VARIABLE = "FIRN_MINICLUSTER_JAR"
JAR = Jar(  # it runs with PySpark 3.5's hadoop-client-api and hadoop-client-runtime, so it has their version
    "org.apache.hadoop:hadoop-client-minicluster:3.3.4",
    "cd8a1703393946c302bb3a52d0fcd23f6f8ded4554bc0dac5d2ee673dbe2b40e",
)


def find_minicluster() -> list[Path]:
    """The jar: the one that FIRN_MINICLUSTER_JAR names, the one fetched before, or one fetched now.

    Raises:
        FetchError: the jar is missing; the message says what was tried and what to do.
    """
    named = os.environ.get(VARIABLE)
    if not named:
        return fetch_jars([JAR], TOOLS, variable=VARIABLE)
    if not Path(named).is_file():
        raise FetchError(f"{VARIABLE} names no file: {named}")
    return [Path(named).resolve()]


if __name__ == "__main__":
    sys.exit(print_found(find_minicluster))
