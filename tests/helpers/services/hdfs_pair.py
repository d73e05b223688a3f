"""An HDFS of high availability for the tests: two NameNodes, one of them active, that share a log in a folder, and a DataNode."""

import json
import shutil
from pathlib import Path
from urllib.request import urlopen

import pyspark

from helpers.services.hdfs_cluster import datanode_settings, run_tool, start_java, write_site
from helpers.services.processes import LOOPBACK, Daemon, free_ports, wait_until

_PACKAGE = "org.apache.hadoop.hdfs"
_NAMES = ("one", "two")


class HdfsPair:
    """The name service `firn`; "one" is active at first."""

    url = "hdfs://firn"

    def __init__(self, jar: Path, folder: Path) -> None:
        self._folder, self._jars = folder, f"{jar}:{Path(pyspark.__file__).parent / 'jars' / '*'}"
        self._nodes = dict[str, Daemon]()
        ports = free_ports(7)
        self._web = dict(zip(_NAMES, ports[2:4], strict=True))
        self.conf_dir = folder / "client"
        self._write_settings(ports)
        try:
            formatting = self._start("one", "server.namenode.NameNode", "-format", "-force", "-nonInteractive")
            wait_until(lambda: not formatting.is_running(), "formatting the NameNode")
            shutil.copytree(folder / "names-one", folder / "names-two")
            for name in _NAMES:
                self._nodes[name] = self._start(name, "server.namenode.NameNode")
            self._nodes["datanode"] = self._start("datanode", "server.datanode.DataNode")
            self._wait_for("one", "standby")
            self.make_active("one")
        except BaseException:
            self.stop()
            raise

    def make_active(self, name: str) -> None:
        """Makes a NameNode the active one, and waits until it takes changes."""
        self._wait_for(name, "standby")
        arguments = ("-transitionToActive", "--forceactive", name)
        run_tool(self._jars, self.conf_dir, f"{_PACKAGE}.tools.DFSHAAdmin", *arguments)
        wait_until(lambda: self._bean(name, "NameNodeInfo")["Safemode"] == "", f"{name} out of safe mode")
        wait_until(lambda: json.loads(str(self._bean(name, "NameNodeInfo")["LiveNodes"])), f"{name} with its DataNode")

    def kill(self, name: str) -> None:
        """SIGKILL to a NameNode."""
        self._nodes[name].kill()

    def stop(self) -> None:
        """Kills all of it."""
        for node in self._nodes.values():
            node.kill()

    def _start(self, name: str, main_class: str, *arguments: str) -> Daemon:
        return start_java(self._folder, name, self._jars, f"{_PACKAGE}.{main_class}", *arguments)

    def _wait_for(self, name: str, state: str) -> None:
        wait_until(lambda: self._bean(name, "NameNodeStatus")["State"] == state, f"{name} as {state}")

    def _bean(self, name: str, bean: str) -> dict[str, object]:
        url = f"http://{LOOPBACK}:{self._web[name]}/jmx?qry=Hadoop:service=NameNode,name={bean}"
        with urlopen(url, timeout=5) as answer:
            beans: list[dict[str, object]] = json.load(answer)["beans"]
        if not beans:
            raise OSError(f"{name} has no {bean} yet")
        return beans[0]

    def _write_settings(self, ports: list[int]) -> None:
        core = {"fs.defaultFS": self.url, "hadoop.tmp.dir": str(self._folder / "tmp")}
        common: dict[str, object] = {
            "dfs.replication": 1,
            "dfs.nameservices": "firn",
            "dfs.ha.namenodes.firn": "one,two",
        }
        for name, rpc in zip(_NAMES, ports, strict=False):
            common[f"dfs.namenode.rpc-address.firn.{name}"] = f"{LOOPBACK}:{rpc}"
            common[f"dfs.namenode.http-address.firn.{name}"] = f"{LOOPBACK}:{self._web[name]}"
        provider = f"{_PACKAGE}.server.namenode.ha.ConfiguredFailoverProxyProvider"
        common["dfs.client.failover.proxy.provider.firn"] = provider
        write_site(self.conf_dir, core, common)
        for name in _NAMES:
            namenode = {
                "dfs.ha.namenode.id": name,
                "dfs.namenode.name.dir": (self._folder / f"names-{name}").as_uri(),
                "dfs.namenode.shared.edits.dir": (self._folder / "shared").as_uri(),
                "dfs.ha.tail-edits.period": 1,
                "dfs.permissions.enabled": "false",
                "dfs.namenode.datanode.registration.ip-hostname-check": "false",
            }
            write_site(self._folder / name, core, {**common, **namenode})
        datanode = datanode_settings(self._folder / "blocks", ports[4:7])
        write_site(self._folder / "datanode", core, {**common, **datanode})
