"""The work of `finetune predict` on a worker: decode images or take features, fill batches, run the model, write the rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from math import prod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from featurize.building.shard_files import ShardWriter
from featurize.building.shipped_backbone import compute_batches
from featurize.building.worker import Loaded
from featurize.decoding.decode import DecodeError
from featurize.decoding.decoder_process import Decoder
from featurize.jobs.run_task import reject_computed
from featurize.sources.listing import PlannedImage
from featurize.tables.manifests import PREDICTED
from featurize.tables.predictions import PLAIN_COLUMNS, ROWS_PER_GROUP
from featurize.tables.schemas import PREDICTIONS_SCHEMA
from featurize.timings import Timings
from finetune.networks.forward import FEATURES_NOT_FINITE, NOT_FINITE, is_finite
from finetune.prediction.answers import answers_of
from finetune.prediction.shipped_model import ShippedModel


@dataclass(frozen=True)
class PredictTask:
    """The `ShardTask` that turns images or features into predictions."""

    model: ShippedModel
    needs_labels: ClassVar[bool] = False

    def make_writer(self, staging_url: str, name: str) -> ShardWriter:
        """See `ShardTask`."""
        return ShardWriter(
            staging_url,
            name,
            PREDICTIONS_SCHEMA,
            rows_per_group=ROWS_PER_GROUP,
            by_split=False,
            plain_columns=PLAIN_COLUMNS,
        )

    def ahead(self, threads: int) -> int:
        """See `ShardTask`."""
        return self.model.backbone.ahead(threads)

    def load(self, image: PlannedImage, image_id: str, content: bytes, decoder: Decoder) -> NDArray[Any]:
        """The pixels of an image, or its features."""
        if self.model.takes_images:
            return self.model.backbone.decode(content, decoder).pixels
        return features_from(content, self.model)

    def consume(self, loaded: Iterator[Loaded[NDArray[Any]]], writer: ShardWriter, timings: Timings) -> None:
        """Runs full batches through the model (the last one may be short) and writes the answers."""

        def compute(
            _: list[Loaded[NDArray[Any]]], arrays: NDArray[Any]
        ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
            predict = self.model.projecting_predictor(timings)
            with timings.measure("forward"):
                return predict(arrays)

        batches = compute_batches(loaded, self.model.backbone.batch_size, lambda array: array, compute)
        for batch, (probabilities, projections) in batches:
            with timings.measure("write"):
                _write(self.model, writer, batch, probabilities, projections)


def features_from(content: bytes, model: ShippedModel) -> NDArray[Any]:
    """One image's features, parsed from bytes: float32 ``(feature_dim,)``, or uint8 ``(height, width, channels)``.

    Raises:
        DecodeError: The number of values is not the one that the model takes, or some are NaN or infinite.
    """
    spec = model.backbone.spec
    shape = spec.feature_shape if spec.is_pixels else (prod(spec.feature_shape),)
    dtype = np.dtype(spec.feature_dtype)
    if len(content) != prod(shape) * dtype.itemsize:
        raise DecodeError(f"expected {prod(shape)} features, got {len(content) // dtype.itemsize}")
    features = np.frombuffer(content, dtype).reshape(shape)
    if not np.isfinite(features).all():
        raise DecodeError(FEATURES_NOT_FINITE)
    return features


def _write(
    model: ShippedModel,
    writer: ShardWriter,
    batch: list[Loaded[NDArray[Any]]],
    probabilities: NDArray[np.float32],
    projections: NDArray[np.float32] | None,
) -> None:
    usable = is_finite(probabilities) if projections is None else is_finite(np.hstack([probabilities, projections]))
    if not usable.all():
        for row in np.flatnonzero(~usable):
            reject_computed(writer, batch[row], NOT_FINITE)
        batch = [batch[row] for row in np.flatnonzero(usable)]
        probabilities, projections = probabilities[usable], None if projections is None else projections[usable]
    now = datetime.now(UTC)
    writer.write(
        [PREDICTED] * len(batch),
        [loaded.image.stamp for loaded in batch],
        {
            "image_id": [loaded.image_id for loaded in batch],
            "path": [loaded.image.path for loaded in batch],
            **answers_of(probabilities, model.classes, model.threshold),
            "predicted_at": [now] * len(batch),
            "projection": [None] * len(batch) if projections is None else list(projections),
        },
    )
