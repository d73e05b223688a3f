"""The work of `featurize run` on a worker: decode to each network's size, fill batches, run the networks, write features."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurize.building.shard_files import ShardWriter
from featurize.building.shipped_backbone import Decoded, ShippedBackbone, batches_at_once, compute_batches
from featurize.building.worker import Loaded
from featurize.decoding.decoder_process import Decoder
from featurize.jobs.feature_columns import PreparedColumn
from featurize.sources.listing import PlannedImage
from featurize.sources.splits import SplitRule
from featurize.tables.schemas import features_schema
from featurize.timings import Timings


@dataclass(frozen=True)
class TaskColumn:
    """A column of features: the values `start` to `stop` of those that one of the task's backbones computes.

    Attributes:
        name: of the column.
        backbone: number of the backbone.
        start: the first value.
        stop: the value after the last.
        is_bytes: whether the values are pixels, stored as raw bytes.
    """

    name: str
    backbone: int
    start: int
    stop: int
    is_bytes: bool

    @classmethod
    def of(cls, column: PreparedColumn) -> Self:
        """The column that was prepared."""
        size = math.prod(column.spec.feature_shape)
        return cls(column.name, column.backbone, column.start, column.start + size, column.spec.is_pixels)

    def take(self, features: Sequence[NDArray[Any]]) -> pa.Array:
        """The column, a list of floats or the bytes of each image, of what each backbone computed, ``(n_images, ...)``."""
        computed = features[self.backbone]
        if self.is_bytes:
            return pa.array([image.tobytes() for image in computed], type=pa.binary())
        values = np.ascontiguousarray(computed[:, self.start : self.stop])
        offsets = pa.array(np.arange(len(values) + 1, dtype=np.int32) * values.shape[1])
        return pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1), type=pa.float32()))


@dataclass(frozen=True)
class DecodedSizes(Decoded):
    """Pixels at the size of the first network, and at those of the other networks, where they differ."""

    others: tuple[NDArray[np.uint8], ...] = ()


@dataclass(frozen=True)
class ColumnsOfFeatures:
    """What a worker needs to compute columns of features: images are decoded once for each size that a network needs.

    Attributes:
        backbones: the networks.
        columns: what of their values makes a column.
    """

    backbones: tuple[ShippedBackbone, ...]
    columns: tuple[TaskColumn, ...]

    @property
    def batch_size(self) -> int:
        """The number of images that are computed together; a network with a smaller batch takes them in several."""
        return max(backbone.batch_size for backbone in self.backbones)

    def ahead(self, threads: int) -> int:
        """See `ShippedBackbone.ahead`."""
        return min(backbone.ahead(threads) for backbone in self.backbones)

    def decode(self, content: bytes, decoder: Decoder) -> DecodedSizes:
        """Decodes an image file to the size of each network's input. Raises DecodeError."""
        first, *others = (self.backbones[number] for number in self._first_of_size)
        decoded = first.decode(content, decoder)
        pixels = tuple(backbone.decode(content, decoder).pixels for backbone in others)
        return DecodedSizes(decoded.pixels, decoded.width, decoded.height, pixels)

    def compute_all(
        self, loaded: Iterator[Loaded[DecodedSizes]], timings: Timings
    ) -> Iterator[tuple[list[Loaded[DecodedSizes]], dict[str, pa.Array]]]:
        """The columns of all images, batch by batch; the last one may be short."""

        def compute(batch: list[Loaded[DecodedSizes]], pixels: NDArray[np.uint8]) -> dict[str, pa.Array]:
            return self.compute([image.value for image in batch], pixels, timings)

        at_once = batches_at_once(self.backbones)
        return compute_batches(loaded, self.batch_size, lambda image: image.pixels, compute, at_once=at_once)

    def compute(
        self, decoded: Sequence[DecodedSizes], pixels: NDArray[np.uint8], timings: Timings
    ) -> dict[str, pa.Array]:
        """The columns of some images.

        Args:
            decoded: the images.
            pixels: those of the first size, ``(n_images, height, width, channels)``.
            timings: where the time is counted.
        """
        others = zip(*(image.others for image in decoded), strict=True)
        by_size = [pixels, *(np.stack(arrays) for arrays in others)]
        features = []
        for backbone, size in zip(self.backbones, self._size_of_each, strict=True):
            forward = backbone.forward(timings, beside=self.backbones)
            with timings.measure("forward"):
                images, step = by_size[size], backbone.batch_size
                parts = [forward(images[start : start + step]) for start in range(0, len(images), step)]
                features.append(parts[0] if len(parts) == 1 else np.concatenate(parts))
        return {column.name: column.take(features) for column in self.columns}

    @property
    def _size_of_each(self) -> list[int]:
        """For each backbone the number of its size of images."""
        sizes = list(dict.fromkeys(backbone.size_of_images for backbone in self.backbones))
        return [sizes.index(backbone.size_of_images) for backbone in self.backbones]

    @property
    def _first_of_size(self) -> list[int]:
        """For each size of images the number of the first backbone that takes it."""
        each = self._size_of_each
        return [each.index(size) for size in range(max(each) + 1)]


@dataclass(frozen=True)
class FeaturizeTask:
    """The `ShardTask` that turns images into features."""

    classes: tuple[str, ...]
    split_rule: SplitRule
    features: ColumnsOfFeatures
    rows_per_group: int
    needs_labels: ClassVar[bool] = True

    def make_writer(self, staging_url: str, name: str) -> ShardWriter:
        """See `ShardTask`."""
        columns = self.features.columns
        return ShardWriter(
            staging_url,
            name,
            features_schema({column.name: column.is_bytes for column in columns}),
            rows_per_group=self.rows_per_group,
            by_split=True,
            plain_columns=plain_columns([column.name for column in columns]),
        )

    def ahead(self, threads: int) -> int:
        """See `ShardTask`."""
        return self.features.ahead(threads)

    def load(self, image: PlannedImage, image_id: str, content: bytes, decoder: Decoder) -> DecodedSizes:
        """See `ShardTask`."""
        return self.features.decode(content, decoder)

    def consume(self, loaded: Iterator[Loaded[DecodedSizes]], writer: ShardWriter, timings: Timings) -> None:
        """Runs full batches through the networks (the last one may be short) and writes the features."""
        for batch, features in self.features.compute_all(loaded, timings):
            with timings.measure("write"):
                self._write(writer, batch, features)

    def _write(self, writer: ShardWriter, batch: list[Loaded[DecodedSizes]], features: Mapping[str, pa.Array]) -> None:
        images = [loaded.image for loaded in batch]
        labels = [str(image.label) for image in images]
        label_indices = {label: index for index, label in enumerate(self.classes)}
        writer.write(
            [self.split_rule.assign(loaded.image_id, loaded.image.own_split) for loaded in batch],
            [image.stamp for image in images],
            {
                "image_id": [loaded.image_id for loaded in batch],
                "path": [image.path for image in images],
                "label": labels,
                "label_index": [label_indices[label] for label in labels],
                "width": [loaded.value.width for loaded in batch],
                "height": [loaded.value.height for loaded in batch],
                **features,
            },
        )


def plain_columns(features: Sequence[str]) -> tuple[str, ...]:
    """The columns that are written without a dictionary, as their values hardly repeat; `features` are those of features."""
    return ("image_id", "path", *features)
