"""Where the time of a run goes: measured by every worker, summed by the driver."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter

from pydantic import BaseModel, PrivateAttr

_lock = threading.Lock()


class Timings(BaseModel):
    """Seconds, summed over shards (and over runs, in a manifest).

    `read` and `decode` are also summed over the threads that work ahead. `startup` and `forward` go on while the next batch is
    filled and the last one written, so that the sum may be more than `tasks`. A job whose `wait` is small is limited by the
    network; where `wait` is large, `read` and `decode` show why.

    Attributes:
        startup: Loading and compiling the network, at the first shard of each worker process.
        read: Reading the bytes of images from storage.
        decode: Decoding bytes to pixels, and waiting for a decoder.
        wait: Waiting for pixels, by the thread that fills batches.
        forward: Computing features with the network.
        write: Encoding and writing Parquet.
        tasks: Whole tasks, from the first line to the commit.
    """

    startup: float = 0.0
    read: float = 0.0
    decode: float = 0.0
    wait: float = 0.0
    forward: float = 0.0
    write: float = 0.0
    tasks: float = 0.0
    _running: dict[str, tuple[int, float]] = PrivateAttr(default_factory=dict)
    """For each entry that is being measured: in how many blocks, and until when it has been counted."""

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Adds the time of a `with` block to the entry of that name. Time that several threads spend at once counts once."""
        self._count(name, 1)
        try:
            yield
        finally:
            self._count(name, -1)

    def _count(self, name: str, more: int) -> None:
        with _lock:
            now = perf_counter()
            blocks, counted = self._running.pop(name, (0, now))
            setattr(self, name, getattr(self, name) + now - counted)
            if blocks + more:
                self._running[name] = blocks + more, now

    def rounded(self) -> dict[str, float]:
        """The timings as a JSON-ready dict, rounded to the millisecond."""
        return {name: round(seconds, 3) for name, seconds in self.model_dump().items()}


def add_timings(parts: Iterable[Timings]) -> Timings:
    """The sum of timings, entry by entry."""
    total = Timings()
    for part in parts:
        for name, seconds in part.model_dump().items():
            setattr(total, name, getattr(total, name) + seconds)
    return total
