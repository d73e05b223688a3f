"""The images table: small files packed once, decoded once to check them, metadata and split attached."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import pyarrow as pa
from pyspark.sql import SparkSession

from featurize.cards import Card, describe_card
from featurize.decoder import Decoder
from featurize.defaults import DECODE_TIMEOUT_S, MAX_REJECT_FRACTION
from featurize.image_source import PlannedImage
from featurize.manifests import ImagesManifest
from featurize.shards import ShardWriter
from featurize.sources import open_card
from featurize.splits import SplitRule
from featurize.tables import BuildResult, build_table
from featurize.timings import Timings
from featurize.worker import Loaded

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
        ("camera", pa.string()),
        ("aperture", pa.float32()),
        ("exposure_s", pa.float32()),
        ("iso", pa.int32()),
        ("focal_length_mm", pa.float32()),
        ("taken_at", pa.string()),
        ("latitude", pa.float64()),
        ("longitude", pa.float64()),
        ("altitude_m", pa.float32()),
        ("colour_mean", pa.list_(pa.float32())),
        ("colour_std", pa.list_(pa.float32())),
    ]
)
_ROWS_PER_GROUP = 128
_MAX_GROUP_BYTES = 32 << 20  # so that a row group of large images fits a worker's memory


def ingest(
    spark: SparkSession,
    card: Card,
    url: str,
    *,
    source: str | None = None,
    max_reject_fraction: float = MAX_REJECT_FRACTION,
    decode_timeout_s: float = DECODE_TIMEOUT_S,
) -> BuildResult:
    """Builds the images table at `url` from the data set of `card`.

    Args:
        source: where the data set lies; default: what the card says.
        max_reject_fraction: of the images that are in the table; if more cannot be read, nothing is published.
        decode_timeout_s: seconds; an image that takes longer to decode is rejected.

    Raises:
        UsageError, JobError: as `open_card` and `build_table`.
    """
    opened = open_card(card, source=source)
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
    """Images to rows of an images table: a `ShardTask`."""

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
        """Few: each is held with its bytes."""
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
        }

    def consume(self, loaded: Iterator[Loaded[dict[str, Any]]], writer: ShardWriter, timings: Timings) -> None:
        """Writes a row group whenever it is full, by number or by bytes."""
        batch: list[Loaded[dict[str, Any]]] = []
        held_bytes = 0
        for image in loaded:
            batch.append(image)
            held_bytes += image.value["bytes_size"]
            if len(batch) == _ROWS_PER_GROUP or held_bytes >= _MAX_GROUP_BYTES:
                _write_group(writer, batch, timings)
                batch, held_bytes = [], 0
        if batch:
            _write_group(writer, batch, timings)


def _write_group(writer: ShardWriter, batch: list[Loaded[dict[str, Any]]], timings: Timings) -> None:
    rows = [loaded.value for loaded in batch]
    with timings.measure("write"):
        writer.write(
            [row["split"] for row in rows],
            [loaded.image.stamp for loaded in batch],
            {name: [row[name] for row in rows] for name in IMAGES_SCHEMA.names},
        )
        writer.end_group()
