"""Staging: each shard is committed once, a killed run can be resumed, and what is not ours stays."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from fsspec import AbstractFileSystem
from helpers.tables.feature_sets import make_clusters, write_feature_set
from helpers.tables.shard_files import files_in, paths_of, write_shard
from helpers.tables.worker_runs import no_file_over

from featurize import storage
from featurize.building import staging
from featurize.building.staging import (
    STAGING,
    STATE_NAME,
    commit,
    place_files,
    read_state,
    read_unfinished,
    write_state,
)
from featurize.errors import JobError
from featurize.storage import exclusive
from featurize.tables.manifests import ShardRecord, Version

RUN, NEXT, LAST = "0123abcd", "89abcdef", "76543210"
SETTINGS = {"table": "test", "seed": 3}


def begin(table: Path, run: str, records: list[ShardRecord] | None = None) -> None:
    write_state(str(table), settings=SETTINGS, run=run, records=records or [], there=None)


def committed(table: Path, run: str, shard: int, **options: Any) -> ShardRecord:
    return commit(str(table), run, shard, write_shard(table, run, shard, **options))


def finished(table: Path) -> list[ShardRecord]:
    assert read_state(str(table)) is not None
    unfinished = read_unfinished(str(table), None)
    if unfinished is None:
        return []
    for record, url in zip(unfinished.records, unfinished.index_urls, strict=True):
        assert url.endswith(record.index_file.path)
        assert Path(url.removeprefix("file://")).is_file()  # staged, or moved already
    return unfinished.records


def commit_file(table: Path, run: str, shard: int) -> Path:
    return table / STAGING / "commits" / f"{run}-{shard:06d}.json"


# Commits


def test_the_first_of_two_attempts_counts_and_the_files_of_the_second_go_away(tmp_path: Path) -> None:
    begin(tmp_path, RUN)
    first, second = (write_shard(tmp_path, RUN, 0, attempt=attempt, images=attempt) for attempt in (7, 3))
    assert commit(str(tmp_path), RUN, 0, second) == second
    assert commit(str(tmp_path), RUN, 0, first) == second
    assert finished(tmp_path) == [second]
    assert storage.read_json(str(commit_file(tmp_path, RUN, 0)))["schema_version"] == staging.SCHEMA_VERSION
    commits = {f"commits/{RUN}-000000.json", "state.json"}
    assert files_in(tmp_path / STAGING) == paths_of([second]) | commits


def test_of_many_attempts_at_once_all_agree_on_one(tmp_path: Path) -> None:
    begin(tmp_path, RUN)
    attempts = [write_shard(tmp_path, RUN, 0, attempt=number, images=number + 1) for number in range(12)]
    start = Barrier(len(attempts))

    def race(record: ShardRecord) -> ShardRecord:
        start.wait()
        return commit(str(tmp_path), RUN, 0, record)

    with ThreadPoolExecutor(len(attempts)) as pool:
        counted = list(pool.map(race, attempts))
    assert counted[0] in attempts
    assert counted == [counted[0]] * len(attempts)
    assert finished(tmp_path) == [counted[0]]
    commits = {f"commits/{RUN}-000000.json", "state.json"}
    assert files_in(tmp_path / STAGING) == paths_of([counted[0]]) | commits


def test_an_attempt_that_is_told_it_came_second_to_itself_keeps_its_files(tmp_path: Path) -> None:
    """A store may do what it is asked, lose the answer, and refuse when it is asked again."""
    begin(tmp_path, RUN)
    record = committed(tmp_path, RUN, 0)
    assert commit(str(tmp_path), RUN, 0, record) == record
    assert finished(tmp_path) == [record]


def test_a_commit_for_which_there_is_no_room_is_none_and_can_be_made_later(tmp_path: Path) -> None:
    begin(tmp_path, RUN)
    record = write_shard(tmp_path, RUN, 0)
    before = files_in(tmp_path)
    with no_file_over(100), pytest.raises(OSError):
        commit(str(tmp_path), RUN, 0, record)
    assert files_in(tmp_path) == before
    assert finished(tmp_path) == []
    assert commit(str(tmp_path), RUN, 0, record) == record
    assert finished(tmp_path) == [record]


# What a killed run left


def drop_file(table: Path, record: ShardRecord) -> None:
    (table / STAGING / record.files[0].path).unlink()


def cut_file(table: Path, record: ShardRecord) -> None:
    path = table / STAGING / record.index_file.path
    path.write_bytes(path.read_bytes()[:-1])


def cut_commit(table: Path, record: ShardRecord) -> None:
    path = commit_file(table, RUN, 1)
    path.write_bytes(path.read_bytes()[:40])


def empty_commit(table: Path, record: ShardRecord) -> None:
    commit_file(table, RUN, 1).write_bytes(b"")


@pytest.mark.parametrize("damage", [drop_file, cut_file, cut_commit, empty_commit])
def test_a_damaged_shard_is_not_finished_and_the_others_are(
    tmp_path: Path, damage: Callable[[Path, ShardRecord], None]
) -> None:
    begin(tmp_path, RUN)
    records = [committed(tmp_path, RUN, shard) for shard in range(3)]
    damage(tmp_path, records[1])
    assert finished(tmp_path) == [records[0], records[2]]


def test_shards_without_commit_are_not_finished(tmp_path: Path) -> None:
    begin(tmp_path, RUN)
    write_shard(tmp_path, RUN, 0)
    assert finished(tmp_path) == []
    assert staging.unfinished_settings(str(tmp_path)) is None
    good = committed(tmp_path, RUN, 2)
    assert finished(tmp_path) == [good]
    assert staging.unfinished_settings(str(tmp_path)) == SETTINGS


def test_each_run_takes_over_from_the_one_before_and_late_commits_count_for_nothing(tmp_path: Path) -> None:
    begin(tmp_path, RUN)
    old = [committed(tmp_path, RUN, shard) for shard in range(2)]
    begin(tmp_path, NEXT, finished(tmp_path))
    committed(tmp_path, RUN, 2)  # by a worker that outlived its driver
    assert finished(tmp_path) == old
    new = committed(tmp_path, NEXT, 2, attempt=1)
    begin(tmp_path, LAST, finished(tmp_path))
    committed(tmp_path, NEXT, 3)
    assert finished(tmp_path) == [*old, new]
    last = committed(tmp_path, LAST, 3, attempt=1)
    assert finished(tmp_path) == [*old, new, last]


def test_without_a_state_nothing_is_taken_over(tmp_path: Path) -> None:
    committed(tmp_path, RUN, 0)
    assert read_state(str(tmp_path)) is None
    assert staging.unfinished_settings(str(tmp_path)) is None


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"settings": {}, "run": "x", "records": [{}]}'])
def test_a_damaged_state_is_refused_with_the_way_out(tmp_path: Path, content: bytes) -> None:
    begin(tmp_path, RUN)
    (tmp_path / STATE_NAME).write_bytes(content)
    with pytest.raises(JobError, match=rf"Remove file://{tmp_path}/{STAGING} to start afresh"):
        read_state(str(tmp_path))


# Publication


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("published", [False, True])  # else empty folders, as a killed run leaves them
def test_a_publication_killed_at_any_move_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: bool
) -> None:
    begin(tmp_path, LAST)
    old = [committed(tmp_path, LAST, 0)] if published else []
    place_files(str(tmp_path), old)
    (tmp_path / "data" / "split=train").mkdir(parents=True, exist_ok=True)
    begin(tmp_path, RUN)
    records = [committed(tmp_path, RUN, shard) for shard in range(3)]
    write_shard(tmp_path, RUN, 1, attempt=9)  # of an attempt that failed
    move, moves_left = exclusive.rename_file, 0

    def move_some(filesystem: AbstractFileSystem, source: str, target: str) -> None:
        nonlocal moves_left
        if not moves_left:
            raise KilledError
        moves_left -= 1
        move(filesystem, source, target)

    monkeypatch.setattr(exclusive, "rename_file", move_some)
    kills = 0
    for allowed in range(100):
        moves_left = min(allowed, 1)
        try:
            place_files(str(tmp_path), records)
        except KilledError:
            kills += 1
            assert finished(tmp_path) == records
        else:
            break
    assert kills == 15
    assert files_in(tmp_path) - files_in(tmp_path / STAGING) >= paths_of([*old, *records])
    assert not any((tmp_path / STAGING / path).exists() for path in paths_of(records))
    assert finished(tmp_path) == records


def test_a_file_that_is_gone_stops_the_publication_before_anything_is_moved(tmp_path: Path) -> None:
    begin(tmp_path, RUN)
    records = [committed(tmp_path, RUN, shard) for shard in range(2)]
    drop_file(tmp_path, records[1])
    before = files_in(tmp_path)
    with pytest.raises(JobError, match=rf"{STAGING}/{records[1].files[0].path} was written but is missing now"):
        place_files(str(tmp_path), records)
    assert files_in(tmp_path) == before


FOREIGN = {
    *("data/mine.parquet", "data/split=train/notes.txt", "_firn/index/part-1.parquet", "_firn/rejects/x/mine"),
    *(f"part-{RUN}-00000-0.parquet", f"other/part-{RUN}-00000-0.parquet"),
}


def test_what_earlier_runs_left_goes_away_and_foreign_files_stay(tmp_path: Path) -> None:
    begin(tmp_path, LAST)
    published, replaced = (committed(tmp_path, LAST, shard) for shard in range(2))
    place_files(str(tmp_path), [published, replaced])
    begin(tmp_path, RUN)
    kept = committed(tmp_path, RUN, 0)
    committed(tmp_path, RUN, 1)
    write_shard(tmp_path, RUN, 2)
    for name in FOREIGN:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"mine")
    staging.remove_others(str(tmp_path), [kept])
    staged = {STATE_NAME, *paths_of([kept], below=f"{STAGING}/")}
    left = paths_of([published, replaced]) | staged
    assert files_in(tmp_path) == FOREIGN | left
    assert {name for name in files_in(tmp_path) if staging.is_ours(name)} == left


def test_shards_that_were_moved_already_are_made_again_after_a_vacuum_that_may_not_have_seen_them(
    tmp_path: Path,
) -> None:
    there = write_feature_set(tmp_path / "other", *make_clusters(30))
    begin(tmp_path, RUN)
    placed, staged = (committed(tmp_path, RUN, shard) for shard in range(2))
    place_files(str(tmp_path), [placed])
    for vacuumed, records in ((-1, [placed, staged]), (0, [staged])):
        there.set_version(Version(number=1, vacuumed=vacuumed))
        unfinished = read_unfinished(str(tmp_path), there)
        assert unfinished is not None
        assert unfinished.records == records
        assert staging.has_unpublished(str(tmp_path), there)
    storage.remove(f"{tmp_path}/{STAGING}/{staged.index_file.path}")
    assert not staging.has_unpublished(str(tmp_path), there)


def test_a_link_among_the_staged_files_is_moved_and_never_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"mine")
    (tmp_path / "table" / STAGING).mkdir(parents=True)
    (tmp_path / "table" / STAGING / "part").symlink_to(tmp_path / "outside")
    storage.move_files(str(tmp_path / "table"), STAGING, "data", ["part"])
    assert (tmp_path / "table" / "data" / "part").is_symlink()
    assert (tmp_path / "outside").read_bytes() == b"mine"


# A run that came to nothing


@pytest.mark.parametrize("left", ["nothing", "a commit", "records", "another run's state"])
def test_the_folder_of_a_failed_run_stays_only_if_something_can_be_kept(tmp_path: Path, left: str) -> None:
    begin(tmp_path, NEXT if left == "another run's state" else RUN)
    write_shard(tmp_path, RUN, 0)
    if left == "a commit":
        committed(tmp_path, RUN, 1)
    if left == "records":
        begin(tmp_path, RUN, [committed(tmp_path, LAST, 1)])
    before = files_in(tmp_path)
    with pytest.raises(KilledError), staging.removed_if_nothing_is_finished(str(tmp_path), RUN):
        raise KilledError
    assert files_in(tmp_path) == (set() if left == "nothing" else before)


def test_finished_shards_stay_when_their_commits_cannot_be_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(tmp_path, RUN)
    committed(tmp_path, RUN, 0)

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    def die() -> None:
        with staging.removed_if_nothing_is_finished(str(tmp_path), RUN):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", fail)
        with pytest.raises(KeyboardInterrupt):
            die()
    assert len(finished(tmp_path)) == 1
