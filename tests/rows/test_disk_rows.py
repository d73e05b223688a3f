"""Tests of rows.disk_rows: the same global batches on any number of ranks, shuffled as stated, and nothing left behind."""

import shutil
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tables.feature_sets import image_ids, in_order, make_clusters, uneven_shards, write_feature_set
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from featurize.errors import JobError
from featurize.tables.manifests import FeaturesManifest
from featurize.tables.row_groups import list_row_groups
from finetune.rows.disk_rows import N_STREAMS, StreamData, deal_streams, plan_shares

SIZES = (1, 2, 3, 8, 11)
DEADLINE_S = 30


@dataclass(frozen=True)
class FeatureSet:
    folder: Path
    manifest: FeaturesManifest
    features: NDArray[Any]
    label_index: NDArray[np.int32]

    @property
    def row_of(self) -> dict[int, int]:
        """The number of a row by its id."""
        return {int(text[:15], 16): row for row, text in enumerate(image_ids(len(self.label_index)))}

    def stream(self, *, shuffle_rows: int = 64, split: str = "train") -> StreamData:
        return StreamData(str(self.folder), self.manifest, split, shuffle_rows=shuffle_rows)


def make_set(
    folder: Path,
    rows: int,
    *,
    shards: Sequence[Sequence[int]],
    rows_per_group: int = 8,
    pixels: bool = False,
    splits: Sequence[str] | None = None,
) -> FeatureSet:
    features: NDArray[Any]
    features, label_index = make_clusters(rows)
    if pixels:
        features = np.random.default_rng(0).integers(0, 256, (rows, 3, 4, 1)).astype(np.uint8)
    manifest = write_feature_set(
        folder,
        features,
        label_index,
        splits=splits or ["train"] * rows,
        shards=shards,
        rows_per_group=rows_per_group,
    )
    return FeatureSet(folder, manifest, features, label_index)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FeatureSet]:
    folder = tmp_path_factory.mktemp("streams")
    return {
        "uneven": make_set(folder / "uneven", 403, shards=uneven_shards(403, 5)),
        "many files": make_set(folder / "many", 330, shards=in_order(*[11] * 30), pixels=True),
        "one file": make_set(folder / "one", 103, shards=in_order(103)),
        "few row groups": make_set(folder / "few", 20, shards=in_order(9, 11)),
        "one row": make_set(folder / "row", 1, shards=in_order(1)),
        "three rows": make_set(folder / "three", 3, shards=in_order(1, 2), rows_per_group=1),
    }


def flat(steps: Iterable[list[int]]) -> list[int]:
    return [row for step in steps for row in step]


def read_epoch(
    data: StreamData,
    stored: FeatureSet,
    *,
    epoch: int = 1,
    seed: int = 5,
    batch_size: int = 16,
    rank: int = 0,
    size: int = 1,
) -> tuple[list[list[int]], list[float]]:
    """The rows of each step of a rank, and the rows of all ranks in it, after a check of everything else in the batches."""
    row_of = stored.row_of
    steps, global_rows = [], []
    batches = data.batches(epoch, seed=seed, global_batch_size=batch_size, rank=rank, size=size)
    for features, label_index, row_ids, rows in batches.as_numpy_iterator():
        assert features.shape[:1] == label_index.shape == row_ids.shape == (batches.element_spec[0].shape[0],)
        real = label_index >= 0
        assert (label_index[~real] == -1).all()
        assert real[: real.sum()].all()
        own = [row_of[row_id] for row_id in row_ids[real].tolist()]
        np.testing.assert_array_equal(features[real], stored.features[own])
        np.testing.assert_array_equal(label_index[real], stored.label_index[own])
        if own:
            assert (features[~real] == features[0]).all()
        steps.append(own)
        global_rows.append(float(rows))
    return steps, global_rows


