"""Tests of the two modules `reading`: the files that a manifest lists, whole by pyarrow and streamed by Petastorm."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tables.feature_sets import make_clusters, write_feature_set

from featurize.errors import JobError, UsageError
from featurize.tables.row_groups import iterate_row_groups, list_row_groups, read_table
from finetune.rows.petastorm_reader import open_ordered_reader, open_petastorm_reader

NAMES = ["my photos", "50% off", "a+b", "été", "split=train", "c#1", "what?", "[a]*"]
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


@pytest.mark.parametrize("name", NAMES)
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


def order_of(reader: Any, rows: int) -> list[str]:
    """The paths of so many rows."""
    paths: list[str] = []
    while len(paths) < rows:
        paths += next(reader).path.tolist()
    return paths


@pytest.mark.parametrize("name", NAMES)
def test_petastorm_reads_from_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    features, label_index = make_clusters(20)
    manifest = write_feature_set(tmp_path / name, features, label_index, splits=["train"] * 20)
    assert len(rows_by_petastorm(str(tmp_path / name), manifest, "train")) == 20


def test_ordered_readers_give_every_row_of_their_part_in_an_order_by_seed(tmp_path: Path) -> None:
    features, label_index = make_clusters(200)
    shards = [list(range(90)), list(range(90, 200))]
    manifest = write_feature_set(
        tmp_path, features, label_index, splits=["train"] * 200, shards=shards, rows_per_group=5
    )
    files = [str(tmp_path / file.path) for file in manifest.files]
    orders: dict[int, list[list[str]]] = {}
    for seed in (1, 1, 2):
        parts = []
        for part in range(3):
            rows = [70, 65, 65][part]
            with open_ordered_reader(files, COLUMNS, seed=seed, part=part, parts=3) as reader:
                parts.append(order_of(reader, rows))
        assert [len(part) for part in parts] == [70, 65, 65]
        assert sorted(parts[0] + parts[1] + parts[2]) == [f"photos/{row:05d}.png" for row in range(200)]
        assert orders.setdefault(seed, parts) == parts
    assert orders[1] != orders[2]


def test_row_groups_come_in_their_order_and_know_their_file(tmp_path: Path) -> None:
    features, label_index = make_clusters(60)
    shards = [list(range(25)), list(range(25, 60))]
    manifest = write_feature_set(
        tmp_path, features, label_index, splits=["train"] * 60, shards=shards, rows_per_group=10
    )
    groups = list_row_groups(str(tmp_path), manifest, "train")
    assert [(group.index, group.rows) for group in groups] == [
        (0, 10),
        (1, 10),
        (2, 5),
        (0, 10),
        (1, 10),
        (2, 10),
        (3, 5),
    ]
    tables = list(iterate_row_groups(groups, ("path",)))
    assert [path for table in tables for path in table["path"].to_pylist()] == [
        f"photos/{row:05d}.png" for row in range(60)
    ]
    with pytest.raises(JobError, match=r"part-.* has no column colour"):
        next(iterate_row_groups(groups, ("path", "colour")))


def test_petastorm_on_a_split_without_rows_is_refused(tmp_path: Path) -> None:
    features, label_index = make_clusters(20)
    manifest = write_feature_set(tmp_path, features, label_index, splits=["train"] * 20)
    with pytest.raises(UsageError, match="split 'test' has no rows"):
        open_petastorm_reader(str(tmp_path), manifest, "test", COLUMNS)
