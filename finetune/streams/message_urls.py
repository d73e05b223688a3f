"""Images whose URLs are sent to a stream: a wrong URL becomes a reject and does not end the stream, nor does a dead host."""

import errno
import os
import socket
import stat
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple
from urllib.parse import urlsplit

from featurize import storage
from featurize.errors import JobError, UsageError, first_line
from featurize.sources.listing import Fetch, ImageReadError, PlannedImage
from featurize.sources.readers import FileReader, read_file
from finetune.streams.allowed_urls import LEADS_OUTSIDE, OUTSIDE, AllowedUrls

_BEGINNINGS = ("/", "file:/", *(f"{scheme}://" for scheme in storage.SCHEMES))
_FILE, _HDFS = "file://", "hdfs://"
_AT_A_TIME = 16
_CONNECT_TIMEOUT_S = 10.0
# What a local file system says of a name under which this user has no file; anything else means that it does not answer.
_NO_FILE_ERRORS = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL)
}
_REASONS = {
    "no URL": "the message is neither an absolute path nor a URL that begins with file:// or hdfs://",
    "no file": "there is no such file, or this user may not read it",
    "not allowed": OUTSIDE,
    "not allowed: link": LEADS_OUTSIDE,
}
"""Why an image is a reject, by its stamp."""


class Facts(NamedTuple):
    """What is known of a file: its size in bytes, None where it is not to be read, and its stamp."""

    size: int | None
    stamp: str


NO_URL, NO_FILE = Facts(None, "no URL"), Facts(None, "no file")


class UnansweredError(Exception):
    """A storage does not answer, so that nothing is known of a file. The message is the reason."""


@dataclass(frozen=True)
class MessageFileReader(FileReader):
    """Reads the files that messages name, where they lie in an allowed place; one of unknown size is not touched."""

    allowed: AllowedUrls = field(default_factory=lambda: AllowedUrls(()))

    def open(self, images: Sequence[PlannedImage]) -> Iterator[Fetch]:
        """See `ContentReader`."""
        return (partial(self._read, image) for image in images)

    def _read(self, image: PlannedImage) -> bytes:
        if image.bytes_size is None:
            raise ImageReadError(_REASONS[image.stamp])
        if not image.path.startswith(_FILE):
            return read_file(image.path, image.bytes_size)
        with closing(_Opened(image.path.removeprefix(_FILE))) as file:
            if not self.allowed.holds_file(file.path):  # a link may have changed since the driver looked
                raise ImageReadError(LEADS_OUTSIDE)
            return read_file(_FILE + file.name, image.bytes_size)


class _Opened:
    """A local file that is held, though not read: what is asked about it and what is read of it then is one file.

    Raises:
        ImageReadError: It is gone, is no file by now, or cannot be read.
    """

    def __init__(self, path: str) -> None:
        try:
            self._number = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            raise ImageReadError(f"the file cannot be read: {error.strerror}") from error
        self.name = f"/proc/self/fd/{self._number}"
        self.path = os.readlink(self.name)  # noqa: PTH115 - bytes of a name are kept as they are
        if not stat.S_ISREG(os.fstat(self._number).st_mode):
            self.close()
            raise ImageReadError("it is no file any more")

    def close(self) -> None:
        os.close(self._number)


def read_url(value: bytes | None) -> str | None:
    """The URL in a message, as `finetune predict` would name the file; None where there is none, or one with a password.

    It is taken literally: percent-encoding is not decoded.
    """
    try:
        text = (value or b"").decode()
        return storage.absolute_url(text) if text.startswith(_BEGINNINGS) and "\0" not in text else None
    except (UnicodeDecodeError, UsageError):
        return None


def look_up(urls: Sequence[str], allowed: AllowedUrls) -> Mapping[str, Facts | UnansweredError]:
    """What is known of each of some files, or why nothing is.

    Nothing is connected to for a URL that is not allowed. A host that does not answer is asked for one file only.
    """
    answers: dict[str, Facts | UnansweredError] = {url: refused for url in urls if (refused := _refused(url, allowed))}
    hosts = {url: _host_of(url) for url in urls if url not in answers}
    first = {host: url for url, host in reversed(hosts.items())}
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        answers |= zip(first.values(), pool.map(partial(_look, is_first=True), first.values()), strict=True)
        silent = {host: answer for host, url in first.items() if isinstance(answer := answers[url], UnansweredError)}
        answers |= {url: silent[host] for url, host in hosts.items() if host in silent}
        others = [url for url in hosts if url not in answers]
        answers |= zip(others, pool.map(_look, others), strict=True)
    return {url: answers[url] for url in urls}


def size_and_stamp(url: str) -> Facts:
    """The size of the file at `url`, and its stamp, as a walk over its folder gives them.

    Raises:
        UnansweredError: The storage does not answer.
    """
    try:
        if url.startswith(_FILE):
            _ask(url.removeprefix(_FILE))
        file = storage.find_file(url)
    except (RuntimeError, ValueError):  # an unknown name service, or a URL without host and port
        return NO_FILE
    except JobError as error:
        raise UnansweredError(str(error).rstrip(".")) from error
    except OSError as error:
        if url.startswith(_FILE):
            is_answer = error.errno in _NO_FILE_ERRORS
        else:  # a name that HDFS refuses, or a file that this user may not read
            is_answer = isinstance(error, PermissionError) or _answers(url)
        if not is_answer:
            raise UnansweredError(error.strerror or first_line(error)) from error
        return NO_FILE
    return NO_FILE if file is None else Facts(file.size, f"{file.size}:{file.modified}")


def _refused(url: str, allowed: AllowedUrls) -> Facts | None:
    """Why a file is not to be read, whatever the storage says; None: it may be."""
    if not url.startswith(_BEGINNINGS):
        return NO_URL
    fault = allowed.fault(url)
    return None if fault is None else next(Facts(None, stamp) for stamp, why in _REASONS.items() if why == fault)


def _look(url: str, *, is_first: bool = False) -> Facts | UnansweredError:
    try:
        if is_first and url.startswith(_HDFS):
            _connect(url)
        return size_and_stamp(url)
    except UnansweredError as error:
        return error


def _ask(path: str) -> None:
    """Asks a local file system for a file, which `storage.find_file` does too without telling faults. Raises OSError."""
    os.stat(path)  # noqa: PTH116 - a name may be no path


def _host_of(url: str) -> str:
    """What answers for a file: a host of HDFS; a local file answers for itself."""
    return url.removeprefix(_HDFS).partition("/")[0] if url.startswith(_HDFS) else url


def _connect(url: str) -> None:
    """Fails within seconds where the client of HDFS would retry for minutes, also of a host that once answered.

    Raises:
        UnansweredError: Nothing answers there.
    """
    try:
        parts = urlsplit(_HDFS + _host_of(url))
        if parts.hostname and parts.port:
            socket.create_connection((parts.hostname, parts.port), timeout=_CONNECT_TIMEOUT_S).close()
    except ValueError:  # no port: `size_and_stamp` says what is wrong
        return
    except OSError as error:
        raise UnansweredError(f"no HDFS NameNode answers: {error.strerror or first_line(error)}") from error


def _answers(url: str) -> bool:
    """Whether the storage of a file answers at all."""
    try:
        return storage.exists(url.removesuffix(storage.open_filesystem(url)[1]) + "/")
    except (OSError, JobError):
        return False
