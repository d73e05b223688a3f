"""The work of `featurize run` on a worker: decode to the network's size, fill batches, run the network, write features."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurize.backbones.spec import BackboneSpec
from featurize.building.shard_files import ShardWriter
from featurize.building.shipped_backbone import Decoded, ShippedBackbone, full_batches
from featurize.building.worker import Loaded
from featurize.decoding.decoder_process import Decoder
from featurize.sources.listing import PlannedImage
from featurize.sources.splits import SplitRule
from featurize.timings import Timings


@dataclass(frozen=True)
class FeaturizeTask:
    """The `ShardTask` that turns images into features."""

    classes: tuple[str, ...]
    split_rule: SplitRule
    backbone: ShippedBackbone
    rows_per_group: int
    needs_labels: ClassVar[bool] = True

    def make_writer(self, staging_url: str, name: str) -> ShardWriter:
        """See `ShardTask`."""
        return ShardWriter(
            staging_url,
            name,
            features_schema(self.backbone.spec),
            rows_per_group=self.rows_per_group,
            by_split=True,
            plain_columns=("image_id", "path", "features"),
        )

    def ahead(self, threads: int) -> int:
        """See `ShardTask`."""
        return self.backbone.ahead(threads)

    def load(self, image: PlannedImage, image_id: str, content: bytes, decoder: Decoder) -> Decoded:
        """See `ShardTask`."""
        return self.backbone.decode(content, decoder)

    def consume(self, loaded: Iterator[Loaded[Decoded]], writer: ShardWriter, timings: Timings) -> None:
        """Runs full batches through the network (the last one may be short) and writes the features."""
        for batch, pixels in full_batches(loaded, self.backbone.batch_size, lambda image: image.pixels):
            forward = self.backbone.forward(timings)
            with timings.measure("forward"):
                features = forward(pixels)
            with timings.measure("write"):
                _write_features(self, writer, batch, features)


def features_schema(spec: BackboneSpec) -> pa.Schema:
    """The columns of a feature set. `features` is ``list<float>``, or raw bytes where the features are pixels."""
    features = pa.binary() if spec.is_pixels else pa.list_(pa.float32())
    return pa.schema(
        [
            ("image_id", pa.string()),
            ("path", pa.string()),
            ("label", pa.string()),
            ("label_index", pa.int32()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("features", features),
        ]
    )


def _write_features(
    task: FeaturizeTask, writer: ShardWriter, batch: list[Loaded[Decoded]], features: NDArray[Any]
) -> None:
    images = [loaded.image for loaded in batch]
    labels = [str(image.label) for image in images]
    label_indices = {label: index for index, label in enumerate(task.classes)}
    writer.write(
        [task.split_rule.assign(loaded.image_id, loaded.image.own_split) for loaded in batch],
        [image.stamp for image in images],
        {
            "image_id": [loaded.image_id for loaded in batch],
            "path": [image.path for image in images],
            "label": labels,
            "label_index": [label_indices[label] for label in labels],
            "width": [loaded.value.width for loaded in batch],
            "height": [loaded.value.height for loaded in batch],
            "features": _features_column(features, as_bytes=task.backbone.spec.is_pixels),
        },
    )


def _features_column(features: NDArray[Any], *, as_bytes: bool) -> pa.Array:
    """``(n_images, ...)`` as an Arrow column: a list of floats for each image, or its raw bytes."""
    if as_bytes:
        return pa.array([image.tobytes() for image in features], type=pa.binary())
    offsets = pa.array(np.arange(len(features) + 1, dtype=np.int32) * features.shape[1])
    return pa.ListArray.from_arrays(offsets, pa.array(features.reshape(-1), type=pa.float32()))
