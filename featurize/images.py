"""The images table: small files packed once, decoded once to check them, metadata and split attached."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
from pyspark.sql import SparkSession

from featurize.cards import Card, describe_card
from featurize.decode import DecodeError, inspect_image
from featurize.manifests import ImagesManifest
from featurize.pipeline import SourceImage, map_ahead, read_images, worker_threads
from featurize.shards import ShardWriter
from featurize.sources import open_card
from featurize.splits import SplitRule
from featurize.tables import BuildResult, Worker, build_table, record_batch, shard_name

IMAGES_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("path", pa.string()),
        ("label", pa.string()),
        ("label_index", pa.int32()),
        ("split", pa.string()),
        ("format", pa.string()),
        ("mode", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bytes_size", pa.int64()),
        ("content", pa.binary()),
        ("exif", pa.map_(pa.string(), pa.string())),
        ("colour_mean", pa.list_(pa.float32())),
        ("colour_std", pa.list_(pa.float32())),
    ]
)
_ROWS_PER_GROUP = 128


@dataclass(frozen=True)
class _IngestTask:
    """What a worker needs to know."""

    staging: str
    classes: tuple[str, ...]
    split_rule: SplitRule


def ingest(spark: SparkSession, card: Card, url: str, *, source: str | None = None) -> BuildResult:
    """Builds the images table at `url` from the data set of `card`.

    Args:
        source: where the data set lies; default: what the card says.

    Raises:
        UsageError, JobError: as `open_card` and `build_table`.
    """
    opened = open_card(spark, card, source=source)
    return build_table(
        spark,
        opened,
        url,
        manifest_type=ImagesManifest,
        settings={"table": "images", "source": opened.settings, "classes": list(opened.classes)},
        details={"card": describe_card(card)},
        make_worker=lambda staging: make_ingest_fn(
            _IngestTask(staging=staging, classes=opened.classes, split_rule=opened.split_rule)
        ),
    )


def make_ingest_fn(task: _IngestTask) -> Worker:
    """The function Spark runs on each partition: source images in, one commit record out."""

    def ingest_partition(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        writer = ShardWriter(
            task.staging,
            shard_name(task.staging),
            IMAGES_SCHEMA,
            rows_per_group=_ROWS_PER_GROUP,
            by_split=False,
            plain_columns=("image_id", "path", "content"),
        )
        label_indices = {label: index for index, label in enumerate(task.classes)}
        inspect = partial(_inspect, label_indices=label_indices, split_rule=task.split_rule)
        rows: list[dict[str, Any]] = []
        for image, row in map_ahead(inspect, read_images(batches), worker_threads()):
            if isinstance(row, DecodeError):
                writer.reject(**image.reject("decode", row))
            elif isinstance(row, str):
                writer.reject(**image.reject("layout", row))
            else:
                rows.append(row)
            if len(rows) == _ROWS_PER_GROUP:
                _write_rows(writer, rows)
                rows = []
        _write_rows(writer, rows)
        yield record_batch(writer.close())

    return ingest_partition


def _write_rows(writer: ShardWriter, rows: list[dict[str, Any]]) -> None:
    if rows:
        writer.write(
            [row["split"] for row in rows], {name: [row[name] for row in rows] for name in IMAGES_SCHEMA.names}
        )


def _inspect(
    image: SourceImage, label_indices: dict[str, int], split_rule: SplitRule
) -> dict[str, Any] | DecodeError | str:
    """The row of an image, or why there is none."""
    if image.label is None:
        return "not in a class folder"
    try:
        info = inspect_image(image.content)
    except DecodeError as error:
        return error
    return {
        "image_id": image.image_id,
        "path": image.path,
        "label": image.label,
        "label_index": label_indices[image.label],
        "split": split_rule.assign(image.image_id, image.own_split),
        "format": info.format,
        "mode": info.mode,
        "width": info.width,
        "height": info.height,
        "bytes_size": len(image.content),
        "content": image.content,
        "exif": list(info.exif.items()),
        "colour_mean": info.colour_mean,
        "colour_std": info.colour_std,
    }
