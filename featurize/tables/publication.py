"""Publication: a table is the versions in its Delta log, and each version's manifest is in the commit that published it.

    _delta_log/<version>.json         Delta's actions; `commitInfo.firn` holds Firn's own facts and the version's new shards
    _firn/versions/<version>.parquet  the shards of every hundredth version: no reader goes through more than a hundred commits
    manifest.json                     a table of Firn 0.1: it is read; `featurize upgrade` or its next run makes it a Delta table

A commit is a compare-and-swap on the version that its writer started from: of two writers one has lost, and says so. Files of
older versions stay until `vacuum_table` removes them.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Annotated, Any, TypeVar
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Discriminator, NonNegativeInt, RootModel, TypeAdapter, ValidationError

from featurize import storage
from featurize.errors import JobError, UsageError, first_line
from featurize.tables import delta_log
from featurize.tables.delta_log import Action, ListedFile
from featurize.tables.documents import check_version, first_fault, read_document
from featurize.tables.layout import SNAPSHOTS
from featurize.tables.manifests import (
    MANIFEST_NAME,
    NAMES,
    SCHEMA_VERSION,
    FeaturesManifest,
    ImagesManifest,
    Manifest,
    PredictionsManifest,
    ShardRecord,
    Version,
)
from featurize.tables.schemas import IMAGES_SCHEMA, PREDICTIONS_SCHEMA, features_schema

_LEGACY_SCHEMA_VERSION = 2
_KEY = "firn"
_AnyManifest = Annotated[ImagesManifest | FeaturesManifest | PredictionsManifest, Discriminator("kind")]
_SNAPSHOT = b"firn.snapshot"
_CACHED_TABLES = 8


class _LegacyManifest(RootModel[_AnyManifest]):
    """The `manifest.json` of a table of any kind."""


class _Commit(BaseModel):
    """Firn's part of a commit.

    Attributes:
        schema_version: `SCHEMA_VERSION`.
        token: a random name of this commit.
        table_id: a UUID, the same in all versions.
        facts: the fields of the manifest, without its shards.
        kept: how many of the shards of the version before come first; then follow `shards`.
        oldest: the oldest version whose files have not been removed.
        vacuumed: the last version that a vacuum published; -1: there was none.
    """

    schema_version: int
    token: str
    table_id: str
    facts: dict[str, Any]
    kept: NonNegativeInt
    shards: list[ShardRecord]
    oldest: int = 0
    vacuumed: int = -1

    def version(self, number: int) -> Version:
        """The version that this commit published."""
        return Version(
            number=number, token=self.token, table_id=self.table_id, oldest=self.oldest, vacuumed=self.vacuumed
        )


Published = TypeVar("Published", bound=Manifest)
_manifests: TypeAdapter[Manifest] = TypeAdapter(_AnyManifest)
_cached: dict[str, Manifest] = {}


def read_manifest(url: str, version: int | None = None) -> Manifest | None:
    """The manifest of the table at `url`, or None where there is none.

    Args:
        url: URL of the table.
        version: an older version; None: the last one.

    Raises:
        UsageError: There is no such version, or its files have been removed.
        JobError: A file is damaged, or has another schema version, or the last version is of another program.
    """
    url = storage.absolute_url(url)
    cached = _still_cached(url)
    latest = delta_log.latest_version(url, -1 if cached is None else cached.version.number)
    if latest is None:
        legacy = _read_legacy(url, version)
        latest = delta_log.latest_version(url) if legacy is None else None  # another job may just have upgraded it
        if latest is None:
            return legacy
    if version is not None:
        return _read_older(url, version, latest)
    if cached is None or cached.version.number != latest:
        cached = _read_version(url, latest, cached)
    _keep(url, cached)
    return cached


def publish(
    url: str, manifest: Published, *, after: Manifest | None, operation: str = "WRITE", vacuumed_to: int | None = None
) -> Published:
    """Publishes the table at `url`: from now on readers see what `manifest` lists.

    Args:
        url: URL of the table.
        manifest: What is published.
        after: The manifest that the writer started from; None: there was none.
        operation: A word for the history of the table.
        vacuumed_to: By a vacuum, the oldest version whose files are not going to be removed.

    Returns:
        The manifest with its version.

    Raises:
        JobError: Another job has published since; nothing was published.
        ValueError: `manifest` has edits or is of one column, and so does not describe the files.
    """
    if isinstance(manifest, FeaturesManifest) and manifest.is_for_readers:
        raise ValueError("a manifest for readers, with edits or of one column, must not be published.")
    url = storage.absolute_url(url)
    base = after if after is not None and after.version.number >= 0 else None
    number = 0 if base is None else base.version.number + 1
    before = Version(table_id=str(uuid4())) if base is None else base.version
    changes: dict[str, Any] = {"number": number, "token": uuid4().hex}
    if vacuumed_to is not None:
        changes |= {"oldest": vacuumed_to, "vacuumed": number}
    version = before.model_copy(update=changes)
    actions = _actions(manifest, base, version, operation)
    if not delta_log.commit(url, number, actions):
        raise JobError(
            f"{url}: another job published version {number} of this table while this one was running; nothing of this one was "
            "published. Start it again: it adds what is still missing."
        )
    published = manifest.model_copy()
    published.set_version(version)
    if number and number % delta_log.CHECKPOINT_EVERY == 0:
        _write_snapshot(url, published)
        delta_log.write_checkpoint(url, number)
    if number == 0:
        storage.remove(storage.join_url(url, MANIFEST_NAME))
    _keep(url, published)
    return published


def read_published_features(url: str, version: int | None = None) -> FeaturesManifest:
    """The manifest of the feature set at `url` as it was published, for readers that take no labels from it.

    Raises:
        UsageError: There is no feature set, or no such version.
    """
    manifest = read_manifest(url, version)
    if manifest is None:
        raise UsageError(f"{url} is not a feature set: it has no {delta_log.LOG}. Make one with `featurize run`.")
    if not isinstance(manifest, FeaturesManifest):
        raise UsageError(
            f"{url} is {NAMES[manifest.kind]}, not a feature set. Make one from images with `featurize run`."
        )
    return manifest


def is_own_file(path: str) -> bool:
    """Whether the file with this path below a table belongs to its publication."""
    return path == MANIFEST_NAME or path.startswith((f"{delta_log.LOG}/", f"{SNAPSHOTS}/"))


def table_schema(manifest: Manifest) -> pa.Schema:
    """The columns of the data files of a table."""
    if isinstance(manifest, FeaturesManifest):
        shapes = {column.name: column.feature_dtype == "uint8" for column in manifest.columns}
        return features_schema(shapes or {manifest.column_names[0]: manifest.feature_dtype == "uint8"})
    return IMAGES_SCHEMA if isinstance(manifest, ImagesManifest) else PREDICTIONS_SCHEMA


def versions_since(url: str, manifest: Manifest, horizon: int) -> list[Manifest]:
    """Every version that was the last one at some moment since `horizon`, the last one first.

    Times are those of the files of the log, in milliseconds since 1970 by the clock of their storage.
    """
    found, number = [manifest], manifest.version.number
    while number > manifest.version.oldest and storage.modified_ms(delta_log.commit_url(url, number)) >= horizon:
        number -= 1
        found.append(_read_version(url, number, None))
    return found


def _still_cached(url: str) -> Manifest | None:
    """The manifest that this process read or published last, unless the table is another one now."""
    cached = _cached.get(url)
    if cached is None:
        return None
    try:
        there = _read_commit(url, cached.version.number)
    except FileNotFoundError:
        there = None
    if there is None or there.token != cached.version.token:
        del _cached[url]
        return None
    return cached


def _keep(url: str, manifest: Manifest) -> None:
    _cached.pop(url, None)
    _cached[url] = manifest
    while len(_cached) > _CACHED_TABLES:
        del _cached[next(iter(_cached))]


def _read_legacy(url: str, version: int | None) -> Manifest | None:
    found = read_document(storage.join_url(url, MANIFEST_NAME), _LegacyManifest, version=_LEGACY_SCHEMA_VERSION)
    if found is None:
        return None
    if version is not None:
        raise UsageError(f"{url} was made by Firn 0.1 and has no versions. `featurize upgrade` makes it a Delta table.")
    return found.root.model_copy(update={"schema_version": SCHEMA_VERSION})


def _read_older(url: str, version: int, latest: int) -> Manifest:
    if not 0 <= version <= latest:
        raise UsageError(f"{url} has no version {version}; its versions are 0 to {latest}.")
    oldest = _read_commit(url, latest).oldest
    if version < oldest:
        raise UsageError(f"the files of version {version} of {url} have been removed; the oldest version is {oldest}.")
    return _read_version(url, version, None)


def _read_version(url: str, number: int, known: Manifest | None) -> Manifest:
    """The manifest of a version, from an older one that is known, or else from the last snapshot before it."""
    start, shards = (known.version.number, known.shards) if known is not None else _read_snapshot(url, number)
    commits = [_parse(url, start + 1 + at, actions) for at, actions in enumerate(_read_after(url, start, number))]
    for at, commit in enumerate(commits, start=start + 1):
        if commit.kept > len(shards):
            raise _damaged(url, at, ValueError(f"kept: it keeps {commit.kept} of {len(shards)} shards"))
        shards = [*shards[: commit.kept], *commit.shards]
    last = commits[-1] if commits else _read_commit(url, number)
    try:
        manifest = _manifests.validate_python({**last.facts, "shards": shards})
    except ValidationError as error:
        raise _damaged(url, number, error) from error
    manifest.set_version(last.version(number))
    return manifest


def _read_after(url: str, start: int, number: int) -> list[list[Action]]:
    try:
        return delta_log.read_commits(url, range(start + 1, number + 1))
    except FileNotFoundError as error:
        raise JobError(f"{url}: a commit before version {number} is missing: {first_line(error)}") from error


def _read_commit(url: str, number: int) -> _Commit:
    return _parse(url, number, delta_log.read_commit(url, number))


def _parse(url: str, number: int, actions: Sequence[Action]) -> _Commit:
    """Firn's part of a commit.

    Raises:
        JobError: another program made it, it is damaged, or it has another schema version.
    """
    infos = (action["commitInfo"] for action in actions if isinstance(action.get("commitInfo"), dict))
    info: dict[str, Any] = next(infos, {})
    content = info.get(_KEY)
    if not isinstance(content, dict):
        raise JobError(
            f"{url}: version {number} was committed by another program ({info.get('engineInfo', 'unknown')}), which Firn "
            f"cannot follow. Write to a copy with such programs, and remove {delta_log.commit_url(url, number)} to go back."
        )
    if content.get("schema_version") != SCHEMA_VERSION:
        raise JobError(
            f"{delta_log.commit_url(url, number)} has schema version {content.get('schema_version')!r}; this Firn reads "
            f"{SCHEMA_VERSION}."
        )
    try:
        return _Commit.model_validate(content)
    except ValidationError as error:
        raise _damaged(url, number, error) from error


def _damaged(url: str, number: int, error: Exception) -> JobError:
    reason = first_fault(error) if isinstance(error, ValidationError) else first_line(error)
    return JobError(f"{delta_log.commit_url(url, number)} is damaged: {reason}.")


def _actions(manifest: Manifest, base: Manifest | None, version: Version, operation: str) -> list[Action]:
    """The actions that lead from the version before to `manifest`."""
    old = [] if base is None else base.shards
    kept = sum(1 for _ in takewhile(bool, map(_is_same, old, manifest.shards)))
    gone, new = _listed(manifest, old[kept:]), _listed(manifest, manifest.shards[kept:])
    now = delta_log.milliseconds()
    changed = base is None or base.content_digest != manifest.content_digest or base.identity != manifest.identity
    content = _Commit(
        schema_version=SCHEMA_VERSION,
        token=version.token,
        table_id=version.table_id,
        facts=manifest.model_dump(exclude={"shards"}),
        kept=kept,
        shards=manifest.shards[kept:],
        oldest=version.oldest,
        vacuumed=version.vacuumed,
    )
    info = {
        "timestamp": now,
        "operation": operation,
        "operationParameters": {},
        "engineInfo": f"firn/{manifest.versions.get('firn', '')}",
        "txnId": version.token,
        _KEY: content.model_dump(),
    }
    heads = []
    if base is None:
        heads.append(delta_log.protocol())
    if base is None or table_schema(base) != table_schema(manifest):
        heads.append(_metadata(manifest, version, now))
    return [
        {"commitInfo": info},
        *heads,
        *(file.removed(now, data_change=changed) for path, file in gone.items() if path not in new),
        *(file.added(now, data_change=changed) for path, file in new.items() if path not in gone),
    ]


def _is_same(old: ShardRecord, new: ShardRecord) -> bool:
    """Whether two records are equal. Those that are kept are mostly one object, so that a commit does not look into each."""
    return old is new or old == new


def _metadata(manifest: Manifest, version: Version, now: int) -> Action:
    schema, partitions = table_schema(manifest), list[str]()
    if isinstance(manifest, FeaturesManifest):
        schema, partitions = schema.append(pa.field("split", pa.string())), ["split"]
    return delta_log.metadata(version.table_id, schema, partitions, now)


def _listed(manifest: Manifest, shards: Iterable[ShardRecord]) -> dict[str, ListedFile]:
    """The data files of shards, by their paths."""
    is_split = isinstance(manifest, FeaturesManifest)
    return {
        file.path: ListedFile(file.path, file.bytes, file.rows, (("split", file.split or ""),) if is_split else ())
        for shard in shards
        for file in shard.files
    }


def _write_snapshot(url: str, manifest: Manifest) -> None:
    """Writes the shards of a version; it says the same whoever writes it. Readers do without it where it fails."""
    about = {_SNAPSHOT: json.dumps({"schema_version": SCHEMA_VERSION}).encode()}
    shards = pa.array([shard.model_dump_json() for shard in manifest.shards], pa.string())
    table = pa.table({"shard": shards}).replace_schema_metadata(about)
    try:
        storage.write_file(_snapshot_url(url, manifest.version.number), lambda file: pq.write_table(table, file))
    except OSError as error:
        logging.getLogger(__name__).warning("no snapshot of version %d of %s: %s", manifest.version.number, url, error)


def _read_snapshot(url: str, number: int) -> tuple[int, list[ShardRecord]]:
    """The last snapshot up to a version, and its number; -1 and no shards where there is none."""
    names = [file.rpartition("/")[2] for file in storage.list_files(storage.join_url(url, SNAPSHOTS))]
    numbers = [int(name[:-8]) for name in names if name.endswith(".parquet") and name[:-8].isdecimal()]
    start = max((one for one in numbers if one <= number), default=-1)
    if start < 0:
        return -1, []
    place = _snapshot_url(url, start)
    try:
        with storage.open_input(place) as file:
            table = pq.ParquetFile(file).read()
        check_version(json.loads((table.schema.metadata or {})[_SNAPSHOT]), version=SCHEMA_VERSION, origin=place)
        return start, [ShardRecord.model_validate_json(row) for row in table["shard"].to_pylist()]
    except (pa.ArrowException, KeyError, ValueError, RecursionError) as error:
        raise JobError(f"{place} is damaged: {first_line(error)}. Remove it; the commits say the same.") from error


def _snapshot_url(url: str, number: int) -> str:
    return storage.join_url(url, SNAPSHOTS, f"{number:020d}.parquet")
