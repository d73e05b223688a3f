"""JSON documents with a schema version: read, checked, and refused by name.

Every document that Firn reads may come from someone else. So its paths and URLs have the types of `storage.inner_path`, and a
document whose schema version is not known is refused: nobody knows what it means.
"""

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from featurize import storage
from featurize.errors import JobError, first_line
from featurize.storage.inner_path import DOCUMENT

Document = TypeVar("Document", bound=BaseModel)
_KEY = "schema_version"


class DamagedDocumentError(JobError):
    """A document cannot be read: it is cut off, or its fields are wrong."""


def read_document(url: str, model: type[Document], *, version: int, remedy: str = "") -> Document | None:
    """The JSON document at `url`, or None where there is none.

    Args:
        url: URL of the file.
        model: Its fields.
        version: The only value of `schema_version` that is accepted. A document without that key has version 1.
        remedy: A sentence for the message about a damaged document: what to do about it.

    Raises:
        DamagedDocumentError: The document is damaged.
        JobError: It has another schema version, or is a link.
    """
    try:
        content = storage.read_bytes(url)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except IsADirectoryError as error:
        raise _damaged(url, "it is a folder", remedy) from error
    return parse_document(content, model, version=version, origin=url, remedy=remedy)


def parse_document(
    content: bytes | str, model: type[Document], *, version: int, origin: str, remedy: str = ""
) -> Document:
    """A JSON document, as `read_document`, from its text.

    Args:
        origin: The URL of the file that it is in.

    Raises:
        DamagedDocumentError, JobError: As for `read_document`.
    """
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _damaged(origin, first_line(error), remedy) from error
    return check_document(document, model, version=version, origin=origin, remedy=remedy)


def check_document(document: Any, model: type[Document], *, version: int, origin: str, remedy: str = "") -> Document:
    """A JSON document, as `parse_document`, that is parsed already."""
    check_version(document, version=version, origin=origin)
    try:
        return model.model_validate(document, context={DOCUMENT: origin})
    except ValidationError as error:
        raise _damaged(origin, first_fault(error), remedy) from error


def check_version(document: Any, *, version: int, origin: str) -> None:
    """Checks the schema version of a parsed document, whatever else is in it.

    Raises:
        JobError: It is another one than `version`.
    """
    if not isinstance(document, dict):
        return
    found = document.get(_KEY, 1)
    if type(found) is not int or found != version:
        said = f"schema version {found!r}" if _KEY in document else "no schema version"
        raise JobError(f"{origin} has {said}; this Firn reads {version}.")


def first_fault(error: ValidationError) -> str:
    """The first fault that a document has, with its place in it."""
    fault = error.errors()[0]
    place = ".".join(str(key) for key in fault["loc"])
    return f"{place}: {fault['msg']}" if place else fault["msg"]


def _damaged(url: str, reason: str, remedy: str) -> DamagedDocumentError:
    return DamagedDocumentError(f"{url} is damaged: {reason}.{f' {remedy}' if remedy else ''}")
