"""Plans: every image in one shard, no shard too large, and the workers get what was listed."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from helpers.tables.listings import listing_of
from hypothesis import example, given, settings
from hypothesis import strategies as st

from featurize.building import plan
from featurize.building.plan import (
    MAX_SHARD_BYTES,
    MAX_SHARD_IMAGES,
    MIN_SHARD_IMAGES,
    plan_shards,
    read_planned,
    write_plan,
)
from featurize.sources.listing import planned_images

LIMIT = MAX_SHARD_BYTES
sizes_of_images = st.one_of(st.none(), st.integers(0, 2 * LIMIT), st.sampled_from([0, 1, LIMIT - 1, LIMIT, LIMIT + 1]))


def assert_is_partition(shards: list[tuple[int, int]], images: int) -> None:
    assert [start for start, _ in shards] + [images] == [0, *(stop for _, stop in shards)]
    assert all(start < stop for start, stop in shards)


@given(st.lists(sizes_of_images, max_size=300), st.integers(1, 40))
@example([LIMIT] * 3, 1)
@example([LIMIT - 1, 1, 1], 1)
def test_every_image_is_in_one_shard_and_none_is_too_large(sizes: list[int | None], slots: int) -> None:
    shards = plan_shards(listing_of(len(sizes), bytes_size=sizes), slots=slots)
    assert_is_partition(shards, len(sizes))
    for start, stop in shards:
        assert stop - start == 1 or sum(size or 0 for size in sizes[start:stop]) <= LIMIT


@given(st.lists(sizes_of_images, max_size=300), st.integers(1, 40))
def test_a_shard_is_cut_short_only_where_one_more_image_would_be_too_much(sizes: list[int | None], slots: int) -> None:
    shards = plan_shards(listing_of(len(sizes), bytes_size=sizes), slots=slots)
    most = max((stop - start for start, stop in shards), default=0)
    for start, stop in shards[:-1]:
        assert stop - start == most or sum(size or 0 for size in sizes[start : stop + 1]) > LIMIT


@given(st.integers(0, 120_000), st.integers(1, 500))
@example(100 * MAX_SHARD_IMAGES + 1, 1)
@example(50_791, 1)
@settings(max_examples=50)
def test_small_images_make_equal_shards_within_the_limits(images: int, slots: int) -> None:
    shards = plan_shards(LISTING.slice(0, images) if images <= len(LISTING) else listing_of(images), slots=slots)
    assert_is_partition(shards, images)
    sizes = [stop - start for start, stop in shards]
    assert set(sizes[:-1]) <= {max(sizes, default=0)}
    assert max(sizes, default=0) <= MAX_SHARD_IMAGES
    if len(sizes) > 1:
        assert sizes[0] >= 2 / 3 * MIN_SHARD_IMAGES
        assert sizes[0] - sizes[-1] < len(sizes)  # as equal as whole numbers allow but for the last


LISTING = listing_of(120_000)


@pytest.mark.parametrize(("images", "slots"), [(3000, 2), (12_000, 8), (100_000, 30)])
def test_there_is_work_for_every_slot_three_times(images: int, slots: int) -> None:
    shards = plan_shards(LISTING.slice(0, images), slots=slots)
    assert 3 * slots - 1 <= len(shards) <= 3 * slots + 1


@given(
    st.lists(st.tuples(st.text(max_size=5), st.text(max_size=3) | st.none(), st.integers(0, 9) | st.none())),
    st.lists(st.integers(1, 20), min_size=1),
)
@settings(max_examples=50)
def test_workers_get_the_rows_of_their_shard(
    tmp_path_factory: pytest.TempPathFactory, values: list[tuple[str, str | None, int | None]], lengths: list[int]
) -> None:
    names, labels, positions = ([value[index] for value in values] for index in range(3))
    paths = [f"file:///{index:03d}{name}" for index, name in enumerate(names)]
    listing = listing_of(len(values), path=paths, label=labels, position=positions, container=labels)
    ends = np.minimum(np.cumsum([0, *lengths, len(values)]), len(values)).tolist()
    shards = [(start, stop) for start, stop in pairwise(ends) if start < stop]
    url = str(tmp_path_factory.mktemp("plan") / "plan.parquet")
    write_plan(url, listing, shards)
    images = planned_images(listing)
    for number, (start, stop) in enumerate(shards):
        assert read_planned(url, number) == images[start:stop]


def test_a_plan_of_rows_that_were_picked_from_a_listing(tmp_path: Path) -> None:
    """As of a run that adds what is missing: chunks and dictionaries are not those of a fresh listing."""
    picked = LISTING.take(np.arange(5, 1000, 7))
    shards = plan_shards(picked, slots=1)
    url = str(tmp_path / "plan.parquet")
    write_plan(url, picked, shards)
    found = [image for number in range(len(shards)) for image in read_planned(url, number)]
    assert found == planned_images(picked)


def test_the_limit_of_bytes_is_what_cuts_large_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MAX_SHARD_BYTES", 5000)
    assert plan_shards(LISTING.slice(0, 12), slots=1) == [(0, 5), (5, 10), (10, 12)]
