"""Opens the images that a recipe or a card names: a folder per class, IDX files, drawn scenes, an images table."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from featurize import storage
from featurize.digests import sha256_bytes
from featurize.errors import JobError, UsageError
from featurize.progress import stage
from featurize.recipes.recipe import FractionSplit, Split
from featurize.sources.cards import Card, describe_card, find_card, read_card
from featurize.sources.folders import open_files, open_folder
from featurize.sources.idx import read_idx, unzip
from featurize.sources.listing import ImageSource, describe_rule, listing_batch, make_listing
from featurize.sources.names import notes_on_classes
from featurize.sources.readers import OUTSIDE, FeaturesReader, IdxReader, SceneReader, TableReader
from featurize.sources.scenes import SCENE_CLASSES
from featurize.sources.splits import DEFAULT_VALIDATION_FRACTION, SplitRule
from featurize.tables.manifests import NAMES, DataFile, FeaturesManifest, ImagesManifest
from featurize.tables.publication import read_manifest
from featurize.tables.row_groups import open_parquet

_FILES_AT_A_TIME = 16


def open_source(
    source: str,
    split: Split | None,
    *,
    card_folders: Sequence[Path] = (Path("datasets"),),
    is_sorted: bool = True,
    follow_links: bool = False,
) -> ImageSource:
    """Opens the images that `source` names: a card, an images table, or a folder per class.

    Args:
        source: Name or path of a card, or a URL.
        split: How images are divided; default: the source's own splits, or else fractions.
        card_folders: Where cards are looked for.
        is_sorted: Whether a folder must have a folder per class; if not, its images may be at any depth.
        follow_links: Whether links in a folder that lead out of it are followed; otherwise they are rejects.

    Raises:
        UsageError: There is nothing there, or it does not match the settings.
    """
    card_path = find_card(source, card_folders)
    if card_path is not None and not Path(source).is_dir():
        return open_card(read_card(card_path), split=split, follow_links=follow_links)
    stage("listing images")
    url = storage.absolute_url(source)
    if not storage.exists(url):
        raise UsageError(f"there is nothing at {url}, and there is no card named {source!r}.")
    if not storage.is_folder(url):
        folder = "a folder per class" if is_sorted else "a folder"
        raise UsageError(f"{url} is a file; it must be {folder}, an images table or a card.")
    manifest = read_manifest(url)
    if isinstance(manifest, ImagesManifest):
        return _open_images_table(url, manifest, split)
    if manifest is not None:
        raise UsageError(f"{url} is {NAMES[manifest.kind]}; images are required.")
    if not is_sorted:
        return open_files(url, follow_links=follow_links)
    return open_folder(url, split or FractionSplit(), DEFAULT_VALIDATION_FRACTION, follow_links=follow_links)


def open_card(
    card: Card, *, source: str | None = None, split: Split | None = None, follow_links: bool = False
) -> ImageSource:
    """Opens the data set of a card.

    Args:
        card: The card.
        source: Where the data set is; default: the card's own source.
        split: How images are divided; default: as in the card.
        follow_links: As for `open_source`.

    Raises:
        UsageError: The source is missing, or `split` does not suit the card.
    """
    stage("listing images")
    split = split or card.split
    if card.layout == "synthetic":
        opened = _open_scenes(card, split)
    else:
        location = source or card.source
        if location is None:
            raise UsageError(f"card {card.name}: `source` (--source) is required, as the card does not have it.")
        url = storage.absolute_url(location)
        if not storage.is_folder(url):
            raise UsageError(f"card {card.name}: there is no folder at {url}.")
        if card.layout == "idx":
            opened = _open_idx(url, card, split, follow_links=follow_links)
        else:
            asked = split or FractionSplit()
            opened = open_folder(url, asked, card.validation_fraction, follow_links=follow_links)
    settings = {**opened.settings, "card": card.name}
    return replace(opened, settings=settings, card=card, lineage={"card": describe_card(card)})


def open_features(url: str, manifest: FeaturesManifest) -> ImageSource:
    """The rows of the feature set at `url` as a source: `FeaturesReader` reads each image's features."""
    row_bytes = math.prod(manifest.feature_shape) * (1 if manifest.feature_dtype == "uint8" else 4)
    with ThreadPoolExecutor(_FILES_AT_A_TIME) as pool:
        batches = list(pool.map(lambda file: _list_features_file(url, file, row_bytes), manifest.files))
    return ImageSource(
        listing=make_listing(batches),
        reader=FeaturesReader(column=str(manifest.column)),
        classes=tuple(manifest.classes),
        split_rule=SplitRule(fractions=None),
        settings={"source": url, "layout": "features"},
    )


def _open_images_table(url: str, manifest: ImagesManifest, split: Split | None) -> ImageSource:
    if split == "folders":
        raise UsageError(f"{url} is an images table, which has its splits already; remove `images.split`.")
    with ThreadPoolExecutor(_FILES_AT_A_TIME) as pool:
        batches = list(pool.map(lambda file: _list_table_file(url, file), manifest.files))
    rule = SplitRule(fractions=split)
    settings = {
        "source": url,
        "layout": "images",
        "split": describe_rule(rule),
        "images": manifest.identity,
    }
    lineage = {"images": {"url": url, "identity": manifest.identity, "content_digest": manifest.content_digest}}
    return ImageSource(
        listing=make_listing(batches),
        reader=TableReader(),
        classes=tuple(manifest.classes),
        split_rule=rule,
        settings=settings,
        lineage=lineage,
        notes=tuple(notes_on_classes(manifest.classes, splits_by_folders=None)),
    )


