"""What speaks to a hub in the tests: a rank that does as it is told, a stranger, and a listener between the two."""

import select
import socket
import threading
import time
from typing import Any

from finetune.ranks.hub import Hub
from finetune.ranks.hub_messages import Address, Frames, Stranger, enter
from finetune.ranks.hub_process import HubProcess

LOOPBACK = "127.0.0.1"
LONG_S = 60.0


def address_of(hub: Hub | HubProcess | Address) -> Address:
    if isinstance(hub, Hub):
        return hub.address(LOOPBACK)
    return hub if isinstance(hub, Address) else hub.address


class Peer:
    """A rank that says what it is told to and no more; it has the pid 100 + its number."""

    def __init__(self, hub: Hub | HubProcess | Address, rank: int, *, key: bytes | None = None) -> None:
        if key is None:
            assert isinstance(hub, Hub)
            key = hub.key
        self.connection = socket.create_connection(address_of(hub), timeout=LONG_S)
        self.frames = enter(self.connection, key)
        self._heard: list[dict[str, Any]] = []
        self.say(rank=rank, pid=100 + rank, host="host-b")

    def say(self, **message: object) -> None:
        self.frames.send(message)

    def hears(self, key: str) -> dict[str, Any]:
        """The next message that has the key."""
        deadline = time.monotonic() + LONG_S
        while time.monotonic() < deadline:
            while self._heard:
                message = self._heard.pop(0)
                if key in message:
                    return message
            self.listen(f"before a {key}")
        raise AssertionError(f"the hub says no {key}")

    def hears_beat(self) -> None:
        """Waits for the next sign of life of the hub."""
        while {} not in self._heard:
            self.listen("before a beat")
        self._heard.remove({})

    def listen(self, when: str) -> None:
        assert not self.frames.ended, f"the hub closed the connection {when}"
        assert select.select([self.connection], [], [], LONG_S)[0], f"the hub is silent {when}"
        self._heard += self.frames.receive()

    def close(self) -> None:
        self.connection.close()


def stranger_at(hub: Hub, content: bytes = b"") -> socket.socket:
    """A connection over which `content` was sent."""
    connection = socket.create_connection(hub.address(LOOPBACK), timeout=LONG_S)
    connection.sendall(content)
    return connection


def heard_until_closed(connection: socket.socket) -> bytes:
    """All that the other end says before it closes a connection."""
    heard, deadline = b"", time.monotonic() + LONG_S
    connection.settimeout(LONG_S)
    try:
        while data := connection.recv(1 << 16):
            heard += data
            assert time.monotonic() < deadline, "the connection is not closed"
    except ConnectionResetError:
        pass
    return heard


def is_closed(connection: socket.socket) -> bool:
    """Waits until the other end closes a connection; what it says before is passed over."""
    heard_until_closed(connection)
    return True


def let_in(listener: socket.socket, key: bytes) -> Frames:
    """Does as a hub with the next connection."""
    accepted, _ = listener.accept()
    stranger = Stranger(accepted, key, 0.0)
    while True:
        select.select([accepted], [], [], LONG_S)
        frames = stranger.hear()
        if frames is not None:
            return frames


class Between:
    """A listener between a rank and a hub. It keeps what each says, and may change what the rank says.

    Attributes:
        to_hub: what the rank has said, and `from_hub` the hub.
        changes: whether it changes one bit of what it passes on to the hub, in the last but one byte.
        repeats: whether it passes everything on to the hub twice.
    """

    def __init__(self, hub: Hub) -> None:
        self.to_hub, self.from_hub = bytearray(), bytearray()
        self.changes = self.repeats = False
        self._listener = socket.create_server((LOOPBACK, 0))
        self.address = Address(*self._listener.getsockname())
        self._hub = hub.address(LOOPBACK)
        threading.Thread(target=self._pass_on, daemon=True).start()

    def _pass_on(self) -> None:
        rank, _ = self._listener.accept()
        with rank, socket.create_connection(self._hub) as hub:
            while True:
                for source in select.select([rank, hub], [], [])[0]:
                    data = bytearray(source.recv(1 << 16))
                    if not data:
                        return
                    if source is rank:
                        self.to_hub += data
                        data[-2] ^= self.changes
                        data *= 1 + self.repeats
                    else:
                        self.from_hub += data
                    (hub if source is rank else rank).sendall(data)
