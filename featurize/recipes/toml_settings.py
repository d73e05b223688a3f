"""Settings files in TOML: reading, overriding, checking. Used for recipes and data set cards."""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from featurize.errors import UsageError


class Settings(BaseModel):
    """Base class of all groups of settings: unknown keys are faults, nothing is converted silently, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Overrides = Mapping[str, Any] | Sequence[str]
"""Values by dotted key, as in ``{"images.source": "photos"}``; or texts of the form ``images.source=photos``."""
AnySettings = TypeVar("AnySettings", bound=Settings)


def read_toml(path: str | Path) -> dict[str, Any]:
    """The TOML document in a local file.

    Raises:
        UsageError: There is no such file, or it is not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: is not TOML: {error}.") from error


def apply_overrides(document: Mapping[str, Any], overrides: Overrides) -> dict[str, Any]:
    """A copy of `document` with single keys set to other values; sections that are missing are added.

    Args:
        overrides: values by dotted key; or texts of the form ``section.key=value``, whose value is TOML, or else plain text.

    Raises:
        UsageError: a text has no ``=``, or a key is empty.
    """
    values = overrides.items() if isinstance(overrides, Mapping) else map(_parse_override, overrides)
    result = _copy(document)
    for key, value in values:
        names = key.split(".")
        if not all(names):
            raise UsageError(f"`overrides` takes dotted keys such as `images.source`. Got {key!r}.")
        table = result
        for name in names[:-1]:
            inner = table.setdefault(name, {})
            table = inner if isinstance(inner, dict) else table.update({name: {}}) or table[name]
        table[names[-1]] = value
    return result


def check_settings(model: type[AnySettings], document: Mapping[str, Any], *, origin: str) -> AnySettings:
    """`document` as a `model`; all faults are reported at once.

    Args:
        model: The settings class.
        document: The parsed TOML.
        origin: The user's name of the document for messages: the path of the file.

    Raises:
        UsageError: There are faults; the message has a line for each.
    """
    if not isinstance(document, Mapping):
        raise UsageError(f"{origin}: must be a table of settings. Got {document!r}.")
    try:
        return model.model_validate(document)
    except ValidationError as error:
        found = error.errors()
        faults = [_describe_fault(model, fault) for fault in found + _hidden_faults(model, document, found)]
    noun = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    raise UsageError(f"{origin}: {noun}:\n" + "\n".join(f"  - {fault}" for fault in faults))


def _copy(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(inner) if isinstance(inner, Mapping) else inner for key, inner in value.items()}


def _parse_override(text: str) -> tuple[str, Any]:
    """Key and value of ``section.key=value``."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise UsageError(f"`overrides` (--set) takes section.key=value. Got {text!r}.")
    return key.strip(), _parse_value(value.strip())


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _hidden_faults(model: type[BaseModel], document: Mapping[str, Any], found: Sequence[Any]) -> list[Any]:
    """Faults between keys, which pydantic checks only where every key alone is right: found by removing the wrong keys."""
    pruned = _copy(document)
    for fault in found:
        _remove_key(pruned, fault["loc"])
    try:
        model.model_validate(pruned)
    except ValidationError as error:
        known = {fault["loc"] for fault in found}
        return [fault for fault in error.errors() if fault["type"] == "value_error" and fault["loc"] not in known]
    return []


def _remove_key(document: dict[str, Any], location: Sequence[Any]) -> None:
    table: Any = document
    for name in location[:-1]:
        if not isinstance(table, dict) or name not in table:
            return
        table = table[name]
    if isinstance(table, dict) and location and not isinstance(table.get(location[-1]), dict):
        table.pop(location[-1], None)


def _describe_fault(model: type[BaseModel], fault: Mapping[str, Any]) -> str:
    """One fault found by pydantic, in the terms of a TOML file."""
    names = [str(part) for part in fault["loc"]]
    key = ".".join(names)
    if fault["type"] == "extra_forbidden":
        close = difflib.get_close_matches(names[-1], _keys_at(model, names[:-1]), n=1, cutoff=0.6)
        return f"`{key}` is not a key" + (f"; did you mean `{close[0]}`?" if close else ".")
    if fault["type"] == "missing":
        return f"`{key}` is missing."
    if fault["type"] == "value_error":  # raised by Firn's own validators, whose messages name the key
        return f"`{key}`: {fault['ctx']['error']}" if key else str(fault["ctx"]["error"])
    message = fault["msg"].replace("Input should be", "must be").replace("Input should", "should")
    return f"`{key}` {message}. Got {fault['input']!r}."


def _keys_at(model: type[BaseModel], names: Sequence[str]) -> list[str]:
    """The keys of the settings at the end of the path `names`."""
    for name in names:
        if name.isdecimal():  # a position in a list, whose items have the keys
            continue
        field = model.model_fields.get(name)
        candidates = _models_in(field.annotation) if field is not None else []
        if not candidates:
            return []
        model = candidates[0]
    return list(model.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The settings classes named in a type annotation, unions and all."""
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]