def _list_table_file(url: str, file: DataFile) -> pa.RecordBatch:
    """The rows of one file of an images table, without the images."""
    rows, columns = _list_rows(url, file, ["split", "bytes_size"])
    own = {"own_split": rows["split"].to_pylist(), "bytes_size": rows["bytes_size"].to_pylist()}
    return listing_batch({**columns, **own})


def _list_features_file(url: str, file: DataFile, row_bytes: int) -> pa.RecordBatch:
    """The rows of one file of a feature set, without the features."""
    rows, columns = _list_rows(url, file, [])
    return listing_batch({**columns, "bytes_size": [row_bytes] * rows.num_rows})


def _list_rows(url: str, file: DataFile, others: list[str]) -> tuple[pa.Table, dict[str, Sequence[Any]]]:
    """The rows of one file of a table, and the listing columns that all tables have; a stamp is the SHA-256 of the image.

    Args:
        url: URL of the table.
        file: The file.
        others: Further columns to read.
    """
    container = storage.join_url(url, file.path)
    with open_parquet(container) as opened:
        rows = opened.read(columns=["path", "label", "image_id", *others])
    return rows, {
        "path": rows["path"].to_pylist(),
        "label": rows["label"].to_pylist(),
        "stamp": rows["image_id"].to_pylist(),
        "container": [container] * rows.num_rows,
        "position": range(rows.num_rows),
    }


def _open_scenes(card: Card, split: Split | None) -> ImageSource:
    layout = card.synthetic
    if layout is None or split == "folders":
        raise UsageError(f"card {card.name}: synthetic scenes must be divided by fractions.")
    labels = [SCENE_CLASSES[index % len(SCENE_CLASSES)] for index in range(layout.images)]
    listing = listing_batch(
        {
            "path": [f"synthetic:///{card.name}/{label}/{index:06d}.jpg" for index, label in enumerate(labels)],
            "label": labels,
            "stamp": ["drawn"] * layout.images,  # the settings determine each scene
            "position": range(layout.images),
        }
    )
    rule = SplitRule(fractions=split or FractionSplit())
    settings = {
        "layout": "synthetic",
        "split": describe_rule(rule),
        "synthetic": layout.model_dump(exclude={"images"}),
    }
    return ImageSource(
        listing=make_listing([listing]),
        reader=SceneReader(seed=layout.seed, height=layout.height, width=layout.width),
        classes=SCENE_CLASSES[: layout.images],
        split_rule=rule,
        settings=settings,
    )


def _open_idx(url: str, card: Card, split: Split | None, *, follow_links: bool) -> ImageSource:
    if card.idx is None or split is not None:
        raise UsageError(f"card {card.name}: an idx data set has its own splits; remove `split`.")
    batches, classes = [], set[str]()
    for own_split, part in (("train", card.idx.train), ("test", card.idx.test)):
        names = (part.images, part.labels)
        images_url, labels_url = (_find_idx_file(url, name, card, follow_links=follow_links) for name in names)
        images, digits = read_idx(images_url), read_idx(labels_url)
        if images.ndim != 3 or len(images) != len(digits):
            raise JobError(f"{images_url}: {images.shape} images do not match {len(digits)} labels.")
        labels = [str(digit) for digit in digits]
        classes |= set(labels)
        batches.append(
            listing_batch(
                {
                    "path": [f"{images_url}#{index}" for index in range(len(labels))],
                    "label": labels,
                    "own_split": [own_split] * len(labels),
                    "bytes_size": [images[0].nbytes if len(images) else 0] * len(labels),
                    "stamp": [sha256_bytes(image.tobytes()) for image in images],
                    "container": [images_url] * len(labels),
                    "position": range(len(labels)),
                }
            )
        )
    rule = SplitRule(fractions=None, validation_fraction=card.validation_fraction)
    return ImageSource(
        listing=make_listing(batches),
        reader=IdxReader(),
        classes=tuple(sorted(classes, key=int)),
        split_rule=rule,
        settings={"source": url, "layout": "idx", "split": describe_rule(rule)},
    )


def _find_idx_file(url: str, name: str, card: Card, *, follow_links: bool) -> str:
    """The URL of an IDX file, plain or with .gz; the digest of its unzipped content is checked where the card states it."""
    candidates = [storage.source_url(url, name), storage.source_url(url, name + ".gz")]
    for candidate in () if follow_links else candidates:
        if storage.leads_outside(candidate, url):
            raise UsageError(f"card {card.name}: {candidate}: {OUTSIDE}.")
    found = next((candidate for candidate in candidates if storage.exists(candidate)), None)
    if found is None:
        raise UsageError(f"card {card.name}: {url} has neither {name} nor {name}.gz.")
    stated = {file.name: file.sha256 for file in card.files}.get(name)
    if stated is not None and (actual := sha256_bytes(unzip(storage.read_bytes(found), name=found))) != stated:
        raise UsageError(f"card {card.name}: {found} has SHA-256 {actual}, the card says {stated}.")
    return found
