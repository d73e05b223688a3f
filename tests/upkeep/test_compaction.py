"""Tests of featurize.upkeep.compaction: the same rows in fewer shards, whatever dies meanwhile."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.tables.grown_predictions import MODEL, Predictions
from helpers.tables.publishing import write_manifest
from typer.testing import CliRunner

from featurize import storage
from featurize.building import staging
from featurize.building.known_shards import read_index
from featurize.building.shard_files import ParquetFile
from featurize.building.staging import STAGING
from featurize.digests import combine_digests
from featurize.errors import JobError
from featurize.storage import exclusive
from featurize.storage.claims import claim_output
from featurize.tables.manifests import PredictionsManifest, add_counts
from featurize.tables.publication import read_manifest
from featurize.upkeep import compaction
from featurize.upkeep.compaction import Compacted, compact_table
from finetune.__main__ import app
from finetune.streams.drift_windows import Position, read_position, windows_url

LEAST = 20


class Killed(BaseException):
    """Ends a process at this point."""


@pytest.fixture
def predictions(tmp_path: Path) -> Predictions:
    """Shards of 5, 4, 4, 0, 30, 3, 12, 7 and 2 rows; the first, the fourth and the eighth have rejects too."""
    made = Predictions(tmp_path)
    begin = 0
    for rows, parts, rejects in ((5, 1, 2), (8, 2, 0), (0, 1, 1), (30, 1, 0), (15, 2, 0), (7, 1, 3), (2, 1, 0)):
        made.label(range(begin, begin + rows), parts=parts, rejects=rejects)
        begin += rows
    return made


def manifest_of(predictions: Predictions) -> PredictionsManifest:
    manifest = read_manifest(str(predictions.folder))
    assert isinstance(manifest, PredictionsManifest)
    return manifest


def rows_of(predictions: Predictions) -> tuple[list[Any], ...]:
    """What readers see, in its order: rows, rejects, and the index by which a later run knows images."""
    manifest = manifest_of(predictions)
    tables = [
        [pq.read_table(predictions.folder / file.path) for file in files if file.rows]
        for files in (manifest.files, manifest.reject_files)
    ]
    index = read_index([str(predictions.folder / shard.index_file.path) for shard in manifest.shards])
    return (*(pa.concat_tables(parts).to_pylist() for parts in tables), index.to_pylist())


def counts_of(manifest: PredictionsManifest) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, int]], int]:
    rejects = add_counts({"": shard.rejects} for shard in manifest.shards)
    return add_counts(shard.rows for shard in manifest.shards), rejects, sum(shard.unread for shard in manifest.shards)


def files_of(predictions: Predictions) -> set[str]:
    return {str(path.relative_to(predictions.folder)) for path in predictions.folder.rglob("*") if path.is_file()}


def compact(predictions: Predictions, **given: Any) -> Compacted:
    url = f"file://{predictions.folder}"
    with claim_output(url) as claim:
        return compact_table(url, claim, least_images=LEAST, **given)


def test_small_shards_become_larger_ones_with_the_same_rows(predictions: Predictions) -> None:
    before, rows = manifest_of(predictions), rows_of(predictions)
    assert compact(predictions) == Compacted(before=9, after=4, rows=67)
    after = manifest_of(predictions)
    assert rows_of(predictions) == rows
    assert [shard.row_count + shard.reject_count for shard in after.shards] == [16, 30, 25, 2]
    assert after.shards[1] == before.shards[4]
    assert counts_of(after) == counts_of(before)
    assert after.model_dump(exclude={"shards"}) == before.model_dump(exclude={"shards"})
    assert after.content_digest == combine_digests(shard.content_digest for shard in after.shards)
    assert after.version.number == before.version.number + 1
    assert files_of(predictions) >= staging.file_paths(before.shards) | staging.file_paths(after.shards)
    assert compact(predictions) == Compacted(before=4, after=4, rows=67)
    assert manifest_of(predictions) == after


@contextmanager
def killed_at(target: Any, name: str, call: int, *, after: bool) -> Iterator[list[int]]:
    """The process dies at a call of a function, before or after it has done its work."""
    calls, real = [0], getattr(target, name)

    def dying(*given: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == call and not after:
            raise Killed
        result = real(*given, **named)
        if calls[0] == call:
            raise Killed
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, name, dying)
        yield calls


@pytest.mark.parametrize(
    ("target", "name", "calls"),
    [
        (compaction, "open_source", (2, 9)),
        (ParquetFile, "close", (1, 3, 4)),
        (staging, "place_files", (1,)),
        (exclusive, "rename_file", (1, 3, 5)),
        (compaction, "publish", (1,)),
        (staging, "remove_staging", (1, 2)),
    ],
)
@pytest.mark.parametrize("after", [False, True])
def test_killed_anywhere_it_has_changed_no_row_and_is_finished_by_the_next(
    predictions: Predictions, target: Any, name: str, calls: tuple[int, ...], after: bool
) -> None:
    rows = rows_of(predictions)
    for call in calls:
        with killed_at(target, name, call, after=after), pytest.raises(Killed):
            compact(predictions)
        assert rows_of(predictions) == rows
    assert compact(predictions).after == 4
    assert rows_of(predictions) == rows
    assert files_of(predictions) >= staging.file_paths(manifest_of(predictions).shards)
    assert not (predictions.folder / STAGING).exists()


def test_older_files_without_a_column_get_it_empty(predictions: Predictions) -> None:
    path = predictions.folder / manifest_of(predictions).shards[0].files[0].path
    pq.write_table(pq.read_table(path).drop_columns(["projection"]), path)
    compact(predictions)
    first = pq.read_table(predictions.folder / manifest_of(predictions).shards[0].files[0].path)
    assert [row is None for row in first["projection"].to_pylist()] == [True] * 5 + [False] * 8


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "is listed in the manifest and cannot be read"),
        (lambda path: path.write_bytes(b"nothing"), "is listed in the manifest and cannot be read"),
        (lambda path: pq.write_table(pq.read_table(path).slice(1), path), "has 3 rows; the manifest says 4"),
    ],
)
def test_a_damaged_file_stops_it_and_nothing_is_lost(
    predictions: Predictions, spoil: Callable[[Path], object], message: str
) -> None:
    before = manifest_of(predictions)
    spoil(predictions.folder / before.shards[1].files[0].path)
    with pytest.raises(JobError, match=message):
        compact(predictions)
    assert manifest_of(predictions) == before
    assert files_of(predictions) >= staging.file_paths(before.shards) - {before.shards[1].files[0].path}


def test_the_command_leaves_the_end_of_the_last_window_where_it_is(predictions: Predictions) -> None:
    output = str(predictions.output)
    through = manifest_of(predictions).shards[2].index_file.path
    storage.write_json(f"{windows_url(output)}/_{MODEL}.json", Position(windows=3, through=through).model_dump())
    done = CliRunner().invoke(app, ["compact", output, "--least-images", str(LEAST), "--json"])
    assert done.exit_code == 0, done.output
    numbers = {"model_id": MODEL, "rows": 67, "shards_before": 9, "shards": 6}
    assert json.loads(done.stdout.splitlines()[-1]) == {"predictions": f"file://{output}", "models": [numbers]}
    position = read_position(output, MODEL)
    assert position is not None
    assert manifest_of(predictions).shards[1].index_file.path == position.through


def test_it_is_refused_while_another_job_writes_or_has_left_something(predictions: Predictions) -> None:
    before = manifest_of(predictions)
    with claim_output(f"file://{predictions.folder}"):
        done = CliRunner().invoke(app, ["compact", str(predictions.output)])
    assert done.exit_code == 1
    assert "is being written by process" in done.stderr.replace("\n", " ")
    write_manifest(str(predictions.folder), before.model_copy(update={"shards": before.shards[:-1]}))
    staging.write_state(str(predictions.folder), settings={}, run="0badcafe", records=before.shards[-1:], there=before)
    with pytest.raises(JobError, match="an unfinished run would be lost"):
        compact(predictions)
    assert files_of(predictions) >= staging.file_paths(before.shards)
    staging.write_state(
        str(predictions.folder), settings={}, run="0badcafe", records=before.shards[:2], there=before
    )  # published
    assert compact(predictions).after == 3
