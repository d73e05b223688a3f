"""SIGTERM as a wish: a training ends after the epoch under way, with its checkpoint written."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from featurize import storage

STOP_NAME = "stop.json"


@contextmanager
def stop_on_sigterm(url: str) -> Iterator[Callable[[], bool]]:
    """A function that tells whether a training is to end: this process has got SIGTERM, or the one that started it on Spark.

    Args:
        url: of the model.
    """
    received = threading.Event()
    with _handling_sigterm(lambda *_: received.set()):
        yield lambda: received.is_set() or storage.exists(storage.join_url(url, STOP_NAME))


@contextmanager
def stop_by_file_on_sigterm(url: str) -> Iterator[None]:
    """For the process that has started the ranks: hands SIGTERM on to them, through a file in the folder of the model."""

    def ask(*_: Any) -> None:
        storage.write_json(storage.join_url(url, STOP_NAME), {"reason": "SIGTERM"})

    with _handling_sigterm(ask):
        try:
            yield
        finally:
            forget_stop(url)


def forget_stop(url: str) -> None:
    """Removes what somebody who was killed meanwhile has left of such a wish."""
    storage.remove(storage.join_url(url, STOP_NAME))


@contextmanager
def _handling_sigterm(handler: Callable[..., None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # the only one that may set a handler
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
