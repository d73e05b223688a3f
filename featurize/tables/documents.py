"""JSON documents with a schema version: read, checked, and refused by name."""

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from featurize import storage
from featurize.errors import JobError, first_line

Document = TypeVar("Document", bound=BaseModel)
_KEY = "schema_version"


def read_document(url: str, model: type[Document], *, version: int, remedy: str = "") -> Document | None:
    """The JSON document at `url`, or None where there is none.

    Args:
        url: URL of the file.
        model: Its fields.
        version: The only value of `schema_version` that is accepted. A document without that key has version 1.
        remedy: A sentence for the message about a damaged document: what to do about it.

    Raises:
        JobError: The document is damaged, or has another schema version.
    """
    try:
        content = storage.read_json(url)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise _damaged(url, first_line(error), remedy) from error
    if isinstance(content, dict) and content.get(_KEY, 1) != version:
        found = f"schema version {content[_KEY]!r}" if _KEY in content else "no schema version"
        raise JobError(f"{url} has {found}; this Firn reads {version}.")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(key) for key in fault["loc"])
        raise _damaged(url, f"{place}: {fault['msg']}" if place else fault["msg"], remedy) from error


def _damaged(url: str, reason: str, remedy: str) -> JobError:
    return JobError(f"{url} is damaged: {reason}.{f' {remedy}' if remedy else ''}")
