"""SIGTERM as a wish: a training ends after the epoch under way, with its checkpoint written."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_on_sigterm() -> Iterator[Callable[[], bool]]:
    """A function that tells whether this process has got SIGTERM; on Spark the driver hands its own on to the ranks."""
    received = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # the only one that may set a handler
        yield received.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: received.set())
    try:
        yield received.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
