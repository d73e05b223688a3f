"""Vacuum removes what no readable version lists, and nothing else; tables of Firn 0.1 become Delta tables."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable
from helpers.project import ROOT
from helpers.tables.feature_sets import image_ids, make_clusters, write_feature_set
from helpers.tables.publishing import grow_old, write_manifest
from pandas.testing import assert_frame_equal
from typer.testing import CliRunner

import featurize
from featurize import storage
from featurize.__main__ import app
from featurize.building import staging
from featurize.digests import combine_digests
from featurize.errors import JobError, UsageError
from featurize.storage.claims import claim_output
from featurize.tables import publication
from featurize.tables.manifests import FeaturesManifest, add_counts
from featurize.tables.publication import publish, read_manifest, read_published_features

MADE_BY_0_1 = ROOT / "tests/helpers/tables/made_by_0_1"


def with_shards(manifest: FeaturesManifest, *numbers: int) -> FeaturesManifest:
    shards = [manifest.shards[number] for number in numbers]
    changes = {
        "shards": shards,
        "rows": add_counts(shard.rows for shard in shards),
        "content_digest": combine_digests(shard.content_digest for shard in shards),
    }
    return manifest.model_copy(update=changes)


def paths(manifest: FeaturesManifest, *numbers: int) -> set[str]:
    return staging.file_paths(manifest.shards[number] for number in numbers)


def parquet_files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*.parquet")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A set of three versions: with the shards 0, 1 and 2; 0 and 1; 0 alone."""
    first = write_feature_set(tmp_path / "set", *make_clusters(60), shards=[range(20), range(20, 45), range(45, 60)])
    write_manifest(str(tmp_path / "set"), with_shards(first, 0, 1))
    write_manifest(str(tmp_path / "set"), with_shards(first, 0))
    return tmp_path / "set"


def test_versions_of_the_last_days_stay(folder: Path) -> None:
    before = parquet_files(folder)
    (done,) = featurize.vacuum(str(folder))
    assert (done.files, done.version, done.oldest) == (0, 2, 0)
    assert parquet_files(folder) == before


def test_files_of_older_versions_go_and_the_last_version_stays_whole(folder: Path) -> None:
    first = read_published_features(str(folder), 0)
    grow_old(folder)
    (counted,) = featurize.vacuum(str(folder), dry_run=True)
    assert parquet_files(folder) >= paths(first, 0, 1, 2)
    (done,) = featurize.vacuum(str(folder))
    assert (counted.files, counted.bytes) == (done.files, done.bytes)
    assert parquet_files(folder) == paths(first, 0)
    assert (done.oldest, done.version) == (2, 3)
    assert featurize.open_features(str(folder)).to_pandas()["path"].nunique() == 20
    assert len(pl.scan_delta(str(folder)).collect()) == 20
    with pytest.raises(UsageError, match=r"the files of version 1 .* have been removed; the oldest version is 2"):
        featurize.open_features(str(folder), version=1)
    (again,) = featurize.vacuum(str(folder))
    assert (again.files, again.version) == (0, 3)


def test_a_version_that_was_the_last_one_within_the_time_stays(folder: Path) -> None:
    first = read_published_features(str(folder), 0)
    grow_old(folder)
    publish(str(folder), with_shards(first, 0, 2), after=read_manifest(str(folder)))
    (done,) = featurize.vacuum(str(folder))
    assert done.oldest == 2  # it was replaced just now
    assert parquet_files(folder) == paths(first, 0, 2)


def test_what_a_killed_run_left_goes_once_it_is_old_and_what_the_next_can_keep_stays(folder: Path) -> None:
    first = read_published_features(str(folder), 0)
    stray = "data/split=train/part-0badcafe-00007-7.parquet"
    for name in (stray, "data/mine.parquet"):
        (folder / name).write_bytes(b"x")
    staging.write_state(str(folder), settings=first.settings, run="0badcafe", records=[first.shards[2]], there=first)
    (done,) = featurize.vacuum(str(folder), older_than="1s")
    assert done.files == 0
    grow_old(folder)
    featurize.vacuum(str(folder))
    assert parquet_files(folder) == paths(first, 0, 2) | {"data/mine.parquet"}


def test_whoever_began_to_write_before_a_vacuum_publishes_nothing_after_it(folder: Path) -> None:
    first, before = read_published_features(str(folder), 0), read_published_features(str(folder))
    grow_old(folder)
    featurize.vacuum(str(folder))
    with pytest.raises(JobError, match="another job published version 3"):
        publish(str(folder), with_shards(first, 0, 1), after=before)


def test_a_table_that_is_being_written_is_left_alone(folder: Path) -> None:
    with claim_output(f"file://{folder}"), pytest.raises(JobError, match="is being written"):
        featurize.vacuum(str(folder))


@pytest.mark.parametrize("text", ["7", "d", "-1d", "1.5d", "1w", ""])
def test_a_time_that_is_none_is_refused(folder: Path, text: str) -> None:
    with pytest.raises(UsageError, match="`older_than` must be a number of s, m, h or d, as in 7d"):
        featurize.vacuum(str(folder), older_than=text)


def test_a_place_without_a_table_is_named(tmp_path: Path) -> None:
    for call in (featurize.vacuum, featurize.upgrade):
        with pytest.raises(UsageError, match="holds no table"):
            call(str(tmp_path))


def test_a_table_of_0_1_is_read_and_becomes_a_delta_table_with_the_same_rows(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(MADE_BY_0_1, folder)
    before = featurize.open_features(str(folder))
    frame = before.to_pandas()
    corrected = frame.loc[frame["image_id"] == image_ids(30)[3], "label"]
    assert corrected.to_list() == ["cat"]
    with pytest.raises(UsageError, match=r"made by Firn 0\.1"):
        featurize.open_features(str(folder), version=0)
    with pytest.raises(UsageError, match="Upgrade it first"):
        featurize.vacuum(str(folder))
    files = parquet_files(folder)
    done = CliRunner().invoke(app, ["upgrade", str(folder), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["tables"][0]["is_new"] is True
    assert not (folder / "manifest.json").exists()
    assert parquet_files(folder) == files
    publication._cached.clear()
    after = featurize.open_features(str(folder))
    assert after.manifest.model_dump() == before.manifest.model_dump()
    assert_frame_equal(after.to_pandas().drop(columns="features"), frame.drop(columns="features"))
    assert len(DeltaTable(str(folder)).file_uris()) == len(before.manifest.files)
    assert sorted(pl.scan_delta(str(folder)).collect()["path"]) == sorted(frame["path"])
    (again,) = featurize.upgrade(str(folder))
    assert (again.is_new, again.version) == (False, 0)
    assert storage.exists(str(folder / "corrections"))


def test_the_vacuum_command_says_what_it_did(folder: Path) -> None:
    grow_old(folder)
    done = CliRunner().invoke(app, ["vacuum", str(folder), "--older-than", "7d", "--json"])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout.splitlines()[-1])
    assert (answer["dry_run"], answer["tables"][0]["oldest"]) == (False, 2)
    assert "versions 2 to 3 can be read" in done.stderr.replace("\n", " ")
