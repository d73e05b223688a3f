"""A rank's share of a feature set: the whole split in memory, and every epoch's batches by a plan all ranks agree on."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featurize.errors import JobError
from featurize.manifests import FeaturesManifest
from finetune.reading import read_table

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True)
class SplitData:
    """One split of a feature set, in the order of image id and path, whatever files it lay in.

    Attributes:
        features: float32 ``(n_images, feature_dim)``, or uint8 ``(n_images, height, width, channels)`` of `pixels`.
        label_index: int32 ``(n_images,)``.
        paths: ``(n_images,)`` text.
    """

    features: NDArray[Any]
    label_index: NDArray[np.int32]
    paths: NDArray[np.str_]

    @property
    def rows(self) -> int:
        """Number of images."""
        return len(self.label_index)


@dataclass(frozen=True)
class BatchPlan:
    """Which rows a rank computes in one epoch.

    Every rank makes the same global batches from (seed, epoch) and takes its own slice of each, so all take the same number
    of steps, no row is dropped, and none is seen twice.

    Attributes:
        rows: int64, this rank's rows, step after step.
        ends: int64 ``(n_steps,)``, where each step's rows end in `rows`.
        global_rows: int64 ``(n_steps,)``, rows of all ranks together in each step: what the gradient is divided by.
    """

    rows: NDArray[np.int64]
    ends: NDArray[np.int64]
    global_rows: NDArray[np.int64]


def read_split(url: str, manifest: FeaturesManifest, split: str) -> SplitData:
    """Reads one split of the feature set at `url` into memory.

    Raises:
        JobError: files are missing or damaged, or hold other rows or features than the manifest says.
    """
    table = read_table(url, manifest, split, ("image_id", "path", "label_index", "features"))
    image_ids, paths = (np.asarray(table[name].to_pylist(), np.str_) for name in ("image_id", "path"))
    order = np.lexsort((paths, image_ids))
    return SplitData(
        features=_features_of(table, url, manifest)[order],
        label_index=np.asarray(table["label_index"].to_numpy(), np.int32)[order],
        paths=paths[order],
    )


def plan_epoch(rows: int, *, seed: int, epoch: int, global_batch_size: int, rank: int = 0, size: int = 1) -> BatchPlan:
    """The batches of one rank in one epoch.

    Args:
        rows: in the whole split.
        epoch: counted from 1; each has its own order.
        global_batch_size: rows of all ranks together in a full step; the last step takes what is left.
    """
    order = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch]))).permutation(rows)
    starts = np.arange(0, rows, global_batch_size)
    global_rows = np.minimum(starts + global_batch_size, rows) - starts
    first = starts + global_rows * rank // size
    last = starts + global_rows * (rank + 1) // size
    own = np.concatenate([order[begin:end] for begin, end in zip(first, last, strict=True)] or [order[:0]])
    return BatchPlan(rows=own, ends=np.cumsum(last - first), global_rows=global_rows)


def make_batches(features: "tf.Tensor", label_index: "tf.Tensor", plan: BatchPlan) -> "tf.data.Dataset":
    """The batches of `plan` as a `tf.data.Dataset` of (features, label_index, global_rows), one element a step."""
    import tensorflow as tf

    rows = tf.constant(plan.rows)

    def gather(start: Any, end: Any, global_rows: Any) -> Any:
        own = rows[start:end]
        return tf.gather(features, own), tf.gather(label_index, own), tf.cast(global_rows, tf.float32)

    starts = np.concatenate([np.zeros(1, np.int64), plan.ends])[: len(plan.ends)]
    steps = tf.data.Dataset.from_tensor_slices((starts, plan.ends, plan.global_rows))
    return steps.map(gather).prefetch(2)


def iterate_slices(rows: int, batch_size: int, *, rank: int = 0, size: int = 1) -> Iterator[slice]:
    """Consecutive slices of a rank's share of `rows`, for evaluation."""
    first, last = rows * rank // size, rows * (rank + 1) // size
    for start in range(first, last, batch_size):
        yield slice(start, min(start + batch_size, last))


def _features_of(table: pa.Table, url: str, manifest: FeaturesManifest) -> NDArray[Any]:
    """The features of all rows: flat for a network's, an image each for pixels."""
    size = int(np.prod(manifest.feature_shape))
    pixels = manifest.feature_dtype == "uint8"
    shape = (table.num_rows, *manifest.feature_shape) if pixels else (table.num_rows, size)
    chunks = table["features"].chunks if table.num_rows else []
    lengths = [pc.binary_length(chunk) if pixels else pc.list_value_length(chunk) for chunk in chunks]
    if any(pc.min(length).as_py() != size or pc.max(length).as_py() != size for length in lengths):
        raise JobError(f"{url}: not all rows have {size} features, as the manifest says.")
    features = np.empty(shape, manifest.feature_dtype)
    first = 0
    for chunk in chunks:
        values = np.frombuffer(b"".join(chunk.to_pylist()), np.uint8) if pixels else chunk.flatten().to_numpy()
        features[first : first + len(chunk)] = values.reshape(len(chunk), *shape[1:])
        first += len(chunk)
    return features
