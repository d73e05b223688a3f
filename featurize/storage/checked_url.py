"""URLs that carry a rule with them: `storage` checks it each time that it opens, lists, renames or removes what they name.

- Below a folder of Firn's own, no link is followed: not one to a file, and not one to a folder on the way. The folder itself may
  be reached through links, as whoever named it made them. A rename or a removal acts on a link, never on what it leads to.
- A URL that a document names is opened if it is on the file system of the document, or of something that the caller has named
  in this process: for HDFS that means the same NameNode, or `hdfs:///`, the cluster of the caller's own settings. Others must be
  at or below a URL in the environment variable FIRN_ALLOW_URLS. Nothing is connected to before this is known.
"""

import os
from typing import Any

from featurize.errors import JobError, UsageError

ALLOWED = "FIRN_ALLOW_URLS"
"""The environment variable with URLs, separated by blanks, at or below which a document may name files."""
_OWN_CLUSTER = ""  # hdfs:///, where the Hadoop settings of this machine lead
_given: set[str] = set()  # file systems of what the caller has named, in a call, by a flag or in a recipe


class CheckedUrl(str):
    """An absolute URL with the rule by which it may be opened.

    Args:
        url: the URL.
        root: URL of the folder of Firn's own that it was made from; "": none, and links are followed.
        named_by: URL of the document that names it or its root; "": the caller named it.
    """

    root: str
    named_by: str

    def __new__(cls, url: str, root: str = "", named_by: str = "") -> "CheckedUrl":
        """See the class."""
        made = super().__new__(cls, url)
        made.root, made.named_by = str(root), str(named_by)
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        """For pickling: URLs travel to workers with their rules."""
        return str(self), self.root, self.named_by

    def check(self, *, is_entry: bool = False) -> None:
        """Checks that the URL may be opened.

        Args:
            is_entry: whether only the entry in its folder is renamed or removed, so that it may be a link itself.

        Raises:
            UsageError: a document names it, and it is elsewhere.
            JobError: a link is on the way.
        """
        if self.named_by and not may_be_named(self.root or self, self.named_by):
            raise UsageError(
                f"{self.named_by} names {self.root or str(self)!r}, which is on another file system or host; it is not opened. "
                f"Name it yourself, or allow it with the environment variable {ALLOWED}."
            )
        if self.root and (link := find_link(self, self.root, is_entry=is_entry)) is not None:
            raise JobError(
                f"{link} is a link, and Firn follows none inside its own folder {self.root}. Put the files there, or make a link "
                "in place of the whole folder."
            )


def check_url(url: str) -> None:
    """Checks the rule of a URL, if it carries one, before others open it. Raises the errors of `CheckedUrl.check`."""
    if isinstance(url, CheckedUrl):
        url.check()


def keep_rule(url: str, text: str) -> str:
    """`text`, a URL made from `url`, with its rule."""
    return CheckedUrl(text, url.root, url.named_by) if isinstance(url, CheckedUrl) else text


def below(url: str, text: str) -> str:
    """`text`, the absolute URL of something in the folder at `url`, as one below which no link is followed."""
    if isinstance(url, CheckedUrl):
        return CheckedUrl(text, url.root or str(url), url.named_by)
    return CheckedUrl(text, url)


def find_link(url: str, root: str, *, is_entry: bool = False) -> str | None:
    """URL of the first link below the folder `root` on the way to `url`; None where there is none, and on HDFS, which has none.

    Args:
        is_entry: whether `url` itself may be a link.
    """
    if not url.startswith("file://"):
        return None
    names = [name for name in url[len(root) :].split("/") if name]
    place = root.removeprefix("file://").rstrip("/")
    for name in names[:-1] if is_entry else names:
        place = f"{place}/{name}"
        if os.path.islink(place):  # noqa: PTH114 - a Path for each part would take three times as long
            return f"file://{place}"
    return None


def leads_outside(url: str, root: str) -> bool:
    """Whether something whose URL is below that of the folder `root` really lies outside it, by a link."""
    if not f"{url}/".startswith(f"{root}/") and url.startswith("file://"):
        return True
    if find_link(url, root) is None:
        return False
    real, real_root = (os.path.realpath(place.removeprefix("file://")) for place in (url, root))
    return not f"{real}/".startswith(f"{real_root.rstrip('/')}/")


def may_be_named(url: str, document: str) -> bool:
    """Whether a document may name a URL, by the rule above; both are absolute."""
    if _place_of(url) in (_place_of(document), _OWN_CLUSTER, *_given):
        return True
    allowed = (prefix.rstrip("/") for prefix in os.environ.get(ALLOWED, "").split())
    return any(prefix and f"{url}/".startswith(f"{prefix}/") for prefix in allowed)


def give(*urls: str | None) -> None:
    """Notes URLs and paths that the caller has named: documents may name others on their file systems."""
    _given.update(_place_of(url) for url in urls if url is not None and (url.startswith("hdfs://") or "://" not in url))


def _place_of(url: str) -> str:
    """The file system of an absolute URL, with the host."""
    scheme, colon, rest = url.partition("://")
    if not colon or scheme == "file":
        return "file"
    host = rest.partition("/")[0].lower()
    return host if scheme == "hdfs" else f"{scheme}://{host}"
