"""Digests that name content and settings: SHA-256 throughout, as lower-case hexadecimal text."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_MODULUS = 1 << 256
_CHUNK_BYTES = 1 << 20


def sha256_bytes(content: bytes) -> str:
    """SHA-256 of `content`."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a local file, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def canonical_json(value: Any) -> str:
    """`value` as JSON with sorted keys and no white space: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def settings_digest(value: Any) -> str:
    """Digest of the canonical JSON of `value`: the identity of a set of settings."""
    return sha256_bytes(canonical_json(value).encode())


def multiset_digest(items: Iterable[str]) -> str:
    """Digest of a multiset of texts: the same in any order, and different when a text is missing or doubled.

    It is the sum of the items' SHA-256 modulo 2**256. It protects against accidents, not against forgery.
    """
    total = sum(int.from_bytes(hashlib.sha256(item.encode()).digest(), "big") for item in items)
    return f"{total % _MODULUS:064x}"


def combine_digests(digests: Iterable[str]) -> str:
    """The multiset digest of a union, from the multiset digests of its parts."""
    return f"{sum(int(digest, 16) for digest in digests) % _MODULUS:064x}"
