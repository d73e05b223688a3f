"""What publication needs of storage: files that only one writer can create, renames that are on disk, times by one clock, and
the removal of nothing but empty folders.
"""

import errno
import os
import posixpath
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from featurize.storage.checked_url import find_link
from featurize.storage.urls import (
    absolute_url,
    is_folder,
    is_local,
    join_url,
    make_folder,
    open_filesystem,
    remove,
    sync_folder,
    write_temporary,
)
from featurize.storage.walking import find_file, list_files, raise_error

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def create_exclusively(url: str, content: bytes) -> bool:
    """Creates the file at `url` with `content` if there is none. Returns whether this call made it.

    It appears with its content: an exclusive open would first show an empty file, for ever if its writer dies.
    """
    temporary = write_temporary(url, lambda file: file.write(content))
    filesystem, path = open_filesystem(url, is_entry=True)
    temporary_path = open_filesystem(temporary)[1]
    try:
        if is_local(url):
            _link_exclusively(temporary_path, path, content)
            sync_folder(posixpath.dirname(path))
        else:
            filesystem.mv(temporary_path, path, overwrite=False)
    except FileExistsError:
        return False
    finally:
        with suppress(OSError):  # what was to be done is done, or has failed
            remove(temporary)
    return True


def _link_exclusively(temporary: str, path: str, content: bytes) -> None:
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with open(path, "xb") as file:  # the file system has no hard links
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def move_files(url: str, source: str, target: str, paths: Iterable[str]) -> None:
    """Renames files, each by itself, from a folder to another; afterwards their names are on disk.

    Args:
        url: the folder that both are in.
        source: path of the folder that the files are in, below `url`; "" is `url` itself.
        target: path of the folder that they come to.
        paths: paths of the files, the same below `source` and below `target`.

    Raises:
        OSError: a file is not there, or the storage fails.
    """
    folders = set[str]()
    filesystem, _ = open_filesystem(url)
    for path in paths:
        source_path, target_path = (
            open_filesystem(join_url(url, top, path), is_entry=True)[1] for top in (source, target)
        )
        folder = posixpath.dirname(target_path)
        if folder not in folders:
            make_folder(filesystem, folder)
            folders.add(folder)
        rename_file(filesystem, source_path, target_path)
    if is_local(url):
        for folder in sorted(folders):
            sync_folder(folder)


def rename_file(filesystem: AbstractFileSystem, source: str, target: str) -> None:
    """Renames a file within a file system, by paths; the folder of `target` is there."""
    if isinstance(filesystem, LocalFileSystem):
        Path(source).rename(target)
    else:
        filesystem.mv(source, target)


def modified_ms(url: str) -> int:
    """When the file at `url` was last modified, by the clock of its storage, in milliseconds since 1970.

    Raises:
        FileNotFoundError: There is no such file.
    """
    found = find_file(url)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url)
    return found.modified_ms(url)


def now_ms(url: str) -> int:
    """The time by the clock of the storage of the folder at `url`, in milliseconds since 1970: that of a new file there."""
    probe = write_temporary(join_url(url, "clock"), lambda file: file.write(b"\n"))
    try:
        return modified_ms(probe)
    finally:
        remove(probe)


@contextmanager
def no_empty_folder(url: str) -> Iterator[None]:
    """Removes the folder at `url` if, after a `with` block, there is no file in it: a failed job leaves nothing behind."""
    try:
        yield
    finally:
        with suppress(OSError):  # if the storage fails, nothing is removed
            remove_if_empty(url)


def remove_if_empty(url: str) -> None:
    """Removes the folder at `url` if there is no file in it, at any depth; a link in place of the folder stays.

    Folders go one by one, from the innermost, and only while they are empty: what another process writes meanwhile stays.

    Raises:
        OSError: A folder cannot be listed.
    """
    if not is_folder(url) or list_files(url):
        return
    if find_link(absolute_url(url), absolute_url(url).rpartition("/")[0]) is not None:
        return
    filesystem, path = open_filesystem(url)
    for folder in [*sorted(_folders_below(filesystem, path, is_local=is_local(url)), reverse=True), path]:
        try:
            filesystem.rmdir(folder)
        except FileNotFoundError:
            continue
        except OSError:  # not empty any more
            if not list_files(url):
                raise
            return


def _folders_below(filesystem: AbstractFileSystem, path: str, *, is_local: bool) -> Iterator[str]:
    """The paths of all folders in a folder, at any depth; a link is none."""
    if is_local:
        for folder, names, _ in os.walk(path, onerror=raise_error):
            yield from (f"{folder}/{name}" for name in names if not Path(folder, name).is_symlink())
        return
    for folder, names, _ in filesystem.walk(path, detail=True, on_error="raise"):
        yield from (f"{folder.rstrip('/')}/{name}" for name in names)
