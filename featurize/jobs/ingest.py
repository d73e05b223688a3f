"""The images table: small files packed together, decoded once to check them, with metadata and split."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from pyspark.sql import SparkSession

from featurize.building.build import BuildResult, build_table
from featurize.building.shard_files import ShardWriter
from featurize.building.worker import Loaded
from featurize.console import warn
from featurize.decoding.decoder_process import Decoder
from featurize.defaults import DECODE_TIMEOUT_S, MAX_REJECT_FRACTION
from featurize.sources.cards import Card, describe_card
from featurize.sources.listing import PlannedImage
from featurize.sources.opening import open_card
from featurize.sources.splits import SplitRule
from featurize.tables.manifests import ImagesManifest
from featurize.tables.schemas import IMAGES_SCHEMA
from featurize.timings import Timings

_ROWS_PER_GROUP = 128
_IMAGES_AT_ONCE, _BYTES_AT_ONCE = 16, 4 << 20  # that a worker hands over at a time


def ingest(
    spark: SparkSession,
    card: Card,
    url: str,
    *,
    source: str | None = None,
    follow_links: bool = False,
    max_reject_fraction: float = MAX_REJECT_FRACTION,
    decode_timeout_s: float = DECODE_TIMEOUT_S,
) -> BuildResult:
    """Builds the images table at `url` from the data set of `card`.

    Args:
        spark: The Spark session.
        card: The data set card.
        url: URL of the images table.
        source: Where the data set is; default: the card's own source.
        follow_links: Whether links that lead out of the source are followed; otherwise they are rejects.
        max_reject_fraction: Largest share of unreadable images in the table, in [0, 1]; above it nothing is published.
        decode_timeout_s: Seconds; an image that takes longer to decode is rejected.

    Raises:
        UsageError, JobError: Raised by `open_card` and `build_table`.
    """
    opened = open_card(card, source=source, follow_links=follow_links)
    for note in opened.notes:
        warn(note)
    return build_table(
        spark,
        opened,
        url,
        manifest_type=ImagesManifest,
        settings={"table": "images", "source": opened.settings, "classes": list(opened.classes)},
        details={"card": describe_card(card)},
        task=IngestTask(classes=opened.classes, split_rule=opened.split_rule),
        max_reject_fraction=max_reject_fraction,
        decode_timeout_s=decode_timeout_s,
    )


@dataclass(frozen=True)
class IngestTask:
    """The `ShardTask` that turns images into rows of an images table."""

    classes: tuple[str, ...]
    split_rule: SplitRule
    needs_labels: ClassVar[bool] = True

    def make_writer(self, staging_url: str, name: str) -> ShardWriter:
        """See `ShardTask`."""
        return ShardWriter(
            staging_url,
            name,
            IMAGES_SCHEMA,
            rows_per_group=_ROWS_PER_GROUP,
            by_split=False,
            plain_columns=("image_id", "path", "content"),
        )

    def ahead(self, threads: int) -> int:
        """See `ShardTask`. The number is small, as each image is held in memory with the bytes of its file."""
        return 4 * threads

    def load(self, image: PlannedImage, image_id: str, content: bytes, decoder: Decoder) -> dict[str, Any]:
        """The row of an image."""
        info = decoder.inspect(content)
        return {
            "image_id": image_id,
            "path": image.path,
            "label": image.label,
            "label_index": self.classes.index(str(image.label)),
            "split": self.split_rule.assign(image_id, image.own_split),
            "format": info.format,
            "mode": info.mode,
            "width": info.width,
            "height": info.height,
            "bytes_size": len(content),
            "content": content,
            "exif": list(info.exif.items()),
            **asdict(info.metadata),
            "colour_mean": info.colour_mean,
            "colour_std": info.colour_std,
            "notes": list(info.notes),
        }

    def consume(self, loaded: Iterator[Loaded[dict[str, Any]]], writer: ShardWriter, timings: Timings) -> None:
        """Hands over some images at a time; the file's row groups are limited by rows and by bytes."""
        batch: list[Loaded[dict[str, Any]]] = []
        held_bytes = 0
        for image in loaded:
            batch.append(image)
            held_bytes += image.value["bytes_size"]
            if len(batch) == _IMAGES_AT_ONCE or held_bytes >= _BYTES_AT_ONCE:
                _write_rows(writer, batch, timings)
                batch, held_bytes = [], 0
        if batch:
            _write_rows(writer, batch, timings)


def _write_rows(writer: ShardWriter, batch: list[Loaded[dict[str, Any]]], timings: Timings) -> None:
    rows = [loaded.value for loaded in batch]
    with timings.measure("write"):
        writer.write(
            [row["split"] for row in rows],
            [loaded.image.stamp for loaded in batch],
            {name: [row[name] for row in rows] for name in IMAGES_SCHEMA.names},
        )
