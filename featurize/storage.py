"""URLs to file systems. Everything Firn reads or writes in Python goes through here, on local disks and `hdfs://` alike.

A URL is `file:///absolute/path`, a plain path (relative to the working directory), or `hdfs://host:port/path`.
"""

import json
import os
import posixpath
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit
from uuid import uuid4

import fsspec
from fsspec import AbstractFileSystem

from featurize.errors import JobError, UsageError

_CONNECT_TIMEOUT_S = 10.0
SCHEMES = ("file", "hdfs")


def absolute_url(url: str) -> str:
    """`url` with its scheme and an absolute path, without a trailing slash, as stored in manifests.

    Raises:
        UsageError: the scheme is not one Firn reads.
    """
    if "://" not in url and not url.startswith("file:/"):
        # ".." is taken out and links are left alone, as Spark does it; Path.resolve would follow links.
        return "file://" + os.path.abspath(Path(url).expanduser())  # noqa: PTH100
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        allowed = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise UsageError(f"a URL must be a local path or begin with one of {allowed}. Got {url!r}.")
    if parts.scheme == "file":  # Spark writes file:/path where others write file:///path
        return "file://" + posixpath.normpath("/" + url.removeprefix("file:").lstrip("/"))
    return f"{parts.scheme}://{parts.netloc}{posixpath.normpath('/' + parts.path.lstrip('/'))}"


