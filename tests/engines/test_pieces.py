"""Batches in pieces: the features of each image in its place, each pass for one piece at a time, and faults that are told."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from featurize.engines.pieces import MOST_AT_ONCE, in_pieces, passes_at_once

Pass = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def numbered(count: int) -> NDArray[np.uint8]:
    """Images of one pixel, each with its number."""
    return np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1)


def doubled(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return images.reshape(len(images), -1).astype(np.float32) * 2


class OneAtATime:
    """A pass that notes whether it was ever called while it computed, and the sizes of its pieces."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.met_itself = False
        self._lock = threading.Lock()

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if not self._lock.acquire(blocking=False):
            self.met_itself = True
            return doubled(images)
        try:
            self.sizes.append(len(images))
            return doubled(images)
        finally:
            self._lock.release()


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 4))
@settings(max_examples=40)
def test_each_image_has_its_features_whatever_the_pieces(count: int, size: int, passes: int) -> None:
    used = [OneAtATime() for _ in range(passes)]
    features = in_pieces(used, size)(numbered(count))
    np.testing.assert_array_equal(features[:, 0], 2 * np.arange(count))
    sizes = [length for one in used for length in one.sizes]
    assert (sum(sizes), max(sizes), len(sizes)) == (count, min(size, count), -(-count // size))


def test_batches_of_several_threads_do_not_mix_and_no_pass_computes_two_pieces() -> None:
    passes = [OneAtATime(), OneAtATime()]
    forward = in_pieces(passes, 3)
    batches = [(numbered(20) + start).astype(np.uint8) for start in range(0, 200, 10)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(forward, batches))
    for batch, features in zip(batches, found, strict=True):
        np.testing.assert_array_equal(features, doubled(batch))
    assert not any(one.met_itself for one in passes)


def test_as_many_pieces_are_computed_at_once_as_there_are_passes() -> None:
    together = threading.Barrier(2, timeout=30)

    def wait(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        together.wait()
        return doubled(images)

    assert len(in_pieces([wait, wait], 2)(numbered(8))) == 8


def test_a_fault_in_a_pass_is_that_of_the_batch_and_later_batches_are_computed() -> None:
    def fail_on_seven(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if 7 in images:
            raise RuntimeError("no such tensor")
        return doubled(images)

    forward = in_pieces([fail_on_seven], 2)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no such tensor"):
            forward(numbered(12))
        np.testing.assert_array_equal(forward(numbered(6)), doubled(numbered(6)))


def test_few_cores_compute_a_piece_each_and_many_share_them() -> None:
    counts: list[Any] = [passes_at_once(threads) for threads in (0, 1, 2, MOST_AT_ONCE, 96)]
    assert counts == [1, 1, 2, MOST_AT_ONCE, MOST_AT_ONCE]
