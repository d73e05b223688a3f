"""The staging folder of a table: shards are written and committed there one by one, so that a killed run can be resumed.

    _staging/state.json                 the settings of the table, the run under way, and the records it took over
    _staging/plan-<run>.parquet         which images make a shard
    _staging/commits/<run>-<shard>.json the record of a finished shard; the first attempt to write it wins
    _staging/data, _firn                the files of the shards

When a run starts, it writes the records that it takes over into `state.json`. Commits of an earlier run that come later, from a
worker that outlived its driver, are not in it and do not count.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from featurize import storage
from featurize.errors import JobError
from featurize.storage.inner_path import InnerName
from featurize.tables.documents import DamagedDocumentError, read_document
from featurize.tables.layout import LEGACY_SHARD_FOLDERS, NETWORKS, SHARD_FOLDERS
from featurize.tables.manifests import Manifest, ShardRecord

STAGING = "_staging"
STATE_NAME = f"{STAGING}/state.json"
_COMMITS = f"{STAGING}/commits"
ALL_SHARD_FOLDERS = (*SHARD_FOLDERS, *LEGACY_SHARD_FOLDERS)
_FOLDER_PREFIXES = tuple(f"{folder}/" for folder in ALL_SHARD_FOLDERS)
_NETWORK_NAME = re.compile(rf"{NETWORKS}/[0-9a-f]{{64}}\.(onnx|json)")
SCHEMA_VERSION = 1
"""The schema version of `state.json` and of commits."""
_PART_NAME = re.compile(r"part-[0-9a-f]{8}-\d{5,}-\d+\.parquet")


class StagingState(BaseModel):
    """The content of `state.json`: the settings of the unfinished table, the run under way, and the records it took over.

    `purpose` tells runs of other kinds apart, which do not take over each other's work; "" is that of `build_table`. `version` is
    that of the table when the run started; -1: there was none.
    """

    schema_version: int = SCHEMA_VERSION
    settings: dict[str, Any]
    run: InnerName
    records: list[ShardRecord]
    purpose: str = ""
    version: int = -1


@dataclass(frozen=True)
class Unfinished:
    """What a killed run left and the next one can keep.

    Attributes:
        settings: settings of the unfinished table.
        records: records of the finished shards whose files are complete, of that run or taken over by it; at least one.
        index_urls: URL of the index file of each shard; the killed run may have moved it to its published place already.
        purpose: as in `StagingState`.
        version: as in `StagingState`.
    """

    settings: Mapping[str, Any]
    records: list[ShardRecord]
    index_urls: list[str]
    purpose: str = ""
    version: int = -1


def read_state(url: str) -> StagingState | None:
    """The state of the staging folder of the table at `url`; None where no run was under way.

    Raises:
        JobError: the state is damaged, or was written by another version of Firn.
    """
    remedy = f"Remove {storage.join_url(url, STAGING)} to start afresh."
    return read_document(storage.join_url(url, STATE_NAME), StagingState, version=SCHEMA_VERSION, remedy=remedy)


def read_unfinished(url: str, there: Manifest | None) -> Unfinished | None:
    """What a killed run left at `url`; None if nothing of it can be kept.

    Shards that it had moved out of the staging folder already are kept only if no vacuum has come since it started, which may not
    have seen that they are unfinished, and may be about to remove them.

    Args:
        url: URL of the table.
        there: the last version of the table; None: there is none.

    Raises:
        JobError: as `read_state`.
    """
    state = read_state(url)
    if state is None:
        return None
    own = (_read_record(file) for file in _own_commits(url, state))
    recorded = [*state.records, *(record for record in own if record is not None)]
    sizes = _file_sizes(url, (STAGING, *ALL_SHARD_FOLDERS))
    if there is not None and state.version < there.version.vacuumed:
        sizes = {path: size for path, size in sizes.items() if path.startswith(f"{STAGING}/")}
    records = [record for record in recorded if _is_whole(record, sizes)]
    index_urls = [_index_url(url, record, sizes) for record in records]
    return Unfinished(state.settings, records, index_urls, state.purpose, state.version) if records else None


def unfinished_settings(url: str) -> Mapping[str, Any] | None:
    """The settings of a killed run at `url`; None if nothing of it can be kept."""
    unfinished = read_unfinished(url, None)
    return unfinished.settings if unfinished is not None else None


def write_state(
    url: str,
    *,
    settings: Mapping[str, Any],
    run: str,
    records: Sequence[ShardRecord],
    there: Manifest | None,
    purpose: str = "",
) -> None:
    """Begins a run from the version `there`: from now on only its own commits and `records` count."""
    version = -1 if there is None else there.version.number
    state = StagingState(settings=dict(settings), run=run, records=list(records), purpose=purpose, version=version)
    storage.write_json(storage.join_url(url, STATE_NAME), state.model_dump())


def commit(url: str, run: str, shard: int, record: ShardRecord) -> ShardRecord:
    """Worker side: commits a shard, unless another attempt has done so. Returns the record that counts."""
    commit_url = storage.join_url(url, _COMMITS, f"{run}-{shard:06d}.json")
    document = {"schema_version": SCHEMA_VERSION, **record.model_dump()}
    if storage.create_exclusively(commit_url, storage.encode_json(document)):
        return record
    first = read_document(commit_url, ShardRecord, version=SCHEMA_VERSION)
    if first is None:
        raise JobError(f"{commit_url} was removed while the shard was committed.")
    if (
        first.index_file.path != record.index_file.path
    ):  # otherwise it is this record, and the storage's answer was lost
        for file in record.all_files:
            storage.remove(storage.join_url(url, STAGING, file.path))
    return first


def plan_url(url: str, run: str) -> str:
    """URL of the plan of a run."""
    return storage.join_url(url, STAGING, f"plan-{run}.parquet")


def file_paths(records: Iterable[ShardRecord]) -> set[str]:
    """The paths, below the table, of all files of `records`."""
    return {file.path for record in records for file in record.all_files}


def place_files(url: str, records: Sequence[ShardRecord]) -> None:
    """Moves the files of `records`, one by one, to where the manifest will list them; a killed run may have moved some already.

    Raises:
        JobError: a file is in neither place, or is not whole.
    """
    listed = {file.path: file.bytes for record in records for file in record.all_files}
    staged = {path.removeprefix(f"{STAGING}/") for path in _file_sizes(url, (STAGING,))}
    _check_placed(url, {path: size for path, size in listed.items() if path not in staged})
    with suppress(FileNotFoundError):  # another job has taken it; the check names it
        storage.move_files(url, STAGING, "", sorted(listed.keys() & staged))
    _check_placed(url, listed)


def _check_placed(url: str, files: Mapping[str, int]) -> None:
    """Checks that files, with their sizes in bytes, are in their published places."""
    for path, size in sorted(files.items()):
        found = storage.find_file(storage.join_url(url, path))
        if found is None or found.size != size:
            raise JobError(f"{url}/{STAGING}/{path} was written but is missing now; nothing was published.")


@contextmanager
def removed_if_nothing_is_finished(url: str, run: str) -> Iterator[None]:
    """Removes the staging folder if a `with` block fails before this run has committed or taken over a shard."""
    try:
        yield
    except BaseException:
        with suppress(OSError):  # if the storage fails, nothing is removed, and the first error is reported
            state = read_state(url)
            if state is not None and state.run == run and not state.records and not _own_commits(url, state):
                remove_staging(url)
        raise


def keep_networks(url: str, files: Mapping[str, Path]) -> None:
    """Puts files into the folder of networks of a table, unless they are there. Those there stay: a version may name them.

    Args:
        files: local files by their names, which their content determines.
    """
    folder = storage.join_url(url, NETWORKS)
    there = {file.rsplit("/", 1)[1] for file in storage.list_files(folder)}
    for name, local in files.items():
        if name not in there:
            storage.upload(local, storage.join_url(folder, name))


def remove_staging(url: str) -> None:
    """Removes the staging folder."""
    storage.remove(storage.join_url(url, STAGING))


def has_unpublished(url: str, published: Manifest) -> bool:
    """Whether a killed run left finished shards that the version `published` does not list."""
    unfinished, listed = read_unfinished(url, published), {shard.index_file.path for shard in published.shards}
    return unfinished is not None and any(record.index_file.path not in listed for record in unfinished.records)


def remove_others(url: str, keep: Sequence[ShardRecord]) -> None:
    """Removes all that earlier runs staged, except the state and the files of `keep`."""
    kept = file_paths(keep)
    for path in _file_sizes(url, (STAGING,)):
        if path != STATE_NAME and path.removeprefix(f"{STAGING}/") not in kept:
            storage.remove(storage.join_url(url, path))


def files_before(url: str, horizon: int, *, kept: Collection[str]) -> dict[str, int]:
    """The files of shards that were last changed before `horizon`, in milliseconds since 1970, and are not `kept`.

    Networks are left: their names are digests, which a new version may use again.

    Returns:
        The size in bytes by path below the table.
    """
    return {
        path: file.size
        for path, file in _own_files(url, ALL_SHARD_FOLDERS)
        if path not in kept and file.modified_ms(url) < horizon
    }


def is_ours(path: str) -> bool:
    """Whether Firn wrote the file with this path below a table."""
    if path.startswith(f"{STAGING}/") or _NETWORK_NAME.fullmatch(path):
        return True
    return path.startswith(_FOLDER_PREFIXES) and _PART_NAME.fullmatch(path.rsplit("/", 1)[1]) is not None


def _file_sizes(url: str, folders: Sequence[str]) -> dict[str, int]:
    """The size in bytes of every file that Firn wrote into these folders of the table at `url`, by its path below the table."""
    return {path: file.size for path, file in _own_files(url, folders)}


def _own_files(url: str, folders: Sequence[str]) -> Iterator[tuple[str, storage.WalkedFile]]:
    """The files that Firn wrote into these folders of the table at `url`, by their paths below the table."""
    for folder in folders:
        if storage.exists(top := storage.join_url(url, folder)):
            for file in storage.walk_files(top):
                if is_ours(path := f"{folder}/{file.inner}"):
                    yield path, file


def _own_commits(url: str, state: StagingState) -> list[str]:
    """The commits of the run that `state` names."""
    files = storage.list_files(storage.join_url(url, _COMMITS))
    return [file for file in files if file.rsplit("/", 1)[1].startswith(f"{state.run}-") and file.endswith(".json")]


def _read_record(url: str) -> ShardRecord | None:
    try:
        return read_document(url, ShardRecord, version=SCHEMA_VERSION)
    except DamagedDocumentError:  # cut off, by a storage failure
        return None


def _is_whole(record: ShardRecord, sizes: Mapping[str, int]) -> bool:
    return all(file.bytes in (sizes.get(f"{STAGING}/{file.path}"), sizes.get(file.path)) for file in record.all_files)


def _index_url(url: str, record: ShardRecord, sizes: Mapping[str, int]) -> str:
    """URL of a shard's index file: in the staging folder, unless a killed run has moved it to its published place."""
    path = record.index_file.path
    return storage.join_url(url, staged if (staged := f"{STAGING}/{path}") in sizes else path)
