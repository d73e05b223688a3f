"""Corrections of labels: an append-only log beside a feature set.

    <features>/_firn/corrections/<number>.parquet     one call of `finetune relabel`; see `CORRECTIONS_SCHEMA`

Numbers count from 1 and a file is created exclusively, so that two calls at once come one after the other. No file there is ever
changed or removed: the last correction of an image is valid, and another correction restores a label. Files of the feature set
itself stay unchanged; `featurize.tables.row_edits` applies the log wherever rows are read.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from featurize import storage
from featurize.errors import JobError, first_line
from featurize.tables.layout import CORRECTIONS, LEGACY_CORRECTIONS

CORRECTIONS_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("old_label", pa.string()),
        ("new_label", pa.string()),
        ("corrected_by", pa.string()),
        ("corrected_at", pa.timestamp("us", tz="UTC")),
        ("reason", pa.string()),
    ]
)
"""The columns of a correction. An image with several labels in the set has an entry for each of them."""
_FILE_NAME = re.compile(r"(\d{8})\.parquet")


@dataclass(frozen=True, eq=False)
class Corrections:
    """The log of a feature set.

    Attributes:
        entries: Columns of `CORRECTIONS_SCHEMA` plus `number`, the number of the call; in the order in which they were made.
        count: Number of calls.
    """

    entries: pa.Table
    count: int

    def last(self) -> pa.Table:
        """The valid label of each image that was ever corrected: `image_id` and `label`."""
        entries = self.entries
        backwards = pc.sort_indices(pa.table([pa.array(np.arange(len(entries)))], ["row"]), [("row", "descending")])
        ids, labels = (entries[name].take(backwards) for name in ("image_id", "new_label"))
        first = ids.combine_chunks().dictionary_encode()
        first = first.combine_chunks() if isinstance(first, pa.ChunkedArray) else first
        rows = _first_of_each(first.indices.to_numpy(zero_copy_only=False))
        return pa.table([first.dictionary, labels.take(pa.array(rows))], ["image_id", "label"])


def read_corrections(url: str) -> Corrections:
    """The log of the feature set at `url`; empty where nothing was ever corrected.

    Raises:
        JobError: A file of the log is damaged, or missing between others.
    """
    folder = storage.join_url(url, CORRECTIONS)
    folders = (storage.join_url(url, LEGACY_CORRECTIONS), folder)
    files = {file.rpartition("/")[2]: file for place in folders for file in storage.list_files(place)}
    found = {int(match[1]): files[name] for name in files if (match := _FILE_NAME.fullmatch(name)) is not None}
    numbers = sorted(found)
    if numbers != list(range(1, len(numbers) + 1)):
        missing = min(set(range(1, numbers[-1])) - set(numbers), default=0)
        raise JobError(f"{folder}: the corrections of number {missing} are missing; they must never be removed.")
    tables = [_read_file(found[number], number) for number in numbers]
    empty = CORRECTIONS_SCHEMA.append(pa.field("number", pa.int32())).empty_table()
    return Corrections(pa.concat_tables([empty, *tables]), len(numbers))


def append_corrections(url: str, make: Callable[[Corrections], pa.Table]) -> tuple[Corrections, pa.Table]:
    """Adds entries to the log of the feature set at `url`.

    Args:
        url: URL of the feature set.
        make: Returns the new entries, in `CORRECTIONS_SCHEMA`, given the log that they follow. It is called again if another job
            was faster. If it returns none, nothing is written.

    Returns:
        The log that the entries follow, and the entries.
    """
    while True:
        log = read_corrections(url)
        entries = make(log)
        if not len(entries):
            return log, entries
        buffer = io.BytesIO()
        pq.write_table(entries.cast(CORRECTIONS_SCHEMA), buffer, compression="zstd")
        if storage.create_exclusively(_file_url(url, log.count + 1), buffer.getvalue()):
            return log, entries


def _file_url(url: str, number: int) -> str:
    return storage.join_url(url, CORRECTIONS, f"{number:08d}.parquet")


def _read_file(url: str, number: int) -> pa.Table:
    try:
        table = pq.read_table(io.BytesIO(storage.read_bytes(url)), schema=CORRECTIONS_SCHEMA)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise JobError(f"{url} is damaged: {first_line(error)}") from error
    return table.append_column(pa.field("number", pa.int32()), pa.array(np.full(len(table), number, np.int32)))


def _first_of_each(indices: NDArray[np.int32]) -> NDArray[np.int64]:
    """The first position of each index; the indices of a dictionary count up in the order of first occurrence."""
    return np.unique(indices, return_index=True)[1].astype(np.int64)
