"""IDX files, the format of MNIST."""

import struct

import numpy as np
from numpy.typing import NDArray

_UNSIGNED_BYTE = 0x08


def encode_idx(array: NDArray[np.uint8]) -> bytes:
    """`array` as the bytes of an IDX file, not gzipped."""
    header = struct.pack(f">HBB{array.ndim}I", 0, _UNSIGNED_BYTE, array.ndim, *array.shape)
    return header + array.tobytes()
