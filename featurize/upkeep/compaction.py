"""Compaction: neighbouring small shards of a table of predictions become larger ones, with the same rows in the same order.

The larger ones are written to the staging folder and moved beside the small ones, and a new version lists them in their place.
If it is killed at any moment, the table is the old one or the new one. The small ones stay for readers of older versions, until
`vacuum_table` removes them.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from featurize import storage
from featurize.building import staging
from featurize.building.shard_files import ParquetFile
from featurize.digests import combine_digests
from featurize.errors import JobError, UsageError, first_line
from featurize.storage.claims import Claim
from featurize.tables.layout import DATA, INDEX, REJECTS
from featurize.tables.manifests import DataFile, PredictionsManifest, ShardRecord, add_counts
from featurize.tables.predictions import PLAIN_COLUMNS, ROWS_PER_GROUP
from featurize.tables.publication import publish, read_manifest
from featurize.tables.row_groups import open_source
from featurize.tables.schemas import INDEX_SCHEMA, PREDICTIONS_SCHEMA, REJECTS_SCHEMA
from featurize.timings import add_timings

LEAST_IMAGES = 100_000
"""Images of a shard, rejects included, from which it is left as it is."""


@dataclass(frozen=True)
class Compacted:
    """The result of a compaction: the number of shards before and after, and of rows."""

    before: int
    after: int
    rows: int


def compact_table(url: str, claim: Claim, *, least_images: int = LEAST_IMAGES, kept: Collection[str] = ()) -> Compacted:
    """Merges neighbouring smaller shards into shards of at least `least_images` images.

    Args:
        url: URL of the predictions of one model.
        claim: the claim on `url`, held by the caller.
        kept: index files, as in the manifest, of shards that stay as they are; shards on both sides of one are not merged.

    Raises:
        UsageError: there are no predictions.
        JobError: a run is unfinished, files are missing or damaged, or the claim was lost.
    """
    manifest = read_manifest(url)
    if not isinstance(manifest, PredictionsManifest):
        raise UsageError(f"{url} holds no predictions of a model.")
    if staging.has_unpublished(url, manifest):
        raise JobError(f"{url}: an unfinished run would be lost. Start it again and let it finish first.")
    claim.verify()
    staging.remove_staging(url)
    groups = list(_groups(manifest.shards, least_images, kept))
    if len(groups) < len(manifest.shards):
        run = uuid4().hex[:8]
        merged = [
            group[0] if len(group) == 1 else _merge(url, f"{run}-{number:05d}-0", group)
            for number, group in enumerate(groups)
        ]
        claim.verify()
        staging.place_files(url, [shard for shard, group in zip(merged, groups, strict=True) if len(group) > 1])
        claim.verify()
        publish(url, manifest.model_copy(update={"shards": merged}), after=manifest, operation="OPTIMIZE")
        staging.remove_staging(url)
    return Compacted(len(manifest.shards), len(groups), manifest.row_count)


def _groups(shards: Sequence[ShardRecord], least: int, kept: Collection[str]) -> Iterator[list[ShardRecord]]:
    """The shards in order, in groups: each group is to become one shard."""
    group, images = list[ShardRecord](), 0
    for shard in shards:
        count = shard.row_count + shard.reject_count
        if count >= least or shard.index_file.path in kept:
            if group:
                yield group
            yield [shard]
            group, images = [], 0
            continue
        group.append(shard)
        images += count
        if images >= least:
            yield group
            group, images = [], 0
    if group:
        yield group


def _merge(url: str, name: str, shards: Sequence[ShardRecord]) -> ShardRecord:
    """Merges several shards into one, in the staging folder."""
    files = [file for shard in shards for file in shard.files]
    rejects = [file for shard in shards for file in shard.reject_files]
    index = [shard.index_file for shard in shards]

    def merge(folder: str, parts: Sequence[DataFile], schema: pa.Schema, plain: Sequence[str] = ()) -> DataFile:
        path = f"{folder}/part-{name}.parquet"
        target = storage.join_url(url, staging.STAGING, path)
        file = ParquetFile(target, schema, rows_per_group=ROWS_PER_GROUP, plain_columns=plain)
        try:
            for part in parts:
                _copy(storage.join_url(url, part.path), part.rows, schema, file.write)
            return file.close(path=path, split=None)
        except BaseException:
            file.abandon()
            raise

    reasons = add_counts({"": shard.rejects} for shard in shards).get("", {})
    return ShardRecord(
        files=[merge(DATA, files, PREDICTIONS_SCHEMA, PLAIN_COLUMNS)] if files else [],
        reject_files=[merge(REJECTS, rejects, REJECTS_SCHEMA)] if rejects else [],
        index_file=merge(INDEX, index, INDEX_SCHEMA),
        rows=add_counts(shard.rows for shard in shards),
        rejects=reasons,
        unread=sum(shard.unread for shard in shards),
        content_digest=combine_digests(shard.content_digest for shard in shards),
        timings=add_timings(shard.timings for shard in shards),
        began_at=min(shard.began_at for shard in shards),
        memory_bytes=max(shard.memory_bytes for shard in shards),
    )


def _copy(url: str, rows: int, schema: pa.Schema, write: Callable[[pa.RecordBatch], None]) -> None:
    """Passes the rows of a file to `write`; a column that the file lacks, as files of older versions do, is null.

    Raises:
        JobError: the file is missing or damaged, or has another number of rows than the manifest says.
    """
    copied = 0
    try:
        with open_source(url) as source:
            for batch in pq.ParquetFile(source).iter_batches(ROWS_PER_GROUP):
                there = batch.schema.names
                columns = [
                    batch.column(there.index(field.name)) if field.name in there else pa.nulls(len(batch), field.type)
                    for field in schema
                ]
                write(pa.RecordBatch.from_arrays(columns, schema=schema))
                copied += len(batch)
    except (pa.ArrowException, FileNotFoundError, UnicodeDecodeError) as error:
        raise JobError(f"{url} is listed in the manifest and cannot be read: {first_line(error)}") from error
    if copied != rows:
        raise JobError(f"{url} has {copied} rows; the manifest says {rows}.")
