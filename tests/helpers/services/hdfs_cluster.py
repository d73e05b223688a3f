"""A real HDFS for the tests: a NameNode and DataNodes, processes of their own on loopback, in a folder of their own."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pyspark

from featurize import storage
from helpers.project import SHORT_LIVED_JAVA
from helpers.services.processes import (
    LOOPBACK,
    Daemon,
    DaemonGroup,
    free_ports,
    java_command,
    java_environment,
    wait_until,
)

_SERVER, _TOOLS = "org.apache.hadoop.hdfs.server", "org.apache.hadoop.hdfs.tools"
_JAVA = ["-Xmx256m", *SHORT_LIVED_JAVA.split()]
_OPEN = ["--add-opens", "java.base/java.lang=ALL-UNNAMED"]  # WebHDFS defines classes as it did before Java 17
_STALE_S = 3
_LOGGING = """
rootLogger.level = warn
rootLogger.appenderRef.stderr.ref = stderr
appender.stderr.type = Console
appender.stderr.name = stderr
appender.stderr.target = SYSTEM_ERR
appender.stderr.layout.type = PatternLayout
appender.stderr.layout.pattern = %d{HH:mm:ss} %p %c{1}: %m%n
"""


class MiniHdfs(DaemonGroup):
    """A NameNode and `datanodes` DataNodes, each block on all of them.

    A DataNode that is killed is stale after 3 seconds (no new blocks go to it, reads turn to it last) and dead after 11.
    """

    def __init__(self, jar: Path, folder: Path, *, datanodes: int = 2) -> None:
        self._folder = folder
        self._jars = f"{jar}:{Path(pyspark.__file__).parent / 'jars' / '*'}"
        self._port, self._web_port, *ports = free_ports(2 + 3 * datanodes)
        self._node_ports = [ports[start : start + 3] for start in range(0, len(ports), 3)]
        self.url = f"hdfs://{LOOPBACK}:{self._port}"
        self.webhdfs_url = f"http://{LOOPBACK}:{self._web_port}"
        self.conf_dir = folder / "client"
        self._write_settings()
        self._run_format()
        super().__init__(self._start("namenode", f"{_SERVER}.namenode.NameNode"), datanodes)

    def kill_datanode(self, index: int) -> None:
        """SIGKILL to a DataNode, which keeps its blocks."""
        self._kill_member(index)

    def wait_for_datanodes(self, count: int) -> None:
        """Waits until the NameNode counts `count` DataNodes that are neither dead nor stale."""
        self._wait_for_members(count)

    def administer(self, *arguments: str) -> None:
        """Runs `hdfs dfsadmin`."""
        run_tool(self._jars, self.conf_dir, f"{_TOOLS}.DFSAdmin", *arguments)

    @contextmanager
    def silent(self) -> Iterator[None]:
        """The NameNode does not answer during a `with` block, as behind a network that loses all it is given."""
        os.kill(self._head.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._head.pid, signal.SIGCONT)

    def upload(self, folder: Path, url: str) -> None:
        """Copies the files of a local folder below `url`."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                storage.upload(path, storage.join_url(url, *path.relative_to(folder).parts))

    def write_name_service(self, conf_dir: Path, name: str) -> None:
        """Writes client settings for `hdfs://name`, which is this NameNode and, before it, one that does not answer."""
        gone, here = f"{LOOPBACK}:{free_ports(1)[0]}", f"{LOOPBACK}:{self._port}"
        service = {"dfs.nameservices": name, f"dfs.ha.namenodes.{name}": "gone,here"}
        addresses = {f"dfs.namenode.rpc-address.{name}.gone": gone, f"dfs.namenode.rpc-address.{name}.here": here}
        write_site(conf_dir, {"fs.defaultFS": f"hdfs://{name}"}, {**service, **addresses})

    def _start_member(self, index: int) -> Daemon:
        return self._start(f"datanode{index}", f"{_SERVER}.datanode.DataNode")

    def _count_members(self) -> int:
        """How many DataNodes the NameNode has heard of in the last three seconds, and may put blocks on."""
        nodes = json.loads(str(self._jmx("NameNodeInfo")["LiveNodes"])).values()
        return sum(node["capacity"] > 0 and node["lastContact"] < _STALE_S for node in nodes)

    def _jmx(self, name: str) -> dict[str, object]:
        with urlopen(f"{self.webhdfs_url}/jmx?qry=Hadoop:service=NameNode,name={name}", timeout=5) as answer:
            beans: list[dict[str, object]] = json.load(answer)["beans"]
        if not beans:  # it is still starting
            raise OSError(f"the NameNode has no {name} yet")
        return beans[0]

    def _start(self, name: str, main_class: str, *arguments: str) -> Daemon:
        return start_java(self._folder, name, self._jars, main_class, *arguments)

    def _run_format(self) -> None:
        daemon = self._start("namenode", f"{_SERVER}.namenode.NameNode", "-format", "-force", "-nonInteractive")
        wait_until(lambda: not daemon.is_running(), "formatting the NameNode")

    def _write_settings(self) -> None:
        core = {"fs.defaultFS": self.url, "hadoop.tmp.dir": str(self._folder / "tmp")}
        common = {"dfs.replication": len(self._node_ports)}
        namenode = {
            "dfs.namenode.name.dir": (self._folder / "names").as_uri(),
            "dfs.namenode.http-address": f"{LOOPBACK}:{self._web_port}",
            "dfs.permissions.enabled": "false",
            "dfs.namenode.datanode.registration.ip-hostname-check": "false",
            "dfs.heartbeat.interval": 1,
            "dfs.namenode.heartbeat.recheck-interval": 500,
            "dfs.namenode.stale.datanode.interval": 1000 * _STALE_S,
            "dfs.namenode.avoid.read.stale.datanode": "true",
            "dfs.namenode.avoid.write.stale.datanode": "true",
            "dfs.namenode.write.stale.datanode.ratio": "1.0",
        }
        write_site(self.conf_dir, core, common)
        write_site(self._folder / "namenode", core, {**common, **namenode})
        for index, ports in enumerate(self._node_ports):
            settings = datanode_settings(self._folder / f"blocks{index}", ports)
            write_site(self._folder / f"datanode{index}", core, {**common, **settings})


