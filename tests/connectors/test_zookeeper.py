"""Tests of featurize.connectors.zookeeper on a real server: a node is read, and followed through all that may happen to it."""

import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from helpers.services.processes import LOOPBACK, free_ports, wait_until
from helpers.services.zookeeper_server import ZooKeeperServer
from kazoo.client import KazooClient

from featurize.connectors import zookeeper as connector
from featurize.connectors.zookeeper import DIGEST, MOST_BYTES, Node, WatchedNode, is_node, read_node
from featurize.errors import FirnError, JobError, UsageError

SOON_S = 10  # within a second; a busy machine may take longer


def said_by(watched: WatchedNode) -> str:
    """Its text, or the fault of reading it."""
    try:
        return watched.text()
    except FirnError as error:
        return f"{type(error).__name__}: {error}"


def wait_for(watched: WatchedNode, wanted: Callable[[str], bool], *, timeout_s: float = SOON_S) -> float:
    """Seconds until its text, or its fault, is as wanted."""
    started = time.monotonic()
    wait_until(lambda: wanted(said_by(watched)), f"the node said {said_by(watched)}", timeout_s=timeout_s)
    return time.monotonic() - started


@contextmanager
def following(url: str) -> Iterator[WatchedNode]:
    with closing(WatchedNode(url)) as watched:
        yield watched


@pytest.mark.parametrize(
    ("url", "hosts", "path"),
    [
        ("zk://host:2181/firn/champion", "host:2181", "/firn/champion"),
        ("zk://host/a/", "host", "/a"),
        (
            "zk://a.example:2181,b_2:2182,[::1]:2183/photos@champion",
            "a.example:2181,b_2:2182,[::1]:2183",
            "/photos@champion",
        ),
    ],
)
def test_a_node_is_named_by_a_url(url: str, hosts: str, path: str) -> None:
    assert is_node(url)
    assert Node.of(url) == Node(hosts, path)
    assert str(Node.of(url)) == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    [
        "zk://",
        "zk://host:2181",
        "zk://host:2181/",
        "zk:///firn",
        "zk://host:99999/firn",
        "zk://host:port/firn",
        "zk://host:1,/firn",
        "zk://host:1/firn//champion",
        "zk://host:1/firn/../champion",
        "zk://host:1/fi\x1brn",
        "zk://host;rm/firn",
        "hdfs://host:1/firn",
    ],
)
def test_what_is_no_url_of_a_node_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="is named zk://host:port,host:port/path") as caught:
        Node.of(url)
    assert "\x1b" not in str(caught.value)


def test_a_password_in_a_url_is_refused_and_not_shown() -> None:
    with pytest.raises(UsageError, match=f"set {DIGEST}=user:password") as caught:
        Node.of("zk://firn:hidden-word@host:2181/firn/champion")
    assert "hidden-word" not in str(caught.value)


def test_a_node_is_read(zookeeper: ZooKeeperServer) -> None:
    assert read_node(zookeeper.set("/firn/été", "photos@champion\n")) == "photos@champion"
    assert read_node(zookeeper.set("/firn/windows", b"/models/my model\r\n")) == "/models/my model"
    assert read_node(zookeeper.set("/firn/long", "/" + "a" * (MOST_BYTES - 1))) == "/" + "a" * (MOST_BYTES - 1)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"\xff\xfe", "holds no text in UTF-8"),
        (b"/a\n/b\n", "more than one line"),
        (b"/a\x1b[2J", "control characters"),
        ("/a\u202eb".encode(), "control characters"),
        (b"/" + b"a" * MOST_BYTES, "holds 4,097 bytes; a name has at most 4,096"),
    ],
)
def test_what_is_no_line_of_text_is_refused(zookeeper: ZooKeeperServer, content: bytes, fault: str) -> None:
    url = zookeeper.set("/firn/wrong", content)
    with pytest.raises(UsageError, match=fault) as caught:
        read_node(url)
    assert url in str(caught.value)
    assert not {"\x1b", "\u202e", "\n"} & set(str(caught.value))


def test_a_missing_node_and_a_server_that_does_not_answer(
    zookeeper: ZooKeeperServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=f"there is no node {zookeeper.url('/firn/nothing')}"):
        read_node(zookeeper.url("/firn/nothing"))
    monkeypatch.setattr(connector, "_TIMEOUT_S", 0.5)
    (port,) = free_ports(1)
    with pytest.raises(JobError, match=f"no ZooKeeper answers at {LOOPBACK}:{port}"):
        read_node(f"zk://{LOOPBACK}:{port}/firn/champion")


