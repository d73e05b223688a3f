"""Settings as TOML files; for the tests."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_toml(path: Path, sections: Mapping[str, Mapping[str, Any]]) -> Path:
    """Writes `sections` as tables of these names; returns `path`. A mapping within a section is an inline table."""
    parts = ["\n".join((f"[{name}]", *_lines(settings))) for name, settings in sections.items()]
    path.write_text("\n".join(parts) + "\n")
    return path


def _lines(settings: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_toml(value)}" for key, value in settings.items()]


def _toml(value: Any) -> str:
    """Text and booleans are written as JSON has them, which is TOML too."""
    if isinstance(value, Mapping):
        return f"{{ {', '.join(_lines(value))} }}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, bool | str) else repr(value)
