"""Source images to one DataFrame, whatever they lie in: a folder per class, IDX files, drawn scenes, an images table.

Every source gives the same columns: `path`, `label` (null: in no class folder), `own_split` (null: none), `content`,
`bytes_size` and `image_id`, the SHA-256 of the content, computed by Spark and only where it is asked for.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.column import Column

from featurize import storage
from featurize.cards import Card, describe_card, find_card, read_card
from featurize.digests import sha256_bytes
from featurize.errors import JobError, UsageError
from featurize.idx import parse_idx, read_idx, unzip
from featurize.manifests import ImagesManifest, read_manifest
from featurize.recipe import FractionSplit, Split
from featurize.scenes import SCENE_CLASSES, draw_scene, encode_scene
from featurize.session import concurrent_tasks
from featurize.splits import DEFAULT_VALIDATION_FRACTION, SplitRule

SPLIT_FOLDERS = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}
_ROWS_SCHEMA = "path string, label string, own_split string, content binary"
_ARROW_ROWS = pa.schema(
    [("path", pa.string()), ("label", pa.string()), ("own_split", pa.string()), ("content", pa.binary())]
)
_CHUNK_ROWS = 256
_IDX_ROWS_PER_TASK = 10_000
_MIN_TASK_IMAGES, _MAX_TASK_IMAGES = 128, 4096
_OPEN_COST_BYTES = 16 << 10


@dataclass(frozen=True)
class ImageSource:
    """Images to be read, and what is known of them beforehand.

    `settings` determines, with the bytes themselves, which rows come out; it enters the identity of what is made of them.
    """

    frame: DataFrame
    classes: tuple[str, ...]
    images: int
    split_rule: SplitRule
    settings: dict[str, Any]
    card: Card | None = None
    lineage: dict[str, Any] = field(default_factory=dict)


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
    return _open_folder(spark, url, split or FractionSplit(), DEFAULT_VALIDATION_FRACTION)


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
            opened = _open_folder(spark, url, split or FractionSplit(), card.validation_fraction)
    settings = {**opened.settings, "card": card.name}
    return ImageSource(
        frame=opened.frame,
        classes=opened.classes,
        images=opened.images,
        split_rule=opened.split_rule,
        settings=settings,
        card=card,
        lineage={"card": describe_card(card)},
    )


def _with_identity(frame: DataFrame) -> DataFrame:
    return frame.withColumn("image_id", F.sha2("content", 256)).withColumn(
        "bytes_size", F.length("content").cast("long")
    )


def _open_folder(spark: SparkSession, url: str, split: Split, validation_fraction: float) -> ImageSource:
    """Images in folders: ``<class>/**`` or, where the split is by folders, ``<split>/<class>/**``."""
    root = re.sub(r"^file://", "file:", url)  # as Spark spells it
    files = spark.read.format("binaryFile").option("recursiveFileLookup", "true").load(_escape_glob(url))
    parts = F.split(F.expr(f"substring(path, {len(root) + 2})"), "/")
    fractions = None if split == "folders" else split
    by_folders = fractions is None
    depth = 1 if by_folders else 0
    label = F.when(F.size(parts) > depth + 1, parts[depth])
    own_split = _split_of_folder(parts[0]) if by_folders else F.lit(None).cast("string")
    path = F.concat(F.lit(url + "/"), F.expr(f"substring(path, {len(root) + 2})"))
    spark.conf.set("spark.sql.files.openCostInBytes", str(_OPEN_COST_BYTES))
    listed = files.select(path.alias("path"), label.alias("label"), own_split.alias("own_split"), "content", "length")
    counts = _count(listed, parts[0] if by_folders else None)
    if not counts:
        raise UsageError(f"{url} holds no files.")
    if by_folders:
        _check_split_folders(url, counts)
    classes = tuple(sorted({row["label"] for row in counts if row["label"] is not None}))
    if not classes:
        raise UsageError(f"{url} has no class folders with images in them: a folder per class is wanted.")
    images = sum(row["count"] for row in counts)
    _plan_partitions(spark, images=images, total_bytes=sum(row["bytes"] for row in counts))
    if by_folders:
        has_validation = any(row["own_split"] == "validation" for row in counts)
        rule = SplitRule(fractions=None, validation_fraction=0.0 if has_validation else validation_fraction)
    else:
        rule = SplitRule(fractions=fractions)
    frame = _with_identity(listed.drop("length"))
    settings = {"source": url, "layout": "folders", "split": _describe_rule(rule)}
    return ImageSource(frame=frame, classes=classes, images=images, split_rule=rule, settings=settings)


def _split_of_folder(name: Column) -> Column:
    mapping = F.create_map(*[F.lit(text) for pair in SPLIT_FOLDERS.items() for text in pair])
    return mapping[name]


def _count(listed: DataFrame, top: Column | None) -> list[Any]:
    """Files and bytes by label, split and top folder; the content is not read for it."""
    keyed = listed.withColumn("top", F.col("own_split") if top is None else top)
    grouped = keyed.groupBy("label", "own_split", "top")
    return grouped.agg(F.count("*").alias("count"), F.sum("length").alias("bytes")).collect()


def _check_split_folders(url: str, counts: Sequence[Any]) -> None:
    unknown = sorted({row["top"] for row in counts if row["own_split"] is None})
    if unknown:
        raise UsageError(
            f'{url}: with split = "folders" the first level must be {", ".join(SPLIT_FOLDERS)}. Got {", ".join(unknown)}.'
        )
    if not any(row["own_split"] == "train" for row in counts):
        raise UsageError(f'{url}: with split = "folders" a folder train/<class> is needed.')


def _plan_partitions(spark: SparkSession, *, images: int, total_bytes: int) -> None:
    """Sizes the tasks by number and bytes of images. Spark counts 4 MB for each file it opens: one or two images a task."""
    slots = concurrent_tasks(spark)
    task_images = min(max(images // (slots * 3), _MIN_TASK_IMAGES), _MAX_TASK_IMAGES)
    mean_bytes = total_bytes // max(images, 1) + _OPEN_COST_BYTES
    spark.conf.set("spark.sql.files.openCostInBytes", str(_OPEN_COST_BYTES))  # where no folder has been listed before
    spark.conf.set("spark.sql.files.maxPartitionBytes", str(min(task_images * mean_bytes, 512 << 20)))
    spark.conf.set("spark.sql.files.minPartitionNum", str(slots))


def _open_images_table(spark: SparkSession, url: str, manifest: ImagesManifest, split: Split | None) -> ImageSource:
    if split == "folders":
        raise UsageError(f"{url} is an images table, which has its splits already; leave `images.split` out.")
    paths = [storage.join_url(url, file.path) for file in manifest.files]
    rows = spark.read.parquet(*paths).select(
        "path", "label", F.col("split").alias("own_split"), "content", "bytes_size", "image_id"
    )
    _plan_partitions(spark, images=manifest.row_count, total_bytes=manifest.byte_count)
    rule = SplitRule(fractions=split)
    settings = {
        "source": url,
        "layout": "images",
        "split": _describe_rule(rule),
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
                yield _rows_batch(
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
    frame = spark.range(0, layout.images, 1, tasks).mapInArrow(draw, _ROWS_SCHEMA)
    rule = SplitRule(fractions=split or FractionSplit())
    settings = {
        "layout": "synthetic",
        "split": _describe_rule(rule),
        "synthetic": layout.model_dump(exclude={"images"}),
    }
    return ImageSource(
        frame=_with_identity(frame),
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
    frame = tasks.repartition(len(ranges)).mapInArrow(_read_idx_ranges, _ROWS_SCHEMA)
    rule = SplitRule(fractions=None, validation_fraction=card.validation_fraction)
    settings = {"source": url, "layout": "idx", "split": _describe_rule(rule)}
    return ImageSource(
        frame=_with_identity(frame),
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
                yield _rows_batch(
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


def _rows_batch(rows: Any) -> pa.RecordBatch:
    columns = list(zip(*rows, strict=True))
    return pa.RecordBatch.from_arrays(
        [pa.array(column, type=field.type) for column, field in zip(columns, _ARROW_ROWS, strict=True)],
        schema=_ARROW_ROWS,
    )


def _describe_rule(rule: SplitRule) -> dict[str, Any]:
    if rule.fractions is not None:
        return rule.fractions.model_dump()
    return {"own": True, "validation_fraction": rule.validation_fraction, "seed": rule.seed}


def _escape_glob(url: str) -> str:
    """`url` so that Hadoop takes its characters as they are, not as a pattern."""
    return re.sub(r"([\[\]{}*?\\])", r"\\\1", url)
