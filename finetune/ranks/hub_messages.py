"""The messages between the hub and the ranks: a keyed challenge, then sealed frames over a connection; and the end of a process.

Both sides know the key of the job, which never goes over a connection. A rank says hello with a random number; the hub answers
with another one and proves that it knows the key; the rank proves it, too; the hub says that it is in. Until then nothing is
read but these few bytes. What follows are frames: their length, which has a limit, a seal over all that was sent before in this
direction, and a message in JSON. A recorded connection is worth nothing: the numbers of the next one are others.
"""

import hmac
import json
import os
import secrets
import socket
import struct
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from featurize.foreign_text import printable_lines, without_secrets

_BEAT_S = 1.0
_STATUS = 1  # the exit status of a rank when another one is at fault

_MAGIC = b"firn hub 2\n"
_NONCE_BYTES, _PROOF_BYTES = 32, 32
HELLO_BYTES: Final = len(_MAGIC) + _NONCE_BYTES
MAX_FRAME_BYTES: Final = 1 << 20
MAX_TEXT: Final = 100_000
"""Characters of an error in a message; what is longer is cut."""
_HEADER = struct.Struct("!I16s")  # the length of the message, and its seal


class Address(NamedTuple):
    """The address of a hub. It is no secret: what opens the hub is the key of the job."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Address":
        """The address whose `str` this is."""
        host, port = json.loads(text)
        return cls(host, port)

    def __str__(self) -> str:
        return json.dumps(list(self))


class NotTheHubError(Exception):
    """What answers at the hub's address does not know the key of the job."""


