"""Predictions that grow batch by batch, without Spark and without a model; for the tests."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurize.building.shard_files import ShardWriter
from featurize.tables.manifests import PREDICTED, PredictionsManifest, ShardRecord
from featurize.tables.schemas import PREDICTIONS_SCHEMA
from helpers.tables.drift_sets import predictions_of
from helpers.tables.publishing import write_manifest

MODEL = "5" * 64
BEGIN = datetime(2026, 11, 1, tzinfo=UTC)


class Predictions:
    """Of the images 0, 1, 2, ..., each of which has always the same answer; every shard is a second later than the last."""

    def __init__(self, output: Path, model_id: str = MODEL) -> None:
        self.output, self.model_id, self.shards, self._made = output, model_id, list[ShardRecord](), 0

    @property
    def folder(self) -> Path:
        return self.output / f"model_id={self.model_id}"

    @property
    def manifest(self) -> PredictionsManifest:
        return predictions_of(self.model_id, self.shards)

    def label(self, images: Sequence[int], *, parts: int = 1, rejects: int = 0) -> None:
        """Publishes a batch in so many shards, its rows in another order for each number of them, the rejects in the last one."""
        dealt = np.array_split(np.random.default_rng(parts).permutation(np.array(images, np.int64)), parts)
        for number, part in enumerate(dealt, start=1):
            name = f"00000001-{self._made:05d}-1"
            writer = ShardWriter(str(self.folder), name, PREDICTIONS_SCHEMA, rows_per_group=9, by_split=False)
            if len(part):
                writer.write([PREDICTED] * len(part), ["1:1"] * len(part), _rows_of(part, at=self._made))
            for reject in range(rejects if number == parts else 0):
                path = f"torn {self._made} {reject}.png"
                writer.reject(path=path, image_id=None, bytes_size=3, stamp="3:3", stage="read", error="torn")
            self.shards.append(writer.close())
            self._made += 1
        write_manifest(str(self.folder), self.manifest)


def _rows_of(images: NDArray[np.int64], *, at: int) -> dict[str, list[Any]]:
    random = [np.random.default_rng(int(image)) for image in images]
    return {
        "image_id": [image_id(image) for image in images],
        "path": [f"{image:05d}.png" for image in images],
        "label": [None] * len(images),
        "probability": [one.random() for one in random],
        "top_labels": [[str(one.choice(["ant", "bee"]))] for one in random],
        "top_probabilities": [[1.0]] * len(images),
        "predicted_at": [BEGIN + timedelta(seconds=at)] * len(images),
        "reason": [None] * len(images),
        "projection": [one.normal(size=4).tolist() for one in random],
    }


def image_id(image: int) -> str:
    return hashlib.sha256(str(image).encode()).hexdigest()
