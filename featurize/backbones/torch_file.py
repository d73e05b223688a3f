"""Tensors from a file of PyTorch's legacy format, read without PyTorch and without running anything that the file names.

Source of the format: `torch.serialization._legacy_save`. Five pickles follow each other: a magic number, the version of the
protocol, facts about the machine, the object, the keys of its storages. Then, for each key, the number of elements (int64) and
the elements themselves. In the object a tensor is a call: storage, offset, size, strides in elements; tensors may share storage.
"""

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_DTYPES = {
    "HalfStorage": "<f2",
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "IntStorage": "<i4",
    "LongStorage": "<i8",
    "ByteStorage": "|u1",
}


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str
    elements: int


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    strides: tuple[int, ...]


def read_legacy_tensors(path: str | Path) -> dict[str, NDArray[Any]]:
    """The tensors of a file that holds a dict of them by name, such as a network's weights; each array owns its memory.

    Raises:
        ValueError: It is no such file, holds something else than tensors, or ends too early.
    """
    with Path(path).open("rb") as file:
        try:
            magic, protocol, _, named, keys = (_TensorUnpickler(file).load() for _ in range(5))
        except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is not a file of tensors: {error}") from error
        if magic != _MAGIC or protocol != _PROTOCOL:
            raise ValueError(f"{path} is not in the legacy format of PyTorch.")
        if not isinstance(named, Mapping) or not all(isinstance(tensor, _Tensor) for tensor in named.values()):
            raise ValueError(f"{path} holds something else than tensors by name.")
        storages = {tensor.storage.key: tensor.storage for tensor in named.values()}
        elements = {key: _read_elements(file, storages[key]) for key in keys if key in storages}
    missing = storages.keys() - elements.keys()
    if missing or len(keys) != len(elements):
        raise ValueError(f"{path} does not hold the elements of its tensors.")
    return {name: _array_of(name, tensor, elements[tensor.storage.key]) for name, tensor in named.items()}


class _TensorUnpickler(pickle.Unpickler):
    """Knows ordered dicts, tensors and types of storage; every other name in a file is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """See `pickle.Unpickler`."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        """See `pickle.Unpickler`: ``("storage", type, key, place, number of elements, view)``."""
        kind, dtype, key, _, elements, view = pid
        if kind != "storage" or dtype not in _DTYPES.values() or view is not None:
            raise pickle.UnpicklingError(f"it has a persistent object of kind {kind!r}")
        return _Storage(str(key), dtype, int(elements))


def _rebuild_tensor(
    storage: _Storage, offset: int, size: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> _Tensor:
    return _Tensor(storage, int(offset), tuple(map(int, size)), tuple(map(int, strides)))


def _read_elements(file: IO[bytes], storage: _Storage) -> NDArray[Any]:
    dtype = np.dtype(storage.dtype)
    size = storage.elements * dtype.itemsize
    header, content = file.read(8), file.read(size)
    if int.from_bytes(header, "little") != storage.elements or len(content) < size:
        raise ValueError(f"the elements of storage {storage.key} are not complete.")
    return np.frombuffer(content, dtype)


def _array_of(name: str, tensor: _Tensor, elements: NDArray[Any]) -> NDArray[Any]:
    """The tensor as an array, as its offset and strides say: many are not contiguous."""
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.size, tensor.strides, strict=True))
    is_inside = (
        tensor.offset >= 0 and min((0, *tensor.strides)) >= 0 and min((1, *tensor.size)) >= 1 and last < len(elements)
    )
    if not is_inside:
        raise ValueError(f"tensor {name} lies outside its storage.")
    strides = [stride * elements.itemsize for stride in tensor.strides]
    view = np.lib.stride_tricks.as_strided(elements[tensor.offset :], tensor.size, strides, writeable=False)
    return np.array(view, order="C")
