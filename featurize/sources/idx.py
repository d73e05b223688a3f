"""IDX files, the format of MNIST: a big-endian header and raw bytes, gzipped or not.

Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", section on the file format.
"""

import gzip
import io
import math
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from featurize import storage
from featurize.errors import JobError
from featurize.memory import machine_memory_bytes

_UNSIGNED_BYTE = 0x08
_PIECE_BYTES = 1 << 20
_MOST_DIMENSIONS = 32  # of NumPy
_GZIP_MAGIC = b"\x1f\x8b"


def read_idx(url: str) -> NDArray[np.uint8]:
    """The array of unsigned bytes in an IDX file: ``uint8``, of any number of dimensions.

    Raises:
        JobError: The file is not IDX, holds another type, or is cut short.
    """
    return parse_idx(storage.read_bytes(url), name=url)


def parse_idx(content: bytes, *, name: str) -> NDArray[np.uint8]:
    """The array in the bytes of an IDX file, like `read_idx`; `name` is for the error message."""
    content = unzip(content, name=name)
    if len(content) < 4 or content[:2] != b"\0\0":
        raise JobError(f"{name}: not an IDX file.")
    kind, dimensions = content[2], content[3]
    if kind != _UNSIGNED_BYTE:
        raise JobError(f"{name}: IDX of type 0x{kind:02x}; only unsigned bytes (0x08) are supported.")
    if dimensions > _MOST_DIMENSIONS:
        raise JobError(f"{name}: IDX of {dimensions} dimensions; at most {_MOST_DIMENSIONS} are supported.")
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise JobError(f"{name}: IDX header cut short.")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    size = math.prod(shape)
    if len(content) - start != size:
        raise JobError(f"{name}: the IDX header announces {size} bytes, but {len(content) - start} follow.")
    try:
        return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)
    except ValueError as error:  # no array has such sizes, though one of them is 0
        raise JobError(f"{name}: the IDX header announces sizes that no array has.") from error


def unzip(content: bytes, *, name: str) -> bytes:
    """`content`, decompressed if it is gzip.

    Raises:
        JobError: The gzip file is damaged, or holds more than the memory of this machine.
    """
    if content[:2] != _GZIP_MAGIC:
        return content
    most = machine_memory_bytes() // 4
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            plain = bytearray()
            while piece := file.read(_PIECE_BYTES):
                plain += piece
                if len(plain) > most:
                    raise JobError(f"{name}: the gzip file holds more than {most >> 20} MiB, a quarter of the memory.")
            return bytes(plain)
    except (OSError, EOFError, zlib.error) as error:
        raise JobError(f"{name}: damaged gzip file: {error}.") from error