def open_filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system of `url` and the path of `url` inside it. HDFS is opened here, lazily: call it after forking."""
    url = absolute_url(url)
    if url.startswith("file://"):
        return fsspec.filesystem("file"), url.removeprefix("file://")
    parts = urlsplit(url)
    if parts.hostname and parts.port:
        _check_reachable(parts.hostname, parts.port)
    filesystem, path = fsspec.core.url_to_fs(url)
    return filesystem, path


@cache
def _check_reachable(host: str, port: int) -> None:
    """Fails at once where the HDFS client would go on trying for minutes."""
    try:
        socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise JobError(f"no HDFS NameNode answers at {host}:{port}: {error.strerror or error}.") from error


def join_url(url: str, *parts: str) -> str:
    """`url` with path `parts` appended."""
    return posixpath.join(absolute_url(url), *parts)


def exists(url: str) -> bool:
    """Whether a file or folder is at `url`."""
    filesystem, path = open_filesystem(url)
    return bool(filesystem.exists(path))


def is_folder(url: str) -> bool:
    """Whether a folder is at `url`."""
    filesystem, path = open_filesystem(url)
    return bool(filesystem.isdir(path))


def list_files(url: str) -> list[str]:
    """The URLs of all files under `url`, at any depth, sorted; none where there is no such folder."""
    filesystem, path = open_filesystem(url)
    if not filesystem.exists(path):
        return []
    prefix = absolute_url(url)
    return sorted(prefix + name[name.index(path) + len(path) :] for name in filesystem.find(path))


def walk_files(url: str) -> Iterator[tuple[str, int]]:
    """The path below `url` and the size in bytes of every file in the folder, links followed, in no certain order.

    Raises:
        OSError: a folder cannot be listed.
    """
    filesystem, path = open_filesystem(url)
    if absolute_url(url).startswith("file://"):
        for folder, _, names in os.walk(path, onerror=_raise, followlinks=True):
            for name in names:
                full = os.path.join(folder, name)  # noqa: PTH118 - Path objects would double the time of the walk
                yield full[len(path) :].lstrip("/"), os.stat(full).st_size  # noqa: PTH116
        return
    for folder, _, files in filesystem.walk(path, detail=True, on_error="raise"):
        for name, info in files.items():
            yield f"{folder[len(path) :]}/{name}".lstrip("/"), int(info["size"])


@contextmanager
def no_empty_folder(url: str) -> Iterator[None]:
    """Takes the folder at `url` away if, after a `with` block, no file is in it: what came to nothing leaves nothing."""
    try:
        yield
    finally:
        remove_if_empty(url)


def remove_if_empty(url: str) -> None:
    """Removes the folder at `url` if no file is in it, at any depth."""
    if not list_files(url):
        remove(url)


def _raise(error: OSError) -> None:
    raise error


def read_bytes(url: str) -> bytes:
    """The content of the file at `url`."""
    filesystem, path = open_filesystem(url)
    with filesystem.open(path, "rb") as file:
        return bytes(file.read())


def read_json(url: str) -> Any:
    """The JSON document at `url`."""
    return json.loads(read_bytes(url))


@contextmanager
def open_output(url: str) -> Iterator[IO[bytes]]:
    """A binary file at `url` to write to; its folder is made if it is missing."""
    filesystem, path = open_filesystem(url)
    filesystem.makedirs(posixpath.dirname(path), exist_ok=True)
    with filesystem.open(path, "wb") as file:
        yield file


def write_bytes(url: str, content: bytes) -> None:
    """Writes `content` so that a reader of `url` sees all of it or what was there before."""
    temporary = f"{url}.{uuid4().hex[:8]}.tmp"
    with open_output(temporary) as file:
        file.write(content)
    replace(temporary, url)


def encode_json(document: Any) -> bytes:
    """`document` as indented JSON, for people and programs."""
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def write_json(url: str, document: Any) -> None:
    """Writes `document` as indented JSON, whole or not at all."""
    write_bytes(url, encode_json(document))


def upload(local: str | Path, url: str) -> None:
    """Copies a local file to `url`, whole or not at all, in pieces of 1 MiB."""
    temporary = f"{url}.{uuid4().hex[:8]}.tmp"
    with open(local, "rb") as source, open_output(temporary) as target:
        while chunk := source.read(1 << 20):
            target.write(chunk)
    replace(temporary, url)


def download(url: str, local: str | Path) -> None:
    """Copies the file at `url` to a local path, in pieces of 1 MiB."""
    filesystem, path = open_filesystem(url)
    with filesystem.open(path, "rb") as source, open(local, "wb") as target:
        while chunk := source.read(1 << 20):
            target.write(chunk)


def replace(source: str, target: str) -> None:
    """Renames the file `source` to `target`, over what is there."""
    filesystem, source_path = open_filesystem(source)
    target_path = open_filesystem(target)[1]
    if absolute_url(target).startswith("file://"):
        Path(source_path).replace(target_path)
        return
    filesystem.mv(source_path, target_path, overwrite=True)


def create_exclusively(url: str, content: bytes) -> bool:
    """Creates the file at `url` with `content` if none is there. Returns whether this call made it."""
    filesystem, path = open_filesystem(url)
    filesystem.makedirs(posixpath.dirname(path), exist_ok=True)
    try:
        if absolute_url(url).startswith("file://"):
            temporary = Path(f"{path}.{uuid4().hex[:8]}.tmp")
            temporary.write_bytes(content)
            try:
                os.link(temporary, path)  # with its content at once, where an exclusive open would first show it empty
            except FileExistsError:
                raise
            except OSError:  # a file system without hard links
                with open(path, "xb") as file:
                    file.write(content)
            finally:
                temporary.unlink()
        else:
            with filesystem.open(path, "wb", overwrite=False) as file:
                file.write(content)
    except FileExistsError:
        return False
    return True


def move(source: str, target: str) -> None:
    """Renames a file or a folder to `target`, which must not exist; the folder above it is made if it is missing."""
    filesystem, source_path = open_filesystem(source)
    target_path = open_filesystem(target)[1]
    filesystem.makedirs(posixpath.dirname(target_path), exist_ok=True)
    filesystem.mv(source_path, target_path, recursive=True)


def remove(url: str) -> None:
    """Removes the file or folder at `url`, if it is there."""
    filesystem, path = open_filesystem(url)
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)
