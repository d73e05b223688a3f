"""A real ZooKeeper server for the tests: one process on loopback, of the jar that PySpark brings."""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyspark
from kazoo.client import KazooClient
from kazoo.security import make_digest_acl

import featurize
from helpers.services.processes import LOOPBACK, Daemon, free_ports, java_command, java_environment, wait_until

_JARS = Path(pyspark.__file__).parent / "jars" / "*"
_HEAP = ["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
_LOGGING = Path(featurize.__file__).parent / "building" / "log4j2.properties"
_TICK_MS = 500  # a session may last from 2 to 20 of them
_TIMEOUT_S = 30.0


class ZooKeeperServer:
    """A server on a port of its own, which it keeps when it is killed and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (port,) = free_ports(1)
        self.address = f"{LOOPBACK}:{port}"
        self._settings = folder / "zoo.cfg"
        settings = {
            "clientPortAddress": LOOPBACK,
            "clientPort": port,
            "dataDir": folder / "data",
            "tickTime": _TICK_MS,
            "maxClientCnxns": 0,
        }
        self._settings.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        self._daemon = self._start()

    def url(self, path: str) -> str:
        return f"zk://{self.address}{path}"

    def set(self, path: str, content: str | bytes) -> str:
        """Writes a node, which is made if it is missing; its URL."""
        data = content.encode() if isinstance(content, str) else content
        with self.client() as client:
            client.ensure_path(path)
            client.set(path, data)
        return self.url(path)

    def shut_in(self, path: str, user: str, password: str) -> None:
        """Leaves a node to one user."""
        with self.client() as client:
            client.set_acls(path, [make_digest_acl(user, password, all=True)])

    def remove(self, path: str) -> None:
        with self.client() as client:
            client.delete(path)

    def kill(self) -> None:
        self._daemon.kill()

    def signal(self, number: int) -> None:
        os.kill(self._daemon.pid, number)

    def restart(self, *, is_emptied: bool = False) -> None:
        """Starts it again on the same port, with what it held or with nothing."""
        self.kill()
        if is_emptied:
            shutil.rmtree(self._folder / "data")
        self._daemon = self._start()

    def heal(self) -> None:
        """Starts it again where a test has killed it."""
        if not self._daemon.is_running():
            self._daemon = self._start()

    @contextmanager
    def client(self) -> Iterator[Any]:
        """A session for writing."""
        client = KazooClient(hosts=self.address)
        client.start(timeout=_TIMEOUT_S)
        try:
            yield client
        finally:
            client.stop()
            client.close()

    def shell(self, lines: str) -> str:
        """What `zkCli.sh` says to some lines. The script starts this class of Java."""
        command = self._command("org.apache.zookeeper.ZooKeeperMain", "-server", self.address)
        script, log, output = (self._folder / f"shell.{kind}" for kind in ("in", "log", "out"))
        script.write_text(lines)
        output.unlink(missing_ok=True)
        text = ["sh", "-c", 'script=$1; shift; exec "$@" < "$script"', "sh", str(script), *command]
        daemon = Daemon("zkCli", text, log, java_environment(), output=output)
        wait_until(lambda: not daemon.is_running(), "the lines of zkCli.sh")
        return output.read_text()

    def _start(self) -> Daemon:
        command = self._command("org.apache.zookeeper.server.ZooKeeperServerMain", str(self._settings))
        daemon = Daemon("zookeeper", command, self._folder / "zookeeper.log", java_environment())
        try:
            wait_until(self._answers, "the ZooKeeper server", needs=[daemon])
        except BaseException:
            daemon.kill()
            raise
        return daemon

    def _answers(self) -> bool:
        host, port = self.address.split(":")
        socket.create_connection((host, int(port)), timeout=2).close()
        return True

    def _command(self, main_class: str, *arguments: str) -> list[str]:
        options = ["-Dzookeeper.admin.enableServer=false", f"-Dlog4j2.configurationFile={_LOGGING.as_uri()}"]
        return [java_command(), *_HEAP, *options, "-cp", str(_JARS), main_class, *arguments]
