"""Tests of finetune.rows.splits: the files' layout does not reach the arrays, and little more than these is ever in memory."""

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.project import ROOT
from helpers.tables.feature_sets import image_ids, make_clusters, uneven_shards, with_files, write_feature_set
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from featurize.errors import JobError
from featurize.tables.manifests import FeaturesManifest
from finetune.rows.splits import SplitData, iterate_split, read_split, row_ids_of


def expected_ids(rows: list[int], total: int) -> NDArray[np.int64]:
    ids = image_ids(total)
    return np.array([int(ids[row][:15], 16) for row in rows])


def assert_is_rows(found: SplitData, features: NDArray[Any], label_index: NDArray[Any], rows: list[int]) -> None:
    """That `found` holds these rows of `write_feature_set`, in this order."""
    dtypes = [found.features.dtype, found.label_index.dtype, found.row_ids.dtype]
    assert dtypes == [features.dtype, np.dtype(np.int32), np.dtype(np.int64)]
    assert found.rows == len(rows)
    np.testing.assert_array_equal(found.features, features[rows])
    np.testing.assert_array_equal(found.label_index, label_index[rows])
    np.testing.assert_array_equal(found.row_ids, expected_ids(rows, len(label_index)))
    assert found.paths.to_pylist() == [f"photos/{row:05d}.png" for row in rows]


def make_features(rows: int, *, pixels: bool, seed: int) -> tuple[NDArray[Any], NDArray[np.int32]]:
    features, label_index = make_clusters(rows)
    if pixels:
        return np.random.default_rng(seed).integers(0, 256, (rows, 3, 4, 1)).astype(np.uint8), label_index
    return features, label_index


@given(st.integers(1, 60), st.integers(1, 6), st.integers(0, 99), st.integers(1, 40), st.booleans(), st.randoms())
@settings(max_examples=20)
def test_split_is_the_same_whatever_the_shards_and_their_order(
    rows: int, n_shards: int, seed: int, rows_per_group: int, pixels: bool, random: Any
) -> None:
    features, label_index = make_features(rows, pixels=pixels, seed=seed)
    splits = [("train", "train", "test")[row % 3] for row in range(rows)]
    shards, ids = uneven_shards(rows, n_shards, seed=seed), image_ids(rows)
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_feature_set(
            Path(folder), features, label_index, splits=splits, shards=shards, rows_per_group=rows_per_group
        )
        files = list(manifest.files)
        random.shuffle(files)
        for split in ("train", "test"):
            wanted = sorted((row for row in range(rows) if splits[row] == split), key=lambda row: ids[row])
            assert_is_rows(read_split(folder, with_files(manifest, files), split), features, label_index, wanted)


@pytest.mark.parametrize("pixels", [False, True])
def test_split_row_group_by_row_group_has_its_rows_in_the_order_of_the_files(tmp_path: Path, pixels: bool) -> None:
    features, label_index = make_features(50, pixels=pixels, seed=0)
    shards = [list(range(49, 29, -1)), list(range(30))]
    manifest = write_feature_set(
        tmp_path, features, label_index, splits=["train"] * 50, shards=shards, rows_per_group=8
    )
    parts = list(iterate_split(str(tmp_path), manifest, "train"))
    assert [part.rows for part in parts] == [8, 8, 4, 8, 8, 8, 6]
    rows = [*shards[0], *shards[1]]
    for part in parts:
        assert_is_rows(part, features, label_index, rows[: part.rows])
        rows = rows[part.rows :]
    assert list(iterate_split(str(tmp_path), manifest, "validation")) == []


def test_empty_split_has_the_shape_of_the_features(tmp_path: Path) -> None:
    features, label_index = make_clusters(6)
    manifest = write_feature_set(tmp_path / "floats", features, label_index, splits=["train"] * 6)
    empty = read_split(str(tmp_path / "floats"), manifest, "validation")
    assert (empty.features.shape, empty.features.dtype, empty.rows) == ((0, 6), np.dtype(np.float32), 0)
    pixels = np.zeros((6, 3, 4, 1), np.uint8)
    manifest = write_feature_set(tmp_path / "pixels", pixels, label_index, splits=["train"] * 6)
    empty = read_split(str(tmp_path / "pixels"), manifest, "validation")
    assert (empty.features.shape, empty.features.dtype, empty.rows) == ((0, 3, 4, 1), np.dtype(np.uint8), 0)
    assert (len(empty.paths), empty.row_ids.dtype) == (0, np.dtype(np.int64))


