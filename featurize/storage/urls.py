"""URLs and file systems. Everything that Firn's Python code reads or writes goes through here, on local disks and `hdfs://`.

A URL is `file:///absolute/path`, a plain path (relative to the working directory), or `hdfs://host:port/path`.
"""

import errno
import json
import os
import posixpath
import re
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import urlsplit
from uuid import uuid4

import fsspec
from fsspec import AbstractFileSystem

from featurize.errors import JobError, UsageError, first_line

_CONNECT_TIMEOUT_S = 10.0
SCHEMES = ("file", "hdfs")
_HDFS_PAUSES_S = (0.5, 2.0, 5.0, 10.0, 20.0)  # pauses before a failed write is tried again
_PIECE_BYTES = 1 << 20
_TEMPORARY = re.compile(r"\.[0-9a-f]{8}\.tmp$")


def absolute_url(url: str) -> str:
    """`url` with its scheme and an absolute path, without a trailing slash, as stored in manifests.

    Raises:
        UsageError: Firn does not support the scheme.
    """
    if "://" not in url and not url.startswith("file:/"):
        # ".." is resolved but links are not, as in Spark; Path.resolve would follow links.
        return "file://" + os.path.abspath(Path(url).expanduser())  # noqa: PTH100
    scheme = url.split(":", 1)[0]
    if scheme not in SCHEMES:
        allowed = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise UsageError(f"a URL must be a local path or begin with one of {allowed}. Got {url!r}.")
    if scheme == "file":  # Spark writes file:/path where others write file:///path
        return "file://" + posixpath.normpath("/" + url.removeprefix("file:").lstrip("/"))
    authority, _, path = url.removeprefix("hdfs://").partition("/")
    if ":" in authority.rpartition("@")[0]:
        raise UsageError(f"a URL of HDFS holds no password, as tables name the URLs that they come from. Got {url!r}.")
    return f"hdfs://{authority}{posixpath.normpath('/' + path.lstrip('/'))}"


def open_filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system of `url` and the path inside it. HDFS is opened here, lazily: call it only after forking."""
    url = absolute_url(url)
    if url.startswith("file://"):
        return fsspec.filesystem("file"), url.removeprefix("file://")
    authority, _, path = url.removeprefix("hdfs://").partition("/")
    parts = urlsplit(f"hdfs://{authority}")
    if parts.hostname and parts.port:
        _check_reachable(parts.hostname, parts.port)
    from featurize.storage.hdfs import open_hdfs

    return open_hdfs(parts.hostname, parts.port), f"/{path}"


@cache
def _check_reachable(host: str, port: int) -> None:
    """Fails at once where the HDFS client would retry for minutes."""
    try:
        socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise JobError(f"no HDFS NameNode answers at {host}:{port}: {error.strerror or error}.") from error


def join_url(url: str, *parts: str) -> str:
    """`url` with path `parts` appended."""
    return posixpath.join(absolute_url(url), *parts)


def is_local(url: str) -> bool:
    """Whether `url` is on this machine's file systems."""
    return absolute_url(url).startswith("file://")


def is_within(url: str, folder: str) -> bool:
    """Whether an absolute URL is a folder's own, or lies below it."""
    return f"{url}/".startswith(f"{folder}/")


def exists(url: str) -> bool:
    """Whether there is a file or folder at `url`.

    Raises:
        OSError: The storage does not say: only "no such file" and "not a folder" mean that nothing is there.
    """
    return _kind(url) is not None


def is_folder(url: str) -> bool:
    """Whether there is a folder at `url`.

    Raises:
        OSError: As `exists`.
    """
    return _kind(url) == "directory"


def _kind(url: str) -> str | None:
    """What is at `url`, "file", "directory" or "other"; None where nothing is."""
    filesystem, path = open_filesystem(url)
    try:
        if absolute_url(url).startswith("file://"):
            mode = os.stat(path).st_mode  # noqa: PTH116 - names the path in its error
            return "directory" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"
        return str(filesystem.info(path)["type"])
    except (FileNotFoundError, NotADirectoryError):
        return None


def list_files(url: str) -> list[str]:
    """The URLs of all files under `url`, at any depth, sorted; empty where there is no such folder."""
    if not exists(url):
        return []
    prefix = absolute_url(url)
    return sorted(
        f"{prefix}/{file.inner}" for file in walk_files(url)
    )  # fsspec's `find` returns an empty list where listing fails


