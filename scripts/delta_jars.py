"""Fetches Delta Lake for Spark, for the tests that read Firn's tables with it, and prints the paths of the jars.

If FIRN_DELTA_JARS names a folder, the jars in it are used unchecked.
"""

import os
import sys
from pathlib import Path

from maven_jars import TOOLS, FetchError, Jar, fetch_jars, print_found

VARIABLE = "FIRN_DELTA_JARS"
JARS = [
    Jar("io.delta:delta-spark_2.12:3.3.2", "4e92085d5d794cf949c50bb665b91384857cad58680c2d0bfc9c7ad353e98e85"),
    Jar("io.delta:delta-storage:3.3.2", "c096975a2ca97ccc9b4005aa5cce16c9ac3903139d340da6665b66ace67d7c36"),
]


def find_delta() -> list[Path]:
    """The jars: those in the folder that FIRN_DELTA_JARS names, or those fetched before or now.

    Raises:
        FetchError: a jar is missing; the message says what was tried and what to do.
    """
    named = os.environ.get(VARIABLE)
    if not named:
        return fetch_jars(JARS, TOOLS / "delta", variable=VARIABLE)
    paths = [Path(named).resolve() / jar.name for jar in JARS]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise FetchError(f"{VARIABLE} names a folder without {', '.join(missing)}: {named}")
    return paths


if __name__ == "__main__":
    sys.exit(print_found(find_delta))
