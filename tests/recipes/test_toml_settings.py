"""Settings: read from TOML, overridden from the command line, every fault named in the user's own words."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from featurize.errors import UsageError
from featurize.recipes.toml_settings import Settings, apply_overrides, check_settings, read_toml

keys = st.text("abcdefgh_", min_size=1, max_size=5)


class Inner(Settings):
    size: int = Field(ge=1)
    rate: float = 0.5


class Outer(Settings):
    name: str
    inner: Inner
    other: Inner | None = None


def faults(document: dict[str, Any]) -> str:
    with pytest.raises(UsageError) as raised:
        check_settings(Outer, document, origin="my.toml")
    return str(raised.value)


def test_every_fault_is_named_at_once_and_counted() -> None:
    message = faults({"nam": "x", "inner": {"size": 0, "rate": "fast", "sise": 3}})
    assert message.startswith("my.toml: 5 faults:")
    for part in ("`name` is missing", "`nam` is not a key; did you mean `name`?", "`inner.size`", "0", "`inner.rate`"):
        assert part in message
    assert "'fast'" in message
    assert "`inner.sise` is not a key; did you mean `size`?" in message
    assert "Input" not in message


def test_one_fault_is_one() -> None:
    assert faults({"name": "x"}) == "my.toml: 1 fault:\n  - `inner` is missing."


def test_a_key_like_no_other_is_given_no_suggestion() -> None:
    message = faults({"name": "x", "inner": {"size": 1, "zzzzz": 1}})
    assert "`inner.zzzzz` is not a key." in message
    assert "did you mean" not in message


def test_keys_of_an_optional_section_are_suggested_too() -> None:
    assert "did you mean `size`?" in faults({"name": "x", "inner": {"size": 1}, "other": {"size": 1, "siz": 1}})


@pytest.mark.parametrize("value", ["3", 3.0, True, None, [3], {"a": 3}])
def test_nothing_is_converted_silently(value: Any) -> None:
    assert "`inner.size`" in faults({"name": "x", "inner": {"size": value}})


def test_a_whole_number_is_a_number() -> None:
    assert check_settings(Outer, {"name": "x", "inner": {"size": 1, "rate": 1}}, origin="x").inner.rate == 1.0


def test_settings_do_not_change_later() -> None:
    settings = check_settings(Outer, {"name": "x", "inner": {"size": 1}}, origin="x")
    with pytest.raises(ValueError, match="frozen"):
        settings.inner.size = 2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("0.5", 0.5),
        ("1e-3", 1e-3),
        ("true", True),
        ("True", "True"),
        ('"3"', "3"),
        ("VGG16", "VGG16"),
        ("256_ObjectCategories", "256_ObjectCategories"),
        ("hdfs://node:8020/a=b", "hdfs://node:8020/a=b"),
        ("two words", "two words"),
        ("[1, 2]", [1, 2]),
        ("{ train = 0.5, seed = 1 }", {"train": 0.5, "seed": 1}),
        ("{ broken", "{ broken"),
        ("", ""),
        ("  padded  ", "padded"),
        ("/data/photos #1", "/data/photos #1"),
        ("a'b\"c", "a'b\"c"),
    ],
)
def test_the_value_of_an_override_is_toml_or_else_plain_text(text: str, value: Any) -> None:
    assert apply_overrides({}, [f"a.b={text}"]) == {"a": {"b": value}}


def test_an_override_reaches_any_depth_and_leaves_the_rest() -> None:
    document = {"images": {"source": "x", "split": {"train": 0.6, "seed": 7}}, "top": 1}
    result = apply_overrides(document, ["images.split.seed=8", "images.source=y", "new.section.key=1"])
    assert result == {
        "images": {"source": "y", "split": {"train": 0.6, "seed": 8}},
        "top": 1,
        "new": {"section": {"key": 1}},
    }
    assert document == {"images": {"source": "x", "split": {"train": 0.6, "seed": 7}}, "top": 1}


def test_the_last_of_two_overrides_counts() -> None:
    assert apply_overrides({}, ["a.b=1", "a.b=2"]) == {"a": {"b": 2}}


def test_a_table_takes_the_place_of_a_value() -> None:
    assert apply_overrides({"images": {"split": "folders"}}, ["images.split.train=1"]) == {
        "images": {"split": {"train": 1}}
    }


@given(st.dictionaries(keys, st.dictionaries(keys, st.integers())), keys, keys, st.integers())
def test_an_override_sets_its_key_and_no_other(document: dict[str, Any], table: str, key: str, value: int) -> None:
    result = apply_overrides(document, [f"{table}.{key}={value}"])
    assert result[table][key] == value
    rest = {name: inner for name, inner in result.items() if name != table}
    assert rest == {name: inner for name, inner in document.items() if name != table}
    before = document.get(table, {})
    assert {k: v for k, v in result[table].items() if k != key} == {k: v for k, v in before.items() if k != key}


@pytest.mark.parametrize("override", ["images.source", "=x", "images.=x", ".source=x", "", "a..b=1"])
def test_an_override_that_is_none_is_quoted_back(override: str) -> None:
    with pytest.raises(UsageError) as raised:
        apply_overrides({}, [override])
    assert repr(override) in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml.*No such file"):
        read_toml(tmp_path / "none.toml")


def test_a_folder_is_not_read_as_a_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_toml(tmp_path)


@pytest.mark.parametrize("content", [b"a = ", b"[a\n", b"\xff\xfe", b"a = 1\na = 2"])
def test_what_is_not_toml_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.toml").write_bytes(content)
    with pytest.raises(UsageError, match=r"x\.toml.*TOML"):
        read_toml(tmp_path / "x.toml")
