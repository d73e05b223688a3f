"""A rank's side of the `hub`: a thread that tells the hub that this process lives, and does what the hub decides."""

import os
import selectors
import socket
import threading
from collections.abc import Callable, Mapping
from time import monotonic, sleep
from typing import Any

from featurize.errors import JobError, first_line
from finetune.ranks.hub_messages import (
    MAX_TEXT,
    Address,
    Frames,
    NotTheHubError,
    beat_interval,
    end_process,
    enter,
)

_VERDICT_S = 20.0  # after the timeout, until the hub should have a verdict
_MAX_SPEAKING_DELAY_S = 5.0
_TRY_S, _BETWEEN_TRIES_S = 10.0, 0.2
_MAX_DOING = 1000  # characters


class Watch:
    """A rank's connection to the hub. Ends the process when another rank is at fault.

    Args:
        rank: the rank of this process.
        address: the address of the hub.
        key: the secret by which hub and ranks know each other.
        timeout_s: seconds after which a hub that is not heard of counts as stalled.
        end: ends the process, with a message for the user or with none; default: `end_process`.

    Raises:
        JobError: the hub does not answer, or what answers is not the hub.
    """

    def __init__(
        self,
        rank: int,
        address: Address,
        *,
        key: bytes,
        timeout_s: float,
        end: Callable[[str | None], None] | None = None,
    ) -> None:
        self.rank, self._timeout_s, self._end = rank, timeout_s, end or end_process
        self._doing, self._reports = "", 0
        self._verdict: str | None = None
        self._hub_name = f"the hub at {address.host}"
        self._closing = threading.Event()
        self._frames = _connect(rank, address, key, timeout_s)
        self._frames.send({"rank": rank, "pid": os.getpid(), "host": socket.gethostname()})
        self._thread = threading.Thread(target=self._run, name="firn-watch", daemon=True)
        self._thread.start()

    def report(self, doing: str) -> None:
        """Says what this rank is doing, such as ``epoch 3, step 17``; the hub shows it if this rank is lost.

        Once every rank has begun to report, the job counts as stuck if none has reported for ten minutes: report each step, each
        slice of an evaluation, each file read or written.
        """
        self._doing = doing[:_MAX_DOING]
        self._reports += 1

    def tell(self, facts: Mapping[str, float]) -> None:
        """Sends the hub numbers for the user."""
        self._frames.send({"told": dict(facts)})

    def collective_failed(self, error: str) -> None:
        """Tells the hub and waits for its verdict, which ends this process. Returns if there is none in time."""
        self._frames.send({"broken": error[:MAX_TEXT]})
        self._thread.join(self._timeout_s + _VERDICT_S)

    def blame(self, fault: str, *, says_it: bool) -> None:
        """Says that this rank ends by an error, so that all ranks end. It is watched until it has ended.

        Args:
            fault: the message of the error.
            says_it: whether this rank shows the error to the user itself.
        """
        self._frames.send({"leave": fault[:MAX_TEXT], "says_it": says_it})

    def leave(self) -> None:
        """Says that this rank ends without an error."""
        self._frames.send({"leave": None, "says_it": False})
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        beat_s = beat_interval(self._timeout_s)
        heard, next_beat = monotonic(), monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(self._frames.socket, selectors.EVENT_READ)
            while not self._closing.is_set():
                if monotonic() >= next_beat:
                    next_beat = monotonic() + beat_s
                    self._frames.send({"doing": self._doing, "reports": self._reports})
                if selector.select(timeout=beat_s / 4):
                    heard = monotonic()
                    if any(self._obey(message) for message in self._frames.receive()):
                        return None
                    if self._frames.ended:
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


def _connect(rank: int, address: Address, key: bytes, timeout_s: float) -> Frames:
    """The connection to the hub. It tries again where the hub has closed it, as when strangers take all places."""
    where, deadline = f"{address.host}:{address.port}", monotonic() + timeout_s
    while True:
        try:
            connection = socket.create_connection(address, timeout=timeout_s)
        except OSError as error:
            raise JobError(f"rank {rank} cannot reach the hub at {where}: {error}") from error
        connection.settimeout(min(_TRY_S, timeout_s))
        try:
            return enter(connection, key)
        except NotTheHubError as error:
            connection.close()
            raise JobError(f"what answers rank {rank} at {where} is not the hub of this job.") from error
        except OSError as error:
            connection.close()
            if monotonic() > deadline:
                raise JobError(f"the hub at {where} does not let rank {rank} in: {first_line(error)}") from error
            sleep(_BETWEEN_TRIES_S)
