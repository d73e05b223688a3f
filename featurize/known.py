"""What is done already: the listing of a source compared with the indices of a table and of a run that was cut short."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from featurize import storage
from featurize.manifests import ShardRecord
from featurize.shards import INDEX_SCHEMA

_FILES_AT_A_TIME = 16


@dataclass(frozen=True)
class Comparison:
    """Where each row of a listing stands, as row numbers; and what is known and listed no more.

    Attributes:
        unchanged: known, with an equal stamp.
        suspect: known with another stamp, or as one that could not be read: the bytes are to be compared with `suspect_ids`.
        suspect_ids: the SHA-256 under which each suspect is known; None for one that could not be read.
        new: not known.
        removed: paths that are known and not in the listing.
    """

    unchanged: NDArray[np.int64]
    suspect: NDArray[np.int64]
    suspect_ids: list[str | None]
    new: NDArray[np.int64]
    removed: list[str]


def compare(listing: pa.Table, index: pa.Table) -> Comparison:
    """Compares a listing with the index of what is known."""
    keys, known = listing.column("path"), index.column("path")
    place = pc.index_in(keys, value_set=known.combine_chunks()).combine_chunks()
    stamps = index.column("stamp").take(place)
    was_read = pc.is_valid(index.column("image_id").take(place))
    equal = pc.fill_null(pc.and_(pc.equal(listing.column("stamp"), stamps), was_read), False).to_numpy()
    is_known = pc.is_valid(place).to_numpy(zero_copy_only=False)
    suspect = np.flatnonzero(is_known & ~equal)
    return Comparison(
        unchanged=np.flatnonzero(is_known & equal),
        suspect=suspect,
        suspect_ids=index.column("image_id").take(place.take(pa.array(suspect))).to_pylist(),
        new=np.flatnonzero(~is_known),
        removed=index.filter(pc.invert(pc.is_in(known, value_set=keys.combine_chunks())))["path"].to_pylist(),
    )


def read_index(urls: Sequence[str]) -> pa.Table:
    """The rows of all index files at `urls`."""
    with ThreadPoolExecutor(_FILES_AT_A_TIME) as pool:
        parts = list(pool.map(_read_index_file, urls))
    return pa.concat_tables(parts) if parts else INDEX_SCHEMA.empty_table()


def still_valid(records: Sequence[ShardRecord], index_urls: Sequence[str], listing: pa.Table) -> list[ShardRecord]:
    """Those of `records`, of shards not yet published, whose images are all in the listing and unchanged.

    Args:
        index_urls: where the index file of each record lies.
    """
    if not records:
        return []
    index = read_index(index_urls)
    owner = np.repeat(np.arange(len(records)), [record.index_file.rows for record in records])
    keys, known = listing.column("path"), index.column("path")
    place = pc.index_in(known, value_set=keys.combine_chunks()).combine_chunks()
    equal = pc.fill_null(pc.equal(index.column("stamp"), listing.column("stamp").take(place)), False).to_numpy()
    broken = set(owner[~equal].tolist())
    return [record for number, record in enumerate(records) if number not in broken]


def _read_index_file(url: str) -> pa.Table:
    with storage.open_input(url) as file:
        return pq.ParquetFile(file).read()
