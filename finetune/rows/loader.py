"""The data that ranks train on: every epoch's batches, by a plan that all ranks share, from memory or from disk."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from featurize.recipes.training_section import TrainingSettings
from featurize.tables.manifests import FeaturesManifest
from finetune.rows.batches import PADDING, Batches, RowBatches
from finetune.rows.disk_rows import StreamData
from finetune.rows.splits import ALIGNMENT, SplitData, read_split

if TYPE_CHECKING:
    import tensorflow as tf

_SLICE_ROWS = 4096


class Data(Protocol):
    """One split for training and evaluation: the same rows on every rank, each rank with its share of every batch."""

    @property
    def rows(self) -> int:
        """Number of images in the whole split."""

    def steps(self, global_batch_size: int) -> int:
        """Number of steps in an epoch."""

    def batches(self, epoch: int, *, seed: int, global_batch_size: int, rank: int = 0, size: int = 1) -> Batches:
        """One rank's share of the batches of an epoch, which depends only on seed and epoch.

        Each is a step, in the form of `batches.take_batch`: features ``(b, ...)``; label_index int32 ``(b,)``; row_ids int64
        ``(b,)``, which determine a row's random numbers; global_rows float32 ``()``, the rows of all ranks in this step. b is the
        same in all steps of a rank: shorter batches are padded with rows of the label `PADDING`.
        """

    def failures(self) -> AbstractContextManager[None]:
        """A context to iterate `batches` in: its errors name a file that cannot be read, which TensorFlow's do not."""

    def memory_bytes(self, *, rank: int = 0, size: int = 1) -> int:
        """About the most bytes that the features take in one rank while it iterates over `batches`."""

    def slices(self, *, rank: int = 0, size: int = 1) -> Iterator[tuple[NDArray[Any], NDArray[np.int32]]]:
        """A rank's share of the rows, once: features and label_index, some thousand rows at a time, in any order."""


@dataclass(frozen=True)
class BatchPlan:
    """The rows that a rank computes in one epoch.

    Every rank makes the same global batches from (seed, epoch) and takes its own slice of each, so that all take the same number
    of steps, and each row is seen exactly once.

    Attributes:
        rows: int64 ``(n_steps, b)``, this rank's rows in each step; `PADDING` where there are fewer than b.
        global_rows: int64 ``(n_steps,)``, rows of all ranks together in each step, by which the gradient is divided.
    """

    rows: NDArray[np.int64]
    global_rows: NDArray[np.int64]


def plan_epoch(rows: int, *, seed: int, epoch: int, global_batch_size: int, rank: int = 0, size: int = 1) -> BatchPlan:
    """The batches of one rank in one epoch.

    Args:
        rows: Number of rows in the whole split.
        seed: Seed of the order.
        epoch: Number of the epoch, counted from 1; each has its own order.
        global_batch_size: Rows of all ranks together in a full step; the last step takes the rest.
        rank: This rank, counted from 0.
        size: Number of ranks.
    """
    order = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch]))).permutation(rows)
    starts = np.arange(0, rows, global_batch_size)
    global_rows = np.minimum(starts + global_batch_size, rows) - starts
    first = starts + global_rows * rank // size
    counts = starts + global_rows * (rank + 1) // size - first
    columns = np.arange(-(-min(global_batch_size, rows) // size) if rows else 0)
    places = first[:, None] + columns
    own = np.where(columns < counts[:, None], order[np.minimum(places, rows - 1)], PADDING)
    return BatchPlan(rows=own, global_rows=global_rows)


class MemoryData:
    """A split in memory; every rank holds all of it."""

    def __init__(self, data: SplitData) -> None:
        self._data = data
        self._tensors: tuple[Any, Any, Any] | None = None

    @property
    def rows(self) -> int:
        """Number of images in the whole split."""
        return self._data.rows

    def steps(self, global_batch_size: int) -> int:
        """Number of steps in an epoch."""
        return math.ceil(self.rows / global_batch_size)

    def batches(self, epoch: int, *, seed: int, global_batch_size: int, rank: int = 0, size: int = 1) -> RowBatches:
        """See `Data.batches`; every epoch has its own order over the whole split."""
        import tensorflow as tf

        plan = plan_epoch(self.rows, seed=seed, epoch=epoch, global_batch_size=global_batch_size, rank=rank, size=size)
        with tf.device("CPU:0"):
            return RowBatches(tf.constant(plan.rows), tf.constant(plan.global_rows, tf.float32), *self._as_tensors())

    def failures(self) -> AbstractContextManager[None]:
        """A context that does nothing, as all rows have been read."""
        return nullcontext()

    def memory_bytes(self, *, rank: int = 0, size: int = 1) -> int:
        """The bytes that the features take, the same in every rank."""
        return self._data.features.nbytes

    def slices(self, *, rank: int = 0, size: int = 1) -> Iterator[tuple[NDArray[Any], NDArray[np.int32]]]:
        """See `Data.slices`; in the order of the split."""
        first, last = self.rows * rank // size, self.rows * (rank + 1) // size
        for start in range(first, last, _SLICE_ROWS):
            part = slice(start, min(start + _SLICE_ROWS, last))
            yield self._data.features[part], self._data.label_index[part]

    def _as_tensors(self) -> tuple[Any, Any, Any]:
        import tensorflow as tf

        if self._tensors is None:
            with tf.device("CPU:0"):
                features, label_index = _as_tensor(self._data.features), tf.constant(self._data.label_index)
                self._tensors = features, label_index, tf.constant(self._data.row_ids)
        return self._tensors


def _as_tensor(array: NDArray[Any]) -> "tf.Tensor":
    """`array` as a tensor, without a copy where its alignment allows; the array must not be changed afterwards."""
    import tensorflow as tf

    if array.ctypes.data % ALIGNMENT or not array.flags.c_contiguous or not array.flags.writeable:
        return tf.constant(array)
    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


def cache_of(settings: TrainingSettings, manifest: FeaturesManifest) -> Literal["memory", "stream"]:
    """The source of training rows, by recipe and feature set. Not by the machine, as the rows' order depends on it."""
    if settings.cache != "auto":
        return settings.cache
    return "memory" if memory_bytes(manifest) <= settings.cache_gb * 1e9 else "stream"


def memory_bytes(manifest: FeaturesManifest) -> int:
    """The bytes that the features of training and validation take in memory."""
    rows = manifest.split_rows("train") + manifest.split_rows("validation")
    return rows * int(np.prod(manifest.feature_shape)) * np.dtype(manifest.feature_dtype).itemsize


def open_split(url: str, manifest: FeaturesManifest, split: str, settings: TrainingSettings) -> Data:
    """One split of the feature set at `url`, in memory or read from disk.

    Raises:
        JobError: Files are missing or damaged, or hold other rows or features than the manifest says.
    """
    if cache_of(settings, manifest) == "memory":
        return MemoryData(read_split(url, manifest, split))
    return StreamData(url, manifest, split, shuffle_rows=settings.shuffle_rows)
