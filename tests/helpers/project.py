"""Where the project lies, and how its commands are run by tests."""

import subprocess
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
Firn = Callable[..., "subprocess.CompletedProcess[str]"]
# A Java that soon ends compiles little: a third of the processor time of a command with Spark.
SHORT_LIVED_JAVA = "-XX:+UseSerialGC -XX:TieredStopAtLevel=1"