def test_equal_images_are_ordered_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features, label_index = make_clusters(8)
    monkeypatch.setattr(
        "helpers.tables.feature_sets.image_ids", lambda rows: [hashlib.sha256(b"one").hexdigest()] * rows
    )
    manifest = write_feature_set(
        tmp_path, features, label_index, splits=["train"] * 8, shards=[[3, 1, 2], [7, 0, 4, 5, 6]]
    )
    for files in (manifest.files, manifest.files[::-1]):
        data = read_split(str(tmp_path), with_files(manifest, files), "train")
        assert data.paths.to_pylist() == [f"photos/{row:05d}.png" for row in range(8)]
        np.testing.assert_array_equal(data.features, features)
        assert len(set(data.row_ids)) == 1


def test_row_ids_are_the_first_digits_and_never_negative() -> None:
    assert row_ids_of(["f" * 64, "0" * 14 + "1" + "f" * 49], origin="x").tolist() == [(1 << 60) - 1, 1]
    with pytest.raises(JobError, match=r"shard\.parquet has an image_id that is not"):
        row_ids_of(["photo 1"], origin="shard.parquet")


def test_files_that_the_manifest_does_not_list_are_not_read(tmp_path: Path) -> None:
    features, label_index = make_clusters(20)
    manifest = write_feature_set(tmp_path, features, label_index, splits=["train"] * 20)
    stray = tmp_path / manifest.files[0].path
    (stray.parent / "part-ffffffff-00000-0.parquet").write_bytes(stray.read_bytes())
    assert read_split(str(tmp_path), manifest, "train").rows == 20


@pytest.fixture
def feature_set(tmp_path: Path) -> tuple[Path, FeaturesManifest]:
    features, label_index = make_clusters(30)
    return tmp_path / "set", write_feature_set(tmp_path / "set", features, label_index, splits=["train"] * 30)


def test_other_number_of_rows_than_listed_is_refused(feature_set: tuple[Path, FeaturesManifest]) -> None:
    folder, manifest = feature_set
    fewer = with_files(manifest, manifest.files[1:])
    with pytest.raises(JobError, match=r"split train has \d+ rows, the manifest says 30"):
        read_split(str(folder), fewer, "train")


def test_split_whose_files_are_all_unlisted_is_refused(feature_set: tuple[Path, FeaturesManifest]) -> None:
    folder, manifest = feature_set
    with pytest.raises(JobError, match="split train has 0 rows, the manifest says 30"):
        read_split(str(folder), with_files(manifest, []), "train")


def test_missing_data_file_is_refused_by_name(feature_set: tuple[Path, FeaturesManifest]) -> None:
    folder, manifest = feature_set
    (folder / manifest.files[0].path).unlink()
    with pytest.raises(JobError, match=Path(manifest.files[0].path).name):
        read_split(str(folder), manifest, "train")


@pytest.mark.parametrize("position", [0.1, 0.4, 0.9])
def test_damaged_data_file_is_refused_by_name(feature_set: tuple[Path, FeaturesManifest], position: float) -> None:
    folder, manifest = feature_set
    path = folder / max(manifest.files, key=lambda file: file.rows).path
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * position)])
    with pytest.raises(JobError, match=path.name):
        read_split(str(folder), manifest, "train")


@pytest.mark.parametrize(("pixels", "shape"), [(False, [5]), (False, [7]), (True, [3, 4, 2]), (True, [11, 1, 1])])
def test_features_of_another_length_than_the_manifest_says_are_refused(
    tmp_path: Path, pixels: bool, shape: list[int]
) -> None:
    features, label_index = make_features(30, pixels=pixels, seed=0)
    manifest = write_feature_set(tmp_path, features, label_index, splits=["train"] * 30)
    with pytest.raises(JobError, match=rf"part-.*: some rows do not have {np.prod(shape)} features"):
        read_split(str(tmp_path), manifest.model_copy(update={"feature_shape": shape}), "train")


PROGRAM = """
import sys
from featurize.tables.readable import read_features_manifest
from featurize.memory import peak_memory_bytes
from finetune.rows.splits import read_split

read_split(sys.argv[1], read_features_manifest(sys.argv[1]), "validation")
before = peak_memory_bytes()
data = read_split(sys.argv[1], read_features_manifest(sys.argv[1]), "train")
print(data.features.nbytes, peak_memory_bytes() - before)
"""


def test_reading_takes_little_more_memory_than_the_split(tmp_path: Path) -> None:
    rows = 6400
    features = np.random.default_rng(0).integers(0, 256, (rows, 75, 75, 3), dtype=np.uint8)
    splits = ["validation" if row % 64 == 0 else "train" for row in range(rows)]
    shards = [list(range(first, first + 1600)) for first in range(0, rows, 1600)]
    write_feature_set(tmp_path, features, np.zeros(rows, np.int32), splits=splits, shards=shards, rows_per_group=32)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    split_bytes, taken = map(int, done.stdout.split())
    assert split_bytes == 6300 * 75 * 75 * 3
    assert split_bytes < taken < 1.3 * split_bytes
