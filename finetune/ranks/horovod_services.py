"""Horovod's services on Spark, which listen on one address only and do not let strangers disturb them.

Those of Horovod 0.28.1 listen on every address of the machine, read as many bytes as a stranger announces, wait for him without
end, and print a Python trace for each wrong message. Its messages are signed with the key of the job, which is checked before
anything is unpickled; that is kept. Import this module in functions: it imports Horovod and pyspark.
"""

import os
import socket
import struct
import threading
from collections.abc import Collection
from contextlib import suppress
from http import HTTPStatus
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any, Final, cast

import psutil
from horovod.runner.common.util import secret
from horovod.runner.common.util.network import BasicService, Wire
from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer, RendezvousServer
from horovod.runner.util.threads import in_thread
from horovod.spark.common.util import host_hash
from horovod.spark.driver.driver_service import SparkDriverClient, SparkDriverService
from horovod.spark.runner import MINIMUM_COMMAND_LIFETIME_S
from horovod.spark.task.task_service import SparkTaskService

from finetune.ranks.hub_address import LOOPBACK

ANY_ADDRESS: Final = "0.0.0.0"  # only where the session says that its driver listens so
MAX_MESSAGE_BYTES: Final = 1 << 28
MAX_VALUE_BYTES: Final = 1 << 16
SILENCE_S, REQUEST_S = 10.0, 60.0
"""Seconds that may pass without a byte of a request, and in which all of it must have arrived."""
MOST_REQUESTS: Final = 256
"""Requests that may be arriving at a time."""
_LENGTH = struct.Struct("i")

Addresses = dict[str, list[tuple[str, int]]]


def listening_address(wanted: str, *, is_local: bool) -> str:
    """The address that services of the driver listen on: loopback where all tasks are on this machine.

    Args:
        wanted: name or address of the driver, as its session has it.
        is_local: whether all tasks are on this machine.
    """
    if is_local:
        return LOOPBACK
    with suppress(OSError):
        address = socket.gethostbyname(wanted)
        # A name may lead to loopback on its own machine only, which tells other machines nothing.
        is_reachable = not address.startswith("127.") or wanted in (address, "localhost")
        if address in _own_addresses() and is_reachable:
            return address
    return ANY_ADDRESS


def address_towards(others: Addresses) -> str:
    """The address of this machine from which it reaches a service at one of the addresses `others`."""
    addresses = [address for interface in others.values() for address in interface]
    if len(addresses) != 1:  # the driver listens on several: which of them leads there is found out later
        return ANY_ADDRESS
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(addresses[0])  # of a datagram socket: nothing is sent, only the route is looked up
        return cast(str, probe.getsockname()[0])


class _BoundedWire(Wire):  # type: ignore[misc]
    """Horovod's messages, whose length has a limit."""

    def read(self, rfile: Any) -> Any:
        """See Horovod; raises an error for a message that is too long before it is read."""
        head = rfile.read(secret.DIGEST_LENGTH + _LENGTH.size)
        if len(head) < secret.DIGEST_LENGTH + _LENGTH.size:
            raise EOFError
        (length,) = _LENGTH.unpack(head[secret.DIGEST_LENGTH :])
        if not 0 <= length <= MAX_MESSAGE_BYTES:
            raise ValueError("a message of a rank is too long")
        return super().read(_Joined(head, rfile))


class _Joined:
    """Bytes that were read already, and the rest of a file."""

    def __init__(self, head: bytes, rest: Any) -> None:
        self._head, self._rest = head, rest

    def read(self, length: int) -> bytes:
        """The next `length` bytes."""
        content, self._head = self._head[:length], self._head[length:]
        return content if len(content) == length else content + self._rest.read(length - len(content))


