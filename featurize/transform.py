"""What `featurize run` does on a worker: decode to the network's size, fill batches, run the network, write features."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark import SparkFiles

from featurize.backbones import BackboneSpec, load_backbone
from featurize.decoder import Decoder
from featurize.image_source import PlannedImage
from featurize.precision import Forward
from featurize.shards import ShardWriter
from featurize.splits import SplitRule
from featurize.timings import Timings
from featurize.worker import Loaded, assigned_gpus, log, use_task_resources

_MAX_AHEAD_BYTES = 256 << 20  # of decoded pixels, where images are large
_loaded: dict[str, Forward] = {}  # one backbone per worker process, kept from task to task


@dataclass(frozen=True, slots=True)
class Decoded:
    """Pixels at the network's size, and the size of the image in its file."""

    pixels: NDArray[np.uint8]
    width: int
    height: int


@dataclass(frozen=True)
class FeaturizeTask:
    """Images to features: a `ShardTask`."""

    classes: tuple[str, ...]
    split_rule: SplitRule
    spec: BackboneSpec
    backbone_file: str | None
    backbone_sha256: str | None
    batch_size: int
    rows_per_group: int

    def make_writer(self, staging_url: str, name: str) -> ShardWriter:
        """See `ShardTask`."""
        return ShardWriter(
            staging_url,
            name,
            features_schema(self.spec),
            rows_per_group=self.rows_per_group,
            by_split=True,
            plain_columns=("image_id", "path", "features"),
        )

    def ahead(self, threads: int) -> int:
        """Two batches, or fewer where the images are large."""
        image_bytes = self.spec.height * self.spec.width * self.spec.channels
        return min(2 * self.batch_size + threads, max(threads, _MAX_AHEAD_BYTES // image_bytes))

    def load(self, image: PlannedImage, image_id: str, content: bytes, decoder: Decoder) -> Decoded:
        """See `ShardTask`."""
        spec = self.spec
        pixels, (width, height) = decoder.decode(content, height=spec.height, width=spec.width, channels=spec.channels)
        return Decoded(pixels, width, height)

    def consume(self, loaded: Iterator[Loaded[Decoded]], writer: ShardWriter, timings: Timings) -> None:
        """Runs full batches through the network, the last one short, and writes the features."""
        pixels: NDArray[np.uint8] | None = None
        batch: list[Loaded[Decoded]] = []
        for image in loaded:
            if pixels is None:
                forward = _backbone(self, timings)
                pixels = np.empty((self.batch_size, *image.value.pixels.shape), np.uint8)
            pixels[len(batch)] = image.value.pixels
            batch.append(image)
            if len(batch) == self.batch_size:
                self._compute(forward, batch, pixels, writer, timings)
                batch = []
        if pixels is not None and batch:
            self._compute(forward, batch, pixels[: len(batch)], writer, timings)

    def _compute(
        self,
        forward: Forward,
        batch: list[Loaded[Decoded]],
        pixels: NDArray[np.uint8],
        writer: ShardWriter,
        timings: Timings,
    ) -> None:
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


def _backbone(task: FeaturizeTask, timings: Timings) -> Forward:
    """The backbone of this process, loaded and run once on nothing when its first image is there."""
    key = task.backbone_sha256 or task.spec.preparation_id
    if key not in _loaded:
        with timings.measure("startup"):
            _loaded.clear()  # a session that goes on to another backbone does not keep both in memory
            _loaded[key] = _load_backbone(task)
    return _loaded[key]


def _load_backbone(task: FeaturizeTask) -> Forward:
    spec = task.spec
    if task.backbone_file is None:
        return load_backbone(spec, None, sha256=None)
    threads = use_task_resources()
    forward = load_backbone(spec, Path(SparkFiles.get(task.backbone_file)), sha256=task.backbone_sha256)
    forward(np.zeros((task.batch_size, spec.height, spec.width, spec.channels), np.uint8))  # compiles it
    log(f"{spec.name} in {spec.precision}, {threads} threads, GPUs {', '.join(assigned_gpus() or ['not assigned'])}")
    return forward


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
            "features": _features_column(features, as_bytes=task.spec.is_pixels),
        },
    )


def _features_column(features: NDArray[Any], *, as_bytes: bool) -> pa.Array:
    """``(n_images, ...)`` as an Arrow column: a list of floats for each image, or its raw bytes."""
    if as_bytes:
        return pa.array([image.tobytes() for image in features], type=pa.binary())
    offsets = pa.array(np.arange(len(features) + 1, dtype=np.int32) * features.shape[1])
    return pa.ListArray.from_arrays(offsets, pa.array(features.reshape(-1), type=pa.float32()))