def start_java(folder: Path, name: str, jars: str, main_class: str, *arguments: str) -> Daemon:
    """A Java program of Hadoop with the settings in `folder/name`."""
    command = [java_command(), *_JAVA, *_OPEN, "-cp", f"{folder / name}:{jars}", main_class, *arguments]
    return Daemon(name, command, folder / f"{name}.log", java_environment())


def run_tool(jars: str, conf: Path, main_class: str, *arguments: str) -> None:
    """Runs a program of Hadoop to its end."""
    command = [java_command(), *_JAVA, *_OPEN, "-cp", f"{conf}:{jars}", main_class, *arguments]
    done = subprocess.run(command, env=java_environment(), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{' '.join(arguments)}: {done.stdout}\n{done.stderr}"


def datanode_settings(blocks: Path, ports: Sequence[int]) -> dict[str, object]:
    """The settings of a DataNode: its folder, and its ports for data, calls and the web."""
    data, ipc, http = ports
    return {
        "dfs.datanode.data.dir": blocks.as_uri(),
        "dfs.datanode.address": f"{LOOPBACK}:{data}",
        "dfs.datanode.ipc.address": f"{LOOPBACK}:{ipc}",
        "dfs.datanode.http.address": f"{LOOPBACK}:{http}",
        "dfs.datanode.hostname": LOOPBACK,
        "dfs.heartbeat.interval": 1,
    }


def write_site(folder: Path, core: Mapping[str, object], hdfs: Mapping[str, object]) -> None:
    """A Hadoop configuration folder."""
    folder.mkdir(parents=True)
    for name, settings in (("core-site.xml", core), ("hdfs-site.xml", hdfs)):
        properties = "".join(
            f"  <property><name>{key}</name><value>{value}</value></property>\n" for key, value in settings.items()
        )
        (folder / name).write_text(f"<configuration>\n{properties}</configuration>\n")
    (folder / "log4j2.properties").write_text(_LOGGING)