@pytest.mark.parametrize(
    ("name", "batch_size"),
    [
        ("uneven", 32),
        ("many files", 64),
        ("one file", 10),
        ("few row groups", 3),
        ("few row groups", 64),
        ("three rows", 1),
        ("one row", 16),
    ],
)
def test_ranks_together_take_the_steps_of_one_rank(sets: dict[str, FeatureSet], name: str, batch_size: int) -> None:
    stored = sets[name]
    rows = len(stored.label_index)
    data = stored.stream()
    alone, global_rows = read_epoch(data, stored, batch_size=batch_size)
    assert sorted(flat(alone)) == list(range(rows))
    assert len(alone) == data.steps(batch_size) == -(-rows // batch_size)
    assert global_rows == [len(step) for step in alone]
    assert [len(step) for step in alone[:-1]] == [batch_size] * (len(alone) - 1)
    for size in SIZES[1:]:
        shares = [read_epoch(data, stored, batch_size=batch_size, rank=rank, size=size) for rank in range(size)]
        assert all(rows_of_all == global_rows for _, rows_of_all in shares)
        together = [flat(steps[number] for steps, _ in shares) for number in range(len(alone))]
        assert [sorted(step) for step in together] == [sorted(step) for step in alone]


def test_batches_depend_on_seed_and_epoch_and_on_nothing_else(sets: dict[str, FeatureSet], tmp_path: Path) -> None:
    stored = sets["uneven"]
    data = stored.stream()
    first = read_epoch(data, stored)
    assert read_epoch(data, stored) == first
    shutil.copytree(stored.folder, tmp_path / "moved")
    moved = FeatureSet(tmp_path / "moved", stored.manifest, stored.features, stored.label_index)
    assert read_epoch(moved.stream(), stored, epoch=3) == read_epoch(data, stored, epoch=3)
    orders = [flat(read_epoch(data, stored, seed=seed, epoch=epoch)[0]) for seed, epoch in ((5, 1), (5, 2), (6, 1))]
    for number, order in enumerate(orders):
        for other in orders[:number]:
            assert np.mean(np.array(order) == np.array(other)) < 0.1


def test_split_without_rows_has_no_steps(sets: dict[str, FeatureSet]) -> None:
    stored = sets["uneven"]
    data = stored.stream(split="validation")
    assert (data.rows, data.steps(16), data.memory_bytes()) == (0, 0, 0)
    assert read_epoch(data, stored) == ([], [])
    assert list(data.slices()) == []


@pytest.mark.parametrize("name", ["uneven", "many files", "few row groups"])
def test_slices_of_all_ranks_have_every_row_once(sets: dict[str, FeatureSet], name: str) -> None:
    stored = sets[name]
    wanted = sorted((image.tobytes(), label) for image, label in zip(stored.features, stored.label_index, strict=True))
    for size in SIZES:
        slices = [part for rank in range(size) for part in stored.stream().slices(rank=rank, size=size)]
        assert sum(len(label_index) for _, label_index in slices) == len(stored.label_index)
        found = [(image.tobytes(), label) for part in slices for image, label in zip(*part, strict=True)]
        assert sorted(found) == wanted


@pytest.mark.parametrize("name", ["uneven", "many files", "one file", "few row groups", "one row", "three rows"])
def test_every_row_group_is_in_one_stream_and_streams_are_about_even(sets: dict[str, FeatureSet], name: str) -> None:
    stored = sets[name]
    groups = list_row_groups(str(stored.folder), stored.manifest, "train")
    streams = deal_streams(groups)
    assert len(streams) == min(N_STREAMS, len(groups))
    dealt = [(group.url, group.index) for stream in streams for group in stream.groups]
    assert sorted(dealt) == sorted((group.url, group.index) for group in groups)
    rows = [stream.rows for stream in streams]
    assert max(rows) - min(rows) <= 16  # two row groups
    assert (streams[0].parts == 1) == (name in ("many files", "one row"))


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=8), st.integers(1, 5000))
@example(stream_rows=[1001] * 8, global_batch_size=4)
@example(stream_rows=[1, 10**6], global_batch_size=3)
def test_every_step_has_its_part_of_each_stream(stream_rows: list[int], global_batch_size: int) -> None:
    rows = sum(stream_rows)
    global_batch_size = max(global_batch_size, rows // 2000)
    shares = plan_shares(stream_rows, global_batch_size)
    assert shares.min() >= 0
    assert shares.sum(1).tolist() == stream_rows
    assert shares.sum(0).tolist() == [min(global_batch_size, rows - t) for t in range(0, rows, global_batch_size)]
    given_rows = np.cumsum(shares, 1)
    wanted = np.outer(np.array(stream_rows) / rows, np.cumsum(shares.sum(0)))
    assert np.abs(given_rows - wanted).max() < 3


def test_ranks_hold_their_part_of_every_batch(sets: dict[str, FeatureSet]) -> None:
    data = sets["many files"].stream()
    for size, most in ((1, 64), (2, 34), (4, 18), (8, 10)):
        batches = [data.batches(1, seed=0, global_batch_size=64, rank=rank, size=size) for rank in range(size)]
        assert max(batch.element_spec[0].shape[0] for batch in batches) <= most


def test_row_is_read_far_from_its_neighbours_on_disk(tmp_path: Path) -> None:
    """The figures in the docstring of `finetune.rows.disk_rows`, for a split eight times as large as the buffers."""
    rows, shuffle_rows = 8000, 1000
    stored = make_set(tmp_path, rows, shards=in_order(*[500] * 16), rows_per_group=50)
    correlations, neighbours = [], []
    for epoch in range(1, 6):
        order = flat(read_epoch(stored.stream(shuffle_rows=shuffle_rows), stored, epoch=epoch, batch_size=50)[0])
        places = np.empty(rows)
        places[order] = np.arange(rows)
        correlations.append(np.corrcoef(places, np.arange(rows))[0, 1])
        in_groups = places.reshape(-1, 50)
        neighbours.append(np.abs(np.diff(in_groups, axis=1)).mean())
    assert np.abs(correlations).max() < 0.25  # 160 row groups in a random order: a deviation of 0.08
    assert 0.8 * shuffle_rows < np.mean(neighbours) < 1.2 * shuffle_rows


def test_split_that_fits_into_the_buffers_is_shuffled_as_a_whole(tmp_path: Path) -> None:
    rows = 2000
    stored = make_set(tmp_path, rows, shards=in_order(*[250] * 8), rows_per_group=50)
    order = flat(read_epoch(stored.stream(shuffle_rows=rows), stored, batch_size=50)[0])
    places = np.empty(rows)
    places[order] = np.arange(rows)
    assert 0.9 * rows / 3 < np.abs(np.diff(places.reshape(-1, 50), axis=1)).mean() < 1.1 * rows / 3


def own_threads() -> set[threading.Thread]:
    """Those that Python code started; TensorFlow's own are dummies to it, and named so."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith("Dummy-")}


def wait_for_threads(before: set[threading.Thread]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while own_threads() - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert own_threads() - before == set()


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_epoch_left_early_leaves_no_thread(tmp_path: Path, steps: int) -> None:
    data, before = make_set(tmp_path, 4000, shards=in_order(2000, 2000)).stream(), own_threads()
    iterator = iter(data.batches(1, seed=0, global_batch_size=16).prefetch(2))
    for _ in range(steps):
        next(iterator)
    if steps:
        assert own_threads() - before
    del iterator
    wait_for_threads(before)


@pytest.mark.parametrize("steps", [1, 3])
def test_slices_left_early_leave_no_thread(sets: dict[str, FeatureSet], steps: int) -> None:
    data, before = sets["many files"].stream(), own_threads()
    slices = data.slices()
    for _ in range(steps):
        next(slices)
    assert own_threads() - before
    slices.close()  # type: ignore[attr-defined]
    wait_for_threads(before)


def spoil(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:  # the footer stays as it is
        begin = len(content) // 8
        path.write_bytes(content[:begin] + b"\xff" * begin + content[2 * begin :])


@pytest.mark.parametrize("how", ["missing", "cut", "scratched"])
@pytest.mark.parametrize("shards", [in_order(*[50] * 16), in_order(700, 100)])
def test_file_damaged_while_it_streams_is_named(tmp_path: Path, how: str, shards: list[list[int]]) -> None:
    import tensorflow as tf

    stored = make_set(tmp_path, 800, shards=shards)
    data, before = stored.stream(), own_threads()
    path = tmp_path / stored.manifest.files[-1].path
    spoil(path, how)
    for rank in range(2):
        batches = data.batches(1, seed=0, global_batch_size=16, rank=rank, size=2)
        try:
            with data.failures():
                for _ in batches:
                    pass
        except JobError as error:
            assert path.name in str(error)
            assert isinstance(error.__cause__, tf.errors.OpError)
            break
    else:
        pytest.fail("nobody has noticed")
    del batches
    wait_for_threads(before)
    path.unlink(missing_ok=True)
    with pytest.raises(JobError, match=path.name):
        list(data.slices())
    with pytest.raises(JobError, match=path.name):
        stored.stream()


def test_file_that_changes_while_it_streams_is_noticed(tmp_path: Path) -> None:
    stored = make_set(tmp_path, 80, shards=in_order(40, 40), rows_per_group=8)
    data = stored.stream()
    make_set(tmp_path, 80, shards=in_order(40, 40), rows_per_group=7)
    with pytest.raises(JobError, match=r"part-.* changed"), data.failures():
        for _ in data.batches(1, seed=0, global_batch_size=16):
            pass


def test_features_of_another_length_than_the_manifest_says_are_refused(tmp_path: Path) -> None:
    stored = make_set(tmp_path, 80, shards=in_order(40, 40), rows_per_group=8)
    other = stored.manifest.model_copy(update={"feature_shape": [7]})
    data = StreamData(str(tmp_path), other, "train", shuffle_rows=8)
    with pytest.raises(JobError, match=r"part-.*: some rows do not have 7 features"), data.failures():
        next(iter(data.batches(1, seed=0, global_batch_size=16)))


def test_errors_of_others_pass_through(sets: dict[str, FeatureSet]) -> None:
    import tensorflow as tf

    with pytest.raises(tf.errors.InvalidArgumentError), sets["uneven"].stream().failures():
        tf.debugging.assert_equal(tf.constant(1), tf.constant(2))
