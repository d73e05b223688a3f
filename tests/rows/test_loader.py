"""Tests of finetune.rows.loader: the laws of the plan, and that batches and slices keep them."""

from typing import Any

import numpy as np
import pytest
from helpers.tables.feature_sets import make_split, rows_of_steps
from hypothesis import example, given, settings
from hypothesis import strategies as st

from finetune.rows.batches import PADDING, take_batch
from finetune.rows.loader import MemoryData, plan_epoch

rows_counts, batch_sizes, sizes = st.integers(0, 400), st.integers(1, 70), st.integers(1, 9)
seeds, epochs = st.integers(0, 2**32), st.integers(1, 1000)


@given(rows_counts, batch_sizes, sizes, seeds, epochs)
@example(rows=65, per_rank=32, size=2, seed=0, epoch=1)  # one row is left for two ranks
@example(rows=1, per_rank=8, size=5, seed=0, epoch=1)
def test_ranks_together_take_the_steps_of_one_rank(rows: int, per_rank: int, size: int, seed: int, epoch: int) -> None:
    alone = plan_epoch(rows, seed=seed, epoch=epoch, global_batch_size=per_rank * size)
    plans = [
        plan_epoch(rows, seed=seed, epoch=epoch, global_batch_size=per_rank * size, rank=rank, size=size)
        for rank in range(size)
    ]
    assert {len(plan.rows) for plan in plans} == {len(alone.rows)} == {-(-rows // (per_rank * size))}
    for plan in plans:
        np.testing.assert_array_equal(plan.global_rows, alone.global_rows)
        assert plan.rows.shape[1] <= per_rank
    for step, batch in enumerate(rows_of_steps(alone)):
        shares = [rows_of_steps(plan)[step] for plan in plans]
        assert sorted(np.concatenate(shares)) == sorted(batch)
        assert len(batch) == alone.global_rows[step]
        lengths = [len(share) for share in shares]
        assert max(lengths) - min(lengths) <= 1


@given(rows_counts, batch_sizes, sizes, seeds, epochs)
def test_every_row_is_seen_once_in_an_epoch(rows: int, batch_size: int, size: int, seed: int, epoch: int) -> None:
    plans = [
        plan_epoch(rows, seed=seed, epoch=epoch, global_batch_size=batch_size, rank=rank, size=size)
        for rank in range(size)
    ]
    seen = [row for plan in plans for row in plan.rows.ravel().tolist() if row != PADDING]
    assert sorted(seen) == list(range(rows))


@given(st.integers(50, 400), seeds, epochs)
def test_epoch_and_seed_change_the_order_and_nothing_else_does(rows: int, seed: int, epoch: int) -> None:
    def order(*, seed: int = seed, epoch: int = epoch, global_batch_size: int = 8) -> list[int]:
        plan = plan_epoch(rows, seed=seed, epoch=epoch, global_batch_size=global_batch_size)
        return [row for step in rows_of_steps(plan) for row in step.tolist()]

    assert order() == order(global_batch_size=32)
    assert order() != order(epoch=epoch + 1)
    assert order() != order(seed=seed + 1)
    assert order() != list(range(rows))


@pytest.mark.parametrize(
    ("rows", "batch_size", "rank", "size"),
    [(103, 16, 0, 1), (103, 16, 1, 2), (65, 64, 0, 2), (65, 64, 1, 2), (3, 4, 4, 7)],
)
def test_batches_hold_the_rows_of_the_plan_and_are_all_of_one_size(
    rows: int, batch_size: int, rank: int, size: int
) -> None:
    data = make_split(rows)
    place: dict[str, Any] = {"seed": 3, "global_batch_size": batch_size, "rank": rank, "size": size}
    plan = plan_epoch(rows, epoch=2, **place)
    source = MemoryData(data).batches(2, **place)
    batches = [[part.numpy() for part in take_batch(source, step)] for step in range(len(source.global_rows))]
    assert len(batches) == len(plan.rows) == MemoryData(data).steps(batch_size)
    for (features, labels, row_ids, global_rows), own, expected in zip(
        batches, plan.rows, plan.global_rows, strict=True
    ):
        known = own != PADDING
        assert len(features) == len(labels) == len(row_ids) == plan.rows.shape[1]
        np.testing.assert_array_equal(features[known], data.features[own[known]])
        np.testing.assert_array_equal(labels[known], data.label_index[own[known]])
        np.testing.assert_array_equal(row_ids[known], data.row_ids[own[known]])
        assert set(labels[~known].tolist()) <= {PADDING}
        assert np.isfinite(features).all()
        assert (float(global_rows), global_rows.dtype) == (expected, np.float32)


def test_batches_keep_pixels_as_they_are() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 4, 5, 3)).astype(np.uint8)
    data = MemoryData(make_split(10, features=pixels))
    source = data.batches(1, seed=0, global_batch_size=4)
    batches = [take_batch(source, step)[0].numpy() for step in range(3)]
    rows = np.concatenate(rows_of_steps(plan_epoch(10, seed=0, epoch=1, global_batch_size=4)))
    assert {batch.dtype for batch in batches} == {np.dtype(np.uint8)}
    np.testing.assert_array_equal(np.concatenate(batches)[:10], pixels[rows])


@given(st.integers(0, 9000), sizes)
@settings(max_examples=20)
def test_slices_of_all_ranks_cover_every_row_once(rows: int, size: int) -> None:
    data = make_split(rows, dim=3)
    parts = [part for rank in range(size) for part in MemoryData(data).slices(rank=rank, size=size)]
    assert sum(len(label_index) for _, label_index in parts) == rows
    if rows:
        np.testing.assert_array_equal(np.concatenate([features for features, _ in parts]), data.features)
        np.testing.assert_array_equal(np.concatenate([label_index for _, label_index in parts]), data.label_index)
