"""Progress reports of workers to the driver: small datagrams. They serve only the progress bar.

A datagram has all that an attempt at a shard has done so far, so that one that is lost, comes twice or comes late does no harm.
It is signed with a key that the driver draws for each job and that Spark sends to the workers; other datagrams are ignored.
"""

import hmac
import secrets
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from featurize.timings import Timings

REPORT_PERIOD_S = 1.0
_LAYOUT = struct.Struct("!IQII5d")
_SIGNATURE_BYTES = 16
_MOST_BYTES = _LAYOUT.size + _SIGNATURE_BYTES


@dataclass(frozen=True)
class ReportTo:
    """Where workers send their reports: a UDP port of the driver, and the key to sign them with. It travels to the workers."""

    host: str
    port: int
    key: bytes


class ShardReport(NamedTuple):
    """What an attempt at a shard has done since it began.

    Attributes:
        shard: Its number in the plan.
        attempt: Spark's number of the attempt.
        done: Number of images done, rejects included.
        rejected: Number of images that could not be used.
        read: Seconds, like the following fields; see `Timings`.
    """

    shard: int
    attempt: int
    done: int
    rejected: int
    read: float = 0.0
    decode: float = 0.0
    wait: float = 0.0
    forward: float = 0.0
    write: float = 0.0


def make_report(shard: int, attempt: int, *, done: int, rejected: int, timings: Timings) -> ShardReport:
    """A report with the seconds of `timings`."""
    seconds = (timings.read, timings.decode, timings.wait, timings.forward, timings.write)
    return ShardReport(shard, attempt, done, rejected, *seconds)


def encode_report(report: ShardReport, key: bytes) -> bytes:
    """The datagram of a report."""
    content = _LAYOUT.pack(*report)
    return content + _signature(content, key)


def decode_report(datagram: bytes, key: bytes) -> ShardReport | None:
    """The report in a datagram; None if it was not signed with `key`."""
    content, signature = datagram[: _LAYOUT.size], datagram[_LAYOUT.size :]
    if len(datagram) != _MOST_BYTES or not hmac.compare_digest(signature, _signature(content, key)):
        return None
    return ShardReport(*_LAYOUT.unpack(content))


@contextmanager
def reporting(
    to: ReportTo | None, look: Callable[[], ShardReport], *, period_s: float = REPORT_PERIOD_S
) -> Iterator[None]:
    """Worker side: sends what `look` returns at the start of the block, every `period_s` seconds, and at its end.

    A thread sends it, and nothing waits for the thread: a name that takes long to resolve or a host that cannot be reached does
    not delay the shard.
    """
    if to is None:
        yield
        return
    ended = threading.Event()
    threading.Thread(target=_send, args=(to, look, ended, period_s), name="firn-reports", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


class ReportListener:
    """Driver side: opens a UDP port and receives the reports of workers.

    Args:
        host: The address to listen at.
        known_as: The name or address of the driver as workers know it.

    Raises:
        OSError: `host` is not an address of this machine.
    """

    def __init__(self, host: str, *, known_as: str) -> None:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)[0]
        self._socket = socket.socket(family, kind, protocol)
        try:
            self._socket.bind(address)
        except OSError:
            self._socket.close()
            raise
        self._socket.setblocking(False)
        self.report_to = ReportTo(known_as, self._socket.getsockname()[1], secrets.token_bytes(32))

    def received(self) -> Iterator[ShardReport]:
        """The reports that have come since the last call; does not wait for any."""
        while True:
            try:
                datagram = self._socket.recv(_MOST_BYTES + 1)
            except BlockingIOError:
                return
            report = decode_report(datagram, self.report_to.key)
            if report is not None:
                yield report

    def close(self) -> None:
        """Closes the port."""
        self._socket.close()


def _send(to: ReportTo, look: Callable[[], ShardReport], ended: threading.Event, period_s: float) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(to.host, to.port, type=socket.SOCK_DGRAM)[0]
        sender = socket.socket(family, kind, protocol)
    except OSError:  # the driver's name cannot be resolved here: it counts finished tasks instead
        return
    with sender:
        sender.setblocking(False)
        is_last = False
        while True:
            try:
                sender.sendto(encode_report(look(), to.key), address)
            except OSError:  # a full buffer, no route: the next report includes this one
                pass
            if is_last:
                return
            is_last = ended.wait(period_s)


def _signature(content: bytes, key: bytes) -> bytes:
    return hmac.digest(key, content, "sha256")[:_SIGNATURE_BYTES]
