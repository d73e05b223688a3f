"""Networks and measurements that are kept for the next run, in a folder of the user: nothing is lost when it is deleted.

The folder is FIRN_CACHE, or `firn` in XDG_CACHE_HOME, or `~/.cache/firn`.
"""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from featurize.digests import sha256_file

_logger = logging.getLogger(__name__)
_NETWORK, _ABOUT = "backbone.onnx", "about.json"
_MOST_BYTES = 4 << 30  # of networks; the ones used longest ago go first


def cache_folder() -> Path:
    """The folder of everything that is kept."""
    own = os.environ.get("FIRN_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "firn"


def find_network(key: str) -> tuple[Path, dict[str, Any]] | None:
    """The kept network of a key, with what was written about it; None if there is none, or it is damaged.

    The file is read whole, to compare its digest.
    """
    folder = cache_folder() / "networks" / key
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        is_whole = isinstance(about, dict) and sha256_file(folder / _NETWORK) == about.get("sha256")
    except (OSError, ValueError):
        is_whole = False
    if not is_whole:
        shutil.rmtree(folder, ignore_errors=True)
        return None
    with suppress(OSError):
        os.utime(folder / _ABOUT)
    return folder / _NETWORK, about


def keep_network(key: str, path: Path, about: Mapping[str, Any]) -> None:
    """Keeps a copy of a network; where that is not possible, nothing happens.

    Args:
        key: digest of all that determines the network.
        path: its file.
        about: what is needed to use it, ready for JSON.
    """
    networks = cache_folder() / "networks"
    try:
        networks.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".new-", dir=networks))
        try:
            shutil.copyfile(path, made / _NETWORK)
            document = {**about, "sha256": sha256_file(made / _NETWORK)}
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


def find_document(kind: str, key: str) -> Any:
    """A kept JSON document; None if there is none."""
    try:
        return json.loads((cache_folder() / kind / f"{key}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def keep_document(kind: str, key: str, document: Any) -> None:
    """Keeps a JSON document; where that is not possible, nothing happens."""
    folder = cache_folder() / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8") as file:
            json.dump(document, file)
        Path(file.name).replace(folder / f"{key}.json")
    except OSError as error:
        _logger.debug("%s is not kept: %s", kind, error)
