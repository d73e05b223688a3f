"""Networks and measurements that are kept for the next run, in a folder of the user: nothing is lost when it is deleted.

The folder is FIRN_CACHE, or `firn` in XDG_CACHE_HOME, or `~/.cache/firn`. What is damaged there, a link, or of another schema
version is as good as not there.
"""

import errno
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from featurize import storage
from featurize.digests import sha256_file

_logger = logging.getLogger(__name__)
_NETWORK, _ABOUT = "backbone.onnx", "about.json"
SCHEMA_VERSION = 1
Kept = TypeVar("Kept")
_FAULTS = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
)  # of a document that is not what it should be
_MOST_BYTES = 4 << 30  # of networks; the ones used longest ago go first


def cache_folder() -> Path:
    """The folder of everything that is kept."""
    own = os.environ.get("FIRN_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "firn"


def find_network(key: str, parse: Callable[[Mapping[str, Any]], Kept]) -> tuple[Path, Kept] | None:
    """The kept network of a key, with what was written about it; None if there is none, or it is damaged.

    The file is read whole, to compare its digest.

    Args:
        key: digest of all that determines the network.
        parse: as for `find_document`.
    """
    folder = cache_folder() / "networks" / key
    try:
        about = _read(folder / _ABOUT)
        is_whole = not _is_link(folder / _NETWORK) and sha256_file(folder / _NETWORK) == about["sha256"]
        found = parse(about) if is_whole else None
    except (OSError, *_FAULTS):
        found = None
    if found is None:
        if not _is_link(folder):
            shutil.rmtree(folder, ignore_errors=True)
        return None
    with suppress(OSError):
        os.utime(folder / _ABOUT)
    return folder / _NETWORK, found


def keep_network(key: str, path: Path, about: Mapping[str, Any]) -> None:
    """Keeps a copy of a network; where that is not possible, nothing happens.

    Args:
        key: digest of all that determines the network.
        path: its file.
        about: what is needed to use it, ready for JSON.
    """
    networks = cache_folder() / "networks"
    try:
        _refuse_link(networks)
        networks.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".new-", dir=networks))
        try:
            shutil.copyfile(path, made / _NETWORK)
            document = {"schema_version": SCHEMA_VERSION, **about, "sha256": sha256_file(made / _NETWORK)}
            (made / _ABOUT).write_text(json.dumps(document), encoding="utf-8")
            with suppress(OSError):  # another process was faster
                made.rename(networks / key)
        finally:
            shutil.rmtree(made, ignore_errors=True)
        _remove_oldest(networks, spared=key)
    except OSError as error:
        _logger.debug("the network is not kept: %s", error)


def _remove_oldest(networks: Path, *, spared: str) -> None:
    used = {}
    for folder in networks.iterdir():
        with suppress(OSError):
            used[folder] = ((folder / _ABOUT).stat().st_mtime, (folder / _NETWORK).stat().st_size)
    total = sum(size for _, size in used.values())
    for folder in sorted(used, key=lambda folder: used[folder][0]):
        if total > _MOST_BYTES and folder.name != spared:
            shutil.rmtree(folder, ignore_errors=True)
            total -= used[folder][1]


def find_document(kind: str, key: str, parse: Callable[[Any], Kept]) -> Kept | None:
    """A kept JSON document; None if there is none.

    Args:
        kind: which documents it is among.
        key: digest of all that determines it.
        parse: makes what is returned of the document; where it fails, there is none.
    """
    try:
        return parse(_read(cache_folder() / kind / f"{key}.json")["document"])
    except (OSError, *_FAULTS):
        return None


def _read(path: Path) -> Mapping[str, Any]:
    """A kept file. Raises OSError or one of `_FAULTS` where it cannot be used."""
    if _is_link(path):
        raise ValueError(f"{path} is a link")
    document = json.loads(path.read_text(encoding="utf-8"))
    if document["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"{path} is of another version")
    return dict(document)


def _refuse_link(folder: Path) -> None:
    if _is_link(folder):
        raise NotADirectoryError(errno.ENOTDIR, "a link, which Firn does not follow here", str(folder))


def _is_link(path: Path) -> bool:
    """Whether a link leads to a path from the cache's own folder."""
    root = cache_folder().absolute()
    return storage.find_link(f"file://{path.absolute()}", f"file://{root}") is not None


def keep_document(kind: str, key: str, document: Any) -> None:
    """Keeps a JSON document; where that is not possible, nothing happens."""
    folder = cache_folder() / kind
    try:
        _refuse_link(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8") as file:
            json.dump({"schema_version": SCHEMA_VERSION, "document": document}, file)
        Path(file.name).replace(folder / f"{key}.json")
    except OSError as error:
        _logger.debug("%s is not kept: %s", kind, error)
