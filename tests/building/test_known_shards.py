"""What is done already: compared with a source as a dictionary would, image by image."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
from helpers.tables.listings import listing_of
from hypothesis import given, settings
from hypothesis import strategies as st

from featurize.building.known_shards import compare, missing_from, read_index, read_known, still_valid
from featurize.sources.listing import LISTING_SCHEMA, planned_images
from featurize.tables.manifests import DataFile, ShardRecord
from featurize.tables.schemas import INDEX_SCHEMA
from featurize.timings import Timings

names = st.text("ab/é雪 ", max_size=3)
stamps = st.sampled_from(["1:1", "1:2", "2:1"])
listings = st.dictionaries(names, stamps, max_size=12)
indices = st.dictionaries(names, st.tuples(st.sampled_from(["x" * 64, "y" * 64]) | st.none(), stamps), max_size=12)


def as_listing(stamp_of: dict[str, str]) -> pa.Table:
    return listing_of(len(stamp_of), path=list(stamp_of), stamp=list(stamp_of.values()))


def as_index(known: dict[str, tuple[str | None, str]], *, chunks: int = 1) -> pa.Table:
    """The index as it is read from some files."""
    rows = [{"path": path, "image_id": image_id, "stamp": stamp} for path, (image_id, stamp) in known.items()]
    parts = [pa.Table.from_pylist(rows[number::chunks], schema=INDEX_SCHEMA) for number in range(chunks)]
    return pa.concat_tables(parts)


@given(listings, indices, st.integers(1, 4))
@settings(max_examples=200)
def test_every_image_is_where_a_dictionary_would_put_it(
    stamp_of: dict[str, str], known: dict[str, tuple[str | None, str]], chunks: int
) -> None:
    listing = as_listing(stamp_of)
    paths = [image.path for image in planned_images(listing)]
    index = as_index(known, chunks=chunks)
    found = compare(listing, index)
    same = {path for path, stamp in stamp_of.items() if path in known and known[path][1] == stamp and known[path][0]}
    assert {paths[row]: image_id for row, image_id in zip(found.suspect, found.suspect_ids, strict=True)} == {
        path: known[path][0] for path in (stamp_of.keys() & known.keys()) - same
    }
    assert sorted(found.removed) == sorted(known.keys() - stamp_of.keys())
    assert set(missing_from(index, listing)["path"].to_pylist()) == stamp_of.keys() - known.keys()


def test_a_fresh_table_knows_nothing() -> None:
    listing, index = as_listing({"a": "1:1", "b": "1:1"}), read_index([])
    found = compare(listing, index)
    assert (found.suspect.tolist(), found.suspect_ids, found.removed) == ([], [], [])
    assert missing_from(index, listing)["path"].to_pylist() == ["a", "b"]


@contextmanager
def written(shards: list[dict[str, str]]) -> Iterator[tuple[list[ShardRecord], list[str]]]:
    """Records of shards that hold images of these paths and stamps, and where their index files lie."""
    with TemporaryDirectory() as folder:
        records, urls = [], []
        for number, shard in enumerate(shards):
            urls.append(str(Path(folder) / f"{number}.parquet"))
            pq.write_table(as_index({path: (None, stamp) for path, stamp in shard.items()}), urls[-1])
            records.append(record(f"index/{number}.parquet", rows=len(shard)))
        yield records, urls


def record(path: str, *, rows: int) -> ShardRecord:
    index_file = DataFile(path=path, rows=rows, bytes=1)
    return ShardRecord(
        files=[],
        reject_files=[],
        index_file=index_file,
        rows={},
        rejects={},
        unread=0,
        content_digest="0",
        timings=Timings(),
    )


@given(listings, st.lists(listings, max_size=5))
@settings(max_examples=60)
def test_shards_with_a_changed_or_missing_image_are_no_longer_valid(
    stamp_of: dict[str, str], shards: list[dict[str, str]]
) -> None:
    with written(shards) as (records, urls):
        valid = still_valid(read_known(records, urls), as_listing(stamp_of)).records
    expected = [number for number, shard in enumerate(shards) if shard.items() <= stamp_of.items()]
    assert [entry.index_file.path for entry in valid] == [f"index/{number}.parquet" for number in expected]


def test_indices_are_read_in_the_order_of_their_files() -> None:
    """By which it is known which shard an image is in."""
    shards = [{f"{number}/{index}": "1:1" for index in range(number)} for number in (3, 0, 40, 1)]
    with written(shards) as (_, urls):
        assert read_index(urls)["path"].to_pylist() == [path for shard in shards for path in shard]


def test_a_listing_may_hold_more_than_2_gib_of_paths() -> None:
    """One array of 200 MiB, eleven times over: nothing is copied but what is taken."""
    long_path = pa.array(["x" * (200 << 20)]).cast(LISTING_SCHEMA.field("path").type)
    table = pa.table({"path": pa.chunked_array([long_path] * 11), "number": list(range(11))})
    assert table.take(pa.array([10]))["number"].to_pylist() == [10]


def test_index_files_that_were_read_are_not_read_again(tmp_path: Path) -> None:
    urls = [str(tmp_path / f"{name}.parquet") for name in "abc"]
    for number, url in enumerate(urls):
        pq.write_table(as_index({f"path {number}": ("x" * 64, "1:1")}), url)
    files_read: dict[str, pa.Table] = {}
    assert read_index(urls[:2], files_read)["path"].to_pylist() == ["path 0", "path 1"]
    Path(urls[0]).unlink()
    assert read_index([urls[2], urls[0]], files_read)["path"].to_pylist() == ["path 2", "path 0"]
    assert set(files_read) == {urls[2], urls[0]}
    assert read_index([], files_read).num_rows == 0
    assert not files_read
