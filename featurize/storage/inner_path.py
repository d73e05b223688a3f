"""What a document may name: files inside its folder, and URLs of other things. Both are checked when the document is read.

`InnerPath` and `InnerName` are the types of paths, `NamedUrl` is the type of URLs.
"""

import re
from typing import Annotated

from pydantic import AfterValidator, ValidationInfo

from featurize.errors import UsageError
from featurize.storage.checked_url import CheckedUrl

DOCUMENT = "document"
"""The key, in the context of a validation, of the URL of the document that is read."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_KNOWN = ("file:/", "hdfs://")
_MOST_CHARACTERS = 4096


def check_inner_path(path: str) -> str:
    """`path`, if it is a path inside a folder: relative, of plain names, and without a scheme.

    Raises:
        ValueError: it is not; the message says why.
    """
    _check_text(path)
    if path.startswith("/"):
        raise ValueError(f"{path!r} is an absolute path; it must be a path inside the folder of the document")
    if "\\" in path:
        raise ValueError(f"{path!r} has a backslash; it must be a path inside the folder of the document")
    if _SCHEME.match(path):
        raise ValueError(f"{path!r} has a scheme; it must be a path inside the folder of the document")
    if any(name in ("", ".", "..") for name in path.split("/")):
        raise ValueError(f"{path!r} is not a plain path inside the folder of the document")
    return path


def check_inner_name(name: str) -> str:
    """`name`, if it can be the name of one file or folder. Raises ValueError, with the reason, if it cannot."""
    if "/" in check_inner_path(name):
        raise ValueError(f"{name!r} is a path; it must be one name")
    return name


def check_url(url: str) -> str:
    """`url`, if it names a file or folder on a file system that Firn knows.

    Raises:
        ValueError: it does not; the message says why.
    """
    _check_text(url)
    if _SCHEME.match(url) and not url.startswith(_KNOWN):
        raise ValueError(f"{url!r} is on no file system that Firn knows; it must begin with file:// or hdfs://")
    if not url.startswith((*_KNOWN, "/")):
        raise ValueError(f"{url!r} is not absolute; it must begin with file:// or hdfs://")
    if ".." in url.split("/"):
        raise ValueError(f"{url!r} goes up with `..`; it must name its place directly")
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise ValueError(f"{url!r} names a user; it must begin with the host")
    return url


def named_url(url: str, *, document: str) -> str:
    """`url`, which the free part of a document names and which is opened now.

    Raises:
        UsageError: it is not a URL, or one that the document may not name, see `checked_url`.
    """
    try:
        CheckedUrl(check_url(url), named_by=document).check()
    except ValueError as error:
        raise UsageError(f"{document}: {error}.") from error
    return url


def _check_text(text: str) -> None:
    if not text or len(text) > _MOST_CHARACTERS:
        raise ValueError(f"it must have 1 to {_MOST_CHARACTERS} characters, not {len(text)}")
    if _CONTROL.search(text) or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{text!r} has control characters")


def _named(url: str, info: ValidationInfo) -> str:
    """A URL that is opened only where the rule of `checked_url` allows it, as soon as it is known which document names it."""
    document: str | None = (info.context or {}).get(DOCUMENT)
    if document is None:
        return check_url(url)
    folder = document.rpartition("/")[0]
    is_inside = f"{check_url(url)}/".startswith(f"{folder}/")
    return CheckedUrl(url, root=getattr(document, "root", "") or folder if is_inside else "", named_by=document)


InnerPath = Annotated[str, AfterValidator(check_inner_path)]
"""A path of a file inside the folder of its document."""
InnerName = Annotated[str, AfterValidator(check_inner_name)]
"""The name of a file or folder, as ids become one."""
NamedUrl = Annotated[str, AfterValidator(_named)]
"""The URL of a file or folder elsewhere."""
