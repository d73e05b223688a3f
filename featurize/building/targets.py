"""Targets: checks that a table may be built at a URL, given what is there already."""

from collections.abc import Mapping
from typing import Any, TypeVar

from featurize import storage
from featurize.building import staging
from featurize.building.staging import Unfinished
from featurize.errors import UsageError
from featurize.sources.listing import ImageSource
from featurize.storage.claims import CLAIM_NAME
from featurize.tables.manifests import Manifest, differing_settings
from featurize.tables.publication import is_own_file, read_manifest

AnyManifest = TypeVar("AnyManifest", bound=Manifest)


def check_apart(url: str, source: ImageSource) -> None:
    """Checks that the table is not in the folder of its images, whose next listing would take it for a class.

    Raises:
        UsageError: it is.
    """
    folder = str(source.settings.get("source", ""))
    if source.settings["layout"] == "folders" and storage.is_within(url, folder):
        raise UsageError(f"{url} is in the folder of the images, {folder}. Write the table elsewhere.")


def check_target(url: str, manifest_type: type[AnyManifest], *, settings: Mapping[str, Any]) -> AnyManifest | None:
    """The manifest at `url` if its table may be added to; None if there is no table and the place is free.

    Raises:
        UsageError: `url` holds a table of another kind or with other settings, or files that are not Firn's.
    """
    existing = read_manifest(url)
    if existing is None:
        _check_free(url)
        return None
    if not isinstance(existing, manifest_type):
        raise UsageError(f"{url} holds a table of {existing.kind}; write to another URL.")
    if lines := differing_settings(existing.settings, settings):
        raise UsageError(
            f"{url} holds a table made with other settings; a mixture is refused. Write to another URL, or remove that "
            "one.\n" + "\n".join(lines)
        )
    return existing


def check_unfinished(url: str, settings: Mapping[str, Any], there: Manifest | None) -> Unfinished | None:
    """What a killed run left at `url`, if it may be resumed; None if nothing of it can be kept.

    Raises:
        UsageError: that run had other settings.
        JobError: its state is damaged, or was written by another version of Firn.
    """
    unfinished = staging.read_unfinished(url, there)
    if unfinished is not None and (lines := differing_settings(unfinished.settings, settings)):
        raise UsageError(
            f"{url} holds the work of an unfinished run with other settings. Finish it, write to another URL, or remove "
            f"{storage.join_url(url, staging.STAGING)}.\n" + "\n".join(lines)
        )
    return unfinished


def _check_free(url: str) -> None:
    """Checks that a folder without a manifest holds nothing but what a killed job left."""
    if storage.exists(url) and not storage.is_folder(url):
        raise UsageError(f"{url} is a file. Write to another URL.")
    for file in storage.list_files(url):
        inner = file[len(url) + 1 :]
        if not staging.is_ours(inner) and not is_own_file(inner) and not inner.startswith(CLAIM_NAME):
            raise UsageError(f"{url} is not empty and holds no table of Firn's: {inner}. Write to another URL.")
