"""The messages between the hub and the ranks, lines of JSON over a connection; and the end of a process."""

import json
import os
import socket
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

_BEAT_S = 1.0
_STATUS = 1  # the exit status of a rank when another one is at fault


class Address(NamedTuple):
    """The address of a hub, and the token by which it recognises its ranks."""

    host: str
    port: int
    token: str

    @classmethod
    def parse(cls, text: str) -> "Address":
        """The address whose `str` this is."""
        host, port, token = json.loads(text)
        return cls(host, port, token)

    def __str__(self) -> str:
        return json.dumps(list(self))


@dataclass
class Lines:
    """Messages over a connection, a line of JSON each; nothing here ever waits.

    Attributes:
        rank: the rank at the other end; None before its first message.
        ended: whether the other end is closed.
    """

    socket: socket.socket
    rank: int | None = None
    ended: bool = False
    _rest: bytes = b""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.socket.setblocking(False)

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message. It is lost if the other end has not read for so long that the system's buffers are full."""
        with self._lock, suppress(OSError):
            self.socket.send(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]]:
        """The messages that have arrived."""
        try:
            data = self.socket.recv(1 << 16)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        self.ended = not data
        *whole, self._rest = (self._rest + data).split(b"\n")
        try:
            return [json.loads(line) for line in whole]
        except ValueError:  # not sent by a rank
            self.ended = True
            return []


def beat_interval(timeout_s: float) -> float:
    """Seconds between two signs of life of a process: one, or less if `timeout_s` is short."""
    return min(_BEAT_S, timeout_s / 8)


def process_name(what: str) -> str:
    """The name of this process in messages, such as ``rank 1 (process 4242 on host-b)``."""
    return f"{what} (process {os.getpid()} on {socket.gethostname()})"


def say_error(message: str) -> None:
    """Shows an error to the user as the commands do, whatever the other threads of this process are writing."""
    with suppress(OSError):  # standard error is closed
        os.write(2, f"error: {message}\n".encode())


def end_process(message: str | None) -> None:
    """Ends this process at once, whatever its other threads wait for; shows the user `message`, if there is one."""
    if message is not None:
        say_error(message)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(_STATUS)