@dataclass
class Frames:
    """Messages over a connection whose two ends know each other; nothing here ever waits.

    Attributes:
        socket: the connection, after the challenge.
        send_key: the key of the seals in this direction, and `receive_key` of those in the other.
        rank: the rank at the other end; None before its first message.
        ended: whether the other end is closed, or has sent what no honest one sends.
    """

    socket: socket.socket
    send_key: bytes
    receive_key: bytes
    rank: int | None = None
    ended: bool = False
    _sent: int = 0
    _received: int = 0
    _unsent: bytes = b""
    _rest: bytes = b""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.socket.setblocking(False)

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message. It is lost if the other end has not read for so long that the system's buffers are full.

        Raises:
            ValueError: it is longer than `MAX_FRAME_BYTES`.
        """
        content = json.dumps(message).encode()
        if len(content) > MAX_FRAME_BYTES:
            raise ValueError(f"a message to or from the hub has {len(content)} bytes, more than {MAX_FRAME_BYTES}.")
        with self._lock:
            self._flush()
            if not self._unsent:
                self._unsent = _HEADER.pack(len(content), _seal(self.send_key, self._sent, content)) + content
                self._sent += 1
                self._flush()

    def receive(self) -> list[dict[str, Any]]:
        """The messages that have arrived."""
        try:
            data = self.socket.recv(1 << 16)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        self.ended = self.ended or not data
        self._rest += data
        messages = []
        try:
            while (content := self._next()) is not None:
                message = json.loads(content)
                if not isinstance(message, dict):
                    raise ValueError("a message is no object")
                messages.append(message)
        except (ValueError, RecursionError):
            self.ended, self._rest = True, b""
        return messages

    def _next(self) -> bytes | None:
        """The content of the next frame, if all of it has arrived.

        Raises:
            ValueError: it is too long, or its seal is wrong.
        """
        if len(self._rest) < _HEADER.size:
            return None
        length, seal = _HEADER.unpack_from(self._rest)
        if length > MAX_FRAME_BYTES:
            raise ValueError("a frame is too long")
        end = _HEADER.size + length
        if len(self._rest) < end:
            return None
        content, self._rest = self._rest[_HEADER.size : end], self._rest[end:]
        if not hmac.compare_digest(seal, _seal(self.receive_key, self._received, content)):
            raise ValueError("a frame was not sealed by the other end")
        self._received += 1
        return content

    def _flush(self) -> None:
        with suppress(OSError):
            while self._unsent:
                self._unsent = self._unsent[self.socket.send(self._unsent) :]


def enter(connection: socket.socket, key: bytes) -> Frames:
    """A rank's side of the challenge, over a connection that may wait.

    Raises:
        NotTheHubError: the other side does not know `key`.
        OSError: it has closed the connection, or does not answer.
    """
    hello = _MAGIC + secrets.token_bytes(_NONCE_BYTES)
    connection.sendall(hello)
    challenge, proof = _exactly(connection, _NONCE_BYTES), _exactly(connection, _PROOF_BYTES)
    if not hmac.compare_digest(proof, _prove(key, b"hub", hello, challenge)):
        raise NotTheHubError
    connection.sendall(_prove(key, b"rank", hello, challenge))
    if not hmac.compare_digest(_exactly(connection, _PROOF_BYTES), _prove(key, b"in", hello, challenge)):
        raise NotTheHubError
    return Frames(connection, _prove(key, b"to hub", hello, challenge), _prove(key, b"from hub", hello, challenge))


class Stranger:
    """The hub's side of the challenge, over a connection that has just been accepted; nothing here ever waits.

    Args:
        connection: the connection.
        key: the key of the job.
        since: when it was accepted, by `monotonic`.
    """

    def __init__(self, connection: socket.socket, key: bytes, since: float) -> None:
        connection.setblocking(False)
        self.socket, self.since, self._key = connection, since, key
        self._hello, self._challenge, self._given = b"", b"", b""

    def hear(self) -> Frames | None:
        """Reads what the stranger has said; returns the messages that follow, once it has proved that it is a rank.

        Raises:
            ConnectionError: it is no rank, or has gone.
        """
        wanted = _PROOF_BYTES if self._hello else HELLO_BYTES
        try:
            data = self.socket.recv(wanted - len(self._given))
        except BlockingIOError:
            return None
        self._given += data
        if not data or (not self._hello and self._given[: len(_MAGIC)] != _MAGIC[: len(self._given)]):
            raise ConnectionError("this is no rank")
        if len(self._given) < wanted:
            return None
        given, self._given = self._given, b""
        if not self._hello:
            self._hello, self._challenge = given, secrets.token_bytes(_NONCE_BYTES)
            self._say(self._challenge + self._prove(b"hub"))
            return None
        if not hmac.compare_digest(given, self._prove(b"rank")):
            raise ConnectionError("it does not know the key")
        self._say(self._prove(b"in"))
        return Frames(self.socket, self._prove(b"from hub"), self._prove(b"to hub"))

    def _say(self, content: bytes) -> None:
        if self.socket.send(content) != len(content):  # of a new connection: its buffer is empty
            raise ConnectionError("it does not read")

    def _prove(self, what: bytes) -> bytes:
        return _prove(self._key, what, self._hello, self._challenge)


def hub_key(job_key: bytes) -> bytes:
    """The key of the hub, made from a secret that the job's ranks share for other ends, too."""
    return hmac.digest(job_key, _MAGIC + b"key", "sha256")


def _prove(key: bytes, what: bytes, hello: bytes, challenge: bytes) -> bytes:
    return hmac.digest(key, what + b"\n" + hello + challenge, "sha256")


def _seal(key: bytes, number: int, content: bytes) -> bytes:
    return hmac.digest(key, struct.pack("!Q", number) + content, "sha256")[:16]


def _exactly(connection: socket.socket, length: int) -> bytes:
    content = b""
    while len(content) < length:
        data = connection.recv(length - len(content))
        if not data:
            raise ConnectionError("the other end has closed the connection")
        content += data
    return content


def beat_interval(timeout_s: float) -> float:
    """Seconds between two signs of life of a process: one, or less if `timeout_s` is short."""
    return min(_BEAT_S, timeout_s / 8)


def process_name(what: str) -> str:
    """The name of this process in messages, such as ``rank 1 (process 4242 on host-b)``."""
    return f"{what} (process {os.getpid()} on {socket.gethostname()})"


def say_error(message: str) -> None:
    """Shows an error to the user as the commands do, whatever the other threads of this process are writing."""
    with suppress(OSError):  # standard error is closed
        os.write(2, f"error: {printable_lines(without_secrets(message))}\n".encode())


def end_process(message: str | None) -> None:
    """Ends this process at once, whatever its other threads wait for; shows the user `message`, if there is one."""
    if message is not None:
        say_error(message)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(_STATUS)
