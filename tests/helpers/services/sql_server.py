"""A real `featurize serve` for the tests, and a real Hive metastore: processes on loopback."""

import json
import os
import signal
import socket
import sys
from pathlib import Path

import pyspark

import featurize
from helpers.project import ROOT
from helpers.services.processes import LOOPBACK, Daemon, free_ports, java_command, java_environment, wait_until

START_S = 180
_END_S = 60
_METASTORE_JAVA = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dhive.async.log.enabled=false"]
_LOGGING = Path(featurize.__file__).parent / "building" / "log4j2.properties"


class ServedTables:
    """`featurize serve`, which runs in an empty folder of its own.

    Args:
        arguments: its options, without `--port` and `--json`.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.cwd, self.temporary = folder / "cwd", folder / "tmp"
        for each in (self.cwd, self.temporary):
            each.mkdir(parents=True)
        command = [sys.executable, "-m", "featurize", "serve", *arguments, "--port", "0", "--json"]
        environment = {**java_environment(), "PYTHONPATH": str(ROOT), "TMPDIR": str(self.temporary)}
        output = folder / "out"
        self._daemon = Daemon("serve", command, folder / "log", environment, output=output, cwd=self.cwd)
        try:
            wait_until(
                lambda: output.read_text().endswith("\n"), "the SQL server", timeout_s=START_S, needs=[self._daemon]
            )
        except BaseException:
            self.kill()
            raise
        self.ready = json.loads(output.read_text())
        self.port = int(self.ready["port"])

    def log(self) -> str:
        """What it has written on standard error."""
        return self._daemon.log.read_text()

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ends it by a signal; returns its exit status."""
        os.kill(self._daemon.pid, number)
        wait_until(lambda: not self._daemon.is_running(), "the end of the SQL server", timeout_s=_END_S)
        return self._daemon.wait()

    def kill(self) -> None:
        self._daemon.kill()


class Metastore:
    """A Hive metastore whose database is Derby in a folder."""

    def __init__(self, folder: Path) -> None:
        (port,) = free_ports(1)
        self.url = f"thrift://{LOOPBACK}:{port}"
        settings = {
            "javax.jdo.option.ConnectionURL": f"jdbc:derby:;databaseName={folder / 'metastore'};create=true",
            "datanucleus.schema.autoCreateAll": "true",
            "hive.metastore.schema.verification": "false",
            "hive.metastore.warehouse.dir": str(folder / "warehouse"),
        }
        options = [
            f"-Dlog4j2.configurationFile={_LOGGING.as_uri()}",
            f"-Dderby.stream.error.file={folder / 'derby.log'}",
        ]
        jars = str(Path(pyspark.__file__).parent / "jars" / "*")
        command = [java_command(), *_METASTORE_JAVA, *options, "-cp", jars]
        command += ["org.apache.hadoop.hive.metastore.HiveMetaStore", "-p", str(port)]
        for name, value in settings.items():
            command += ["--hiveconf", f"{name}={value}"]
        folder.mkdir(parents=True)
        self._daemon = Daemon("metastore", command, folder / "log", java_environment(), cwd=folder)
        try:
            wait_until(lambda: _answers(port), "the metastore", timeout_s=START_S, needs=[self._daemon])
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        self._daemon.kill()


def _answers(port: int) -> bool:
    socket.create_connection((LOOPBACK, port), timeout=2).close()
    return True
