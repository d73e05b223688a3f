"""Which ranks are alive. A hub hears from every rank; when one is gone or stalled, it says which, and all of them end.

A collective cannot tell: it fails without naming a rank, or waits. So every rank has a thread, its watch, which tells
the hub each second that the process runs; a long step or a wait in a collective does not hold it up, a stopped process does.
The hub is a thread of the driver on Spark, and a process beside rank 0 under horovodrun. It is watched in turn by every watch.
"""

import logging
import secrets
import selectors
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any

from featurize.errors import first_line
from finetune.ranks.hub_messages import MAX_TEXT, Address, Frames, Stranger, beat_interval

_logger = logging.getLogger(__name__)

_SETTLE_S = 5.0  # after a collective failed, until the cause, such as a dead rank, should be known
_LEAVE_S = 10.0  # for a rank that failed by itself to report its error
STANDSTILL_S = 600.0  # that a rank may read or write while the others wait for it
_NONE_STARTED = 3  # times the timeout: from the launch until the first rank must be heard of
_MOST_STRANGERS = 64  # connections that have not proved yet that they are ranks, or twice the ranks if that is more
_PATIENCE_S, _HASTE_S = 10.0, 1.0  # that a stranger has for the proof: usually, and when all places are taken


@dataclass
class _Rank:
    """What the hub knows of a rank.

    Attributes:
        heard: when it was last heard of, by `monotonic`.
        reports: how often it has said what it is doing.
        left: whether it has said that it ends.
        fault: the message of the error by which it ends.
        says_it: whether it shows that error to the user by itself.
        broken: the error of a collective that failed.
    """

    name: str
    frames: Frames
    heard: float
    doing: str = ""
    reports: int = 0
    left: bool = False
    fault: str | None = None
    says_it: bool = False
    broken: str | None = None
    broken_at: float = 0.0

    @property
    def ended(self) -> bool:
        return self.frames.ended or (self.left and self.fault is None)

    @property
    def where(self) -> str:
        return f", last in {self.doing}" if self.doing else ""


