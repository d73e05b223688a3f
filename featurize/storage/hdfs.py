"""HDFS through hdfs-native and fsspec, with three faults fixed. Opened lazily, once in each process."""

import ctypes
import errno
import os
from collections.abc import Callable
from functools import wraps
from typing import Any

from hdfs_native.fsspec import HdfsFileSystem

from featurize.errors import first_line


class ExactHdfsFileSystem(HdfsFileSystem):
    """Takes every path literally, and fails with OSError.

    hdfs-native would cut a path at its first ``#`` or ``?``, as in a web address, and raises RuntimeError for most refusals of a
    NameNode: no permission, safe mode, a quota.
    """

    cachable = False  # for fsspec, which releases its cache in every forked child: see `open_hdfs`

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path


def _failing_with_os_error(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(self: ExactHdfsFileSystem, path: str, *arguments: Any, **settings: Any) -> Any:
        try:
            return method(self, path, *arguments, **settings)
        except RuntimeError as error:
            text = first_line(error)
            if "is not a directory" in text:
                raise NotADirectoryError(errno.ENOTDIR, text, path) from error
            refused = "AccessControlException" in str(error)
            raise OSError(errno.EACCES if refused else errno.EIO, text, path) from error

    return call


for _name in ("info", "exists", "ls", "mkdir", "makedirs", "mv", "rm", "rmdir", "rm_file", "_open"):
    setattr(ExactHdfsFileSystem, _name, _failing_with_os_error(getattr(ExactHdfsFileSystem, _name)))

_opened: dict[tuple[int, str | None, int | None], ExactHdfsFileSystem] = {}


def open_hdfs(host: str | None, port: int | None) -> ExactHdfsFileSystem:
    """The file system of a NameNode; without a host, that of the Hadoop settings.

    Its client lives as long as the process. Releasing a client waits for its threads, and a forked child has inherited the client
    but not the threads: it would wait for ever, before Spark's gateway or a Horovod rank could even start in it.
    """
    key = (os.getpid(), host, port)
    if key not in _opened:
        filesystem = ExactHdfsFileSystem(host=host, port=port)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(filesystem.client.inner))
        _opened[key] = filesystem
    return _opened[key]
