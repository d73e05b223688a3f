"""Notices what must not happen: a file outside that is opened, changed or removed by anyone, and a connection to a listener."""

import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_OPENED, _READ, _LISTED = 0x20, 0x1, 0x40000000
_CHANGES = {0x2: "written", 0x4: "attributes changed", 0x40: "moved away", 0x80: "moved here", 0x100: "created"}
_CHANGES |= {0x200: "removed", 0x400: "removed", 0x800: "moved"}
_LIBC = ctypes.CDLL(None, use_errno=True)
_HEADER = struct.Struct("iIII")


class Watch:
    """Watches all folders below `outside` with the kernel's inotify, which sees the calls of every library and process."""

    def __init__(self, outside: Path) -> None:
        self._file = _LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._folders = {self._add(folder): folder for folder in [outside, *outside.rglob("*")] if folder.is_dir()}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)

    @property
    def port(self) -> int:
        """The port on loopback that listens, and that nobody must connect to."""
        return int(self._listener.getsockname()[1])

    def seen(self, *, may_read: bool) -> list[str]:
        """What has happened since the last call; without what was only read, if that is allowed."""
        found = [f"{path} was {what}" for path, what, is_reading in self._events() if not (may_read and is_reading)]
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return sorted(set(found))
        connection.close()
        return [*sorted(set(found)), "a connection was made"]

    def close(self) -> None:
        os.close(self._file)
        self._listener.close()

    def _add(self, folder: Path) -> int:
        mask = _OPENED | _READ | sum(_CHANGES)
        number: int = _LIBC.inotify_add_watch(self._file, os.fsencode(folder), mask)
        if number < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))
        return number

    def _events(self) -> Iterator[tuple[Path, str, bool]]:
        while True:
            try:
                data = os.read(self._file, 1 << 16)
            except BlockingIOError:
                return
            while data:
                number, mask, _, length = _HEADER.unpack_from(data)
                name = data[_HEADER.size : _HEADER.size + length].rstrip(b"\0").decode()
                data = data[_HEADER.size + length :]
                changes = [what for bit, what in _CHANGES.items() if mask & bit]
                yield self._folders.get(number, Path("?")) / name, (changes or ["opened"])[0], not changes


@contextmanager
def watching(outside: Path) -> Iterator[Watch]:
    watch = Watch(outside)
    try:
        yield watch
    finally:
        watch.close()