def list_folders(url: str) -> list[str]:
    """The URLs of the folders directly in the folder at `url`, sorted; empty where there is no such folder."""
    if not is_folder(url):
        return []
    filesystem, path = open_filesystem(url)
    names = (str(info["name"]) for info in filesystem.ls(path, detail=True) if info["type"] == "directory")
    return sorted(join_url(url, name.rstrip("/").rsplit("/", 1)[1]) for name in names)


class WalkedFile(NamedTuple):
    """A file in a folder: its path below the folder, its size in bytes, and when it was last modified, as the storage counts."""

    inner: str
    size: int
    modified: int

    def modified_ms(self, url: str) -> int:
        """When the file was last modified, in milliseconds since 1970; `url` says on which storage."""
        return self.modified // 1_000_000 if is_local(url) else self.modified


def walk_files(url: str) -> Iterator[WalkedFile]:
    """Every file in the folder at `url`, at any depth, in any order; links are followed unless they lead in a circle.

    Pipes, sockets and devices are skipped, as opening one would wait for ever.

    Raises:
        OSError: A folder cannot be listed.
    """
    filesystem, path = open_filesystem(url)
    if absolute_url(url).startswith("file://"):
        for folder, folders, names in os.walk(path, onerror=raise_error, followlinks=True):
            folders[:] = [name for name in folders if not _leads_back(Path(folder, name))]
            for name in names:
                full = os.path.join(folder, name)  # noqa: PTH118 - Path objects would double the time of the walk
                if (status := _status(full)) is not None:
                    yield WalkedFile(full[len(path) :].lstrip("/"), status.st_size, status.st_mtime_ns)
        return
    for folder, _, files in filesystem.walk(path, detail=True, on_error="raise"):
        for name, info in files.items():
            modified = int(info.get("modification_time", 0))
            yield WalkedFile(f"{folder[len(path) :]}/{name}".lstrip("/"), int(info["size"]), modified)


def find_file(url: str) -> WalkedFile | None:
    """The file at `url`, as `walk_files` would find it in its folder, with an empty inner path; None where there is no file.

    Raises:
        OSError: The storage does not answer, or refuses to.
    """
    filesystem, path = open_filesystem(url)
    if absolute_url(url).startswith("file://"):
        status = _status(path)
        return None if status is None else WalkedFile("", status.st_size, status.st_mtime_ns)
    try:
        info = filesystem.info(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return WalkedFile("", int(info["size"]), int(info.get("modification_time", 0))) if info["type"] == "file" else None


def _leads_back(folder: Path) -> bool:
    """Whether a folder is a link to one of its parents, so that following it would lead in a circle."""
    return folder.is_symlink() and folder.resolve() in {parent.resolve() for parent in folder.parents}


def _status(path: str) -> os.stat_result | None:
    """Status of a local file; of the link itself where it leads nowhere or in a circle; None where there is no such file now."""
    for look in (os.stat, os.lstat):
        try:
            status = look(path)
            return status if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode) else None
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
    return None


def raise_error(error: OSError) -> None:
    """Raises `error`: for functions that walk folders, and would pass over those that cannot be listed."""
    raise error


def read_bytes(url: str) -> bytes:
    """The content of the file at `url`."""
    filesystem, path = open_filesystem(url)
    with _storage_errors(url), filesystem.open(path, "rb") as file:
        return bytes(file.read())


def read_json(url: str) -> Any:
    """The JSON document at `url`."""
    return json.loads(read_bytes(url))


@contextmanager
def _storage_errors(url: str) -> Iterator[None]:
    """Turns the errors of hdfs-native for a lost DataNode into OSError."""
    try:
        yield
    except RuntimeError as error:
        if absolute_url(url).startswith("file://"):
            raise
        raise OSError(errno.EIO, first_line(error), url) from error


@contextmanager
def open_input(url: str) -> Iterator[IO[bytes]]:
    """The binary file at `url`, for reading at any position."""
    filesystem, path = open_filesystem(url)
    with _storage_errors(url), filesystem.open(path, "rb") as file:
        yield file


