"""Older versions of tables: their files are removed by `vacuum`, and tables of Firn 0.1 get versions by `upgrade`."""

import re
from dataclasses import dataclass

from featurize import storage
from featurize.building import staging
from featurize.errors import UsageError
from featurize.storage.claims import claim_output
from featurize.tables.delta_log import KEPT_DAYS
from featurize.tables.manifests import Manifest
from featurize.tables.predictions import PARTITION
from featurize.tables.publication import publish, read_manifest, versions_since

_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_DURATION = re.compile(r"(\d{1,9})([smhd])")
KEPT = f"{KEPT_DAYS}d"


@dataclass(frozen=True)
class Vacuumed:
    """The result of a vacuum.

    Attributes:
        url: URL of the table.
        version: number of the last version.
        oldest: number of the oldest version that can still be read.
        files: number of files that were removed, or would be.
        bytes: their bytes.
    """

    url: str
    version: int
    oldest: int
    files: int
    bytes: int


@dataclass(frozen=True)
class Upgraded:
    """A table that `upgrade` looked at: its last version, and whether it was one of Firn 0.1."""

    url: str
    version: int
    is_new: bool


def vacuum(url: str, *, older_than: str = KEPT, dry_run: bool = False) -> list[Vacuumed]:
    """Removes files that only older versions of a table list, and what killed jobs left.

    Args:
        url: URL of a table, or of the predictions of several models.
        older_than: versions that were replaced within this time stay readable, and younger files stay, as in ``7d``: a number
            of ``s``, ``m``, ``h`` or ``d``.
        dry_run: only counts the files.

    Raises:
        UsageError: there is no table, or `older_than` is no such time.
        JobError: a job is writing to the table, or it is damaged.
    """
    seconds = _seconds(older_than)
    return [_vacuum(table, seconds, dry_run=dry_run) for table in _tables_at(url)]


def upgrade(url: str) -> list[Upgraded]:
    """Makes a table of Firn 0.1 a Delta table. Its files stay as they are, and `manifest.json` goes.

    Args:
        url: URL of a table, or of the predictions of several models.

    Raises:
        UsageError: there is no table.
        JobError: a job is writing to the table, or it is damaged.
    """
    return [_upgrade(table) for table in _tables_at(url)]


def _upgrade(url: str) -> Upgraded:
    with claim_output(url):
        manifest = _read(url)
        if manifest.version.number >= 0:
            return Upgraded(url, manifest.version.number, is_new=False)
        return Upgraded(url, publish(url, manifest, after=None, operation="CONVERT").version.number, is_new=True)


def _vacuum(url: str, seconds: int, *, dry_run: bool) -> Vacuumed:
    """Removes from one table what no version of the last `seconds` lists. All times are by the clock of the storage.

    A version is published first: whoever began to write before it can no longer publish a file that is removed here.
    """
    with claim_output(url):
        manifest = _read(url)
        if manifest.version.number < 0:
            raise UsageError(f"{url} was made by Firn 0.1 and has no versions yet. Upgrade it first.")
        horizon = storage.now_ms(url) - 1000 * seconds
        readable = versions_since(url, manifest, horizon)
        oldest = readable[-1].version.number
        unfinished = staging.read_unfinished(url, manifest)
        kept = staging.file_paths(shard for version in readable for shard in version.shards)
        kept |= staging.file_paths(unfinished.records if unfinished is not None else ())
        gone = staging.files_before(url, horizon, kept=kept)
        if (gone or oldest > manifest.version.oldest) and not dry_run:
            manifest = publish(url, manifest, after=manifest, operation="VACUUM", vacuumed_to=oldest)
            for path in gone:
                storage.remove(storage.join_url(url, path))
    return Vacuumed(url, manifest.version.number, oldest, len(gone), sum(gone.values()))


def _read(url: str) -> Manifest:
    manifest = read_manifest(url)
    if manifest is None:
        raise UsageError(f"{url} holds no table of Firn's.")
    return manifest


def _tables_at(url: str) -> list[str]:
    """The table at `url`, or those of all models that have predicted there.

    Raises:
        UsageError: there is none.
    """
    url = storage.absolute_url(url)
    if read_manifest(url) is not None:
        return [url]
    folders = [one for one in storage.list_folders(url) if one.rpartition("/")[2].startswith(PARTITION)]
    if tables := [folder for folder in folders if read_manifest(folder) is not None]:
        return tables
    raise UsageError(f"{url} holds no table of Firn's.")


def _seconds(text: str) -> int:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise UsageError(f"`older_than` must be a number of s, m, h or d, as in 7d. Got {text!r}.")
    return int(match[1]) * _UNITS_S[match[2]]
