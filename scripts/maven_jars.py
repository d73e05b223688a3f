"""Fetches jars by their Maven coordinates, each checked against a digest, for tests that need a real server.

Jars are fetched once, by Spark's own resolver of Maven coordinates or else by `mvn`. Run it with the Python of .venv, which has
PySpark.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

TOOLS = Path(__file__).resolve().parent.parent / ".tools"
_TIMEOUT_S = 180  # for each command
_SPARK_RESOLVER = """
import sys
from featurize.building.session import find_java
from pyspark.java_gateway import launch_gateway
find_java()
jvm = launch_gateway().jvm
jvm.java.lang.System.setProperty("spark.jars.ivy", sys.argv[1])
for artifact in sys.argv[2:]:
    uri = jvm.java.net.URI(f"ivy://{artifact}?transitive=false")
    jvm.org.apache.spark.util.DependencyUtils.resolveMavenDependencies(uri)
"""


class FetchError(Exception):
    """A jar cannot be fetched."""


@dataclass(frozen=True)
class Jar:
    """A jar, named by its coordinates ``group:artifact:version``."""

    artifact: str
    sha256: str

    @property
    def name(self) -> str:
        """The name of the file."""
        _, name, version = self.artifact.split(":")
        return f"{name}-{version}.jar"


def fetch_jars(jars: Sequence[Jar], folder: Path, *, variable: str) -> list[Path]:
    """The jars in `folder`; missing ones are fetched.

    Args:
        variable: the environment variable by which users can name a folder of their own; for messages.

    Raises:
        FetchError: a jar cannot be fetched; the message says what was tried and what to do.
    """
    missing = [jar for jar in jars if not _is_there(jar, folder)]
    if missing:
        _fetch(missing, folder, variable=variable)
    return [folder / jar.name for jar in jars]


def print_found(find: Callable[[], Iterable[Path]]) -> int:
    """Prints the paths that `find` returns; if it fails, prints the reason to standard error and returns exit status 1."""
    try:
        found = list(find())
    except FetchError as error:
        print(error, file=sys.stderr)
        return 1
    print(*found, sep="\n")
    return 0


def _is_there(jar: Jar, folder: Path) -> bool:
    path = folder / jar.name
    return path.is_file() and _sha256(path) == jar.sha256


def _sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(jars: Sequence[Jar], target: Path, *, variable: str) -> None:
    """Fetches jars into a temporary folder and moves each once it is checked, so that two processes may fetch at once."""
    target.mkdir(parents=True, exist_ok=True)
    failures = []
    for name, way in (("Spark's resolver", _by_spark), ("mvn", _by_maven)):
        with tempfile.TemporaryDirectory(prefix="fetched-", dir=target) as folder:
            try:
                commands = way([jar.artifact for jar in jars], Path(folder))
                outputs = [_run(command) for command in commands]
                found = [_find(jar, Path(folder), "".join(outputs)) for jar in jars]
            except FetchError as error:
                failures.append(f"{name}: {error}")
                continue
            for path, jar in zip(found, jars, strict=True):
                path.replace(target / jar.name)
            return
    wanted = "; ".join(f"{jar.artifact} (SHA-256 {jar.sha256})" for jar in jars)
    raise FetchError(
        f"jars could not be fetched ({'; '.join(failures)}). Put them into {target}, or name in {variable} where they are: "
        f"{wanted}."
    )


def _by_spark(artifacts: list[str], folder: Path) -> list[list[str]]:
    """The resolver that `spark-submit --packages` has, called without `spark-submit`; it needs PySpark and a Java."""
    return [[sys.executable, "-c", _SPARK_RESOLVER, str(folder), *artifacts]]


def _by_maven(artifacts: list[str], folder: Path) -> list[list[str]]:
    """Maven, which uses the mirrors of ~/.m2/settings.xml."""
    maven = shutil.which("mvn")
    if maven is None:
        raise FetchError("not installed")
    command = [maven, "--quiet", "--batch-mode", "-Dstyle.color=never", "dependency:get", "-Dtransitive=false"]
    return [[*command, f"-Dartifact={artifact}", f"-Dmaven.repo.local={folder}"] for artifact in artifacts]


def _run(command: list[str]) -> str:
    """The output of a command."""
    environment = {**os.environ, "SPARK_LOCAL_IP": "127.0.0.1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FetchError(str(error)) from error
    return done.stdout + done.stderr


def _find(jar: Jar, folder: Path, output: str) -> Path:
    """The fetched jar under `folder`, its digest checked; Spark's resolver puts the group before the file's name."""
    paths = sorted(folder.rglob(f"*{jar.name}"))
    if not paths:
        raise FetchError(_reason(output))
    if (found := _sha256(paths[0])) != jar.sha256:
        raise FetchError(f"{jar.name} has SHA-256 {found}, not {jar.sha256}")
    return paths[0]


def _reason(output: str) -> str:
    """The first line that names an error, without the long stack trace."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["no output"]
    return next((line for line in lines if "Exception:" in line or "[ERROR]" in line), lines[-1])[:300]
