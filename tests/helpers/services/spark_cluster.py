"""A real Spark standalone cluster for the tests: a master and workers, processes of their own on loopback, and `spark-submit`."""

import json
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil
import pyspark

from helpers.project import SHORT_LIVED_JAVA
from helpers.services.processes import (
    LOOPBACK,
    Daemon,
    DaemonGroup,
    free_ports,
    java_environment,
    kill_processes,
    wait_until,
)

SPARK_HOME = Path(pyspark.__file__).parent
_MAIN = "org.apache.spark.deploy"
_CORES, _MEMORY = 1, "2g"  # of a worker
_SETTINGS = {
    "spark.executor.cores": _CORES,
    "spark.task.cpus": _CORES,
    "spark.executor.memory": "512m",
    "spark.driver.memory": "512m",
    "spark.driver.host": LOOPBACK,
    "spark.executor.extraJavaOptions": SHORT_LIVED_JAVA,
    "spark.ui.enabled": "false",
}


@dataclass(frozen=True)
class Submission:
    """A running `spark-submit`: the driver, whose Python is a child of its JVM."""

    daemon: Daemon
    output: Path

    def is_running(self) -> bool:
        return self.daemon.is_running()

    def kill(self) -> None:
        """SIGKILL to the driver, JVM and Python; its executors are left to themselves."""
        self.daemon.kill()

    def wait(self, *, timeout_s: float = 180) -> int:
        """Its exit status."""
        wait_until(lambda: not self.is_running(), "spark-submit", timeout_s=timeout_s)
        return self.daemon.wait()

    def result(self, *, timeout_s: float = 180) -> dict[str, Any]:
        """What a command with `--json` prints as its last line, once it has ended well."""
        status = self.wait(timeout_s=timeout_s)
        assert status == 0, f"exit status {status}\n{self.daemon.last_words()}"
        result: dict[str, Any] = json.loads(self.output.read_text().splitlines()[-1])
        return result


class SparkCluster(DaemonGroup):
    """A master and `workers` workers, each with one core.

    Args:
        hadoop_conf_dir: the Hadoop settings of drivers and executors.
    """

    def __init__(self, folder: Path, *, workers: int = 2, hadoop_conf_dir: Path | None = None) -> None:
        self._folder = folder
        self._environment = java_environment() | {
            "SPARK_HOME": str(SPARK_HOME),
            "SPARK_DAEMON_MEMORY": "256m",
            "SPARK_DAEMON_JAVA_OPTS": SHORT_LIVED_JAVA,
        }
        if hadoop_conf_dir is not None:
            self._environment["HADOOP_CONF_DIR"] = str(hadoop_conf_dir)
        self._port, self._web_port = free_ports(2)
        self.url = f"spark://{LOOPBACK}:{self._port}"
        self._submissions = 0
        master = self._start("master", "master.Master", "--port", str(self._port), "--webui-port", str(self._web_port))
        super().__init__(master, workers)

    def kill_worker(self, index: int) -> None:
        """SIGKILL to a worker, its executors and their Python."""
        self._kill_member(index)

    def executors(self) -> list[psutil.Process]:
        """The executors' JVMs on all workers."""
        return self._descendants("CoarseGrainedExecutorBackend")

    def python_workers(self) -> list[psutil.Process]:
        """The Python processes that run tasks, without the one on each executor that starts them."""
        daemons = self._descendants("pyspark.daemon")
        pids = {process.pid for process in daemons}
        return [process for process in daemons if process.ppid() in pids]

    def kill_executor(self, index: int = 0) -> None:
        """SIGKILL to an executor and its Python; its worker starts another."""
        executor = self.executors()[index]
        kill_processes([executor, *executor.children(recursive=True)])

    def submit(
        self,
        program: Path,
        *arguments: str,
        python: str | Path = sys.executable,
        py_files: Sequence[Path] = (),
        conf: Mapping[str, object] | None = None,
        cwd: Path,
    ) -> Submission:
        """Starts `spark-submit`, in client mode. It dies with the tests.

        Args:
            python: of the driver and of the executors.
            cwd: working directory of the driver.
        """
        self._submissions += 1
        pythons = {"spark.pyspark.python": python, "spark.pyspark.driver.python": python}
        settings = {**_SETTINGS, **pythons, **(conf or {})}
        command = [str(SPARK_HOME / "bin" / "spark-submit"), "--master", self.url]
        command += [part for key, value in settings.items() for part in ("--conf", f"{key}={value}")]
        if py_files:
            command += ["--py-files", ",".join(map(str, py_files))]
        name = f"submission{self._submissions}"
        output = self._folder / f"{name}.out"
        daemon = Daemon(
            name,
            [*command, str(program), *arguments],
            self._folder / f"{name}.log",
            self._environment,
            output=output,
            cwd=cwd,
        )
        return Submission(daemon, output)

    def _start_member(self, index: int) -> Daemon:
        """A worker, which the master takes for a new one."""
        work = self._folder / f"work{index}"
        options = ["--cores", str(_CORES), "--memory", _MEMORY, "--work-dir", str(work), "--webui-port", "0"]
        return self._start(f"worker{index}", "worker.Worker", *options, self.url)

    def _count_members(self) -> int:
        """How many workers live, by the word of the master."""
        with urlopen(f"http://{LOOPBACK}:{self._web_port}/json/", timeout=5) as answer:
            return int(json.load(answer)["aliveworkers"])

    def _descendants(self, word: str) -> list[psutil.Process]:
        """What the workers have started, at any depth, with `word` in its command line."""
        found = []
        for worker in self._members:
            for process in worker.children() if worker is not None else ():
                try:
                    if any(word in part for part in process.cmdline()):
                        found.append(process)
                except psutil.NoSuchProcess:
                    continue
        return found

    def _start(self, name: str, main_class: str, *arguments: str) -> Daemon:
        spark_class = str(SPARK_HOME / "bin" / "spark-class")
        command = [spark_class, f"{_MAIN}.{main_class}", "--host", LOOPBACK, *arguments]
        return Daemon(name, command, self._folder / f"{name}.log", self._environment)


def make_bare_python(folder: Path) -> Path:
    """A Python in a virtual environment with all that this one has installed, but without Firn.

    Its site-packages are links to those of the running one, except for what `pip install --editable` of Firn has left there.
    """
    packages = Path(sysconfig.get_path("purelib"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    bare = folder / packages.relative_to(sys.prefix)
    for path in packages.iterdir():
        if not path.name.startswith(("firn-", "__editable__")):
            (bare / path.name).symlink_to(path)
    return folder / "bin" / "python"
