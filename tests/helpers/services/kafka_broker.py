"""A real Kafka broker for the tests: one process on loopback that is its own controller, and messages of any kind."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyspark
from pyspark.sql import SparkSession

import featurize
from helpers.services.processes import LOOPBACK, Daemon, free_ports, java_command, java_environment, wait_until

PARTITIONS = 2
_HEAP = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
_LOGGING = Path(featurize.__file__).parent / "building" / "log4j2.properties"
_CLUSTER_ID = "MkU3OEVBNTcwNTJENDM2Qg"
_CONNECT_TIMEOUT_S = 2


@dataclass(frozen=True)
class Message:
    """A message for a partition."""

    value: bytes | None
    key: bytes | None = None
    partition: int = 0


class KafkaBroker:
    """A broker that makes a topic of two partitions when the first message for it comes.

    Args:
        connector: the jars of Spark's connector.
        jars: the broker's own, beside those and PySpark's.
    """

    def __init__(self, connector: Sequence[Path], jars: Sequence[Path], folder: Path) -> None:
        self.connector = list(connector)
        self._folder = folder
        self._classpath = ":".join(map(str, [*connector, *jars, Path(pyspark.__file__).parent / "jars" / "*"]))
        self._port, controller_port = free_ports(2)
        self.address = f"{LOOPBACK}:{self._port}"
        self._settings = folder / "server.properties"
        self._write_settings(controller_port)
        formatting = self._start("format", "kafka.tools.StorageTool", "format", "-t", _CLUSTER_ID, "-c")
        wait_until(lambda: not formatting.is_running(), "formatting the broker's storage")
        self._daemon = self._start("broker", "kafka.Kafka")
        try:
            wait_until(self._answers, "the Kafka broker", needs=[self._daemon])
        except BaseException:
            self.stop()
            raise

    def url(self, topic: str) -> str:
        return f"kafka://{self.address}/{topic}"

    def send(self, spark: SparkSession, topic: str, messages: Sequence[Message]) -> None:
        """Sends messages; those for one partition get consecutive offsets in the order given. `spark` has the connector."""
        rows = [(message.key, message.value, message.partition) for message in messages]
        frame = spark.createDataFrame(rows, "key binary, value binary, partition int").coalesce(1)
        options = {"kafka.bootstrap.servers": self.address, "topic": topic}
        frame.write.format("kafka").options(**options).save()

    def stop(self) -> None:
        self._daemon.kill()

    def _answers(self) -> bool:
        socket.create_connection((LOOPBACK, self._port), timeout=_CONNECT_TIMEOUT_S).close()
        return True

    def _start(self, name: str, main_class: str, *arguments: str) -> Daemon:
        logging = f"-Dlog4j2.configurationFile={_LOGGING.as_uri()}"
        command = [java_command(), *_HEAP, logging, "-cp", self._classpath, main_class, *arguments, str(self._settings)]
        return Daemon(name, command, self._folder / f"{name}.log", java_environment())

    def _write_settings(self, controller_port: int) -> None:
        settings = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@{LOOPBACK}:{controller_port}",
            "listeners": f"PLAINTEXT://{self.address},CONTROLLER://{LOOPBACK}:{controller_port}",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": self._folder / "logs",
            "num.partitions": PARTITIONS,
            "offsets.topic.replication.factor": 1,
        }
        self._settings.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
