"""The plan of a run: which images make a shard, and the file from which workers read it.

Spark only schedules the shards. If it planned them, it would count 4 MB for every file, and put one or two images into a task.
"""

from collections.abc import Sequence
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurize import storage
from featurize.sources.listing import LISTING_SCHEMA, PlannedImage, planned_images

MIN_SHARD_IMAGES, MAX_SHARD_IMAGES = 128, 4096
MAX_SHARD_BYTES = 512 << 20
_SHARDS_PER_SLOT = 3  # so that a slow one does not keep all others waiting for long


def in_reading_order(listing: pa.Table) -> pa.Table:
    """A listing sorted by container and position, if it has them, so that every row group of an images table is read once."""
    containers = listing.column("container")
    if containers.null_count == listing.num_rows:
        return listing
    places = pa.table({"container": containers.cast(pa.large_string()), "position": listing.column("position")})
    return listing.take(pc.sort_indices(places, sort_keys=[("container", "ascending"), ("position", "ascending")]))


def plan_shards(listing: pa.Table, *, slots: int) -> list[tuple[int, int]]:
    """Cuts a listing into shards, limited by number of images and by bytes.

    Args:
        slots: number of tasks that run at the same time.

    Returns:
        For each shard its first row, and the row after its last.
    """
    images = listing.num_rows
    sizes = listing.column("bytes_size").fill_null(0).to_numpy().astype(np.int64)
    ends = np.cumsum(sizes)
    most = _shard_images(images, slots)
    shards, start = [], 0
    while start < images:
        before = ends[start - 1] if start else 0
        within_bytes = int(np.searchsorted(ends, before + MAX_SHARD_BYTES, side="right"))
        stop = min(start + most, max(within_bytes, start + 1), images)
        shards.append((start, stop))
        start = stop
    return shards


def _shard_images(images: int, slots: int) -> int:
    """Number of images in a shard, so that all shards are of about the same size."""
    wanted = min(max(images // (slots * _SHARDS_PER_SLOT), MIN_SHARD_IMAGES), MAX_SHARD_IMAGES)
    shards = max(1, round(images / wanted), -(-images // MAX_SHARD_IMAGES))
    return -(-images // shards) or 1


def write_plan(url: str, listing: pa.Table, shards: Sequence[tuple[int, int]]) -> None:
    """Writes the plan to `url`: Parquet with a row group for each shard."""

    def write(file: IO[bytes]) -> None:
        with pq.ParquetWriter(pa.PythonFile(file, mode="w"), LISTING_SCHEMA, compression="zstd") as writer:
            for start, stop in shards:
                writer.write_table(listing.slice(start, stop - start), row_group_size=stop - start)

    storage.write_file(url, write)


def read_planned(url: str, shard: int) -> list[PlannedImage]:
    """Worker side: the images of one shard of the plan at `url`."""
    with storage.open_input(url) as file:
        return planned_images(pq.ParquetFile(file).read_row_group(shard))
