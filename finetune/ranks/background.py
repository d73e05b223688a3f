"""Work in a thread of its own, which does not keep the process from ending."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def run_in_background(
    work: Callable[[], Result], *, name: str, thread_class: type[threading.Thread] = threading.Thread
) -> "Future[Result]":
    """Starts `work` in a thread; its result, or the error that it raised, is in the future that is returned.

    The thread is a daemon, unlike those of an executor: a process may end while the work waits for something that never comes.

    Args:
        name: the name of the thread.
        thread_class: the class of the thread; default: Python's own.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # raised again where the result is asked for
            future.set_exception(error)

    thread_class(target=run, name=name, daemon=True).start()
    return future
