"""Spark's own record of a stream from a folder: the files that it has listed for a batch, also those gone or empty by then.

<checkpoint>/offsets/<batch>            how far the listings reach that the batch takes: ``{"logOffset": 3}``
<checkpoint>/sources/0/<number>         a listing, one file a line: ``{"path": "file:///folder/a%20b.png", "batchId": 3, ...}``
<checkpoint>/sources/0/<number>.compact this listing and all before it

Source: Spark 3.5, OffsetSeqLog, FileStreamSourceLog and CompactibleFileStreamLog.
"""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from featurize import storage
from featurize.errors import JobError

_OFFSETS, _LISTINGS = "offsets", "sources/0"
_COMPACT = ".compact"


def files_of_batch(checkpoint: str, batch_id: int) -> list[str]:
    """The files that Spark has listed for a batch, as URLs without percent-encoding, each once.

    Args:
        checkpoint: URL of the checkpoint.
        batch_id: The batch that is in progress, so that its record is complete.

    Raises:
        JobError: A part of the record is missing or damaged.
    """
    offsets = storage.join_url(checkpoint, _OFFSETS)
    first = _log_offset(storage.join_url(offsets, str(batch_id - 1))) + 1 if batch_id else 0
    last = _log_offset(storage.join_url(offsets, str(batch_id)))
    found = dict[str, None]()
    for number in range(first, last + 1):
        found.update((unquote(entry["path"]), None) for entry in _listing(checkpoint, number))
    return list(found)


def _log_offset(url: str) -> int:
    """The number of the last listing that a batch takes."""
    try:
        (offset,) = _lines(url)[1:]
        return int(offset["logOffset"])
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise _damaged(url) from error


def _listing(checkpoint: str, number: int) -> Iterator[dict[str, Any]]:
    """The files of a listing."""
    folder = storage.join_url(checkpoint, _LISTINGS)
    try:
        for name in (f"{number}", f"{number}{_COMPACT}", *_later_compact(folder, number)):
            url = storage.join_url(folder, name)
            if storage.exists(url):
                yield from (entry for entry in _lines(url) if int(entry["batchId"]) == number)
                return
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise _damaged(url) from error
    raise _damaged(storage.join_url(folder, f"{number}"))


def _later_compact(folder: str, number: int) -> Iterator[str]:
    """The names of files that hold this listing among others, the smallest first."""
    names = (
        url.rpartition("/")[2].removesuffix(_COMPACT) for url in storage.list_files(folder) if url.endswith(_COMPACT)
    )
    yield from (f"{later}{_COMPACT}" for later in sorted(int(n) for n in names if n.isdecimal()) if later > number)


def _lines(url: str) -> list[dict[str, Any]]:
    """The documents in a file of Spark's, one a line after a line with the version."""
    version, *lines = storage.read_bytes(url).decode().split("\n")
    if version != "v1":
        raise ValueError(version)
    return [json.loads(line) for line in lines if line]


def _damaged(url: str) -> JobError:
    return JobError(f"{url}, in which Spark records what it has found, is missing or damaged.")
