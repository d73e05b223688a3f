"""How the ranks of `horovodrun` find the hub and its key: rank 0 writes its address to the launcher's key-value server.

That server is what Gloo's own rendezvous uses; it runs before the first rank and after the last one. Everybody who reaches it can
read it and write to it, so the key is not there. On one host it lies in memory of rank 0, which only processes of the same user
can open. On several hosts it comes from a file that the user names.
"""

import json
import os
import secrets
import socket
import stat
from dataclasses import asdict, dataclass
from time import monotonic, sleep
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import OpenerDirector, ProxyHandler, Request, build_opener

from featurize.console import warn
from featurize.errors import JobError
from finetune.ranks.hub_messages import Address, hub_key

KEY_FILE = "FIRN_RANKS_KEY_FILE"
"""An environment variable: the file of a secret that all ranks of `horovodrun` on several hosts can read, and no others."""
LOOPBACK = "127.0.0.1"
_KEY = "firn/hub"
_KEY_BYTES = 32
_POLL_S = 0.2
_REQUEST_S = 5.0
_MOST_BYTES = 4096


@dataclass(frozen=True)
class _Meeting:
    """What rank 0 tells the others.

    Attributes:
        host: the address of the hub, with `port`.
        number: drawn for each job, so that its key is another than those of other jobs with the same file.
        pid: the process that holds the key in memory, with `descriptor`; 0: see `clear`.
        clear: the key itself, where there is no other way; empty: it is made from the file that the user names.
    """

    host: str
    port: int
    number: str
    pid: int = 0
    descriptor: int = 0
    clear: str = ""

    @classmethod
    def parse(cls, content: bytes) -> "_Meeting":
        """Reads what `publish_hub` wrote, or what a stranger wrote in its place.

        Raises:
            ValueError: it is something else.
        """
        try:
            fields: dict[str, Any] = json.loads(content)
            meeting = cls(**fields)
        except (TypeError, RecursionError) as error:
            raise ValueError(str(error)) from error
        kinds = {"host": str, "port": int, "number": str, "pid": int, "descriptor": int, "clear": str}
        wrong = [name for name, kind in kinds.items() if type(getattr(meeting, name)) is not kind]
        if wrong:
            raise ValueError(f"wrong types: {', '.join(wrong)}")
        return meeting


class KeyOfRanks:
    """The key of the hub as rank 0 makes it, and what the other ranks must know to get the same one.

    Args:
        on_one_host: whether all ranks are on this machine.

    Raises:
        JobError: the file that `FIRN_RANKS_KEY_FILE` names cannot be used.
    """

    def __init__(self, *, on_one_host: bool) -> None:
        number = secrets.token_hex(16)
        self._fields: dict[str, Any] = {"number": number}
        if KEY_FILE in os.environ:
            self.key = _key_of_file(number)
            return
        self.key = secrets.token_bytes(_KEY_BYTES)
        if on_one_host:
            descriptor = os.memfd_create("firn-key")
            os.write(descriptor, self.key)
            self._fields.update(pid=os.getpid(), descriptor=descriptor)
        else:
            warn(
                "the ranks are on several hosts and have no secret of their own, so their launcher hands them one that others on "
                f"the network can read. Name a file that only you can read, the same on all hosts, in {KEY_FILE}; "
                "see `On a cluster` in the documentation."
            )
            self._fields["clear"] = self.key.hex()

    def publish(self, address: Address) -> None:
        """Lets the other ranks find the hub.

        Raises:
            JobError: the launcher does not answer.
        """
        content = json.dumps(asdict(_Meeting(*address, **self._fields))).encode()
        try:
            _opener().open(Request(_url(), data=content, method="PUT"), timeout=_REQUEST_S).close()
        except OSError as error:
            raise JobError(f"rank 0 cannot reach its launcher at {_url()}: {error}") from error


def own_host() -> str:
    """The address of this machine on the network of the launcher, which every rank can reach."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(_launcher())  # of a datagram socket: nothing is sent, only the route is looked up
        host: str = probe.getsockname()[0]
        return host


def find_hub(rank: int, *, timeout_s: float) -> tuple[Address, bytes]:
    """The hub's address and key, once rank 0 has published it.

    Raises:
        JobError: it did not within `timeout_s` seconds; or what is published there is not from rank 0.
    """
    # One second apart, so that the lowest rank reports the error first, and the launcher ends the others.
    deadline = monotonic() + timeout_s + min(rank - 1, 5)
    while monotonic() < deadline:
        try:
            with _opener().open(_url(), timeout=_REQUEST_S) as answer:
                meeting = _Meeting.parse(answer.read(_MOST_BYTES))
        except (HTTPError, URLError, TimeoutError):  # not there yet, or the launcher is busy
            sleep(_POLL_S)
        except ValueError as error:
            raise JobError(f"what the launcher has at {_url()} was not written by rank 0: {error}") from error
        else:
            return Address(meeting.host, meeting.port), _key_of(meeting)
    raise JobError(f"rank 0 has not started: nothing was heard of it for {timeout_s:g} s.")


def _key_of(meeting: _Meeting) -> bytes:
    if KEY_FILE in os.environ:
        return _key_of_file(meeting.number)
    try:
        if meeting.pid == 0:
            return bytes.fromhex(meeting.clear)
        return _read_secret(f"/proc/{meeting.pid}/fd/{meeting.descriptor}")
    except (OSError, ValueError) as error:
        raise JobError(f"the key that rank 0 holds for the other ranks cannot be read: {error}") from error


def _key_of_file(number: str) -> bytes:
    path = os.environ[KEY_FILE]
    try:
        return hub_key(_read_secret(path) + number.encode())
    except (OSError, ValueError) as error:
        raise JobError(f"{KEY_FILE}: {path} cannot be used: {error}") from error


def _read_secret(path: str) -> bytes:
    """The content of a file that belongs to this user.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no file of this user, others can read it, or it is too short or too long for a secret.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # it waits for no writer of a pipe
    with os.fdopen(descriptor, "rb") as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode) or facts.st_uid not in (os.geteuid(), 0):
            raise ValueError("it is not a file of this user")
        in_memory = facts.st_nlink == 0  # and reachable through its process alone, whatever its mode says
        if facts.st_mode & 0o077 and not in_memory:
            raise ValueError("others may read it; `chmod 600` it")
        content = file.read(_MOST_BYTES + 1)
    if not _KEY_BYTES <= len(content) <= _MOST_BYTES:
        raise ValueError(f"it must have {_KEY_BYTES} to {_MOST_BYTES} random bytes. Got {len(content)}")
    return content


def _launcher() -> tuple[str, int]:
    return os.environ["HOROVOD_GLOO_RENDEZVOUS_ADDR"], int(os.environ["HOROVOD_GLOO_RENDEZVOUS_PORT"])


def _url() -> str:
    host, port = _launcher()
    return f"http://{host}:{port}/{_KEY}"


def _opener() -> OpenerDirector:
    """An opener that ignores the proxies that the environment names."""
    return build_opener(ProxyHandler({}))
