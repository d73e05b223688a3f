"""What runs on a worker: decode ahead in threads, fill batches across Arrow batches, run the network, write the shard."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark import SparkFiles

from featurize.backbones import BackboneSpec, load_backbone, set_threads
from featurize.decode import DecodeError, decode_sized
from featurize.pipeline import SourceImage, map_ahead, read_images, worker_threads
from featurize.precision import Forward
from featurize.shards import ShardWriter
from featurize.splits import SplitRule
from featurize.tables import Worker, record_batch, shard_name

_loaded: dict[str, Forward] = {}  # one backbone per worker process, kept from task to task


@dataclass(frozen=True)
class FeaturizeTask:
    """What a worker needs to know; it travels inside the function that Spark ships."""

    staging: str
    classes: tuple[str, ...]
    split_rule: SplitRule
    spec: BackboneSpec
    backbone_file: str | None
    backbone_sha256: str | None
    batch_size: int
    rows_per_group: int


@dataclass(frozen=True, slots=True)
class _Decoded:
    pixels: NDArray[np.uint8]
    width: int
    height: int


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


def make_featurize_fn(task: FeaturizeTask) -> Worker:
    """The function Spark runs on each partition: source images in, one commit record out."""

    def featurize_partition(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        threads = worker_threads()
        writer = ShardWriter(
            task.staging,
            shard_name(task.staging),
            features_schema(task.spec),
            rows_per_group=task.rows_per_group,
            by_split=True,
            plain_columns=("image_id", "path", "features"),
        )
        for images, decoded in _batches(task, read_images(batches), writer, threads):
            features = _backbone(task, threads)(decoded)
            _write_features(task, writer, images, features)
        yield record_batch(writer.close())

    return featurize_partition


def _batches(
    task: FeaturizeTask, images: Iterator[SourceImage], writer: ShardWriter, threads: int
) -> Iterator[tuple[list[tuple[SourceImage, _Decoded]], NDArray[np.uint8]]]:
    """Full batches of decoded images, the last one short; the unreadable go to the rejects of `writer`."""
    spec = task.spec
    pixels = np.empty((task.batch_size, spec.height, spec.width, spec.channels), np.uint8)
    batch: list[tuple[SourceImage, _Decoded]] = []
    ahead = 2 * task.batch_size + threads
    for image, decoded in map_ahead(lambda image: _decode(image, spec), images, threads, ahead=ahead):
        if image.label is None:
            writer.reject(**image.reject("layout", "not in a class folder"))
        elif isinstance(decoded, DecodeError):
            writer.reject(**image.reject("decode", decoded))
        else:
            pixels[len(batch)] = decoded.pixels
            batch.append((image, decoded))
            if len(batch) == task.batch_size:
                yield batch, pixels
                batch = []
    if batch:
        yield batch, pixels[: len(batch)]


def _decode(image: SourceImage, spec: BackboneSpec) -> _Decoded | DecodeError:
    try:
        pixels, (width, height) = decode_sized(
            image.content, height=spec.height, width=spec.width, channels=spec.channels
        )
    except DecodeError as error:
        return error
    return _Decoded(pixels, width, height)


def _backbone(task: FeaturizeTask, threads: int) -> Forward:
    """The backbone of this process, loaded at its first batch."""
    key = task.backbone_sha256 or task.spec.preparation_id
    if key not in _loaded:
        _loaded.clear()  # a session that goes on to another backbone does not keep both in memory
        path = None
        if task.backbone_file is not None:
            set_threads(threads)
            path = Path(SparkFiles.get(task.backbone_file))
        _loaded[key] = load_backbone(task.spec, path, sha256=task.backbone_sha256)
    return _loaded[key]


def _write_features(
    task: FeaturizeTask, writer: ShardWriter, batch: list[tuple[SourceImage, _Decoded]], features: NDArray[Any]
) -> None:
    images = [image for image, _ in batch]
    labels = [str(image.label) for image in images]
    label_indices = {label: index for index, label in enumerate(task.classes)}
    writer.write(
        [task.split_rule.assign(image.image_id, image.own_split) for image in images],
        {
            "image_id": [image.image_id for image in images],
            "path": [image.path for image in images],
            "label": labels,
            "label_index": [label_indices[label] for label in labels],
            "width": [decoded.width for _, decoded in batch],
            "height": [decoded.height for _, decoded in batch],
            "features": _features_column(features, as_bytes=task.spec.is_pixels),
        },
    )


def _features_column(features: NDArray[Any], *, as_bytes: bool) -> pa.Array:
    """``(n_images, ...)`` as an Arrow column: a list of floats for each image, or its raw bytes."""
    if as_bytes:
        return pa.array([image.tobytes() for image in features], type=pa.binary())
    offsets = pa.array(np.arange(len(features) + 1, dtype=np.int32) * features.shape[1])
    return pa.ListArray.from_arrays(offsets, pa.array(features.reshape(-1), type=pa.float32()))
