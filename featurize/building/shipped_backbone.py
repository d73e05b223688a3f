"""The backbone on workers: Spark sends its file to every executor once, and each worker process loads it once."""

import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pyspark import SparkFiles
from pyspark.sql import SparkSession

from featurize.backbones.backbone import load_backbone, warm_up
from featurize.backbones.spec import BackboneSpec, PreparedBackbone
from featurize.building.session import is_local
from featurize.building.worker import Loaded, assigned_gpus, log, use_task_resources
from featurize.decoding.decoder_process import Decoder
from featurize.engines.pieces import BATCHES_AT_ONCE
from featurize.engines.precision import Forward
from featurize.map_ahead import map_ahead
from featurize.progress import stage
from featurize.timings import Timings

_MAX_AHEAD_BYTES = 256 << 20  # of decoded pixels, where images are large
_loaded: dict[str, Forward] = {}  # the backbones of one job per worker process, kept from task to task
_loading = threading.Lock()
Value = TypeVar("Value")
Result = TypeVar("Result")


def kept_backbones() -> list[str]:
    """The digests of the backbones that this worker process holds in memory: those of one job."""
    return list(_loaded)


def forget_backbone() -> None:
    """Frees the backbone that this process holds in memory; the next task loads its own."""
    _loaded.clear()


@dataclass(frozen=True)
class Decoded:
    """Pixels at the network's size, and the size of the image in its file."""

    pixels: NDArray[np.uint8]
    width: int
    height: int


@dataclass(frozen=True)
class ShippedBackbone:
    """What a worker needs of a backbone: it travels inside the function that Spark ships.

    Attributes:
        file: the name under which Spark sends the network's file; None for `pixels`.
        sha256: SHA-256 of this file.
        batch_size: number of images that are computed together.
        is_logged: whether a worker that has loaded it says so in the log of its executor.
        per_core: images in a pass that one core computes alone; None: all cores compute one pass together.
    """

    spec: BackboneSpec
    file: str | None
    sha256: str | None
    batch_size: int
    is_logged: bool = False
    per_core: int | None = None

    def ahead(self, threads: int) -> int:
        """How many images may be decoded before they are used: two batches, or fewer if the images are large."""
        image_bytes = self.spec.height * self.spec.width * self.spec.channels
        return min(2 * self.batch_size + threads, max(threads, _MAX_AHEAD_BYTES // image_bytes))

    def decode(self, content: bytes, decoder: Decoder) -> Decoded:
        """Decodes an image file to the size of the network's input. Raises DecodeError."""
        pixels, (width, height) = decoder.decode(content, **self.spec.decoding)
        return Decoded(pixels, width, height)

    @property
    def size_of_images(self) -> tuple[Any, ...]:
        """What the pixels of an image depend on; equal where the pixels are."""
        return tuple(self.spec.decoding.values())

    @property
    def _key(self) -> str:
        how = f"{self.spec.engine} {self.spec.precision} {self.per_core or ''}".rstrip()
        return f"{self.sha256 or self.spec.preparation_id} {how}"

    def forward(self, timings: Timings, *, beside: Sequence["ShippedBackbone"] = ()) -> Forward:
        """The backbone of this process; when the first images arrive, it is loaded and run once on zeros.

        Args:
            timings: where the time is counted.
            beside: the backbones that the job needs beside it. A worker that is reused for others keeps only these in memory.
        """
        with _loading:
            if self._key not in _loaded:
                with timings.measure("startup"):
                    for key in _loaded.keys() - {one._key for one in beside}:
                        del _loaded[key]
                    _loaded[self._key] = self._load()
            return _loaded[self._key]

    def _load(self) -> Forward:
        spec = self.spec
        if self.file is None:
            return load_backbone(spec, None, sha256=None)
        threads = use_task_resources(tensorflow=spec.engine == "tensorflow")
        path = Path(SparkFiles.get(self.file))
        forward = load_backbone(
            spec, path, sha256=self.sha256, threads=threads, batch_size=self.batch_size, per_core=self.per_core
        )
        warm_up(forward, spec)
        if self.is_logged:
            gpus = ", ".join(assigned_gpus() or ["not assigned"])
            log(f"{spec.name} in {spec.precision} on {spec.engine}, {threads} threads, GPUs {gpus}")
        return forward


@cache
def shipping_folder() -> "tempfile.TemporaryDirectory[str]":
    """The folder of the files for executors, kept while this process lives: executors that join later fetch them too."""
    return tempfile.TemporaryDirectory(prefix="firn-")


def ship_backbone(spark: SparkSession, backbone: PreparedBackbone) -> ShippedBackbone:
    """Sends the file of a backbone, which must lie in the `shipping_folder`, to every executor."""
    if backbone.path is not None:
        stage("sending the network to workers")
        spark.sparkContext.addFile(str(backbone.path))
    return ShippedBackbone(
        spec=backbone.spec,
        file=backbone.path.name if backbone.path is not None else None,
        sha256=backbone.sha256,
        batch_size=backbone.batch_size,
        is_logged=not is_local(spark),
        per_core=backbone.per_core,
    )


def compute_batches(
    loaded: Iterator[Loaded[Value]],
    size: int,
    array_of: Callable[[Value], NDArray[Any]],
    compute: Callable[[list[Loaded[Value]], NDArray[Any]], Result],
    *,
    at_once: int = 1,
) -> Iterator[tuple[list[Loaded[Value]], Result]]:
    """The batches of `full_batches` in order, each with what `compute` makes of it in a thread, while the next one is filled.

    Args:
        loaded: the images.
        size: images in a batch.
        array_of: the array of an image.
        compute: called with the images of a batch and their arrays, which are valid during the call.
        at_once: how many batches are computed at a time.
    """

    def work(batch: tuple[list[Loaded[Value]], NDArray[Any]]) -> tuple[list[Loaded[Value]], Result]:
        images, arrays = batch
        return images, compute(images, arrays)

    held = at_once + 1  # with the one that is being filled
    yield from map_ahead(work, full_batches(loaded, size, array_of, held=held), threads=at_once, ahead=held)


def full_batches(
    loaded: Iterator[Loaded[Value]], size: int, array_of: Callable[[Value], NDArray[Any]], *, held: int = 1
) -> Iterator[tuple[list[Loaded[Value]], NDArray[Any]]]:
    """Batches of `size` images, the last one perhaps shorter, each with its arrays stacked into one.

    The array, ``(n_images, ...)``, is used again for the batch after the next `held` - 1: be done with it before taking that.
    """
    stacks: list[NDArray[Any]] = []
    batch: list[Loaded[Value]] = []
    batches = 0
    for image in loaded:
        array = array_of(image.value)
        if not batch and len(stacks) < held:
            stacks.append(np.empty((size, *array.shape), array.dtype))
        stack = stacks[batches % held]
        stack[len(batch)] = array
        batch.append(image)
        if len(batch) == size:
            yield batch, stack
            batch, batches = [], batches + 1
    if batch:
        yield batch, stacks[batches % held][: len(batch)]


def batches_at_once(backbones: Sequence[ShippedBackbone]) -> int:
    """How many batches these backbones compute at a time: several where each core computes passes of its own."""
    return BATCHES_AT_ONCE if all(backbone.per_core for backbone in backbones) else 1
