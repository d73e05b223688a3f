"""Publishing a made-up manifest over what is there, and the passing of time."""

import os
import time
from pathlib import Path

from featurize.tables.manifests import Manifest
from featurize.tables.publication import publish, read_manifest


def write_manifest(url: str, manifest: Manifest) -> None:
    """Publishes `manifest` as the next version of the table at `url`."""
    publish(url, manifest, after=read_manifest(url))


def grow_old(folder: Path, days: float = 30) -> None:
    """Makes all files of a table older."""
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - days * 86_400,) * 2)
