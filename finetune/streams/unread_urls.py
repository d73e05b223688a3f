"""URLs of messages whose storage did not answer: tried again with later batches, and after some tries given up.

<checkpoint>/firn/waiting-urls.json     the URLs that are tried again, how often they were, and why they could not be read
<checkpoint>/firn/dead-letters/*.json   the URLs that were given up; what sends one again begins anew

Both are written when a batch is done, so that a batch that is repeated after a kill finds what it found before.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel, ConfigDict

from featurize import storage
from featurize.digests import settings_digest
from featurize.tables.documents import read_document

WAITING_NAME = "waiting-urls.json"
DEAD_FOLDER = "dead-letters"
SCHEMA_VERSION = 1
MOST_TRIES = 8
"""How often a file is asked for before its URL is given up."""
FIRST_PAUSE_S = 60.0
"""Least time between the first try and the second; each pause is twice the one before: eight tries take two hours."""
_logger = logging.getLogger(__name__)


class UnreadUrl(BaseModel):
    """A URL that could not be read.

    Attributes:
        tries: How often its storage was asked.
        reason: Why it could not be read, the last time.
        since: When it was tried first.
        next_at: When it may be tried again.
    """

    model_config = ConfigDict(frozen=True)

    url: str
    tries: int
    reason: str
    since: datetime
    next_at: datetime


class UnreadDocument(BaseModel):
    """`waiting-urls.json`, and each file of `dead-letters`."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA_VERSION
    urls: tuple[UnreadUrl, ...] = ()


@dataclass(frozen=True)
class LeftUrls:
    """The URLs that a batch leaves, by their URLs.

    Attributes:
        before: Those that were waiting before it.
        waiting: Those that are tried again.
        dead: Those that are given up.
    """

    before: Mapping[str, UnreadUrl]
    waiting: Mapping[str, UnreadUrl]
    dead: tuple[UnreadUrl, ...]


@dataclass(frozen=True)
class UnreadUrls:
    """The URLs of a stream that could not be read, in Firn's part of its checkpoint, at `url`."""

    url: str

    def waiting(self) -> dict[str, UnreadUrl]:
        """Those that are tried again, by their URLs.

        Raises:
            JobError: The document is damaged.
        """
        document = read_document(self._waiting_url, UnreadDocument, version=SCHEMA_VERSION)
        return {} if document is None else {one.url: one for one in document.urls}

    def after(self, answered: Collection[str], unanswered: Mapping[str, str]) -> "LeftUrls":
        """What a batch leaves, of whose URLs some `answered`, while of others it is known why they did not. Writes nothing."""
        before, now = self.waiting(), datetime.now(UTC)
        waiting, dead = dict[str, UnreadUrl](), list[UnreadUrl]()
        for url in dict.fromkeys((*before, *unanswered)):
            if url in answered:
                continue
            one = before.get(url)
            if url in unanswered:
                one = _tried(url, one, unanswered[url], now)
            if one is not None and one.tries >= MOST_TRIES:
                dead.append(one)
            elif one is not None:
                waiting[url] = one
        return LeftUrls(before, waiting, tuple(dead))

    def record(self, left: "LeftUrls") -> None:
        """Records what a batch has left, when it is done."""
        if left.dead:  # first: a kill must leave a URL in one of the two places
            self._bury(left.dead)
        if left.waiting != left.before:
            storage.write_bytes(self._waiting_url, _as_json(tuple(left.waiting.values())))
        if new := [one for url, one in left.waiting.items() if url not in left.before]:
            _logger.warning(
                "%d URLs cannot be read now and are tried again with later batches, such as %s: %s.",
                *(len(new), new[0].url, new[0].reason),
            )

    def _bury(self, dead: Sequence[UnreadUrl]) -> None:
        document = _as_json(tuple(dead))
        name = settings_digest({"urls": [one.url for one in dead], "since": dead[0].since.isoformat()})[:16]
        place = storage.join_url(self.url, DEAD_FOLDER, f"{name}.json")
        storage.write_bytes(place, document)
        _logger.warning(
            "%d URLs were given up after %d tries, such as %s: %s. They are kept in %s.",
            *(len(dead), MOST_TRIES, dead[0].url, dead[0].reason, place),
        )

    @property
    def _waiting_url(self) -> str:
        return storage.join_url(self.url, WAITING_NAME)


def is_due(one: UnreadUrl) -> bool:
    """Whether a URL may be tried again by now."""
    return datetime.now(UTC) >= one.next_at


def _tried(url: str, before: UnreadUrl | None, reason: str, now: datetime) -> UnreadUrl:
    """A URL after another try that failed."""
    tries = 1 if before is None else before.tries + 1
    pause = timedelta(seconds=FIRST_PAUSE_S * 2 ** (tries - 1))
    since = now if before is None else before.since
    return UnreadUrl(url=url, tries=tries, reason=reason, since=since, next_at=now + pause)


def _as_json(urls: tuple[UnreadUrl, ...]) -> bytes:
    return storage.encode_json(UnreadDocument(urls=urls).model_dump(mode="json"))
