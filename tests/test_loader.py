"""Tests of finetune.loader: the plan's laws, and that the files' layout does not reach the arrays."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feature_sets import image_ids, make_clusters, uneven_shards, with_files, write_feature_set
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from featurize.errors import JobError
from finetune.loader import BatchPlan, SplitData, iterate_slices, make_batches, plan_epoch, read_split

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # Petastorm reads by the legacy interface of pyarrow

rows_counts, batch_sizes, sizes = st.integers(0, 400), st.integers(1, 70), st.integers(1, 9)
seeds, epochs = st.integers(0, 2**32), st.integers(1, 1000)


def steps_of(plan: BatchPlan) -> list[NDArray[np.int64]]:
    """The rows of each step."""
    return np.split(plan.rows, plan.ends)[:-1]


@given(rows_counts, batch_sizes, sizes, seeds, epochs)
@example(rows=65, per_rank=32, size=2, seed=0, epoch=1)  # one row is left for two ranks
@example(rows=1, per_rank=8, size=5, seed=0, epoch=1)
@settings(deadline=None)
def test_ranks_together_take_the_steps_of_one_rank(rows: int, per_rank: int, size: int, seed: int, epoch: int) -> None:
    alone = plan_epoch(rows, seed=seed, epoch=epoch, global_batch_size=per_rank * size)
    plans = [
        plan_epoch(rows, seed=seed, epoch=epoch, global_batch_size=per_rank * size, rank=rank, size=size)
        for rank in range(size)
    ]
    assert {len(plan.ends) for plan in plans} == {len(alone.ends)} == {-(-rows // (per_rank * size))}
    for plan in plans:
        np.testing.assert_array_equal(plan.global_rows, alone.global_rows)
        assert plan.ends[-1:].tolist() == [len(plan.rows)][: len(plan.ends)]
    for step, batch in enumerate(steps_of(alone)):
        shares = [steps_of(plan)[step] for plan in plans]
        assert sorted(np.concatenate(shares)) == sorted(batch)
        assert len(batch) == alone.global_rows[step]
        lengths = [len(share) for share in shares]
        assert max(lengths) - min(lengths) <= 1
        assert max(lengths) <= per_rank


@given(rows_counts, batch_sizes, sizes, seeds, epochs)
@settings(deadline=None)
def test_every_row_is_seen_once_in_an_epoch(rows: int, batch_size: int, size: int, seed: int, epoch: int) -> None:
    seen = [
        plan_epoch(rows, seed=seed, epoch=epoch, global_batch_size=batch_size, rank=rank, size=size).rows
        for rank in range(size)
    ]
    assert sorted(np.concatenate(seen)) == list(range(rows))


@given(st.integers(50, 400), seeds, epochs)
@settings(deadline=None)
def test_epoch_and_seed_change_the_order_and_nothing_else_does(rows: int, seed: int, epoch: int) -> None:
    order = plan_epoch(rows, seed=seed, epoch=epoch, global_batch_size=8).rows
    assert (order == plan_epoch(rows, seed=seed, epoch=epoch, global_batch_size=32).rows).all()
    assert (order != plan_epoch(rows, seed=seed, epoch=epoch + 1, global_batch_size=8).rows).any()
    assert (order != plan_epoch(rows, seed=seed + 1, epoch=epoch, global_batch_size=8).rows).any()
    assert (order != np.arange(rows)).any()


@pytest.mark.parametrize(
    ("rows", "batch_size", "rank", "size"),
    [(103, 16, 0, 1), (103, 16, 1, 2), (65, 64, 0, 2), (65, 64, 1, 2), (3, 4, 4, 7)],
)
def test_make_batches_yields_the_rows_of_the_plan(rows: int, batch_size: int, rank: int, size: int) -> None:
    import tensorflow as tf

    features, label_index = make_clusters(rows)
    plan = plan_epoch(rows, seed=3, epoch=2, global_batch_size=batch_size, rank=rank, size=size)
    batches = list(make_batches(tf.constant(features), tf.constant(label_index), plan))
    assert len(batches) == len(plan.ends)
    for (batch_features, batch_labels, global_rows), own, expected in zip(
        batches, steps_of(plan), plan.global_rows, strict=True
    ):
        np.testing.assert_array_equal(batch_features.numpy(), features[own])
        np.testing.assert_array_equal(batch_labels.numpy(), label_index[own])
        assert float(global_rows) == expected
        assert global_rows.dtype == tf.float32


def test_make_batches_keeps_pixels_as_they_are() -> None:
    import tensorflow as tf

    pixels = np.random.default_rng(0).integers(0, 256, (10, 4, 5, 3)).astype(np.uint8)
    plan = plan_epoch(10, seed=0, epoch=1, global_batch_size=4)
    batches = [batch[0].numpy() for batch in make_batches(tf.constant(pixels), tf.zeros(10, tf.int32), plan)]
    assert {batch.dtype for batch in batches} == {np.dtype(np.uint8)}
    np.testing.assert_array_equal(np.concatenate(batches), pixels[plan.rows])


@given(st.integers(0, 500), st.integers(1, 90), sizes)
@settings(deadline=None)
def test_slices_of_all_ranks_cover_every_row_once(rows: int, batch_size: int, size: int) -> None:
    slices = [part for rank in range(size) for part in iterate_slices(rows, batch_size, rank=rank, size=size)]
    assert [row for part in slices for row in range(rows)[part]] == list(range(rows))
    assert all(0 < part.stop - part.start <= batch_size for part in slices)


def expected_split(features: NDArray[Any], label_index: NDArray[Any], rows: list[int]) -> SplitData:
    """What `read_split` should give for these rows of `write_feature_set`."""
    ids = image_ids(len(label_index))
    ordered = sorted(rows, key=lambda row: ids[row])
    return SplitData(features[ordered], label_index[ordered], np.array([f"photos/{row:05d}.png" for row in ordered]))


def assert_equal_splits(found: SplitData, expected: SplitData) -> None:
    assert found.features.dtype == expected.features.dtype
    assert found.label_index.dtype == np.int32
    np.testing.assert_array_equal(found.features, expected.features)
    np.testing.assert_array_equal(found.label_index, expected.label_index)
    assert found.paths.tolist() == expected.paths.tolist()


@given(st.integers(1, 60), st.integers(1, 6), st.integers(0, 99), st.integers(1, 40), st.booleans(), st.randoms())
@settings(deadline=None, max_examples=20)
def test_split_is_the_same_whatever_the_shards_and_their_order(
    rows: int, n_shards: int, seed: int, rows_per_group: int, pixels: bool, random: Any
) -> None:
    features: NDArray[Any]
    features, label_index = make_clusters(rows)
    if pixels:
        features = np.random.default_rng(seed).integers(0, 256, (rows, 3, 4, 1)).astype(np.uint8)
    splits = [("train", "train", "test")[row % 3] for row in range(rows)]
    shards = uneven_shards(rows, n_shards, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_feature_set(
            Path(folder), features, label_index, splits=splits, shards=shards, rows_per_group=rows_per_group
        )
        files = list(manifest.files)
        random.shuffle(files)
        shuffled = with_files(manifest, files)
        for split in ("train", "test"):
            found = read_split(folder, shuffled, split)
            wanted = [row for row in range(rows) if splits[row] == split]
            if wanted:
                assert_equal_splits(found, expected_split(features, label_index, wanted))


def test_empty_split_has_the_shape_of_the_features(tmp_path: Path) -> None:
    features, label_index = make_clusters(6)
    manifest = write_feature_set(tmp_path / "floats", features, label_index, splits=["train"] * 6)
    empty = read_split(str(tmp_path / "floats"), manifest, "validation")
    assert (empty.features.shape, empty.features.dtype, empty.rows) == ((0, 6), np.float32, 0)
    pixels = np.zeros((6, 3, 4, 1), np.uint8)
    manifest = write_feature_set(tmp_path / "pixels", pixels, label_index, splits=["train"] * 6)
    empty = read_split(str(tmp_path / "pixels"), manifest, "validation")
    assert (empty.features.shape, empty.features.dtype, empty.rows) == ((0, 3, 4, 1), np.uint8, 0)


def test_equal_images_are_ordered_by_path(tmp_path: Path) -> None:
    features, label_index = make_clusters(8)
    manifest = write_feature_set(
        tmp_path, features, label_index, splits=["train"] * 8, shards=[[3, 1, 2], [7, 0, 4, 5, 6]]
    )
    data = read_split(str(tmp_path), manifest, "train")
    again = read_split(str(tmp_path), with_files(manifest, manifest.files[::-1]), "train")
    assert data.paths.tolist() == again.paths.tolist()


def test_files_that_the_manifest_does_not_list_are_not_read(tmp_path: Path) -> None:
    features, label_index = make_clusters(20)
    manifest = write_feature_set(tmp_path, features, label_index, splits=["train"] * 20)
    stray = tmp_path / manifest.files[0].path
    (stray.parent / "part-ffffffff-00000-0.parquet").write_bytes(stray.read_bytes())
    assert read_split(str(tmp_path), manifest, "train").rows == 20


@pytest.fixture
def feature_set(tmp_path: Path) -> tuple[Path, Any]:
    features, label_index = make_clusters(30)
    return tmp_path / "set", write_feature_set(tmp_path / "set", features, label_index, splits=["train"] * 30)


def test_other_number_of_rows_than_listed_is_refused(feature_set: tuple[Path, Any]) -> None:
    folder, manifest = feature_set
    fewer = with_files(manifest, manifest.files[1:])
    with pytest.raises(JobError, match=r"split train has \d+ rows, the manifest says 30"):
        read_split(str(folder), fewer, "train")


def test_split_whose_files_are_all_unlisted_is_refused(feature_set: tuple[Path, Any]) -> None:
    folder, manifest = feature_set
    with pytest.raises(JobError, match="split train has 0 rows, the manifest says 30"):
        read_split(str(folder), with_files(manifest, []), "train")


def test_missing_data_file_is_refused_by_name(feature_set: tuple[Path, Any]) -> None:
    folder, manifest = feature_set
    (folder / manifest.files[0].path).unlink()
    with pytest.raises(JobError, match=r"part-.*\.parquet"):
        read_split(str(folder), manifest, "train")


def test_damaged_data_file_is_refused_by_name(feature_set: tuple[Path, Any]) -> None:
    folder, manifest = feature_set
    path = folder / max(manifest.files, key=lambda file: file.rows).path
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(JobError, match=r"part-.*\.parquet|set"):
        read_split(str(folder), manifest, "train")


def test_features_of_another_length_than_the_manifest_says_are_refused(feature_set: tuple[Path, Any]) -> None:
    folder, manifest = feature_set
    with pytest.raises(JobError):
        read_split(str(folder), manifest.model_copy(update={"feature_shape": [7]}), "train")
