"""Uploads a local folder to HDFS through WebHDFS, for machines that only reach the cluster's gateway."""

import getpass
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import BinaryIO
from urllib.parse import urlsplit

from hdfs import HdfsError, InsecureClient
from requests.exceptions import RequestException

from featurize import storage
from featurize.errors import JobError, UsageError, first_line
from featurize.shortening import some_lines
from featurize.sources.names import COPYING, is_left_out, spelled_out

_SCHEMES = {"webhdfs": "http", "swebhdfs": "https", "http": "http", "https": "https"}
PAUSES_S = (1.0, 4.0)
"""Seconds to wait before each further try of a file that failed."""
_PIECE_BYTES = 1 << 20
_TIMEOUT_S = 60.0
_MOST_NAMED = 5


@dataclass(frozen=True)
class UploadResult:
    """The result of an upload: files and bytes sent, and files that were there before."""

    url: str
    uploaded: int
    skipped: int
    bytes: int
    seconds: float


def upload_folder(
    folder: str | Path,
    url: str,
    *,
    threads: int = 4,
    user: str | None = None,
    follow_links: bool = False,
    pauses_s: Sequence[float] = PAUSES_S,
    on_bytes: Callable[[int], None] = lambda count: None,
    on_total: Callable[[int], None] = lambda count: None,
) -> UploadResult:
    """Copies all files below `folder`, but those of `names.is_left_out`, to `url`; files of the same size there are skipped.

    A file gets its name only once it is complete, so that starting a killed upload again resumes it.

    Args:
        url: ``webhdfs://namenode:9870/path``, or swebhdfs, http, https: of the NameNode or of a gateway.
        user: the HDFS user name; default: HADOOP_USER_NAME, or else the user of this process.
        follow_links: whether links that lead out of the folder are followed; otherwise they are left out.
        pauses_s: seconds to wait before each further try of a file that failed.
        on_bytes: called, from several threads, with the number of bytes that were just sent.
        on_total: called once with the number of bytes there are to send.

    Raises:
        UsageError: There is no such folder, it holds no files, or the URL is not a WebHDFS URL.
        JobError: HDFS does not answer, or some files could not be uploaded; all others were.
    """
    started = perf_counter()
    client, target = _open_client(url, user)
    sizes = _local_sizes(folder, follow_links=follow_links)
    present = _remote_sizes(client, target)
    missing = [inner for inner, size in sizes.items() if present.get(inner) != size]
    total = sum(sizes[inner] for inner in missing)
    on_total(total)

    def send(inner: str) -> str | None:
        local, remote = Path(folder) / inner, f"{target.rstrip('/')}/{inner}"
        return _send_patiently(client, local, remote, on_bytes=on_bytes, pauses_s=pauses_s)

    with ThreadPoolExecutor(threads, thread_name_prefix="firn-upload") as pool:
        failures = [failure for failure in pool.map(send, missing) if failure is not None]
    if failures:
        named = "\n".join(some_lines((f"  - {failure}" for failure in failures), _MOST_NAMED))
        raise JobError(
            f"{len(failures)} of {len(missing)} files could not be uploaded; run the command again to resume.\n{named}"
        )
    return UploadResult(url, len(missing), len(sizes) - len(missing), total, perf_counter() - started)


def _open_client(url: str, user: str | None) -> tuple[InsecureClient, str]:
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES or not parts.netloc or len(parts.path) < 2:
        raise UsageError(
            "the target of an upload must be a WebHDFS URL with a path, such as webhdfs://namenode:9870/data/photos: the web "
            f"address of the NameNode or of a gateway. Got {url!r}."
        )
    user = user or os.environ.get("HADOOP_USER_NAME") or getpass.getuser()
    return InsecureClient(f"{_SCHEMES[parts.scheme]}://{parts.netloc}", user=user, timeout=_TIMEOUT_S), parts.path


def _local_sizes(folder: str | Path, *, follow_links: bool) -> dict[str, int]:
    """The size in bytes of every file, by its path below the folder; links that lead out of it are files if they are followed."""
    if not Path(folder).is_dir():
        raise UsageError(f"there is no folder {folder}.")
    url = storage.absolute_url(str(folder))
    files = [file for file in storage.walk_source(url, follow_links=follow_links) if not is_left_out(file.inner)]
    if not follow_links:
        files = [file for file in files if not storage.leads_outside(f"{url}/{file.inner}", url)]
    sizes = {file.inner: file.size for file in files}
    if not sizes:
        raise UsageError(f"{folder} holds no files.")
    return sizes


def _remote_sizes(client: InsecureClient, target: str) -> dict[str, int]:
    """The size in bytes of every file in `target`, by its path below it."""
    try:
        if client.status(target, strict=False) is None:
            return {}
        return {
            f"{folder}/{name}"[len(target.rstrip("/")) + 1 :]: int(status["length"])
            for (folder, _), _, files in client.walk(target, status=True)
            for name, status in files
        }
    except (HdfsError, RequestException) as error:
        raise JobError(f"{client.url}: HDFS does not answer correctly: {first_line(error)}") from error


def _send_patiently(
    client: InsecureClient, local: Path, target: str, *, on_bytes: Callable[[int], None], pauses_s: Sequence[float]
) -> str | None:
    """Sends one file; returns what went wrong, if it did so every time."""
    if spelled_out(str(local)) != str(local):
        return f"{spelled_out(str(local))}: the name is not UTF-8; rename it"
    for pause in (0.0, *pauses_s):
        time.sleep(pause)
        try:
            _send(client, local, target, on_bytes)
        except (HdfsError, RequestException, OSError) as error:
            failure = f"{local}: {first_line(error)}"
        else:
            return None
    return failure


def _send(client: InsecureClient, local: Path, target: str, on_bytes: Callable[[int], None]) -> None:
    temporary = target + COPYING
    with open(local, "rb") as file:
        client.write(temporary, data=_pieces(file, on_bytes), overwrite=True)
    arrived, wanted = int(client.status(temporary)["length"]), local.stat().st_size
    if arrived != wanted:
        raise OSError(f"{arrived} of {wanted} bytes arrived")
    client.delete(target)
    client.rename(temporary, target)


def _pieces(file: BinaryIO, on_bytes: Callable[[int], None]) -> Iterator[bytes]:
    while piece := file.read(_PIECE_BYTES):
        yield piece
        on_bytes(len(piece))
