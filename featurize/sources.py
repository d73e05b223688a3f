"""What a recipe or a card names as its images, opened: a folder per class, IDX files, drawn scenes, an images table."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from featurize import storage
from featurize.cards import Card, describe_card, find_card, read_card
from featurize.digests import sha256_bytes
from featurize.errors import JobError, UsageError
from featurize.folders import open_folder
from featurize.idx import parse_idx, read_idx, unzip
from featurize.image_source import (
    ROWS_SCHEMA,
    ImageSource,
    describe_rule,
    escape_glob,
    plan_partitions,
    rows_batch,
    with_identity,
)
from featurize.manifests import ImagesManifest, read_manifest
from featurize.recipe import FractionSplit, Split
from featurize.scenes import SCENE_CLASSES, draw_scene, encode_scene
from featurize.session import concurrent_tasks
from featurize.splits import DEFAULT_VALIDATION_FRACTION, SplitRule

_CHUNK_ROWS = 256
_IDX_ROWS_PER_TASK = 10_000


def open_source(
    spark: SparkSession, source: str, split: Split | None, *, card_folders: Sequence[Path] = (Path("datasets"),)
) -> ImageSource:
    """Opens what `source` names: a card, an images table, or a folder per class.

    Raises:
        UsageError: there is nothing there, or it is not what the settings say.
    """
    card_path = find_card(source, card_folders)
    if card_path is not None and not Path(source).is_dir():
        return open_card(spark, read_card(card_path), split=split)
    url = storage.absolute_url(source)
    if not storage.exists(url):
        raise UsageError(f"there is nothing at {url}, and no card is named {source!r}.")
    if not storage.is_folder(url):
        raise UsageError(f"{url} is a file; a folder per class, an images table or a card is wanted.")
    manifest = read_manifest(url)
    if isinstance(manifest, ImagesManifest):
        return _open_images_table(spark, url, manifest, split)
    if manifest is not None:
        raise UsageError(f"{url} is a feature set; images are wanted.")
    return open_folder(spark, url, split or FractionSplit(), DEFAULT_VALIDATION_FRACTION)


def open_card(spark: SparkSession, card: Card, *, source: str | None = None, split: Split | None = None) -> ImageSource:
    """Opens the data set of a card.

    Args:
        source: where the data set lies; default: what the card says.
        split: instead of the card's own.

    Raises:
        UsageError: the source is missing, or `split` does not go with the card.
    """
    split = split or card.split
    if card.layout == "synthetic":
        opened = _open_scenes(spark, card, split)
    else:
        location = source or card.source
        if location is None:
            raise UsageError(f"card {card.name}: say where the data set lies, by --source or `source` in the card.")
        url = storage.absolute_url(location)
        if not storage.is_folder(url):
            raise UsageError(f"card {card.name}: there is no folder at {url}.")
        if card.layout == "idx":
            opened = _open_idx(spark, url, card, split)
        else:
            opened = open_folder(spark, url, split or FractionSplit(), card.validation_fraction)
    settings = {**opened.settings, "card": card.name}
    return replace(opened, settings=settings, card=card, lineage={"card": describe_card(card)})


def _open_images_table(spark: SparkSession, url: str, manifest: ImagesManifest, split: Split | None) -> ImageSource:
    if split == "folders":
        raise UsageError(f"{url} is an images table, which has its splits already; leave `images.split` out.")
    paths = [escape_glob(storage.join_url(url, file.path)) for file in manifest.files]
    rows = spark.read.parquet(*paths).select(
        "path", "label", F.col("split").alias("own_split"), "content", "bytes_size", "image_id"
    )
    plan_partitions(spark, images=manifest.row_count, total_bytes=manifest.byte_count)
    rule = SplitRule(fractions=split)
    settings = {
        "source": url,
        "layout": "images",
        "split": describe_rule(rule),
        "images": manifest.identity,
    }
    lineage = {"images": {"url": url, "identity": manifest.identity, "content_digest": manifest.content_digest}}
    return ImageSource(
        frame=rows,
        classes=tuple(manifest.classes),
        images=manifest.row_count,
        split_rule=rule,
        settings=settings,
        lineage=lineage,
    )


def _open_scenes(spark: SparkSession, card: Card, split: Split | None) -> ImageSource:
    layout = card.synthetic
    if layout is None or split == "folders":
        raise UsageError(f"card {card.name}: synthetic scenes are divided by fractions.")
    seed, height, width = layout.seed, layout.height, layout.width

    def draw(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            indices = batch.column(0).to_pylist()
            for chunk in _chunks(indices):
                yield rows_batch(
                    (
                        f"synthetic:///{card.name}/{label}/{index:06d}.jpg",
                        label,
                        None,
                        encode_scene(draw_scene(label, seed=seed, index=index, height=height, width=width)),
                    )
                    for index in chunk
                    for label in [SCENE_CLASSES[index % len(SCENE_CLASSES)]]
                )

    tasks = max(concurrent_tasks(spark), layout.images // 1000)
    frame = spark.range(0, layout.images, 1, tasks).mapInArrow(draw, ROWS_SCHEMA)
    rule = SplitRule(fractions=split or FractionSplit())
    settings = {
        "layout": "synthetic",
        "split": describe_rule(rule),
        "synthetic": layout.model_dump(exclude={"images"}),
    }
    return ImageSource(
        frame=with_identity(frame),
        classes=SCENE_CLASSES[: layout.images],
        images=layout.images,
        split_rule=rule,
        settings=settings,
    )


def _open_idx(spark: SparkSession, url: str, card: Card, split: Split | None) -> ImageSource:
    if card.idx is None or split is not None:
        raise UsageError(f"card {card.name}: an idx data set brings its own splits; leave `split` out.")
    ranges: list[tuple[str, str, str, int, int]] = []
    labels: set[int] = set()
    total = 0
    for own_split, part in (("train", card.idx.train), ("test", card.idx.test)):
        images_url, labels_url = (_find_idx_file(url, name, card) for name in (part.images, part.labels))
        digits = read_idx(labels_url)
        labels |= {int(digit) for digit in digits}
        total += len(digits)
        starts = range(0, len(digits), _IDX_ROWS_PER_TASK)
        ranges += [(images_url, labels_url, own_split, start, start + _IDX_ROWS_PER_TASK) for start in starts]
    tasks = spark.createDataFrame(ranges, "images string, labels string, own_split string, start long, stop long")
    frame = tasks.repartition(len(ranges)).mapInArrow(_read_idx_ranges, ROWS_SCHEMA)
    rule = SplitRule(fractions=None, validation_fraction=card.validation_fraction)
    settings = {"source": url, "layout": "idx", "split": describe_rule(rule)}
    return ImageSource(
        frame=with_identity(frame),
        classes=tuple(str(digit) for digit in sorted(labels)),
        images=total,
        split_rule=rule,
        settings=settings,
    )


def _find_idx_file(url: str, name: str, card: Card) -> str:
    """The URL of an IDX file, plain or with .gz; the digest of its unzipped content is checked where the card states it."""
    candidates = [storage.join_url(url, name), storage.join_url(url, name + ".gz")]
    found = next((candidate for candidate in candidates if storage.exists(candidate)), None)
    if found is None:
        raise UsageError(f"card {card.name}: {url} has neither {name} nor {name}.gz.")
    stated = {file.name: file.sha256 for file in card.files}.get(name)
    if stated is not None and (actual := sha256_bytes(unzip(storage.read_bytes(found), name=found))) != stated:
        raise UsageError(f"card {card.name}: {found} has SHA-256 {actual}, the card says {stated}.")
    return found


def _read_idx_ranges(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Worker side: ranges of IDX files to rows, each image as PNG, which every browser and table viewer shows."""
    for batch in batches:
        for task in batch.to_pylist():
            images = parse_idx(storage.read_bytes(task["images"]), name=task["images"])
            digits = read_idx(task["labels"])
            if images.ndim != 3 or len(images) != len(digits):
                raise JobError(f"{task['images']}: {images.shape} images and {len(digits)} labels do not go together.")
            for chunk in _chunks(range(task["start"], min(task["stop"], len(images)))):
                yield rows_batch(
                    (f"{task['images']}#{index}", str(digits[index]), task["own_split"], _encode_png(images[index]))
                    for index in chunk
                )


def _encode_png(pixels: Any) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _chunks(items: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(items), _CHUNK_ROWS):
        yield items[start : start + _CHUNK_ROWS]
