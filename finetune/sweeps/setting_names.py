"""Readable keys and values of recipes."""

from collections.abc import Sequence
from typing import Any


def describe_values(values: dict[str, Any], keys: Sequence[str]) -> str:
    """The values of a setting under `keys`, such as ``learning_rate 0.1, l2 0.01``."""
    names = short_names(keys)
    return ", ".join(f"{names[key]} {as_text(values[key])}" for key in keys if key in values) or "the recipe's own"


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each key, or the whole key where another key ends the same."""
    last = [_last_of_key(key) for key in keys]
    return {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}


def as_text(value: Any) -> str:
    """A value of a recipe, with numbers as short as possible."""
    return f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)


def _last_of_key(key: str) -> str:
    return key.rpartition(".")[2]
