"""A ConvNet on drawn shapes, what it says of more of them, and its predictions published without Spark; for the tests."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from featurize.building.shard_files import ShardWriter
from featurize.digests import combine_digests, settings_digest
from featurize.tables.manifests import (
    PREDICTED,
    PredictionsManifest,
    ShardRecord,
    add_counts,
    library_versions,
    utc_now,
)
from featurize.tables.schemas import PREDICTIONS_SCHEMA
from featurize.timings import Timings
from finetune.drift.projection import embed, embedding_model
from finetune.drift.reference import Reference, make_reference
from finetune.drift.window import Window
from finetune.models.folder import ModelCard, load_model
from finetune.prediction.answers import answers_of
from helpers.models.logged_models import train_model
from helpers.tables.feature_sets import write_feature_set
from helpers.tables.publishing import write_manifest

CLASSES = ("ant", "bee", "cat", "dog")
NEW = "eel"
SIZE = 20
Pixels = NDArray[np.uint8]
_COLOURS = {
    "ant": (200, 60, 60),
    "bee": (60, 190, 70),
    "cat": (70, 80, 200),
    "dog": (190, 180, 60),
    "eel": (160, 80, 180),
}


def draw(label: str, random: np.random.Generator) -> Pixels:
    """A shape, somewhere, on a grey ground with noise: uint8 (20, 20, 3). None but that of `cat` looks the same when rotated."""
    image = Image.new("RGB", (SIZE, SIZE), tuple(int(v) for v in random.integers(90, 150, 1).repeat(3)))
    pen = ImageDraw.Draw(image)
    x, y = (int(v) for v in random.integers(1, 8, 2))
    side = int(random.integers(8, 12))
    colour = tuple(int(v) for v in np.clip(np.array(_COLOURS[label]) + random.normal(0, 25, 3), 0, 255))
    box = (x, y, x + side, y + side)
    if label == "ant":
        pen.polygon([(x, y + side), (x + side, y + side), (x + side // 2, y)], fill=colour)
    elif label == "bee":
        pen.rectangle((x, y + side // 2, x + side, y + side), fill=colour)
    elif label == "cat":
        pen.ellipse(box, fill=colour)
    elif label == "dog":
        pen.pieslice(box, 180, 360, fill=colour)
    else:
        pen.line((x, y, x + side, y + side), fill=colour, width=3)
        pen.line((x, y + side, x + side, y), fill=colour, width=3)
    noisy = np.asarray(image) + random.normal(0, 22, (SIZE, SIZE, 3))
    return np.asarray(noisy.clip(0, 255), np.uint8)


def draw_many(count: int, *, seed: int, shares: Sequence[float] = (0.25,) * 4, new: float = 0.0) -> Pixels:
    """`count` shapes, of the classes by `shares`, a part of them of the new class."""
    random = np.random.default_rng(seed)
    labels = random.choice(CLASSES, count, p=shares)
    labels = np.where(random.random(count) < new, NEW, labels)
    return np.stack([draw(str(label), random) for label in labels])


def grey(pixels: Pixels) -> Pixels:
    """The images without colour."""
    light = pixels @ np.array([0.299, 0.587, 0.114])
    return np.repeat(light[..., None], 3, axis=-1).round().astype(np.uint8)


def rotated(pixels: Pixels) -> Pixels:
    """The images, a quarter turn to the left."""
    return np.ascontiguousarray(np.rot90(pixels, axes=(1, 2)))


@dataclass(frozen=True)
class Known:
    """A model, its reference, and the model with embeddings as a second output."""

    folder: Path
    card: ModelCard
    reference: Reference
    model: Any

    def probabilities(self, pixels: Pixels) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Of the classes; and projections."""
        probabilities, embeddings = embed(self.model, pixels)
        return probabilities, self.reference.projection.apply(embeddings)

    def window(self, pixels: Pixels) -> Window:
        """What the model says of some images."""
        probabilities, projections = self.probabilities(pixels)
        labels = [self.card.classes[best] for best in probabilities.argmax(axis=1)]
        return Window(labels, probabilities.max(axis=1), projections)


def train_on_shapes(folder: Path, *, seed: int = 0, epochs: int = 8) -> Known:
    """A ConvNet on 800 shapes, with 400 more as its validation split."""
    random = np.random.default_rng(seed)
    label_index = random.integers(0, len(CLASSES), 1200)
    pixels = np.stack([draw(CLASSES[index], random) for index in label_index])
    splits = ["train"] * 800 + ["validation"] * 400
    write_feature_set(folder / "features", pixels, label_index, splits=splits, classes=CLASSES, rows_per_group=300)
    card = train_model(folder / "features", folder / "model", name="mnist_convnet", learning_rate=0.02, epochs=epochs)
    reference = make_reference(str(folder / "model"), card)
    return Known(folder / "model", card, reference, embedding_model(load_model(str(folder / "model"))[0]))


def publish(
    output: Path, known: Known, pixels: Pixels, *, at: datetime, per_minute: int = 100, has_projections: bool = True
) -> PredictionsManifest:
    """Predictions as `finetune predict` publishes them: `per_minute` images a minute from `at` on, in the order given."""
    folder = output / f"model_id={known.card.model_id}"
    writer = ShardWriter(
        str(folder), "00000001-00000-1", PREDICTIONS_SCHEMA, rows_per_group=64, by_split=False, plain_columns=()
    )
    probabilities, projections = known.probabilities(pixels)
    count = len(pixels)
    columns = {
        "image_id": [hashlib.sha256(image.tobytes()).hexdigest() for image in pixels],
        "path": [f"photos/{row:05d}.png" for row in range(count)],
        "predicted_at": [at + timedelta(minutes=row // per_minute) for row in range(count)],
        "projection": list(projections) if has_projections else [None] * count,
        **answers_of(probabilities, known.card.classes),
    }
    order = np.random.default_rng(0).permutation(count)  # files hold rows in whatever order
    shuffled = {name: [values[row] for row in order] for name, values in columns.items()}
    for start in range(0, count, 150):
        part = {name: values[start : start + 150] for name, values in shuffled.items()}
        writer.write([PREDICTED] * len(part["path"]), ["1:1"] * len(part["path"]), part)
    model = {"url": f"file://{known.folder}", "network_sha256": known.card.network_sha256}
    manifest = predictions_of(
        known.card.model_id, [writer.close()], preparation_id=known.card.features.preparation_id, model=model
    )
    write_manifest(str(folder), manifest)
    return manifest


def predictions_of(
    model_id: str, shards: Sequence[ShardRecord], *, preparation_id: str = "", model: Mapping[str, str] | None = None
) -> PredictionsManifest:
    """The manifest of predictions that consist of `shards`."""
    settings = {"table": "predictions", "model_id": model_id}
    return PredictionsManifest(
        identity=settings_digest(settings),
        settings=settings,
        classes=[],
        rows=add_counts(shard.rows for shard in shards),
        rejects={},
        content_digest=combine_digests(shard.content_digest for shard in shards),
        shards=list(shards),
        created_at=utc_now(),
        updated_at=utc_now(),
        seconds=1.0,
        timings=Timings(),
        versions=library_versions(),
        model_id=model_id,
        preparation_id=preparation_id,
        model={"model_id": model_id, **(model or {})},
        threshold=None,
        source={"kind": "images"},
    )
