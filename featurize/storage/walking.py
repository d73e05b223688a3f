"""Files in folders. In Firn's own folders links are never followed; in a source of images, where the caller says so."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from featurize.storage.checked_url import below, leads_outside
from featurize.storage.urls import absolute_url, exists, is_folder, is_local, open_filesystem

_Look = Callable[[str], os.stat_result]


class WalkedFile(NamedTuple):
    """A file in a folder: its path below the folder, its size in bytes, and when it was last modified, as the storage counts."""

    inner: str
    size: int
    modified: int

    def modified_ms(self, url: str) -> int:
        """When the file was last modified, in milliseconds since 1970; `url` says on which storage."""
        return self.modified // 1_000_000 if is_local(url) else self.modified


def list_files(url: str) -> list[str]:
    """The URLs of all files under `url`, at any depth, sorted; empty where there is no such folder.

    A link counts as a file, and storage refuses to open it.
    """
    if not exists(url):
        return []
    prefix = absolute_url(url)
    return sorted(
        below(prefix, f"{prefix}/{file.inner}") for file in walk_files(url)
    )  # fsspec's `find` returns an empty list where listing fails


def list_source(url: str, *, follow_links: bool = True) -> list[str]:
    """Like `list_files`, for a folder that is not Firn's own; for links see `walk_source`."""
    prefix = absolute_url(url)
    files = walk_source(url, follow_links=follow_links) if exists(url) else ()
    return sorted(f"{prefix}/{file.inner}" for file in files)


def list_folders(url: str) -> list[str]:
    """The URLs of the folders directly in the folder at `url`, sorted, without links; empty where there is no such folder."""
    if not is_folder(url):
        return []
    filesystem, path = open_filesystem(url)
    prefix = absolute_url(url)
    if prefix.startswith("file://"):
        with os.scandir(path) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    else:
        found = filesystem.ls(path, detail=True)
        names = [str(info["name"]).rstrip("/").rsplit("/", 1)[1] for info in found if info["type"] == "directory"]
    return sorted(below(prefix, f"{prefix}/{name}") for name in names)


def walk_files(url: str) -> Iterator[WalkedFile]:
    """Every file in the folder at `url`, at any depth, in any order. Links are listed and never followed.

    Pipes, sockets and devices are skipped, as opening one would wait for ever.

    Raises:
        OSError: A folder cannot be listed.
    """
    path = open_filesystem(url)[1]
    if not is_local(url):
        yield from _walk_remote(url)
        return
    for folder, folders, names in os.walk(path, onerror=raise_error):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]  # noqa: PTH114, PTH118
        for name in (*names, *links):
            full = os.path.join(folder, name)  # noqa: PTH118 - Path objects would double the time of the walk
            if (found := _walked(full, path, os.lstat)) is not None:
                yield found


def walk_source(url: str, *, follow_links: bool) -> Iterator[WalkedFile]:
    """Every file in a folder of images, like `walk_files`. Links are followed unless they lead in a circle.

    Args:
        follow_links: whether links that lead out of the folder are followed too. Otherwise such a link is listed itself, with
            size and time of its own, and what it leads to is not looked at.

    Raises:
        OSError: A folder cannot be listed.
    """
    path = open_filesystem(url)[1]
    if not is_local(url):
        yield from _walk_remote(url)
        return
    for folder, folders, names in os.walk(path, onerror=raise_error, followlinks=True):
        outside = [] if follow_links else [name for name in folders if _is_outside(f"{folder}/{name}", path)]
        folders[:] = [name for name in folders if name not in outside and not _leads_back(Path(folder, name))]
        for name in (*names, *outside):
            full = os.path.join(folder, name)  # noqa: PTH118 - Path objects would double the time of the walk
            if (found := _walked(full, path, _look_at(full, path, follow_links=follow_links))) is not None:
                yield found


def find_file(url: str, *, source: str | None = None) -> WalkedFile | None:
    """The file at `url` as `walk_source` finds it, with an empty inner path; None where there is no file.

    Args:
        url: URL of the file.
        source: URL of the folder that links do not lead out of; None: all links are followed.

    Raises:
        OSError: The storage does not answer, or refuses to.
    """
    filesystem, path = open_filesystem(url)
    if is_local(url):
        found = _walked(path, path, _look_at(path, (source or "").removeprefix("file://"), follow_links=source is None))
        return None if found is None else found._replace(inner="")
    try:
        info = filesystem.info(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return WalkedFile("", int(info["size"]), int(info.get("modification_time", 0))) if info["type"] == "file" else None


def _walk_remote(url: str) -> Iterator[WalkedFile]:
    filesystem, path = open_filesystem(url)
    for folder, _, files in filesystem.walk(path, detail=True, on_error="raise"):
        for name, info in files.items():
            modified = int(info.get("modification_time", 0))
            yield WalkedFile(f"{folder[len(path) :]}/{name}".lstrip("/"), int(info["size"]), modified)


def _look_at(full: str, top: str, *, follow_links: bool) -> _Look:
    """How to look at a file of a source: at the link itself where it leads outside."""
    return os.stat if follow_links or not _is_outside(full, top) else os.lstat


def _is_outside(full: str, top: str) -> bool:
    """Whether something in a folder that does not lie outside of `top` is a link that leads there."""
    return os.path.islink(full) and leads_outside(f"file://{full}", f"file://{top}")  # noqa: PTH114 - once for each file


def _walked(full: str, top: str, look: _Look) -> WalkedFile | None:
    """A local file as it is listed: the link itself where it leads nowhere; None where there is no such file now."""
    for one in (look, os.lstat):
        try:
            status = one(full)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            continue
        if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
            return WalkedFile(full[len(top) :].lstrip("/"), status.st_size, status.st_mtime_ns)
        return None
    return None


def _leads_back(folder: Path) -> bool:
    """Whether a folder is a link to one of its parents, so that following it would lead in a circle."""
    return folder.is_symlink() and folder.resolve() in {parent.resolve() for parent in folder.parents}


def raise_error(error: OSError) -> None:
    """Raises `error`: for functions that walk folders, and would pass over those that cannot be listed."""
    raise error