class Hub:
    """Hears from all ranks and finds the one at fault. Use it as a context manager; after it the ranks are not watched.

    Args:
        size: the number of ranks.
        name: the name of the process that has the hub, for messages.
        timeout_s: seconds after which a rank that is not heard of counts as stalled.
        on_verdict: called on the hub's thread with the message that names the rank at fault, and with whether the rank
            itself shows that message to the user; if it then does not, called again.
        host: the address to listen on: loopback where all ranks are on this machine.
        key: the secret by which hub and ranks know each other; default: a new one.
        standstill_s: seconds after which ranks that live but report nothing new count as stuck.
        on_told: called on the hub's thread with the numbers that a rank tells.
    """

    def __init__(
        self,
        size: int,
        *,
        name: str,
        timeout_s: float,
        on_verdict: Callable[[str, bool], None],
        host: str,
        key: bytes | None = None,
        standstill_s: float = STANDSTILL_S,
        on_told: Callable[[dict[str, float]], None] | None = None,
    ) -> None:
        self.verdict: str | None = None
        self._size, self._name, self._timeout_s, self._on_verdict = size, name, timeout_s, on_verdict
        self._standstill_s, self._last_report, self._on_told = standstill_s, monotonic(), on_told
        self.key = secrets.token_bytes(32) if key is None else key
        self._strangers: list[Stranger] = []  # the oldest first
        self._most_strangers = max(_MOST_STRANGERS, 2 * size)
        self._listener = socket.create_server((host, 0), backlog=max(128, size))
        self._listener.setblocking(False)
        self._ranks: dict[int, _Rank] = {}
        self._first_heard: float | None = None
        self._launched: float | None = None
        self._gone: _Rank | None = None  # the first one: others may have crashed when they missed it
        self._blamed: _Rank | None = None  # ends by itself; the others wait for that
        self._verdict_at = 0.0
        self._closing, self._all_ended = threading.Event(), threading.Event()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="firn-hub", daemon=True)
        self._thread.start()

    def address(self, host: str) -> Address:
        """The address of the hub for ranks that reach this machine as `host`."""
        return Address(host, self._listener.getsockname()[1])

    def expect_ranks(self) -> None:
        """Tells the hub that the ranks are being started now."""
        self._launched = monotonic()

    def pass_on_signal(self, number: int) -> None:
        """Sends every rank a signal, as if it came from outside."""
        self._broadcast({"signal": number})

    def wait_for_ends(self, timeout_s: float) -> None:
        """Waits until every rank that was heard of has ended or said that it ends, but not longer than `timeout_s` seconds."""
        self._all_ended.wait(timeout_s)

    def close(self) -> None:
        """Ends the hub: ranks that still run are no longer watched."""
        self._closing.set()
        self._thread.join()

    def __enter__(self) -> "Hub":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        beat_s = beat_interval(self._timeout_s)
        next_beat = monotonic()
        while not self._closing.is_set():
            for key, _ in self._selector.select(timeout=beat_s / 4):
                self._serve(key)
            self._send_strangers_away(monotonic())
            if monotonic() >= next_beat:
                next_beat = monotonic() + beat_s
                self._broadcast({})
            self._judge()
            if self._ranks and all(rank.ended for rank in self._ranks.values()):
                self._all_ended.set()
        self._broadcast({"bye": True})
        self._listener.close()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _serve(self, key: selectors.SelectorKey) -> None:
        """Does what one connection asks for. Whatever goes wrong in it ends that connection and nothing else."""
        try:
            if key.data is None:
                self._accept()
            elif isinstance(key.data, Stranger):
                self._hear(key.data)
            else:
                self._read(key.data)
        except Exception as error:
            _logger.debug("the hub closes a connection: %s", first_line(error))
            if isinstance(key.data, Stranger):
                self._send_away(key.data)
            elif isinstance(key.data, Frames):
                key.data.ended = True
                self._bury(key.data)

    def _accept(self) -> None:
        """Lets strangers in, as many as there are places. The others wait outside, where they cost nothing."""
        with suppress(OSError):
            while len(self._strangers) < self._most_strangers:
                accepted, _ = self._listener.accept()
                self._strangers.append(Stranger(accepted, self.key, monotonic()))
                self._selector.register(accepted, selectors.EVENT_READ, self._strangers[-1])
        if len(self._strangers) >= self._most_strangers:
            self._selector.unregister(self._listener)

    def _send_strangers_away(self, now: float) -> None:
        """Closes the connections of those that have not proved in time that they are ranks, and lets others in."""
        is_full = self._listener not in self._selector.get_map()
        patience_s = _HASTE_S if is_full else _PATIENCE_S
        for stranger in [each for each in self._strangers if now - each.since > patience_s]:
            self._send_away(stranger)
        if is_full and len(self._strangers) < self._most_strangers:
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _send_away(self, stranger: Stranger) -> None:
        self._strangers.remove(stranger)
        self._selector.unregister(stranger.socket)
        stranger.socket.close()

    def _hear(self, stranger: Stranger) -> None:
        frames = stranger.hear()
        if frames is not None:
            self._strangers.remove(stranger)
            self._selector.modify(frames.socket, selectors.EVENT_READ, frames)

    def _read(self, frames: Frames) -> None:
        for message in frames.receive():
            if frames.rank is None:
                self._admit(frames, message)
            self._take(self._ranks[-1 if frames.rank is None else frames.rank], message)
        if frames.ended:
            self._bury(frames)

    def _bury(self, frames: Frames) -> None:
        """Closes a connection that has ended; if it was that of a rank which did not leave, the rank is gone."""
        self._selector.unregister(frames.socket)
        frames.socket.close()
        rank = self._ranks.get(-1 if frames.rank is None else frames.rank)
        if rank is not None and not rank.left and self._gone is None:
            self._gone = rank

    def _admit(self, frames: Frames, message: dict[str, Any]) -> None:
        """Takes a connection as that of a rank, by its first message.

        Raises:
            ValueError: there is no such rank, or it is there already.
        """
        number = int(message["rank"])
        name = f"rank {number} (process {int(message['pid'])} on {message['host']})"
        if not 0 <= number < self._size or (number in self._ranks and not self._ranks[number].frames.ended):
            raise ValueError(f"{name} is not expected")
        now = monotonic()
        self._first_heard = self._first_heard or now
        frames.rank, self._ranks[number] = number, _Rank(name, frames, now)
        frames.send({"hub": self._name})
        if self.verdict is not None:
            frames.send({"verdict": self.verdict, "final": self._blamed is None})

    def _take(self, rank: _Rank, message: dict[str, Any]) -> None:
        rank.heard = monotonic()
        if "told" in message and self._on_told is not None:
            self._tell_user({str(name): float(value) for name, value in message["told"].items()})
        if int(message.get("reports", 0)) > rank.reports:
            rank.doing, rank.reports, self._last_report = str(message["doing"]), int(message["reports"]), rank.heard
        if "broken" in message:
            rank.broken, rank.broken_at = str(message["broken"]), rank.heard
        if "leave" in message:
            fault, says_it = message["leave"], bool(message["says_it"])
            rank.left, rank.fault, rank.says_it = True, None if fault is None else str(fault), says_it

    def _tell_user(self, facts: dict[str, float]) -> None:
        try:
            if self._on_told is not None:
                self._on_told(facts)
        except Exception as error:  # of who shows them: no rank's fault
            _logger.warning("what a rank tells cannot be shown: %s", first_line(error))

    def _judge(self) -> None:
        now = monotonic()
        if self.verdict is None:
            found = self._find_fault(now)
            if found is not None:
                self.verdict, self._blamed = found[0][:MAX_TEXT], found[1]
                self._verdict_at = now
                self._on_verdict(self.verdict, self._blamed is not None and self._blamed.says_it)
                self._broadcast({"verdict": self.verdict, "final": self._blamed is None})
        elif self._blamed is not None:
            late = now - self._verdict_at > _LEAVE_S
            if late and self._blamed.says_it:
                self._on_verdict(self.verdict, False)
            if late or self._blamed.frames.ended:
                self._blamed = None
                self._broadcast({"verdict": self.verdict, "final": True})

    def _find_fault(self, now: float) -> tuple[str, _Rank | None] | None:
        """The message that names the fault, and the rank at fault if it is about to end by itself."""
        ranks = [self._ranks[number] for number in sorted(self._ranks)]
        for rank in ranks:
            if rank.fault is not None:
                return rank.fault, rank
        if self._gone is not None:
            return f"{self._gone.name}{self._gone.where} is gone: killed or crashed.", None
        silent = [rank.name + rank.where for rank in ranks if not rank.left and now - rank.heard > self._timeout_s]
        if silent:
            return f"{_listed(silent)} {_has(silent)} not been heard of for {self._timeout_s:g} s: stalled.", None
        return self._find_missing(now) or self._find_broken(ranks, now) or self._find_standstill(ranks, now)

    def _find_missing(self, now: float) -> tuple[str, None] | None:
        missing = [f"rank {number}" for number in range(self._size) if number not in self._ranks]
        limit_s = self._timeout_s if self._ranks else self._timeout_s * _NONE_STARTED
        since = self._first_heard or self._launched
        if missing and since is not None and now - since > limit_s:
            them = "it" if len(missing) == 1 else "them"
            return (
                f"{_listed(missing)} {_has(missing)} not started: nothing was heard of {them} for {limit_s:g} s.",
                None,
            )
        return None

    def _find_broken(self, ranks: Sequence[_Rank], now: float) -> tuple[str, None] | None:
        """A collective failed although all processes live: the ranks that did not enter it, if any."""
        broken = [rank for rank in ranks if rank.broken is not None]
        if not broken or now - min(rank.broken_at for rank in broken) < min(_SETTLE_S, self._timeout_s):
            return None
        absent = [f"{rank.name}{' has ended' if rank.left else rank.where}" for rank in ranks if rank.broken is None]
        if absent:
            return f"{_listed(absent)}: did not enter the all-reduce in which the other ranks waited.", None
        return f"an all-reduce failed on every rank: {broken[0].broken}", None

    def _find_standstill(self, ranks: Sequence[_Rank], now: float) -> tuple[str, None] | None:
        """All ranks live and report nothing new: the others wait for those that have reported least.

        Horovod 0.28.1 has a limit of its own for this, HOROVOD_STALL_SHUTDOWN_TIME_SECONDS, which has no effect with Gloo.
        """
        counts = [rank.reports for rank in ranks if not rank.left]
        if not counts or min(counts) == 0 or now - self._last_report <= self._standstill_s:
            return None
        behind = [rank.name + rank.where for rank in ranks if not rank.left and rank.reports == min(counts)]
        others = "" if len(behind) == len(counts) else ", and the other ranks wait"
        return (
            f"{_listed(behind)} {_has(behind)} not made progress for {self._standstill_s:g} s{others}: stalled.",
            None,
        )

    def _broadcast(self, message: dict[str, Any]) -> None:
        for number in sorted(self._ranks, reverse=True):  # rank 0 last: it may end the process of the hub
            if not self._ranks[number].frames.ended:
                self._ranks[number].frames.send(message)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names)


def _has(names: Sequence[str]) -> str:
    return "has" if len(names) == 1 else "have"
