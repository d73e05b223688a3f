"""Versions of tables: what is published is read back, of two writers one loses, and every reader sees the same rows."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable
from helpers.tables.feature_sets import make_clusters, write_feature_set
from helpers.tables.publishing import write_manifest

from featurize import storage
from featurize.digests import combine_digests
from featurize.errors import JobError, UsageError
from featurize.tables import delta_log, publication
from featurize.tables.delta_log import CHECKPOINT_EVERY
from featurize.tables.layout import SNAPSHOTS
from featurize.tables.manifests import FeaturesManifest, ShardRecord, add_counts
from featurize.tables.publication import publish, read_manifest, read_published_features, table_schema
from featurize.tables.row_edits import RowEdits


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_feature_set(tmp_path / "set", *make_clusters(60), shards=[range(20), range(20, 45), range(45, 60)])
    return tmp_path / "set"


def of(manifest: FeaturesManifest, shards: list[ShardRecord]) -> FeaturesManifest:
    return manifest.model_copy(
        update={
            "shards": shards,
            "rows": add_counts(shard.rows for shard in shards),
            "content_digest": combine_digests(shard.content_digest for shard in shards),
        }
    )


def forget() -> None:
    """From here on everything is read again, as another process would."""
    publication._cached.clear()


def files_by_delta(folder: Path, version: int | None = None) -> set[str]:
    table = DeltaTable(str(folder), version=version)
    return {uri.removeprefix("file://").removeprefix(f"{folder}/") for uri in table.file_uris()}


def listed(manifest: FeaturesManifest) -> set[str]:
    return {file.path for file in manifest.files}


def test_a_table_reads_back_as_it_was_published(folder: Path) -> None:
    there = read_published_features(str(folder))
    forget()
    again = read_published_features(str(folder))
    assert again == there
    assert again.version == there.version
    assert again.version.number == 0


def test_delta_readers_see_the_rows_of_the_manifest_by_split(folder: Path) -> None:
    manifest = read_published_features(str(folder))
    assert files_by_delta(folder) == listed(manifest)
    frame = pl.scan_delta(str(folder)).collect()
    assert frame.columns == [*table_schema(manifest).names, "split"]
    counts = dict(frame.group_by("split").len().iter_rows())
    assert counts == {split: manifest.split_rows(split) for split in manifest.rows}
    assert frame["features"].list.len().unique().to_list() == [6]
    one = pl.scan_delta(str(folder)).filter(pl.col("split") == "test").collect()
    assert len(one) == manifest.split_rows("test")


def test_each_version_stays_as_it_was(folder: Path) -> None:
    first = read_published_features(str(folder))
    a, b, c = first.shards
    steps = [[a, b, c], [a, b], [a, b, c], [c], [c, a, b], []]
    for shards in steps[1:]:
        write_manifest(str(folder), of(first, shards))
    forget()
    for number, shards in enumerate(steps):
        manifest = read_published_features(str(folder), number)
        assert manifest.shards == shards
        assert manifest.row_count == sum(shard.row_count for shard in shards)
        assert files_by_delta(folder, number) == listed(manifest)
    with pytest.raises(UsageError, match="has no version 6; its versions are 0 to 5"):
        read_manifest(str(folder), 6)


def test_of_two_writers_that_started_from_one_version_one_has_lost(folder: Path) -> None:
    there = read_published_features(str(folder))
    a, b, c = there.shards
    publish(str(folder), of(there, [a, b]), after=there)
    with pytest.raises(JobError, match="another job published version 1 of this table"):
        publish(str(folder), of(there, [a, b, c]), after=there)
    with pytest.raises(JobError, match="another job published version 0"):
        publish(str(folder), there, after=None)
    forget()
    assert read_published_features(str(folder)).shards == [a, b]


def test_many_versions_are_read_from_the_last_snapshot_and_checkpoint(folder: Path) -> None:
    there = read_published_features(str(folder))
    a, b, c = there.shards
    choices = [[a], [a, b], [a, b, c], [b, c]]
    for number in range(1, 2 * CHECKPOINT_EVERY + 8):
        write_manifest(str(folder), of(there, choices[number % 4]))
    last = 2 * CHECKPOINT_EVERY + 7
    names = sorted(path.name for path in (folder / SNAPSHOTS).iterdir())
    assert names == [f"{number:020d}.parquet" for number in (100, 200)]
    read = list[int]()
    with pytest.MonkeyPatch.context() as patch:
        real = delta_log.read_commit

        def watched(url: str, version: int) -> list[delta_log.Action]:
            read.append(version)
            return real(url, version)

        patch.setattr(delta_log, "read_commit", watched)
        forget()
        manifest = read_published_features(str(folder))
    assert manifest.shards == choices[last % 4]
    assert min(read) > 200
    assert files_by_delta(folder) == listed(manifest)
    for number in (3, 99, 100, 101, 200, 204):
        assert read_published_features(str(folder), number).shards == (choices[number % 4] if number else [a, b, c])
        assert files_by_delta(folder, number) == listed(read_published_features(str(folder), number))
    shutil.rmtree(folder / SNAPSHOTS)  # only speed is lost
    forget()
    assert read_published_features(str(folder)) == manifest


def test_a_table_that_was_removed_and_made_again_is_read_anew(folder: Path) -> None:
    before = read_published_features(str(folder))
    shutil.rmtree(folder)
    assert read_manifest(str(folder)) is None
    write_feature_set(folder, *make_clusters(30))
    assert read_published_features(str(folder)).row_count == 30 != before.row_count


def _change(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Changes Firn's part of the only commit."""
    path = folder / "_delta_log" / f"{0:020d}.json"
    info, *rest = path.read_text().splitlines()
    action = json.loads(info)
    change(action["commitInfo"])
    path.write_text("\n".join([json.dumps(action), *rest]) + "\n")
    forget()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda info: info.pop("firn"), "version 0 was committed by another program"),
        (lambda info: info["firn"].update(schema_version=2), "has schema version 2; this Firn reads 3"),
        (lambda info: info["firn"].pop("schema_version"), "has schema version None; this Firn reads 3"),
        (lambda info: info["firn"].update(shards=7), r"json is damaged: shards: "),
        (lambda info: info["firn"].update(kept=-1), r"json is damaged: kept: "),
        (lambda info: info["firn"].update(kept=1), r"json is damaged: kept: it keeps 1 of 0 shards"),
        (lambda info: info["firn"]["facts"].pop("kind"), r"json is damaged: "),
        (lambda info: info["firn"]["facts"].update(identity=[]), r"json is damaged: features\.identity: "),
    ],
)
def test_a_commit_that_firn_cannot_follow_is_named(
    folder: Path, change: Callable[[dict[str, object]], object], message: str
) -> None:
    _change(folder, change)
    with pytest.raises(JobError, match=message):
        read_manifest(str(folder))


def test_a_commit_of_another_program_is_named_and_nothing_is_published_over_it(folder: Path) -> None:
    there = read_published_features(str(folder))
    delta_log.commit(str(folder), 1, [{"commitInfo": {"engineInfo": "Other 1.0"}}])
    with pytest.raises(JobError, match=r"version 1 was committed by another program \(Other 1\.0\)"):
        read_manifest(str(folder))
    with pytest.raises(JobError, match="another job published version 1"):
        publish(str(folder), there, after=there)


def test_a_manifest_for_readers_is_not_published(folder: Path) -> None:
    there = read_published_features(str(folder))
    edited = there.with_edits(RowEdits({}, {}, {}, None, None, None), there.rows)
    with pytest.raises(ValueError, match="must not be published"):
        publish(str(folder), edited, after=there)


def test_the_storage_fails_while_publishing_and_nothing_is_published(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = read_published_features(str(folder))

    def fail(url: str, content: bytes) -> bool:
        raise OSError(28, "No space left on device", url)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "create_exclusively", fail)
        with pytest.raises(OSError, match="No space left"):
            publish(str(folder), of(there, []), after=there)
    assert read_published_features(str(folder)) == there
