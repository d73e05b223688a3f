"""Digests: equal content gives equal digests, whatever the order it comes in."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurize.digests import (
    canonical_json,
    combine_digests,
    multiset_digest,
    settings_digest,
    sha256_bytes,
    sha256_file,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def test_a_file_larger_than_one_chunk_has_the_digest_of_its_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 8193  # a little over 2 MiB, not a multiple of 1 MiB
    (tmp_path / "file").write_bytes(content)
    assert sha256_file(tmp_path / "file") == sha256_bytes(content) == hashlib.sha256(content).hexdigest()


@given(st.dictionaries(st.text(max_size=4), JSON, max_size=4))
def test_the_order_of_keys_does_not_change_the_settings_digest(settings: dict[str, Any]) -> None:
    assert settings_digest(dict(reversed(settings.items()))) == settings_digest(settings)


def test_other_settings_have_another_digest() -> None:
    values: list[Any] = [{}, {"a": 1}, {"a": "1"}, {"a": None}, {"b": 1}, {"a": 1.5}, {"a": [1]}, {"a": {"a": 1}}]
    assert len({settings_digest(value) for value in values}) == len(values)


def test_canonical_json_refuses_what_is_not_json() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": float("nan")})


@given(st.lists(st.text(), max_size=8), st.randoms(use_true_random=False))
def test_a_multiset_digest_does_not_know_the_order(items: list[str], random: Any) -> None:
    shuffled = items.copy()
    random.shuffle(shuffled)
    assert multiset_digest(shuffled) == multiset_digest(items)


@given(st.lists(st.text(), max_size=6), st.lists(st.text(), max_size=6))
def test_digests_of_parts_combine_to_the_digest_of_the_whole(first: list[str], second: list[str]) -> None:
    assert combine_digests([multiset_digest(first), multiset_digest(second)]) == multiset_digest(first + second)


@given(st.lists(st.text(), min_size=1, max_size=6))
def test_a_missing_or_doubled_item_changes_the_multiset_digest(items: list[str]) -> None:
    assert multiset_digest(items[1:]) != multiset_digest(items)
    assert multiset_digest([*items, items[0]]) != multiset_digest(items)


@given(st.lists(st.text(), max_size=3))
def test_every_digest_is_64_hexadecimal_digits(items: list[str]) -> None:
    assert len(multiset_digest(items)) == 64
    assert int(multiset_digest(items), 16) >= 0
