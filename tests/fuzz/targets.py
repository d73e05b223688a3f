"""What others hand to Firn, as functions of bytes: each either works or raises an error that Firn means to raise.

`search.py` looks for bytes that make one fail in another way; `test_corpus.py` runs them all on what was found before.
"""

import hmac
import io
import socket
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from featurize.decoding.decode import DecodeError, decode_image, inspect_image
from featurize.errors import FirnError
from featurize.sources.idx import parse_idx, unzip
from featurize.tables import publication
from featurize.tables.publication import read_manifest
from featurize.tables.row_groups import RowGroup, read_footer, read_row_group
from finetune.ranks.hub_messages import Frames, Stranger

KEY = b"k" * 32


def decode(content: bytes) -> None:
    """An image file."""
    try:
        inspect_image(content)
        decode_image(content, height=8, width=8)
    except DecodeError:
        pass


def exif(content: bytes) -> None:
    """The EXIF block of a photograph that is whole: whatever is in it, the pixels are used."""
    picture = _photograph()
    block = b"Exif\0\0" + content[: 0xFFFF - 10]
    whole = picture[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + picture[2:]
    inspect_image(whole)
    decode_image(whole, height=8, width=8)


def idx(content: bytes) -> None:
    """An IDX file, gzipped or not."""
    for read in (parse_idx, unzip):
        try:
            read(content, name="x")
        except FirnError:
            pass


def documents(content: bytes) -> None:
    """The commit that published a table, and the manifest of a table of Firn 0.1."""
    for name in (f"_delta_log/{0:020d}.json", "manifest.json"):
        folder = _folder() / name.partition("/")[0].removesuffix(".json")
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        publication._cached.clear()
        try:
            read_manifest(str(folder))
        except FirnError:
            pass


def frames(content: bytes) -> None:
    """What arrives at the hub of the ranks: from a stranger, and from a rank, sealed."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(content[: 1 << 14])
        theirs.shutdown(socket.SHUT_WR)
        stranger = Stranger(ours, KEY, 0.0)
        try:
            while stranger.hear() is None:
                pass
        except OSError:
            pass
    ours, theirs = socket.socketpair()
    with ours, theirs:
        seal = hmac.digest(KEY, struct.pack("!Q", 0) + content[: 1 << 14], "sha256")[:16]
        theirs.sendall(struct.pack("!I", len(content[: 1 << 14])) + seal + content[: 1 << 14])
        for message in Frames(ours, KEY, KEY).receive():
            assert isinstance(message, dict)


def parquet(content: bytes) -> None:
    """A data file of a feature set."""
    path = _folder() / "data.parquet"
    path.write_bytes(content)
    try:
        footer = read_footer(str(path))
        for index in range(min(footer.num_row_groups, 4)):
            read_row_group(RowGroup(str(path), index, footer), ("path", "features"))
    except FirnError:
        pass


TARGETS: dict[str, Callable[[bytes], None]] = {
    "decode": decode,
    "exif": exif,
    "idx": idx,
    "documents": documents,
    "frames": frames,
    "parquet": parquet,
}


def seeds(target: str) -> list[bytes]:
    """Good inputs, from which the search begins."""
    if target == "decode":
        return [_saved(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")]
    if target == "exif":
        block = Image.Exif()
        block.update({271: "Acme", 274: 6, 306: "2026:01:02 03:04:05"})
        return [block.tobytes().removeprefix(b"Exif\0\0")]
    if target == "idx":
        return [struct.pack(">HBB2I", 0, 8, 2, 2, 3) + bytes(6)]
    if target == "documents":
        own = '{"schema_version":3,"token":"a","table_id":"b","facts":{},"kept":0,"shards":[]}'
        return [f'{{"commitInfo":{{"timestamp":1,"firn":{own}}}}}\n'.encode()]
    if target == "parquet":
        rows = pa.table({"path": ["a", "b"], "features": pa.array([[1.0], [2.0]], pa.list_(pa.float32()))})
        buffer = io.BytesIO()
        pq.write_table(rows, buffer, compression="zstd")
        return [buffer.getvalue()]
    return [b'{"rank":1}', b"[]\n"]


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="firn-fuzz-"))


@cache
def _photograph() -> bytes:
    return _saved("JPEG")


def _saved(kind: str) -> bytes:
    pixels = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()
