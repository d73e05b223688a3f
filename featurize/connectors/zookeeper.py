"""Nodes of ZooKeeper: a line of text, read once or followed by a watch.

A node is named ``zk://host:port,host:port/path``. The environment variable FIRN_ZK_DIGEST has user and password for nodes whose
ACL asks for them (scheme ``digest``); a URL holds none, as it is shown and stored. What a node holds was written by others: it is
one line of UTF-8, not long and without control characters, or it is refused.

Source: https://zookeeper.apache.org/doc/r3.6.3/zookeeperProgrammers.html, sections on sessions, watches and ACLs.
"""

import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any, Self

from featurize.connectors.client_library import client_library
from featurize.errors import FirnError, JobError, UsageError
from featurize.foreign_text import printable, shown

SCHEME = "zk://"
DIGEST = "FIRN_ZK_DIGEST"
"""The environment variable with ``user:password``."""
MOST_BYTES = 4096
"""The longest content of a node."""
_TIMEOUT_S = 10.0  # of a session, of an answer, and of the connection to each host
_RETRY_S = 2.0  # where nobody answers, or the node cannot be read
_NEW_SESSION_S = (
    30.0  # kazoo would offer an old session for ever to servers that have lost their data, and they refuse it
)
_HOST = re.compile(r"([\w.-]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?")
_LAST_PORT = 65535
_SHOWN = 100
_log = logging.getLogger("kazoo.firn")
_log.setLevel(logging.ERROR)  # what it warns of is said here; at DEBUG it would log passwords


@dataclass(frozen=True)
class Node:
    """The address of a node.

    Attributes:
        hosts: The servers, ``host:port,host:port``.
        path: The absolute path of the node.
    """

    hosts: str
    path: str

    @classmethod
    def of(cls, url: str) -> Self:
        """The node that a URL names.

        Raises:
            UsageError: It is no such URL, or it holds a password.
        """
        hosts, slash, path = url.removeprefix(SCHEME).rstrip("/").partition("/")
        if "@" in hosts:
            raise UsageError(
                f"a URL of ZooKeeper holds no user and password, as it is shown and stored: set {DIGEST}=user:password in "
                f"the environment. Got {shown(SCHEME + '***@' + hosts.rpartition('@')[2] + slash + path)}."
            )
        is_path = slash and not {"", ".", ".."} & set(path.split("/")) and printable(path) == path
        if not (url.startswith(SCHEME) and all(map(_is_host, hosts.split(","))) and is_path):
            raise UsageError(f"a node of ZooKeeper is named {SCHEME}host:port,host:port/path. Got {shown(url)!r}.")
        return cls(hosts, f"/{path}")

    def __str__(self) -> str:
        return f"{SCHEME}{self.hosts}{self.path}"


def _is_host(text: str) -> bool:
    found = _HOST.fullmatch(text)
    return found is not None and int((found[2] or ":0")[1:]) <= _LAST_PORT


def is_node(text: str) -> bool:
    """Whether `text` names a node of ZooKeeper and nothing else."""
    return text.startswith(SCHEME)


def read_node(url: str) -> str:
    """The line of text in a node, read in a session of its own.

    Raises:
        UsageError: There is no such node, it may not be read, or it holds no line of text.
        JobError: No server answers.
    """
    node = Node.of(url)
    with _session(node) as client:
        return _read(client, node)


