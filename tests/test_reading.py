"""Tests of finetune.reading: the files that a manifest lists, whole by pyarrow and streamed by Petastorm."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feature_sets import make_clusters, write_feature_set

from featurize.errors import JobError, UsageError
from finetune.reading import open_petastorm_reader, read_table

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # Petastorm reads by the legacy interface of pyarrow

COLUMNS = ("path", "label_index", "features")


def rows_by_petastorm(url: str, manifest: Any, split: str) -> dict[str, Any]:
    """Every row of a split by path, from an endless reader that is left once each has been seen."""
    found: dict[str, Any] = {}
    batches = 0
    with open_petastorm_reader(url, manifest, split, COLUMNS) as reader:
        for batch in reader:
            found |= dict(zip(batch.path, batch.features, strict=True))
            batches += 1
            if len(found) == manifest.split_rows(split) or batches > 1000:
                return found
    return found


def test_table_has_every_row_of_the_split_and_no_other(tmp_path: Path) -> None:
    features, label_index = make_clusters(50)
    splits = ["train" if row % 3 else "test" for row in range(50)]
    shards = [list(range(40)), list(range(40, 50))]
    manifest = write_feature_set(tmp_path, features, label_index, splits=splits, shards=shards, rows_per_group=16)
    for split in ("train", "test"):
        table = read_table(str(tmp_path), manifest, split, COLUMNS)
        wanted = [row for row in range(50) if splits[row] == split]
        assert sorted(table["path"].to_pylist()) == [f"photos/{row:05d}.png" for row in wanted]
    assert read_table(str(tmp_path), manifest, "nothing", COLUMNS).num_rows == 0


@pytest.mark.parametrize("name", ["my photos", "50% off", "a+b", "été", "split=train", "c#1", "what?", "[a]*"])
def test_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    features, label_index = make_clusters(20)
    manifest = write_feature_set(tmp_path / name, features, label_index, splits=["train"] * 20)
    assert read_table(str(tmp_path / name), manifest, "train", COLUMNS).num_rows == 20


def test_missing_damaged_and_shortened_files_are_named(tmp_path: Path) -> None:
    features, label_index = make_clusters(20)
    manifest = write_feature_set(tmp_path, features, label_index, splits=["train"] * 20)
    part = tmp_path / manifest.files[0].path
    whole = part.read_bytes()
    part.write_bytes(whole[:-100])
    with pytest.raises(JobError, match=part.name):
        read_table(str(tmp_path), manifest, "train", COLUMNS)
    part.unlink()
    with pytest.raises(JobError, match=part.name):
        read_table(str(tmp_path), manifest, "train", COLUMNS)


def test_petastorm_gives_every_row_with_its_features(tmp_path: Path) -> None:
    features, label_index = make_clusters(64)
    shards = [list(range(20)), list(range(20, 64))]
    manifest = write_feature_set(
        tmp_path, features, label_index, splits=["train"] * 64, shards=shards, rows_per_group=4
    )
    found = rows_by_petastorm(str(tmp_path), manifest, "train")
    np.testing.assert_array_equal([found[f"photos/{row:05d}.png"] for row in range(64)], features)


def test_petastorm_on_a_split_without_rows_is_refused(tmp_path: Path) -> None:
    features, label_index = make_clusters(20)
    manifest = write_feature_set(tmp_path, features, label_index, splits=["train"] * 20)
    with pytest.raises(UsageError, match="split 'test' has no rows"):
        open_petastorm_reader(str(tmp_path), manifest, "test", COLUMNS)
