"""What the hub and the ranks it hears of speak with: lines of JSON over a connection, and the end of a process."""

import json
import os
import socket
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

_BEAT_S = 1.0
_STATUS = 1  # what a rank ends with when another one is at fault


class Address(NamedTuple):
    """Where a hub is, and the word by which it knows its ranks."""

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
        rank: at the other end.
        ended: the other end is closed.
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
        except ValueError:  # no rank speaks like that
            self.ended = True
            return []


def beat_interval(timeout_s: float) -> float:
    """How often a process says that it lives: every second, or more often where that would be too rare."""
    return min(_BEAT_S, timeout_s / 8)


def process_name(what: str) -> str:
    """What messages call this process, such as ``rank 1 (process 4242 on host-b)``."""
    return f"{what} (process {os.getpid()} on {socket.gethostname()})"


def say_error(message: str) -> None:
    """Shows an error to the user as the commands do, whatever the other threads of this process are writing."""
    with suppress(OSError):  # nobody listens any more
        os.write(2, f"error: {message}\n".encode())


def end_process(message: str | None) -> None:
    """Ends this process at once, whatever its other threads wait for, with an error for the user or with none."""
    if message is not None:
        say_error(message)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(_STATUS)
