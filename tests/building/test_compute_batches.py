"""Batches that are computed while the next one is filled: the same batches in the same order, and every fault is told."""

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from helpers.images.decoders import wait_until
from numpy.typing import NDArray

from featurize.building.shipped_backbone import compute_batches, full_batches
from featurize.building.worker import Loaded
from featurize.sources.listing import PlannedImage


def images(count: int) -> Iterator[Loaded[NDArray[np.uint8]]]:
    """Images of one pixel, each with its number."""
    planned = PlannedImage(path="x", label="a", own_split=None, bytes_size=1, stamp="", container=None, position=None)
    return (Loaded(planned, str(number), np.full((1, 1, 1), number, np.uint8)) for number in range(count))


def as_is(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return array


def numbers_in(_: Any, arrays: NDArray[np.uint8]) -> list[int]:
    return [int(number) for number in arrays.reshape(-1)]


def threads_left() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("firn-ahead")]


@pytest.mark.parametrize("at_once", [1, 2, 3])
@pytest.mark.parametrize(("count", "size"), [(0, 3), (1, 3), (3, 3), (20, 3), (21, 3), (5, 8)])
def test_every_image_is_computed_once_in_order_and_its_pixels_are_its_own(count: int, size: int, at_once: int) -> None:
    found = list(compute_batches(images(count), size, as_is, numbers_in, at_once=at_once))
    assert [[int(one.image_id) for one in batch] for batch, _ in found] == [numbers for _, numbers in found]
    assert [number for _, numbers in found for number in numbers] == list(range(count))
    assert all(len(batch) == size for batch, _ in found[:-1])
    assert threads_left() == []


@pytest.mark.parametrize("at_once", [1, 2])
def test_pixels_stay_as_they_are_while_they_are_computed_and_the_next_batches_are_filled(at_once: int) -> None:
    taken: list[int] = []

    def taking() -> Iterator[Loaded[NDArray[np.uint8]]]:
        for one in images(24):
            taken.append(int(one.image_id))
            yield one

    def compute(batch: list[Loaded[NDArray[np.uint8]]], arrays: NDArray[np.uint8]) -> list[int]:
        last = int(batch[-1].image_id)
        wait_until(
            lambda: len(taken) >= min(24, last + 1 + 2 * at_once)
        )  # of 2 images a batch: those after it are filled
        return numbers_in(batch, arrays)

    found = [numbers for _, numbers in compute_batches(taking(), 2, as_is, compute, at_once=at_once)]
    assert found == [[number, number + 1] for number in range(0, 24, 2)]


def test_a_fault_of_the_network_is_raised_in_the_place_of_its_batch() -> None:
    def compute(batch: Any, arrays: NDArray[np.uint8]) -> list[int]:
        if 5 in arrays:
            raise RuntimeError("image 5")
        return numbers_in(batch, arrays)

    results = compute_batches(images(30), 2, as_is, compute, at_once=2)
    assert [next(results)[1] for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(RuntimeError, match="image 5"):
        next(results)
    assert threads_left() == []


def test_a_fault_of_the_storage_is_raised_while_the_network_computes() -> None:
    def failing() -> Iterator[Loaded[NDArray[np.uint8]]]:
        yield from images(5)
        raise OSError("the storage is gone")

    with pytest.raises(OSError, match="the storage is gone"):
        list(compute_batches(failing(), 2, as_is, numbers_in))
    assert threads_left() == []


def test_who_cannot_write_leaves_no_thread_behind() -> None:
    def write_all() -> None:
        for _ in compute_batches(images(30), 2, as_is, numbers_in, at_once=2):
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        write_all()
    assert threads_left() == []


def test_one_array_holds_every_batch_unless_more_are_asked_for() -> None:
    for held, distinct in ((1, 1), (3, 3)):
        arrays = [array.__array_interface__["data"][0] for _, array in full_batches(images(20), 4, as_is, held=held)]
        assert len(set(arrays)) == distinct
