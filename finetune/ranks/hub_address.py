"""How the ranks of `horovodrun` find the hub: rank 0 writes its address to the launcher's key-value server.

That server is what Gloo's own rendezvous uses; it runs before the first rank and after the last one.
"""

import os
import socket
from time import monotonic, sleep
from urllib.error import HTTPError, URLError
from urllib.request import OpenerDirector, ProxyHandler, Request, build_opener

from featurize.errors import JobError
from finetune.ranks.hub_messages import Address

_KEY = "firn/hub"
_POLL_S = 0.2
_REQUEST_S = 5.0


def own_host() -> str:
    """The address of this machine on the network of the launcher, which every rank can reach."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(_launcher())  # of a datagram socket: nothing is sent, only the route is looked up
        host: str = probe.getsockname()[0]
        return host


def publish_hub(address: Address) -> None:
    """Lets the other ranks find the hub.

    Raises:
        JobError: the launcher does not answer.
    """
    try:
        _opener().open(Request(_url(), data=str(address).encode(), method="PUT"), timeout=_REQUEST_S).close()
    except OSError as error:
        raise JobError(f"rank 0 cannot reach its launcher at {_url()}: {error}") from error


def find_hub(rank: int, *, timeout_s: float) -> Address:
    """The hub's address, once rank 0 has published it.

    Raises:
        JobError: it did not within `timeout_s` seconds.
    """
    # One second apart, so that the lowest rank reports the error first, and the launcher ends the others.
    deadline = monotonic() + timeout_s + min(rank - 1, 5)
    while monotonic() < deadline:
        try:
            with _opener().open(_url(), timeout=_REQUEST_S) as answer:
                return Address.parse(answer.read().decode())
        except (HTTPError, URLError, TimeoutError):  # not there yet, or the launcher is busy
            sleep(_POLL_S)
    raise JobError(f"rank 0 has not started: nothing was heard of it for {timeout_s:g} s.")


def _launcher() -> tuple[str, int]:
    return os.environ["HOROVOD_GLOO_RENDEZVOUS_ADDR"], int(os.environ["HOROVOD_GLOO_RENDEZVOUS_PORT"])


def _url() -> str:
    host, port = _launcher()
    return f"http://{host}:{port}/{_KEY}"


def _opener() -> OpenerDirector:
    """An opener that ignores the proxies that the environment names."""
    return build_opener(ProxyHandler({}))