class WatchedNode:
    """The line of text in a node, kept up to date by a watch in one session, which is made again whenever it is lost.

    Args:
        url: URL of the node.

    Raises:
        UsageError: It is no URL of a node, or kazoo is not installed.
    """

    def __init__(self, url: str) -> None:
        self._node = Node.of(url)
        _kazoo()
        self._answer: str | FirnError = _no_answer(self._node)
        self._is_first, self._is_closed, self._is_due = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch of {self._node}", daemon=True)
        self._thread.start()

    def text(self) -> str:
        """The text as the last event has left it. Nothing is asked over the network.

        Raises:
            UsageError: There is no node any more, it may not be read, or it holds no line of text.
            JobError: No server answers at the moment; the session is being made again.
        """
        self._is_first.wait(_TIMEOUT_S)
        answer = self._answer
        if isinstance(answer, FirnError):
            raise type(answer)(*answer.args)
        return answer

    def close(self) -> None:
        """Ends the session."""
        self._is_closed.set()
        self._is_due.set()
        self._thread.join(_RETRY_S)  # it may wait for a server; it ends by itself

    def _run(self) -> None:
        while not self._is_closed.is_set():
            try:
                with _session(self._node) as client:
                    self._follow(client)
            except FirnError as fault:
                self._keep(fault)
                self._is_closed.wait(_RETRY_S)

    def _follow(self, client: Any) -> None:
        """Reads the node after each of its events, until the session has been without a server for too long."""
        client.add_listener(self._wake)
        connected_at = monotonic()
        while not self._is_closed.is_set():
            self._is_due.clear()  # before the node is read: an event during the reading makes it due again
            if client.connected:
                connected_at = monotonic()
                self._keep(self._read_and_watch(client))
            elif monotonic() - connected_at < _NEW_SESSION_S:
                self._keep(_no_answer(self._node))
            else:
                return
            self._is_due.wait(None if isinstance(self._answer, str) else _RETRY_S)

    def _read_and_watch(self, client: Any) -> str | FirnError:
        try:
            return _read(client, self._node, watch=self._wake)
        except FirnError as fault:
            return fault

    def _keep(self, answer: str | FirnError) -> None:
        self._answer = answer
        self._is_first.set()

    def _wake(self, _: object) -> None:
        """Called at each change of the node and of the session, by threads of kazoo, which must not be held up."""
        self._is_due.set()


def _read(client: Any, node: Node, *, watch: Any = None) -> str:
    """The text of a node. `watch` is called once, when the node is made, changed or removed, or the connection is lost."""
    with _faults(node):
        if client.exists_async(node.path, watch=watch).get(timeout=_TIMEOUT_S) is None:
            raise UsageError(f"there is no node {node}.")
        content, _ = client.get_async(node.path).get(timeout=_TIMEOUT_S)
    return _text(content or b"", node)


def _text(content: bytes, node: Node) -> str:
    """The content of a node as a line of text, which may have a line end.

    Raises:
        UsageError: It is none.
    """
    if len(content) > MOST_BYTES:
        raise UsageError(f"the node {node} holds {len(content):,} bytes; a name has at most {MOST_BYTES:,}.")
    try:
        text = content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UsageError(f"the node {node} holds no text in UTF-8.") from error
    if not text:
        raise UsageError(f"the node {node} is empty.")
    if printable(text) != text:
        raise UsageError(f"the node {node} holds more than one line, or control characters: {shown(text[:_SHOWN])!r}.")
    return text


@contextmanager
def _session(node: Node) -> Iterator[Any]:
    """A session with a server, as kazoo's client.

    Raises:
        UsageError: The user or the password cannot be used, or kazoo is not installed.
        JobError: No server answers.
    """
    hosts = node.hosts.split(",")
    client = _kazoo().KazooClient(
        hosts=node.hosts,
        timeout=_TIMEOUT_S,
        auth_data=_credentials(),
        connection_retry={"max_tries": -1, "delay": 0.1, "max_delay": _RETRY_S},
        logger=_log,
    )
    with _faults(node):
        client.start(timeout=_TIMEOUT_S * len(hosts))
    try:
        yield client
    finally:
        with _faults(node):
            client.stop()
            client.close()


def _credentials() -> list[tuple[str, str]]:
    digest = os.environ.get(DIGEST)
    if not digest:
        return []
    user, colon, password = digest.partition(":")
    if not (user and colon and password):
        raise UsageError(f"the environment variable {DIGEST} must be user:password; its value is not shown.")
    return [("digest", digest)]


@contextmanager
def _faults(node: Node) -> Iterator[None]:
    """Turns the errors of kazoo into Firn's."""
    exceptions = _kazoo("exceptions")
    silent = _kazoo("handlers.threading").KazooTimeoutError
    try:
        yield
    except exceptions.NoNodeError as error:
        raise UsageError(f"there is no node {node}.") from error
    except (exceptions.NoAuthError, exceptions.AuthFailedError) as error:
        wrong = f"the user and password of {DIGEST} may not" if os.environ.get(DIGEST) else f"{DIGEST} is not set"
        raise UsageError(f"the node {node} asks for a user who may read it: {wrong}.") from error
    except (exceptions.KazooException, silent) as error:
        raise _no_answer(node) from error


def _no_answer(node: Node) -> JobError:
    return JobError(f"no ZooKeeper answers at {node.hosts}, for {node}.")


def _kazoo(module: str = "client") -> Any:
    return client_library(f"kazoo.{module}", system=f"{SCHEME}host:port/path", extra="zookeeper")
