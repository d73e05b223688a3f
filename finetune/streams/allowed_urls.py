"""The places whose files the messages of a topic may name: who writes to a topic must not choose what the stream reads."""

import os
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, Self
from urllib.parse import unquote

from featurize import storage
from featurize.errors import UsageError

_FILE = "file://"
_DECODINGS = 4  # a URL may be encoded several times over
OUTSIDE = "outside the places that `allow_urls` names"
LEADS_OUTSIDE = f"a link leads {OUTSIDE}"
"""Why a file is not read."""


class _Place(NamedTuple):
    """A URL in its parts: nothing but whole ones are compared."""

    scheme: str
    host: str
    parts: tuple[str, ...]

    @classmethod
    def of(cls, url: str) -> Self:
        """The place of an absolute URL."""
        scheme, _, rest = url.partition("://")
        host, _, path = rest.partition("/")
        return cls(scheme, host, tuple(part for part in path.split("/") if part))

    def holds(self, other: "_Place") -> bool:
        """Whether another place is this one or lies below it."""
        return self[:2] == other[:2] and other.parts[: len(self.parts)] == self.parts


@dataclass(frozen=True)
class AllowedUrls:
    """Some folders or files, each with all that lies below it; host and port of HDFS must be the same to the letter.

    Attributes:
        named: The places as they were named; of a local one that is a link, each host has what it leads to there.
    """

    named: tuple[_Place, ...]

    @classmethod
    def of(cls, prefixes: Sequence[str]) -> Self:
        """The places below `prefixes`, local paths or URLs.

        Raises:
            UsageError: There is none, or one is no URL that Firn can read.
        """
        if not prefixes or not all(prefixes):
            raise UsageError("`allow_urls` must name the folders whose files the messages may name, by path or URL.")
        return cls(tuple(_Place.of(storage.absolute_url(prefix)) for prefix in prefixes))

    def fault(self, url: str) -> str | None:
        """Why the file at an absolute URL must not be read; None: it may be.

        Nothing is connected to, and links are looked at only where the URL as it is written lies in an allowed place. A URL that
        would lead outside if someone decoded it is refused too.
        """
        real = _real_places(self.named)
        if not all(_is_in((*self.named, *real), form) for form in _forms(url)):
            return OUTSIDE
        if url.startswith(_FILE) and not _is_in(real, _resolved(url)):
            return LEADS_OUTSIDE
        return None

    def holds_file(self, path: str) -> bool:
        """Whether a local path without links lies in an allowed place."""
        return _is_in(_real_places(self.named), _FILE + path)


@cache
def _real_places(named: tuple[_Place, ...]) -> tuple[_Place, ...]:
    """Places with the links of local ones resolved on this host."""
    urls = [f"{scheme}://{host}/{'/'.join(parts)}" for scheme, host, parts in named]
    return tuple(_Place.of(_resolved(url)) for url in urls)


def _is_in(places: Iterable[_Place], url: str) -> bool:
    place = _Place.of(url)
    return ".." not in place.parts and any(allowed.holds(place) for allowed in places)


def _forms(url: str) -> set[str]:
    """A URL and what it becomes where its percent-encoding is decoded, once or several times, without dots in its path."""
    forms = {url}
    for _ in range(_DECODINGS):
        url = unquote(url)
        scheme, _, rest = url.partition("://")
        host, _, path = rest.partition("/")
        forms.add(f"{scheme}://{host}{posixpath.normpath(f'/{path}')}")
    return forms


def _resolved(url: str) -> str:
    """The URL with the links of a local path resolved; HDFS has no links that are followed."""
    return _FILE + os.path.realpath(url.removeprefix(_FILE)) if url.startswith(_FILE) else url
