"""Claims: one job at a time writes to an output. A second job is refused, naming the holder; a dead holder's claim is taken."""

import getpass
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

CLAIM_NAME = "_claim.json"
HEARTBEAT_S = 10.0
EXPIRY_S = 120.0  # a holder on another host that has not beaten for so long is dead
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
            "pid": os.getpid(),
            "user": user_name(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
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
            if holder is not None and _is_alive(holder):
                raise JobError(
                    f"{self._url.removesuffix('/' + CLAIM_NAME)} is being written by process {holder['pid']} of "
                    f"{holder['user']} on {holder['host']} since {holder['since']}. Wait for it to end, or write elsewhere."
                )
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
        return storage.encode_json({**self._holder, "beat_at": time.time()})

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


def _is_alive(holder: dict[str, Any]) -> bool:
    """Whether the holder's heartbeat is recent; on this host, a process that has ended counts as dead at once."""
    if holder["host"] == socket.gethostname():
        try:
            os.kill(int(holder["pid"]), 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # another user's process
            pass
    return time.time() - float(holder["beat_at"]) < EXPIRY_S
