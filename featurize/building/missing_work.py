"""What a run has to do: the source compared with the table, and with what a run that was killed left."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import SparkSession

from featurize import storage
from featurize.building import staging
from featurize.building.known_shards import (
    Comparison,
    IndexFiles,
    KnownShards,
    compare,
    missing_from,
    read_known,
    still_valid,
)
from featurize.building.spark_jobs import run_plan
from featurize.building.staging import Unfinished
from featurize.building.worker import Run, make_hasher
from featurize.sources.listing import ImageSource
from featurize.tables.manifests import ShardRecord


@dataclass(frozen=True)
class Work:
    """What a run finds: what is done, and what is to do.

    Attributes:
        published: shards of the manifest, without those that hold an image that has changed.
        taken_over: shards that a run that was killed has finished.
        todo: the rows of the listing that are in none of these.
        skipped: images that are in one of these.
        changed: images whose bytes are not those they were.
        removed: images that are in the table and no longer in the source.
    """

    published: list[ShardRecord]
    taken_over: list[ShardRecord]
    todo: pa.Table
    skipped: int
    changed: int
    removed: int


def find_work(
    spark: SparkSession,
    source: ImageSource,
    *,
    run: Run,
    published: Sequence[ShardRecord],
    unfinished: Unfinished | None,
    files_read: IndexFiles | None = None,
    is_partial: bool = False,
) -> Work:
    """Compares the source with the table, whose shards are `published`, and with what a killed run left unfinished.

    Args:
        files_read: as for `read_index`, of the published shards.
        is_partial: as for `build_table`.

    Raises:
        JobError: images had to be read again to see whether they have changed, and the job that did it failed.
    """
    index_urls = [storage.join_url(run.url, shard.index_file.path) for shard in published]
    known = read_known(published, index_urls, files_read)
    compared = compare(source.listing, known.index)
    changed = compared.suspect[:0]
    if not is_partial:
        changed = find_changed(spark, run, listing=source.listing, compared=compared)
    kept = known.without_paths(source.listing.column("path").take(pa.array(changed)))
    missing = missing_from(kept.index, source.listing)
    taken_over = take_over(unfinished, published, listing=missing)
    todo = missing_from(taken_over.index, missing)
    return Work(
        published=kept.records,
        taken_over=taken_over.records,
        todo=todo,
        skipped=source.images - todo.num_rows,
        changed=len(changed),
        removed=len(compared.removed),
    )


def find_changed(spark: SparkSession, run: Run, *, listing: pa.Table, compared: Comparison) -> NDArray[np.int64]:
    """Those of the suspect rows of a listing whose bytes are not the known ones; the workers read them to see.

    Returns:
        Row numbers, int64 (changed_images,).
    """
    if not len(compared.suspect):
        return compared.suspect
    plan_url = storage.join_url(run.url, staging.STAGING, f"suspects-{run.name}.parquet")
    rows = listing.take(pa.array(compared.suspect))
    hasher = partial(make_hasher, plan_url, run.reader)
    schema = "path string, image_id string"
    found = dict(run_plan(spark, plan_url, rows=rows, make_worker=hasher, schema=schema, what="images compared"))
    storage.remove(plan_url)
    known = zip(rows.column("path").to_pylist(), compared.suspect_ids, strict=True)
    return compared.suspect[[found[path] != known_id for path, known_id in known]]


def take_over(unfinished: Unfinished | None, published: Sequence[ShardRecord], *, listing: pa.Table) -> KnownShards:
    """The shards that a killed run finished, if their images are still what they were, and all in `listing`.

    An image may be in one of them and in the table too: one beside it had changed, and has been put back since.
    """
    if unfinished is None:
        return read_known([], [])
    in_table = {shard.index_file.path for shard in published}  # it was killed after it had published them
    places = zip(unfinished.records, unfinished.index_urls, strict=True)
    left = [(record, url) for record, url in places if record.index_file.path not in in_table]
    return still_valid(read_known([record for record, _ in left], [url for _, url in left]), listing)
