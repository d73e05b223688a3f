"""HDFS by hdfs-native, as fsspec sees it, with two faults mended. It is opened lazily, once in every process that asks for it."""

import ctypes
import os

from hdfs_native.fsspec import HdfsFileSystem


class ExactHdfsFileSystem(HdfsFileSystem):
    """Takes every path as it is: hdfs-native would cut one off at its first ``#`` or ``?``, as if it were a web address."""

    cachable = False  # by fsspec, which lets go of what it has cached in every forked child: see `open_hdfs`

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path


_opened: dict[tuple[int, str | None, int | None], ExactHdfsFileSystem] = {}


def open_hdfs(host: str | None, port: int | None) -> ExactHdfsFileSystem:
    """The file system of a NameNode; without a host, that of the Hadoop settings.

    Its client lives as long as the process. To let go of one waits for its threads, and a forked child has inherited the client
    but not the threads: it would wait for ever, before Spark's gateway or a Horovod rank could even start in it.
    """
    key = (os.getpid(), host, port)
    if key not in _opened:
        filesystem = ExactHdfsFileSystem(host=host, port=port)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(filesystem.client.inner))
        _opened[key] = filesystem
    return _opened[key]