def test_a_node_with_an_acl_takes_the_password_of_the_environment(
    zookeeper: ZooKeeperServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url = zookeeper.set("/firn/shut-in", "photos@champion")
    zookeeper.shut_in("/firn/shut-in", "firn", "hidden-word")
    with pytest.raises(UsageError, match=f"{url} asks for a user who may read it: {DIGEST} is not set"):
        read_node(url)
    monkeypatch.setenv(DIGEST, "firn:another-word")
    with pytest.raises(UsageError, match="asks for a user who may read it: the user and password of") as caught:
        read_node(url)
    assert "another-word" not in str(caught.value)
    monkeypatch.setenv(DIGEST, "hidden-word")
    with pytest.raises(UsageError, match=f"{DIGEST} must be user:password") as caught:
        read_node(url)
    assert "hidden-word" not in str(caught.value)
    monkeypatch.setenv(DIGEST, "firn:hidden-word")
    assert read_node(url) == "photos@champion"
    with following(url) as watched:
        assert watched.text() == "photos@champion"
    assert "hidden-word" not in caplog.text


def test_without_kazoo_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kazoo.client", None)
    with pytest.raises(UsageError, match=r"needs the package kazoo, .* pip install 'firn\[zookeeper\]'"):
        read_node("zk://host:2181/firn/champion")
    with pytest.raises(UsageError, match="needs the package kazoo"):
        WatchedNode("zk://host:2181/firn/champion")


def test_a_watch_sees_every_change(zookeeper: ZooKeeperServer) -> None:
    url = zookeeper.set("/firn/watched", "one")
    with following(url) as watched:
        assert watched.text() == "one"
        for text in ("two", "three", "/models/four"):
            zookeeper.set("/firn/watched", text)
            wait_for(watched, lambda said, text=text: said == text)  # type: ignore[misc]
        zookeeper.remove("/firn/watched")
        wait_for(watched, lambda said: said == f"UsageError: there is no node {url}.")
        zookeeper.set("/firn/watched", "five")
        wait_for(watched, lambda said: said == "five")
        zookeeper.set("/firn/watched", b"")
        wait_for(watched, lambda said: said == f"UsageError: the node {url} is empty.")
        zookeeper.set("/firn/watched", "six")
        wait_for(watched, lambda said: said == "six")
        zookeeper.shut_in("/firn/watched", "firn", "word")
        with zookeeper.client() as client:
            client.add_auth("digest", "firn:word")
            client.set("/firn/watched", b"seven")
            wait_for(watched, lambda said: "asks for a user who may read it" in said)


def test_a_text_is_known_without_asking(zookeeper: ZooKeeperServer, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = list[str]()
    really = connector._read

    def counted(*given: object, **named: object) -> str:
        reads.append("read")
        return really(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(connector, "_read", counted)
    with following(zookeeper.set("/firn/quiet", "one")) as watched:
        assert {watched.text() for _ in range(1000)} == {"one"}
        assert len(reads) == 1
        zookeeper.set("/firn/quiet", "two")
        wait_for(watched, lambda said: said == "two")
        assert {watched.text() for _ in range(1000)} == {"two"}
        assert len(reads) <= 3  # the making of the value and its event may come apart


def test_a_watch_outlives_its_server(zookeeper: ZooKeeperServer) -> None:
    with following(zookeeper.set("/firn/kept", "one")) as watched:
        assert watched.text() == "one"
        zookeeper.kill()
        wait_for(watched, lambda said: said.startswith("JobError: no ZooKeeper answers at"))
        zookeeper.restart()
        wait_for(watched, lambda said: said == "one", timeout_s=60)
        zookeeper.set("/firn/kept", "two")
        wait_for(watched, lambda said: said == "two")


def test_a_session_that_has_expired_is_made_again(zookeeper: ZooKeeperServer, monkeypatch: pytest.MonkeyPatch) -> None:
    clients, really = list[Any](), connector._session

    @contextmanager
    def kept(node: Node) -> Iterator[Any]:
        with really(node) as client:
            clients.append(client)
            yield client

    monkeypatch.setattr(connector, "_session", kept)
    with following(zookeeper.set("/firn/expired", "one")) as watched:
        assert watched.text() == "one"
        session = clients[0].client_id
        other = KazooClient(hosts=zookeeper.address, client_id=session)  # of the same session, which it ends
        other.start(timeout=60)
        other.stop()
        other.close()
        wait_until(lambda: clients[-1].client_id not in (None, session), "a new session", timeout_s=60)
        zookeeper.set("/firn/expired", "two")
        wait_for(watched, lambda said: said == "two")


def test_a_network_that_is_silent_is_noticed(zookeeper: ZooKeeperServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connector, "_TIMEOUT_S", 2.0)
    with following(zookeeper.set("/firn/silent", "one")) as watched:
        assert watched.text() == "one"
        zookeeper.signal(signal.SIGSTOP)
        try:
            wait_for(watched, lambda said: said.startswith("JobError: no ZooKeeper answers at"), timeout_s=60)
        finally:
            zookeeper.signal(signal.SIGCONT)
        wait_for(watched, lambda said: said == "one", timeout_s=60)
        zookeeper.set("/firn/silent", "two")
        wait_for(watched, lambda said: said == "two", timeout_s=60)


def test_a_server_that_has_lost_its_data_is_followed_by_a_new_session(
    zookeeper: ZooKeeperServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connector, "_NEW_SESSION_S", 1.0)
    with following(zookeeper.set("/firn/lost", "one")) as watched:
        assert watched.text() == "one"
        zookeeper.restart(is_emptied=True)
        wait_for(watched, lambda said: said.startswith("UsageError: there is no node"), timeout_s=60)
        zookeeper.set("/firn/lost", "two")
        wait_for(watched, lambda said: said == "two")
