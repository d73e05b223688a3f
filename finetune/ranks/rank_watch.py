"""A rank's side of the `hub`: a thread that tells the hub that this process lives, and does what the hub decides."""

import os
import selectors
import socket
import threading
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

from featurize.errors import JobError
from finetune.ranks.hub_messages import Address, Lines, beat_interval, end_process

_VERDICT_S = 20.0  # after the timeout, until the hub should have a verdict
_MAX_SPEAKING_DELAY_S = 5.0


class Watch:
    """A rank's connection to the hub. Ends the process when another rank is at fault.

    Args:
        rank: the rank of this process.
        address: the address of the hub.
        timeout_s: seconds after which a hub that is not heard of counts as stalled.
        end: ends the process, with a message for the user or with none; default: `end_process`.

    Raises:
        JobError: the hub does not answer.
    """

    def __init__(
        self, rank: int, address: Address, *, timeout_s: float, end: Callable[[str | None], None] | None = None
    ) -> None:
        self.rank, self._timeout_s, self._end = rank, timeout_s, end or end_process
        self._doing, self._reports = "", 0
        self._verdict: str | None = None
        self._hub_name = f"the hub at {address.host}"
        self._closing = threading.Event()
        try:
            connection = socket.create_connection((address.host, address.port), timeout=timeout_s)
        except OSError as error:
            raise JobError(f"rank {rank} cannot reach the hub at {address.host}:{address.port}: {error}") from error
        self._lines = Lines(connection)
        hello = {"token": address.token, "rank": rank, "pid": os.getpid(), "host": socket.gethostname()}
        self._lines.send(hello)
        self._thread = threading.Thread(target=self._run, name="firn-watch", daemon=True)
        self._thread.start()

    def report(self, doing: str) -> None:
        """Says what this rank is doing, such as ``epoch 3, step 17``; the hub shows it if this rank is lost.

        Once every rank has begun to report, the job counts as stuck if none has reported for ten minutes: report each step, each
        slice of an evaluation, each file read or written.
        """
        self._doing = doing
        self._reports += 1

    def tell(self, facts: Mapping[str, float]) -> None:
        """Sends the hub numbers for the user."""
        self._lines.send({"told": dict(facts)})

    def collective_failed(self, error: str) -> None:
        """Tells the hub and waits for its verdict, which ends this process. Returns if there is none in time."""
        self._lines.send({"broken": error})
        self._thread.join(self._timeout_s + _VERDICT_S)

    def blame(self, fault: str, *, says_it: bool) -> None:
        """Says that this rank ends by an error, so that all ranks end. It is watched until it has ended.

        Args:
            fault: the message of the error.
            says_it: whether this rank shows the error to the user itself.
        """
        self._lines.send({"leave": fault, "says_it": says_it})

    def leave(self) -> None:
        """Says that this rank ends without an error."""
        self._lines.send({"leave": None, "says_it": False})
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        beat_s = beat_interval(self._timeout_s)
        heard, next_beat = monotonic(), monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(self._lines.socket, selectors.EVENT_READ)
            while not self._closing.is_set():
                if monotonic() >= next_beat:
                    next_beat = monotonic() + beat_s
                    self._lines.send({"doing": self._doing, "reports": self._reports})
                if selector.select(timeout=beat_s / 4):
                    heard = monotonic()
                    if any(self._obey(message) for message in self._lines.receive()):
                        return None
                    if self._lines.ended:
                        return self._end_without_hub("is gone: killed or crashed.")
                elif monotonic() - heard > self._timeout_s:
                    return self._end_without_hub(f"has not been heard of for {self._timeout_s:g} s: stalled.")
        return None

    def _obey(self, message: dict[str, Any]) -> bool:
        """Does what a message of the hub says; returns whether it was the last one."""
        self._hub_name = message.get("hub", self._hub_name)
        self._verdict = message.get("verdict", self._verdict)
        if "signal" in message:
            os.kill(os.getpid(), message["signal"])
        if message.get("final"):
            self._end(None)
        return bool(message.get("final") or message.get("bye"))

    def _end_without_hub(self, what: str) -> None:
        """Ends the process. The lowest rank that is left says why; the launcher ends the others before they repeat it."""
        if self._verdict is None:
            self._closing.wait(min(max(0, self.rank - 1), _MAX_SPEAKING_DELAY_S))
        if not self._closing.is_set():
            self._end(None if self._verdict is not None else f"{self._hub_name} {what}")
