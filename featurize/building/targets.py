"""Targets: whether a table may be built where it is to go, given what is there already."""

from collections.abc import Mapping
from typing import Any, TypeVar

from featurize import storage
from featurize.building import staging
from featurize.building.staging import Unfinished
from featurize.errors import UsageError
from featurize.sources.listing import ImageSource
from featurize.storage.claims import CLAIM_NAME
from featurize.tables.manifests import MANIFEST_NAME, Manifest, differing_settings, read_manifest

AnyManifest = TypeVar("AnyManifest", bound=Manifest)


def check_apart(url: str, source: ImageSource) -> None:
    """The table may not lie in the folder it is made from, whose next listing would find it as a class.

    Raises:
        UsageError: it does.
    """
    folder = str(source.settings.get("source", ""))
    if source.settings["layout"] == "folders" and storage.is_within(url, folder):
        raise UsageError(f"{url} is in the folder of the images, {folder}. Write the table elsewhere.")


def check_target(url: str, manifest_type: type[AnyManifest], *, settings: Mapping[str, Any]) -> AnyManifest | None:
    """The manifest that is there already, if it may be added to; None where there is none, and nothing of others.

    Raises:
        UsageError: a table of another kind or with other settings is there, or something that is not Firn's.
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


def check_unfinished(url: str, settings: Mapping[str, Any]) -> Unfinished | None:
    """What a killed run left there, if it may be gone on with; None where it left nothing that can be kept.

    Raises:
        UsageError: that run had other settings.
        JobError: what it left cannot be understood.
    """
    unfinished = staging.read_unfinished(url)
    if unfinished is not None and (lines := differing_settings(unfinished.settings, settings)):
        raise UsageError(
            f"{url} holds the work of an unfinished run with other settings. Finish it, write to another URL, or remove "
            f"{storage.join_url(url, staging.STAGING)}.\n" + "\n".join(lines)
        )
    return unfinished


def _check_free(url: str) -> None:
    """A folder without a manifest may hold what a killed job left, and nothing else."""
    if storage.exists(url) and not storage.is_folder(url):
        raise UsageError(f"{url} is a file. Write to another URL.")
    for file in storage.list_files(url):
        inner = file[len(url) + 1 :]
        if not staging.is_ours(inner) and not inner.startswith((CLAIM_NAME, MANIFEST_NAME)):
            raise UsageError(f"{url} is not empty and holds no table of Firn's: {inner}. Write to another URL.")
