"""A real ZooKeeper, started once for all tests of a file."""

from collections.abc import Iterator

import pytest
from helpers.services.zookeeper_server import ZooKeeperServer

from featurize.connectors.zookeeper import DIGEST


@pytest.fixture(scope="module")
def _zookeeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZooKeeperServer]:
    server = ZooKeeperServer(tmp_path_factory.mktemp("zookeeper"))
    yield server
    server.kill()


@pytest.fixture
def zookeeper(_zookeeper: ZooKeeperServer, monkeypatch: pytest.MonkeyPatch) -> ZooKeeperServer:
    """A server, whatever an earlier test has killed; nobody's password is in the environment."""
    monkeypatch.delenv(DIGEST, raising=False)
    _zookeeper.heal()
    return _zookeeper
