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
    """What a run finds done, and what it has to do.

    Attributes:
        published: shards of the manifest, without those that hold an image that has changed.
        taken_over: shards that a killed run had finished.
        todo: the rows of the listing that are in none of these shards.
        skipped: number of images that are in one of these shards.
        changed: number of images whose bytes have changed.
        removed: number of images of the table that are no longer in the source.
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
        files_read: index files of the published shards, as for `read_index`.
        is_partial: as for `build_table`.

    Raises:
        JobError: the job that reads images again, to see whether they have changed, failed.
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
    """The suspect rows of a listing whose bytes have changed; the workers read the images to compare them.

    Returns:
        Row numbers, int64 (changed_images,).
    """
    if not len(compared.suspect):
        return compared.suspect
    plan_url = storage.join_url(run.url, staging.STAGING, f"suspects-{run.name}.parquet")
    rows = listing.take(pa.array(compared.suspect))
    hasher = partial(make_hasher, plan_url, run.reader)
    compared_rows = run_plan(spark, plan_url, rows=rows, make_worker=hasher, what="images compared")
    found = {row["path"]: row["image_id"] for row in compared_rows}
    storage.remove(plan_url)
    known = zip(rows.column("path").to_pylist(), compared.suspect_ids, strict=True)
    return compared.suspect[[found[path] != known_id for path, known_id in known]]


def take_over(unfinished: Unfinished | None, published: Sequence[ShardRecord], *, listing: pa.Table) -> KnownShards:
    """The shards that a killed run finished, as far as their images are all in `listing` and unchanged.

    An image may be in such a shard and in the table too, if another image of its old shard had changed and is now as before.
    """
    if unfinished is None:
        return read_known([], [])
    in_table = {shard.index_file.path for shard in published}  # the run was killed after publishing these
    places = zip(unfinished.records, unfinished.index_urls, strict=True)
    left = [(record, url) for record, url in places if record.index_file.path not in in_table]
    return still_valid(read_known([record for record, _ in left], [url for _, url in left]), listing)
