"""Where the time of a run goes: measured by every worker, added up by the driver."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter

from pydantic import BaseModel


class Timings(BaseModel):
    """Seconds, summed over shards (and over runs, in a manifest).

    `read` and `decode` are also summed over the threads that worked ahead; the others are those of the one thread that runs the
    network. A job whose `wait` is small is bound by the network; where `wait` is large, `read` and `decode` say why.

    Attributes:
        startup: loading the network and compiling it, at the first shard of each worker process.
        read: having the bytes of images from storage.
        decode: from bytes to pixels, and waiting for a decoder.
        wait: the network waited for pixels.
        forward: the network computed.
        write: encoding and writing Parquet.
        tasks: whole tasks, from the first line to the commit.
    """

    startup: float = 0.0
    read: float = 0.0
    decode: float = 0.0
    wait: float = 0.0
    forward: float = 0.0
    write: float = 0.0
    tasks: float = 0.0

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Adds the time of a `with` block to the entry of that name."""
        started = perf_counter()
        try:
            yield
        finally:
            setattr(self, name, getattr(self, name) + perf_counter() - started)

    def rounded(self) -> dict[str, float]:
        """For JSON: to the millisecond."""
        return {name: round(seconds, 3) for name, seconds in self.model_dump().items()}


def add_timings(parts: Iterable[Timings]) -> Timings:
    """The sum of timings, entry by entry."""
    total = Timings()
    for part in parts:
        for name, seconds in part.model_dump().items():
            setattr(total, name, getattr(total, name) + seconds)
    return total
