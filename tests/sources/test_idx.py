"""IDX files: written and read back, zipped or not; every damaged one is refused by name."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from helpers.images.idx_files import encode_idx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from featurize.errors import JobError
from featurize.sources.idx import parse_idx, read_idx, unzip

ANY_ARRAY = arrays.arrays(np.uint8, arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5))


@settings(max_examples=50)
@given(ANY_ARRAY, st.booleans())
def test_an_array_comes_back_as_it_was(array: NDArray[np.uint8], zipped: bool) -> None:
    content = gzip.compress(encode_idx(array)) if zipped else encode_idx(array)
    np.testing.assert_array_equal(parse_idx(content, name="x"), array)


@settings(max_examples=50)
@given(ANY_ARRAY, st.data())
def test_a_file_cut_short_or_with_more_at_its_end_is_refused(array: NDArray[np.uint8], data: st.DataObject) -> None:
    content = encode_idx(array)
    end = data.draw(st.integers(0, len(content) - 1))
    for damaged in (content[:end], content + b"\0"):
        with pytest.raises(JobError, match=r"^digits\.idx: "):
            parse_idx(damaged, name="digits.idx")


def test_the_layout_is_that_of_the_published_format() -> None:
    """Source: magic number 0x00000803 of train-images-idx3-ubyte, sizes as big-endian 32-bit integers."""
    content = encode_idx(np.zeros((2, 3, 4), np.uint8))
    assert content[:16] == bytes.fromhex("00000803 00000002 00000003 00000004")
    assert len(content) == 16 + 24


@pytest.mark.parametrize("kind", [0x09, 0x0B, 0x0C, 0x0D, 0x0E])
def test_other_types_than_unsigned_bytes_are_refused(kind: int) -> None:
    with pytest.raises(JobError, match=f"0x{kind:02x}"):
        parse_idx(struct.pack(">HBBI", 0, kind, 1, 0), name="x")


def test_a_header_that_promises_more_than_memory_holds_is_refused() -> None:
    with pytest.raises(JobError, match="announces"):
        parse_idx(struct.pack(">HBB3I", 0, 8, 3, 2**31, 2**31, 2), name="x")


def test_a_gzip_file_that_fills_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featurize.sources.idx.machine_memory_bytes", lambda: 4 << 20)
    assert len(unzip(gzip.compress(bytes(1 << 20)), name="x")) == 1 << 20
    with pytest.raises(JobError, match="holds more than 1 MiB"):
        unzip(gzip.compress(bytes((1 << 20) + 1)), name="x")


@pytest.mark.parametrize("cut", [3, 12, -1])
def test_damaged_gzip_is_refused(cut: int) -> None:
    content = gzip.compress(encode_idx(np.arange(100, dtype=np.uint8)))
    with pytest.raises(JobError, match="damaged gzip"):
        unzip(content[:cut], name="x")


def test_it_is_read_from_a_url(tmp_path: Path) -> None:
    (tmp_path / "two words.gz").write_bytes(gzip.compress(encode_idx(np.arange(6, dtype=np.uint8).reshape(2, 3))))
    assert read_idx(f"file://{tmp_path}/two words.gz").tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.realdata
def test_the_real_mnist_is_read_where_it_is(real_data: Path) -> None:
    found = sorted(path for path in (real_data / "mnist").rglob("*ubyte*") if path.is_file())
    assert found
    shapes = {path.name.removesuffix(".gz"): read_idx(str(path)).shape for path in found}
    for name, shape in shapes.items():
        assert len(shape) == (1 if "labels" in name else 3)
