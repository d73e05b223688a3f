"""Horovod's services as Firn starts them: where they listen, and what strangers can do there."""

import pickle
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from helpers.services.hub_peers import LONG_S, LOOPBACK, is_closed
from helpers.services.processes import wait_until
from horovod.runner.common.util import secret
from horovod.spark.driver.driver_service import SparkDriverClient
from pyspark import SparkConf

from finetune.ranks import horovod_services
from finetune.ranks.horovod_services import (
    ANY_ADDRESS,
    MAX_MESSAGE_BYTES,
    MAX_VALUE_BYTES,
    DriverService,
    Rendezvous,
    TaskService,
    address_towards,
    listening_address,
)
from finetune.ranks.spark_launch import warn_of_open_network

KEY = b"k" * 32


def work() -> str:
    return "what a rank does"


@pytest.fixture
def driver() -> Iterator[DriverService]:
    service = DriverService(LOOPBACK, 2, work, KEY)
    yield service
    service.shutdown()


def connect(service: DriverService, content: bytes = b"") -> socket.socket:
    connection = socket.create_connection((LOOPBACK, service.get_port()), timeout=LONG_S)
    connection.sendall(content)
    return connection


def assert_answers(driver: DriverService) -> None:
    function, arguments, _ = SparkDriverClient(driver.addresses(), KEY, 0).code()
    assert (function(*arguments), arguments) == ("what a rank does", ())


def test_a_service_is_known_and_reached_at_one_address_only(driver: DriverService) -> None:
    ((name, address),) = [(name, one) for name, found in driver.addresses().items() for one in found]
    assert name == "lo"
    assert address == (LOOPBACK, driver.get_port())
    assert driver._server.server_address[0] == LOOPBACK
    assert_answers(driver)
    task = TaskService(address_towards(driver.addresses()), 0, KEY)
    assert task.addresses() == {"lo": [(LOOPBACK, task.get_port())]}
    task.shutdown()


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, bytes]]:
        return write, (str(self.path), b"harmed")


def write(path: str, content: bytes) -> None:
    Path(path).write_bytes(content)


def message(content: bytes, *, digest: bytes | None = None, length: int | None = None) -> bytes:
    given = secret.compute_digest(KEY, content) if digest is None else digest
    return given + struct.pack("i", len(content) if length is None else length) + content


def test_a_message_without_the_key_is_not_unpickled(
    driver: DriverService, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    harmful = pickle.dumps(Harmful(tmp_path / "file"))
    for sent in (message(harmful, digest=bytes(32)), b"[]\n" * 20, b"GET / HTTP/1.1\r\n\r\n" + bytes(100)):
        with connect(driver, sent) as stranger:
            stranger.shutdown(socket.SHUT_WR)
            assert is_closed(stranger)
    assert not (tmp_path / "file").exists()
    assert_answers(driver)
    assert not capfd.readouterr().err


@pytest.mark.parametrize("length", [-1, MAX_MESSAGE_BYTES + 1, 2**31 - 1, -(2**31)])
def test_a_length_out_of_bounds_ends_the_connection_at_once(driver: DriverService, length: int) -> None:
    with connect(driver, message(b"", length=length)) as stranger:
        assert is_closed(stranger)
    assert_answers(driver)


def test_silent_strangers_are_few_and_have_little_time(driver: DriverService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(horovod_services, "SILENCE_S", 1.0)
    with ExitStack() as strangers:
        silent = [strangers.enter_context(connect(driver)) for _ in range(horovod_services.MOST_REQUESTS + 20)]
        assert all(is_closed(stranger) for stranger in silent)
    assert_answers(driver)


def test_who_sends_a_byte_now_and_then_has_little_time_as_well(
    driver: DriverService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(horovod_services, "REQUEST_S", 1.0)
    with connect(driver, message(b"x", length=1000)) as slow:
        slow.settimeout(0.2)

        def is_sent_away() -> bool:
            try:
                slow.sendall(b"x")
                return slow.recv(1) == b""
            except TimeoutError:
                return False
            except ConnectionError:
                return True

        wait_until(is_sent_away, "the end of the connection", timeout_s=LONG_S)
    assert_answers(driver)


# Where ranks find each other


def request(port: int, content: bytes, *, source: str = LOOPBACK) -> bytes:
    with socket.create_connection((LOOPBACK, port), timeout=LONG_S, source_address=(source, 0)) as connection:
        connection.sendall(content)
        answer = b""
        try:
            while data := connection.recv(1000):
                answer += data
        except ConnectionResetError:
            pass
        return answer


def test_the_meeting_place_of_ranks_hears_their_machines_only(capfd: pytest.CaptureFixture[str]) -> None:
    place = Rendezvous(LOOPBACK)
    port = place.start_for({LOOPBACK})
    place.init([])
    put = b"PUT /global/0 HTTP/1.0\r\nContent-Length: 4\r\n\r\nrank"
    assert request(port, put, source="127.0.0.2") == b""
    assert b" 404 " in request(port, b"GET /global/0 HTTP/1.0\r\n\r\n")
    assert b" 200 " in request(port, put)
    assert request(port, b"GET /global/0 HTTP/1.0\r\n\r\n").endswith(b"rank")
    for length in (b"-1", b"x", str(MAX_VALUE_BYTES + 1).encode(), b"1" * 30):
        assert b" 400 " in request(port, put.replace(b": 4", b": " + length))
    assert request(port, b"GET /global/0 HTTP/1.0\r\n\r\n").endswith(b"rank")
    place.stop()
    place._httpd.server_close()
    assert not capfd.readouterr().err


@pytest.mark.parametrize(
    ("wanted", "is_local", "found"),
    [
        ("192.0.2.1", True, LOOPBACK),
        (LOOPBACK, False, LOOPBACK),
        ("localhost", False, LOOPBACK),
        ("127.1", False, ANY_ADDRESS),  # as a name that is loopback here, and another machine elsewhere
        ("192.0.2.1", False, ANY_ADDRESS),
        ("0.0.0.0", False, ANY_ADDRESS),
        ("no-such-host.invalid", False, ANY_ADDRESS),
    ],
)
def test_the_driver_listens_at_one_address_if_it_has_one(wanted: str, is_local: bool, found: str) -> None:
    assert listening_address(wanted, is_local=is_local) == found


def test_a_task_listens_where_it_reaches_the_driver() -> None:
    assert address_towards({"lo": [(LOOPBACK, 4242)]}) == LOOPBACK
    assert address_towards({"lo": [(LOOPBACK, 4242)], "eth0": [("192.0.2.1", 4242)]}) == ANY_ADDRESS


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "`spark.authenticate` and `spark.network.crypto.enabled` are not set"),
        ({"spark.authenticate": "true"}, "`spark.network.crypto.enabled` is not set"),
        ({"spark.network.crypto.enabled": "TRUE"}, "`spark.authenticate` is not set"),
        ({"spark.authenticate": "true", "spark.network.crypto.enabled": "true"}, ""),
    ],
)
def test_an_open_network_is_warned_of(settings: dict[str, str], says: str, capfd: pytest.CaptureFixture[str]) -> None:
    warn_of_open_network(SparkConf(loadDefaults=False).setAll(list(settings.items())))
    said = " ".join(capfd.readouterr().err.split())
    assert says in said
    assert bool(said) == bool(says)
