"""Images in folders: ``<class>/**`` or, where the source has its own splits, ``<split>/<class>/**``.

What `names.is_left_out` knows is ignored; every other file is an image or a reject.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from featurize import storage
from featurize.errors import JobError, UsageError
from featurize.recipes.recipe import Split
from featurize.sources.listing import ImageSource, describe_rule, listing_batch, make_listing
from featurize.sources.names import SPLIT_FOLDERS, is_left_out, notes_on_classes, spelled_out
from featurize.sources.readers import FileReader
from featurize.sources.splits import SplitRule

LISTED_AT_A_TIME = 1 << 16
"""How many images of a listing are made into one batch of rows."""


@dataclass
class _Found:
    """Findings of a walk over a folder besides its files: labels, own splits, top folders that are not splits, and links.

    Of links only those that lead out of the folder from where class folders should be.
    """

    labels: set[str] = field(default_factory=set)
    own_splits: set[str] = field(default_factory=set)
    unknown_tops: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)


def open_folder(url: str, split: Split, validation_fraction: float, *, follow_links: bool = False) -> ImageSource:
    """The images in the folder at `url`.

    Args:
        url: URL of the folder.
        split: How images are divided.
        validation_fraction: Share of train to set aside where folders give the splits but not validation.
        follow_links: Whether links that lead out of the folder are followed; otherwise they are rejects.

    Raises:
        UsageError: There are no files, no class folders, or no train folder where folders give the splits.
        JobError: A folder cannot be listed.
    """
    by_folders = split == "folders"
    found = _Found()
    listing = _list_folder(url, found, by_folders=by_folders, follow_links=follow_links)
    _check_found(url, found, by_folders=by_folders)
    if split == "folders":
        rule = SplitRule(
            fractions=None, validation_fraction=0.0 if "validation" in found.own_splits else validation_fraction
        )
    else:
        rule = SplitRule(fractions=split)
    return ImageSource(
        listing=listing,
        reader=_reader(url, follow_links=follow_links),
        classes=tuple(sorted(found.labels)),
        split_rule=rule,
        settings={"source": url, "layout": "folders", "split": describe_rule(rule)},
        notes=tuple(notes_on_classes(found.labels, splits_by_folders=by_folders)),
    )


def open_files(url: str, *, follow_links: bool = False) -> ImageSource:
    """All images in the folder at `url`, at any depth, without classes and splits.

    Args:
        url: URL of the folder.
        follow_links: As for `open_folder`.

    Raises:
        UsageError: There are no files.
        JobError: A folder cannot be listed.
    """
    return ImageSource(
        listing=_list_folder(url, _Found(), by_folders=False, follow_links=follow_links),
        reader=_reader(url, follow_links=follow_links),
        classes=(),
        split_rule=SplitRule(fractions=None),
        settings={"source": url, "layout": "folders"},
    )


def _reader(url: str, *, follow_links: bool) -> FileReader:
    return FileReader(inside=None if follow_links else url)


def _list_folder(url: str, found: _Found, *, by_folders: bool, follow_links: bool) -> pa.Table:
    """The listing of the folder at `url`, which must hold files; raises the errors of `open_files`."""
    try:
        listing = make_listing(list(_list_files(url, found, by_folders=by_folders, follow_links=follow_links)))
    except OSError as error:
        raise JobError(f"{url} cannot be listed: {error}.") from error
    if not listing.num_rows:
        raise UsageError(f"{url} holds no files.")
    return listing


def _list_files(url: str, found: _Found, *, by_folders: bool, follow_links: bool) -> Iterator[pa.RecordBatch]:
    """Walks the folder at `url` without opening files; a stamp is a file's size and modification time."""
    root = url.rstrip("/")
    rows: list[tuple[str, str | None, str | None, int, str]] = []
    for file in storage.walk_source(url, follow_links=follow_links):
        inner = spelled_out(file.inner)
        if is_left_out(inner):
            continue
        parts = inner.split("/")
        label, own_split = _place(parts, by_folders=by_folders)
        if label is None and not follow_links and storage.leads_outside(f"{root}/{inner}", root):
            found.links.append(inner)
        if label is not None:
            found.labels.add(label)
        if own_split is not None:
            found.own_splits.add(own_split)
        elif by_folders and len(parts) > 1:
            found.unknown_tops.add(parts[0])
        rows.append((f"{root}/{inner}", label, own_split, file.size, f"{file.size}:{file.modified}"))
        if len(rows) == LISTED_AT_A_TIME:
            yield _as_batch(rows)
            rows = []
    if rows:
        yield _as_batch(rows)


def _as_batch(rows: list[tuple[str, str | None, str | None, int, str]]) -> pa.RecordBatch:
    names = ("path", "label", "own_split", "bytes_size", "stamp")
    return listing_batch(dict(zip(names, zip(*rows, strict=True), strict=True)))


def _place(parts: list[str], *, by_folders: bool) -> tuple[str | None, str | None]:
    """Label and own split of a file, from the parts of its path."""
    own_split = SPLIT_FOLDERS.get(parts[0]) if by_folders and len(parts) > 1 else None
    depth = 1 if by_folders else 0
    return (parts[depth] if len(parts) > depth + 1 else None), own_split


def _check_found(url: str, found: _Found, *, by_folders: bool) -> None:
    if found.unknown_tops:
        names = ", ".join(sorted(found.unknown_tops))
        raise UsageError(
            f'{url}: with split = "folders" the first level must be {", ".join(SPLIT_FOLDERS)}. Got {names}.{_about_links(found)}'
        )
    if by_folders and "train" not in found.own_splits:
        raise UsageError(f'{url}: with split = "folders" a folder train/<class> is required.{_about_links(found)}')
    if not found.labels:
        raise UsageError(
            f"{url} has no class folders with images in them: it needs a folder for each class.{_about_links(found)}"
        )


def _about_links(found: _Found) -> str:
    if not found.links:
        return ""
    return f" {min(found.links)} is a link that leads out of the source; links are followed with `images.follow_links`."
