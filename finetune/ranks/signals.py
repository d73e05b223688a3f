"""Signals that ask a process to stop, which may finish its current work first."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_DEFAULTS = {signal.SIGINT: signal.default_int_handler}


@contextmanager
def stop_on_signals(
    *numbers: signal.Signals, second_ends: bool = False, on_signal: Callable[[int], None] | None = None
) -> Iterator[Callable[[], bool]]:
    """A function that tells whether one of the signals `numbers` has arrived; within the block they do nothing else.

    Python handles signals in the main thread alone: in another thread nothing is changed, and the function returns False.

    Args:
        numbers: such as `signal.SIGTERM`.
        second_ends: after the first signal, any further one ends the process at once, as it would without the block.
        on_signal: called with the number of each signal that arrives, in the main thread, between two of its instructions.
    """
    received = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield received.is_set
        return

    def receive(number: int, _: FrameType | None) -> None:
        received.set()
        if second_ends:
            for each in numbers:
                signal.signal(each, _DEFAULTS.get(each, signal.SIG_DFL))
        if on_signal is not None:
            on_signal(number)

    before = {number: signal.signal(number, receive) for number in numbers}
    try:
        yield received.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
