"""Fetches Hadoop's own server code, one jar, for the tests that need a real HDFS, and prints where it lies.

The jar is fetched once, by Spark's own resolver of Maven coordinates or else by `mvn`, and checked against a digest. What
FIRN_MINICLUSTER_JAR names is taken as it is. Run it with the Python of .venv, which has PySpark.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

VERSION = "3.3.4"  # of the hadoop-client-api and hadoop-client-runtime that PySpark 3.5 ships: they run together
ARTIFACT = f"org.apache.hadoop:hadoop-client-minicluster:{VERSION}"
NAME = f"hadoop-client-minicluster-{VERSION}.jar"
SHA256 = "cd8a1703393946c302bb3a52d0fcd23f6f8ded4554bc0dac5d2ee673dbe2b40e"
JAR = Path(__file__).resolve().parent.parent / ".tools" / NAME
_TIMEOUT_S = 180  # for each of the two ways: 37 MB
_SPARK_RESOLVER = f"""
import sys
from featurize.session import find_java
from pyspark.java_gateway import launch_gateway
find_java()
jvm = launch_gateway().jvm
jvm.java.lang.System.setProperty("spark.jars.ivy", sys.argv[1])
uri = jvm.java.net.URI("ivy://{ARTIFACT}?transitive=false")
jvm.org.apache.spark.util.DependencyUtils.resolveMavenDependencies(uri)
"""


class FetchError(Exception):
    """The jar cannot be had."""


def find_minicluster() -> Path:
    """The jar: the one that FIRN_MINICLUSTER_JAR names, the one fetched before, or one fetched now.

    Raises:
        FetchError: there is none, with what was tried and what to do.
    """
    named = os.environ.get("FIRN_MINICLUSTER_JAR")
    if named:
        if not Path(named).is_file():
            raise FetchError(f"FIRN_MINICLUSTER_JAR names no file: {named}")
        return Path(named).resolve()
    if not (JAR.is_file() and sha256(JAR) == SHA256):
        _fetch()
    return JAR


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch() -> None:
    """Fetches the jar into a folder of its own, and renames it when it is checked: two at a time do no harm."""
    JAR.parent.mkdir(exist_ok=True)
    failures = []
    for name, way in (("Spark's resolver", _by_spark), ("mvn", _by_maven)):
        with tempfile.TemporaryDirectory(prefix="minicluster-", dir=JAR.parent) as folder:
            try:
                found = _run(way(Path(folder)), Path(folder))
            except FetchError as error:
                failures.append(f"{name}: {error}")
                continue
            found.replace(JAR)
            return
    raise FetchError(
        f"{ARTIFACT} could not be fetched ({'; '.join(failures)}). "
        f"Put {NAME} (SHA-256 {SHA256}) at {JAR}, or name it in FIRN_MINICLUSTER_JAR."
    )


def _by_spark(folder: Path) -> list[str]:
    """The resolver that `spark-submit --packages` has, called without `spark-submit`; it needs PySpark and a Java."""
    return [sys.executable, "-c", _SPARK_RESOLVER, str(folder)]


def _by_maven(folder: Path) -> list[str]:
    """Maven, which minds the mirrors of ~/.m2/settings.xml."""
    maven = shutil.which("mvn")
    if maven is None:
        raise FetchError("not installed")
    options = [f"-Dartifact={ARTIFACT}", "-Dtransitive=false", f"-Dmaven.repo.local={folder}"]
    return [maven, "--quiet", "--batch-mode", "-Dstyle.color=never", "dependency:get", *options]


def _run(command: list[str], folder: Path) -> Path:
    """The jar that `command` has left under `folder`, its digest checked."""
    environment = {**os.environ, "SPARK_LOCAL_IP": "127.0.0.1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FetchError(str(error)) from error
    jars = sorted(folder.rglob("*minicluster*.jar"))
    if not jars:
        raise FetchError(_reason(done.stdout + done.stderr))
    if (found := sha256(jars[0])) != SHA256:
        raise FetchError(f"the jar has SHA-256 {found}, not {SHA256}")
    return jars[0]


def _reason(output: str) -> str:
    """The first line that names an error, without the trace that goes on for pages."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["no output"]
    return next((line for line in lines if "Exception:" in line or "[ERROR]" in line), lines[-1])[:300]


def main() -> int:
    """Prints the path of the jar; exit status 1 and the reason on standard error where there is none."""
    try:
        print(find_minicluster())
    except FetchError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
