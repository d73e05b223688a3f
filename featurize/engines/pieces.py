"""Batches in pieces: each core computes passes of its own on a few images, instead of all cores together one pass on many.

The values between layers of a few images stay in the caches of their core, and no core waits for another at the end of a layer.
Where the weights are large, it is slower: each pass reads all of them.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurize.engines.precision import Forward

MOST_AT_ONCE = 16
"""Passes at the same time, at most: each has its own memory for the values between layers."""
BATCHES_AT_ONCE = 2
"""Batches in pieces that are worth computing at a time: no core waits for the end of a batch."""


def passes_at_once(threads: int) -> int:
    """How many pieces `threads` cores compute at the same time, each on an equal share of the cores."""
    return max(1, min(threads, MOST_AT_ONCE))


def in_pieces(passes: Sequence[Callable[[NDArray[np.uint8]], NDArray[np.float32]]], size: int) -> Forward:
    """A forward pass that deals its images, `size` at a time, to `passes`, of which each computes one piece at a time.

    It may be called from several threads: all pieces wait in one line. A fault in a pass is raised by the call it belongs to.
    """
    idle: SimpleQueue[Any] = SimpleQueue()
    for each in passes:
        idle.put(each)
    threads = ThreadPoolExecutor(len(passes), thread_name_prefix="firn-pieces")

    def compute(piece: NDArray[np.uint8]) -> NDArray[np.float32]:
        forward = idle.get()
        try:
            return np.asarray(forward(piece))
        finally:
            idle.put(forward)

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        pieces = [images[start : start + size] for start in range(0, len(images), size)]
        done = list(threads.map(compute, pieces))
        return done[0] if len(done) == 1 else np.concatenate(done)

    return run
