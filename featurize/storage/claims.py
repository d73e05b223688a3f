"""Claims: one job at a time writes to an output. A second job is refused, naming the holder; a dead holder's claim is taken.

A holder on this machine is alive while its process runs (`featurize.storage.processes`). Of any other holder only the heartbeat
is seen: it is alive if that changes while this job looks, and dead if it does not for `EXPIRY_S` of this job's own clock. The
clocks of two machines are never compared.
"""

import getpass
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from featurize import storage
from featurize.errors import JobError
from featurize.foreign_text import printable
from featurize.storage.processes import identify_process, is_running

_logger = logging.getLogger(__name__)
CLAIM_NAME = "_claim.json"
HEARTBEAT_S = 10.0
EXPIRY_S = 120.0
"""A holder whose process cannot be seen is dead when its heartbeat has not changed for so long, by the clock of who looks."""
LOOK_S = 1.0
"""How often a job looks at the heartbeat of a holder whose process it cannot see."""
PATIENCE_S = 5.0
"""How long to wait for the content of a claim that exists but is still empty."""
SETTLING_S = 1.0
"""How long a job that took over a claim waits for other jobs that took the same holder for dead."""
SCHEMA_VERSION = 1
_KEYS: dict[str, Any] = {"token": str, "host": str, "pid": int, "user": str, "since": str, "beat_at": (int, float)}


class Claim:
    """A held claim on the output at `url`.

    Args:
        patience_s: how long to wait for the content of a claim that exists but is still empty.
        settling_s: how long to wait, after taking over a claim, for other jobs that took the same holder for dead.
    """

    def __init__(self, url: str, *, patience_s: float = PATIENCE_S, settling_s: float = SETTLING_S) -> None:
        self._patience_s, self._settling_s = patience_s, settling_s
        self._url = storage.join_url(url, CLAIM_NAME)
        self._holder = {
            "schema_version": SCHEMA_VERSION,
            "token": uuid4().hex,
            "host": socket.gethostname(),
            **identify_process(),
            "user": user_name(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._beats = 0
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="firn-claim", daemon=True)

    def take(self) -> None:
        """Takes the claim, also from a dead holder.

        Raises:
            JobError: A living job holds it.
        """
        taken_over = False
        while not storage.create_exclusively(self._url, self._document()):
            holder = _wait_for_holder(self._url, self._patience_s)
            if holder is not None:
                holder = _last_words(self._url, holder)
                if holder is None:  # the claim was released, or is another's by now
                    continue
            taken_over = True
            if (
                holder is None or _read_holder(self._url) == holder
            ):  # otherwise another job has taken it in the meantime
                storage.remove(self._url)
        if taken_over:
            self._settle()
        self._heart.start()

    def _settle(self) -> None:
        """Waits, after taking over a claim, for other jobs that took the same holder for dead; the last of them wins."""
        time.sleep(self._settling_s)
        self.verify()
        storage.remove_temporaries(self._url.removesuffix("/" + CLAIM_NAME))

    def verify(self) -> None:
        """Checks, before something is published, that this job still has the claim.

        Raises:
            JobError: Another job took it, believing this one dead.
        """
        holder = _read_holder(self._url)
        if holder is None or holder["token"] != self._holder["token"]:
            raise JobError(f"{self._url}: the claim on this output was lost to another job; nothing was published.")

    def release(self) -> None:
        """Releases the claim."""
        self._stop.set()
        if self._heart.is_alive():
            self._heart.join()
        holder = _read_holder(self._url)
        if holder is not None and holder["token"] == self._holder["token"]:
            storage.remove(self._url)

    def _document(self) -> bytes:
        self._beats += 1  # two heartbeats differ, also where the clock stands still
        return storage.encode_json({**self._holder, "beat_at": time.time(), "beats": self._beats})

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            try:
                holder = _read_holder(self._url)
                if holder is None or holder["token"] != self._holder["token"]:
                    return  # lost: verify() reports it
                storage.write_bytes(self._url, self._document())
            except OSError:  # perhaps a temporary fault of storage: the next heartbeat tries again
                continue


def user_name() -> str:
    """The user of this process; a number where the system knows no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user in a container may have no name
        return f"user {os.getuid()}"


@contextmanager
def claim_output(url: str, *, patience_s: float = PATIENCE_S) -> Iterator[Claim]:
    """Holds the claim on the output at `url` during a `with` block; for `patience_s` see `Claim`."""
    claim = Claim(url, patience_s=patience_s)
    claim.take()
    try:
        yield claim
    finally:
        claim.release()


def _read_holder(url: str) -> dict[str, Any] | None:
    """The holder of the claim; None where it is gone, damaged or not completely written yet.

    Raises:
        JobError: The claim is of another version of Firn.
    """
    try:
        holder = storage.read_json(url)
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    if isinstance(holder, dict) and holder.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
        raise JobError(f"{url} has schema version {holder['schema_version']!r}; this Firn reads {SCHEMA_VERSION}.")
    is_whole = isinstance(holder, dict) and all(isinstance(holder.get(key), kind) for key, kind in _KEYS.items())
    return holder if is_whole else None


def _wait_for_holder(url: str, patience_s: float) -> dict[str, Any] | None:
    """Like `_read_holder`, but waits for the content of a claim that is being written at this moment."""
    deadline = time.monotonic() + patience_s
    while (holder := _read_holder(url)) is None and storage.exists(url) and time.monotonic() < deadline:
        time.sleep(0.1)
    return holder


def _last_words(url: str, holder: dict[str, Any]) -> dict[str, Any] | None:
    """The claim as its holder, who is dead, left it; None where it is no longer this holder's.

    Waits, and says so, where only the heartbeat can tell.

    Raises:
        JobError: The holder is alive.
    """
    output = url.removesuffix("/" + CLAIM_NAME)
    who = printable(f"process {holder['pid']} of {holder['user']} on {holder['host']}")
    quiet_s, looked_at, token = 0.0, time.monotonic(), holder["token"]
    while (runs := is_running(holder)) is None and quiet_s < EXPIRY_S:
        if not quiet_s:
            _logger.warning(
                "%s is claimed by %s since %s, whose process cannot be seen from here. Waiting for a sign of life: it is taken "
                "for dead after %.0f s without one.",
                *(output, who, printable(str(holder["since"])), EXPIRY_S),
            )
        time.sleep(min(LOOK_S, EXPIRY_S))
        found, now = _read_holder(url), time.monotonic()
        if found is None or found["token"] != token:
            return None
        if found != holder:
            runs = True
            break
        # while this process is paused, so may be the holder, if they share a machine: a long gap counts as a short one
        quiet_s, looked_at = quiet_s + min(now - looked_at, 2 * LOOK_S), now
    if runs:
        raise JobError(
            f"{output} is being written by {who} since {holder['since']}. Wait for it to end, or write elsewhere."
        )
    return holder
