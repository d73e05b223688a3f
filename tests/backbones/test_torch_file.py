"""Files of PyTorch's legacy format, written here as `torch.save` wrote them; PyTorch itself is not installed."""

import io
import os
import pickle
import re
import struct
import sys
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from featurize.backbones.torch_file import read_legacy_tensors

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class FloatStorage:
    """What stands in a file for the storage of float32 elements."""

    __module__ = "torch"

    def __init__(self, key: str, elements: NDArray[np.float32]) -> None:
        self.key, self.elements = key, elements


def _rebuild_tensor_v2(*arguments: Any) -> None:
    """A name for files: nothing calls it."""


_rebuild_tensor_v2.__module__ = "torch._utils"


class Tensor:
    """A view of a storage, pickled as a call."""

    def __init__(self, storage: FloatStorage, offset: int, size: tuple[int, ...], strides: tuple[int, ...]) -> None:
        hooks: OrderedDict[str, Any] = OrderedDict()
        self._view = (storage, offset, size, strides, False, hooks)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_tensor_v2, self._view


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, FloatStorage):
            return ("storage", FloatStorage, value.key, "cpu", len(value.elements), None)
        return None


@pytest.fixture(autouse=True)
def torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules in which `pickle` finds the names that it writes."""
    package, utils = ModuleType("torch"), ModuleType("torch._utils")
    monkeypatch.setattr(package, "FloatStorage", FloatStorage, raising=False)
    monkeypatch.setattr(utils, "_rebuild_tensor_v2", _rebuild_tensor_v2, raising=False)
    monkeypatch.setitem(sys.modules, "torch", package)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)


def legacy_file(named: Mapping[str, Any], *storages: FloatStorage, magic: int = MAGIC) -> bytes:
    file = io.BytesIO()
    keys = [storage.key for storage in storages]
    for value in (magic, PROTOCOL, {"little_endian": True}, OrderedDict(named), keys):
        _Pickler(file, protocol=2).dump(value)
    for storage in storages:
        file.write(struct.pack("<q", len(storage.elements)) + storage.elements.tobytes())
    return file.getvalue()


def read(content: bytes, folder: Path) -> dict[str, NDArray[Any]]:
    (folder / "weights.pth").write_bytes(content)
    return read_legacy_tensors(folder / "weights.pth")


def storage_of(count: int, key: str = "0") -> FloatStorage:
    return FloatStorage(key, np.arange(count, dtype=np.float32))


def test_offset_and_strides_count_and_tensors_share_a_storage(tmp_path: Path) -> None:
    shared, other = storage_of(24), FloatStorage("1", np.array([7, 8], np.float32))
    named = {
        "whole": Tensor(shared, 0, (4, 6), (6, 1)),
        "turned": Tensor(shared, 0, (6, 4), (1, 6)),
        "part": Tensor(shared, 13, (2, 2), (6, 2)),
        "number": Tensor(other, 1, (), ()),
    }
    tensors = read(legacy_file(named, shared, other), tmp_path)
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    expected: dict[str, Any] = {"whole": whole, "turned": whole.T, "part": whole[2:, 1:4:2], "number": np.float32(8)}
    assert list(tensors) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(tensors[name], value)
        assert tensors[name].flags.c_contiguous
        assert tensors[name].flags.owndata


class Hostile:
    def __init__(self, command: str) -> None:
        self._command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self._command,)


def test_a_name_that_is_no_tensor_is_refused_before_anything_runs(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with pytest.raises(ValueError, match=r"is not a file of tensors: it names posix.system"):
        read(legacy_file({"weight": Hostile(f"touch {mark}")}), tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("size", "strides", "offset"),
    [((4, 7), (6, 1), 0), ((2,), (1,), 23), ((2,), (-1,), 5), ((2,), (1,), -1), ((0,), (1,), 0)],
)
def test_a_tensor_outside_its_storage_is_refused(
    tmp_path: Path, size: tuple[int, ...], strides: tuple[int, ...], offset: int
) -> None:
    storage = storage_of(24)
    with pytest.raises(ValueError, match="tensor weight lies outside its storage"):
        read(legacy_file({"weight": Tensor(storage, offset, size, strides)}, storage), tmp_path)


def test_a_file_that_ends_too_early_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    storage = storage_of(24)
    content = legacy_file({"weight": Tensor(storage, 0, (24,), (1,))}, storage)
    assert len(read(content, tmp_path)["weight"]) == 24
    for length in range(0, len(content), 7):
        with pytest.raises(ValueError, match=re.escape(str(tmp_path)) + "|not complete"):
            read(content[:length], tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a file of tensors"),
        (b"PK\x03\x04 the format of newer files", "is not a file of tensors"),
        (legacy_file({}, magic=1), "is not in the legacy format"),
        (legacy_file({"weight": 3}), "holds something else than tensors"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(content, tmp_path)


def test_elements_that_the_file_does_not_list_are_refused(tmp_path: Path) -> None:
    storage = storage_of(4)
    with pytest.raises(ValueError, match="does not hold the elements"):
        read(legacy_file({"weight": Tensor(storage, 0, (4,), (1,))}), tmp_path)
    with pytest.raises(ValueError, match="does not hold the elements"):
        read(legacy_file({}, storage), tmp_path)
