"""What is done already: the listing of a source compared with the indices of a table and of a run that was cut short."""

from collections.abc import MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featurize.tables.manifests import ShardRecord
from featurize.tables.row_groups import open_parquet
from featurize.tables.schemas import INDEX_SCHEMA

_FILES_AT_A_TIME = 16
IndexFiles = MutableMapping[str, pa.Table]
"""Index files that were read, by URL. A file never changes: its name is never used again."""


@dataclass(frozen=True)
class Comparison:
    """The rows of a listing that may have changed, and the known images that are no longer listed.

    Attributes:
        suspect: numbers of the rows known with another stamp, or as unreadable: their bytes must be compared with `suspect_ids`.
        suspect_ids: the known SHA-256 of each suspect; None for one that could not be read.
        removed: known paths that are not in the listing.
    """

    suspect: NDArray[np.int64]
    suspect_ids: list[str | None]
    removed: list[str]


@dataclass(frozen=True)
class KnownShards:
    """Shards, and the index of the images in them.

    Attributes:
        records: the records of the shards.
        index: INDEX_SCHEMA; the rows of their index files, shard after shard in the order of the records.
    """

    records: list[ShardRecord]
    index: pa.Table

    def without(self, rows: NDArray[np.bool_]) -> "KnownShards":
        """The shards without those that own a selected row of the index; `rows` is bool ``(index_rows,)``."""
        if not rows.any():
            return self
        owner = np.repeat(np.arange(len(self.records)), [record.index_file.rows for record in self.records])
        dropped = np.zeros(len(self.records), dtype=np.bool_)
        dropped[owner[rows]] = True
        return KnownShards(
            records=[self.records[number] for number in np.flatnonzero(~dropped)],
            index=self.index.filter(pa.array(~dropped[owner])),
        )

    def without_paths(self, paths: pa.ChunkedArray) -> "KnownShards":
        """The shards without those that hold one of `paths`."""
        return self.without(pc.is_in(self.index.column("path"), value_set=paths.combine_chunks()).to_numpy())


def compare(listing: pa.Table, index: pa.Table) -> Comparison:
    """Compares a listing with the index of known images."""
    keys, known = listing.column("path"), index.column("path")
    place = pc.index_in(keys, value_set=known.combine_chunks()).combine_chunks()
    stamps = index.column("stamp").take(place)
    was_read = pc.is_valid(index.column("image_id").take(place))
    equal = pc.fill_null(pc.and_(pc.equal(listing.column("stamp"), stamps), was_read), False).to_numpy()
    is_known = pc.is_valid(place).to_numpy(zero_copy_only=False)
    suspect = np.flatnonzero(is_known & ~equal)
    return Comparison(
        suspect=suspect,
        suspect_ids=index.column("image_id").take(place.take(pa.array(suspect))).to_pylist(),
        removed=index.filter(pc.invert(pc.is_in(known, value_set=keys.combine_chunks())))["path"].to_pylist(),
    )


def missing_from(index: pa.Table, listing: pa.Table) -> pa.Table:
    """The rows of a listing whose paths are not in the index."""
    if not index.num_rows:
        return listing
    is_known = pc.is_in(listing.column("path"), value_set=index.column("path").combine_chunks())
    return listing.filter(pc.invert(is_known))


def read_known(
    records: Sequence[ShardRecord], index_urls: Sequence[str], files_read: IndexFiles | None = None
) -> KnownShards:
    """Shards with their index.

    Args:
        index_urls: URL of the index file of each record.
        files_read: as for `read_index`.
    """
    return KnownShards(list(records), read_index(index_urls, files_read))


def read_index(urls: Sequence[str], files_read: IndexFiles | None = None) -> pa.Table:
    """The rows of all index files at `urls`.

    Args:
        files_read: files that earlier calls read, which are not read again. Afterwards it holds the files at `urls` only.
    """
    kept = {url: files_read[url] for url in urls if url in files_read} if files_read else {}
    missing = [url for url in urls if url not in kept]
    with ThreadPoolExecutor(_FILES_AT_A_TIME) as pool:
        kept |= zip(missing, pool.map(_read_index_file, missing), strict=True)
    if files_read is not None:
        files_read.clear()
        files_read.update(kept)
    return pa.concat_tables([kept[url] for url in urls]) if kept else INDEX_SCHEMA.empty_table()


def still_valid(shards: KnownShards, listing: pa.Table) -> KnownShards:
    """Those of the unpublished `shards` whose images are all in the listing and unchanged."""
    if not shards.records:
        return shards
    keys, known = listing.column("path"), shards.index.column("path")
    place = pc.index_in(known, value_set=keys.combine_chunks()).combine_chunks()
    stamps = listing.column("stamp").take(place)
    equal = pc.fill_null(pc.equal(shards.index.column("stamp"), stamps), False).to_numpy()
    return shards.without(~equal)


def _read_index_file(url: str) -> pa.Table:
    with open_parquet(url) as file:
        return file.read()