class _QuietServer(ThreadingTCPServer):
    """Drops a wrong request without a word, and those that are too many at a time."""

    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        self.arriving = threading.BoundedSemaphore(MOST_REQUESTS)
        super().__init__(*arguments)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: whoever has sent it learns it, as the connection is closed."""


class OneAddressService(BasicService):  # type: ignore[misc]
    """Horovod's base of its services, with another server. Set `_host` before it is called."""

    _host: str

    def __init__(self, service_name: str, key: bytes, nics: Any) -> None:
        self._service_name, self._wire, self._nics = service_name, _BoundedWire(key), nics
        self._server = _QuietServer((self._host, 0), self._make_handler())
        self._server.block_on_close = True
        self._port = self._server.server_address[1]
        self._addresses = self._get_local_addresses()
        self._thread = in_thread(target=self._server.serve_forever)

    def _get_local_addresses(self) -> Addresses:
        every: Addresses = super()._get_local_addresses()
        if self._host == ANY_ADDRESS:
            return every
        named = {name: [own for own in addresses if own[0] == self._host] for name, addresses in every.items()}
        return {name: addresses for name, addresses in named.items() if addresses}

    def _make_handler(self) -> type[StreamRequestHandler]:
        service = self

        class Handler(StreamRequestHandler):
            def handle(self) -> None:
                with suppress(EOFError, BrokenPipeError):  # the other end has gone
                    self._answer()

            def _answer(self) -> None:
                arriving = cast(_QuietServer, self.server).arriving
                if not arriving.acquire(blocking=False):
                    return
                too_late = threading.Timer(REQUEST_S, self.connection.shutdown, [socket.SHUT_RDWR])
                too_late.daemon = True
                too_late.start()
                try:
                    self.connection.settimeout(SILENCE_S)
                    request = service._wire.read(self.rfile)
                finally:
                    too_late.cancel()
                    arriving.release()
                self.connection.settimeout(None)
                answer = service._handle(request, self.client_address)
                answer, stream = answer if isinstance(answer, tuple) else (answer, None)
                service._wire.write(answer, self.wfile)
                if stream is not None:
                    service._wire.stream(stream, self.wfile)

        return Handler


class DriverService(SparkDriverService, OneAddressService):  # type: ignore[misc]
    """The driver's service: `host` is what it listens on; all else see Horovod."""

    def __init__(self, host: str, num_ranks: int, work: Any, key: bytes) -> None:
        self._host = host
        SparkDriverService.__init__(self, num_ranks, num_ranks, work, (), {}, key, None)
        self._server.daemon_threads = (
            True  # a client that is stopped in a request does not keep this process from ending
        )


class TaskService(SparkTaskService, OneAddressService):  # type: ignore[misc]
    """A task's service: `host` is what it listens on; all else see Horovod."""

    def __init__(self, host: str, index: int, key: bytes) -> None:
        self._host = host
        SparkTaskService.__init__(self, index, key, None, MINIMUM_COMMAND_LIFETIME_S, 0)


class Rendezvous(RendezvousServer):  # type: ignore[misc]
    """The server at which Gloo's ranks find each other. It has no key, so it listens to the machines of the ranks only.

    Args:
        host: the address to listen on.
    """

    def __init__(self, host: str) -> None:
        super().__init__()
        self._host = host

    def start_for(self, clients: Collection[str]) -> int:
        """Starts it for ranks at the addresses `clients`; returns its port."""
        known = {*clients, self._host}

        class Handler(RendezvousHandler):  # type: ignore[misc]
            def parse_request(self) -> bool:
                return self.client_address[0] in known and bool(super().parse_request())

            def do_PUT(self) -> None:  # noqa: N802
                length = self.headers.get("Content-Length", "")
                if not length.isdecimal() or int(length) > MAX_VALUE_BYTES:
                    self.send_status_code(HTTPStatus.BAD_REQUEST)
                    return
                super().do_PUT()

        self._httpd = RendezvousHTTPServer((self._host, 0), Handler, 0)
        self._httpd.daemon_threads = True
        self._httpd.handle_error = lambda *_: None
        self._listen_thread = in_thread(target=self._httpd.serve_forever)
        return cast(int, self._httpd.server_address[1])


def serve_rank(index: int, driver: Addresses, key: bytes, settings: Any) -> Any:
    """The work of a task: starts the process of its rank when the driver says so, and returns what the rank returns.

    It does what Horovod's own task does with Gloo.

    Args:
        index: the number of the task.
        driver: the addresses of the driver's service.
        key: the key of the job, which has come by Spark's own way.
        settings: Horovod's settings.
    """
    settings.key = key
    os.environ["HOROVOD_HOSTNAME"] = own_hash = host_hash()
    task = TaskService(address_towards(driver), index, key)
    try:
        client = SparkDriverClient(driver, key, 0)
        client.register_task(index, task.addresses(), own_hash)
        task.wait_for_initial_registration(settings.start_timeout)
        task.wait_for_command_start(settings.start_timeout)
        task.wait_for_command_termination()
        return task.fn_result()
    finally:
        task.shutdown()


def _own_addresses() -> set[str]:
    found = (address for interface in psutil.net_if_addrs().values() for address in interface)
    return {address.address for address in found if address.family == socket.AF_INET}