@contextmanager
def open_output(url: str) -> Iterator[IO[bytes]]:
    """A binary file at `url` for writing; its folder is made if it is missing. After closing, its content is on disk."""
    filesystem, path = open_filesystem(url)
    filesystem.makedirs(posixpath.dirname(path), exist_ok=True)
    with _storage_errors(url), filesystem.open(path, "wb") as file:
        yield file
        if absolute_url(url).startswith("file://"):
            file.flush()
            os.fsync(file.fileno())


def write_file(url: str, write: Callable[[IO[bytes]], object]) -> None:
    """Writes the file at `url` so that readers see either its old content or all of the new.

    Args:
        url: URL of the file.
        write: Writes the content to the open file that it is given. It is called again, for a new file, where HDFS fails.
    """
    temporary = write_temporary(url, write)
    try:
        replace(temporary, url)
    except BaseException:
        with suppress(OSError):
            remove(temporary)
        raise


def write_bytes(url: str, content: bytes) -> None:
    """Writes `content`, completely or not at all."""
    write_file(url, lambda file: file.write(content))


def write_temporary(url: str, write: Callable[[IO[bytes]], object]) -> str:
    """Writes the content for `url` to a temporary file beside it.

    On HDFS a write fails with its DataNode, and the NameNode offers that one for some seconds more.
    """
    pauses = iter(() if absolute_url(url).startswith("file://") else _HDFS_PAUSES_S)
    while True:
        temporary = _temporary_name(url)
        try:
            with open_output(temporary) as file:
                write(file)
        except BaseException as error:
            with suppress(OSError):
                remove(temporary)
            pause = next(pauses, None)
            if pause is None or not isinstance(error, OSError):
                raise
            time.sleep(pause)
        else:
            return temporary


def _temporary_name(url: str) -> str:
    """Name of the temporary file that is renamed when it is complete."""
    return f"{url}.{uuid4().hex[:8]}.tmp"


def remove_temporaries(url: str) -> None:
    """Removes temporary files that killed writers left directly in the folder at `url`."""
    filesystem, path = open_filesystem(url)
    for name in filesystem.ls(path, detail=False):
        if _TEMPORARY.search(str(name)):
            filesystem.rm_file(str(name))


def encode_json(document: Any) -> bytes:
    """`document` as indented JSON."""
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def write_json(url: str, document: Any) -> None:
    """Writes `document` as indented JSON, completely or not at all."""
    write_bytes(url, encode_json(document))


def upload(local: str | Path, url: str) -> None:
    """Copies a local file to `url`, completely or not at all, in pieces of 1 MiB."""

    def copy(target: IO[bytes]) -> None:
        source.seek(0)
        shutil.copyfileobj(source, target, _PIECE_BYTES)

    with open(local, "rb") as source:
        write_file(url, copy)


def download(url: str, local: str | Path) -> None:
    """Copies the file at `url` to a local path, in pieces of 1 MiB."""
    with open_input(url) as source, open(local, "wb") as target:
        shutil.copyfileobj(source, target, _PIECE_BYTES)


def replace(source: str, target: str) -> None:
    """Renames the file `source` to `target`, replacing a file there."""
    filesystem, source_path = open_filesystem(source)
    target_path = open_filesystem(target)[1]
    if absolute_url(target).startswith("file://"):
        Path(source_path).replace(target_path)
        sync_folder(posixpath.dirname(target_path))
        return
    filesystem.mv(source_path, target_path, overwrite=True)


def sync_folder(path: str) -> None:
    """Has the names in a local folder on disk: what is renamed before a commit must not be lost after it."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot sync a folder
            raise
    finally:
        os.close(folder)


def move(source: str, target: str) -> None:
    """Renames a file or a folder to `target`, which must not exist; the folder above it is made if it is missing."""
    filesystem, source_path = open_filesystem(source)
    target_path = open_filesystem(target)[1]
    filesystem.makedirs(posixpath.dirname(target_path), exist_ok=True)
    filesystem.mv(source_path, target_path, recursive=True)
    if is_local(target):
        sync_folder(posixpath.dirname(target_path))


def remove(url: str) -> None:
    """Removes the file or folder at `url`, if it is there."""
    filesystem, path = open_filesystem(url)
    if _kind(url) is not None:
        filesystem.rm(path, recursive=True)
