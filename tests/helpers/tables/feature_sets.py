"""Small real feature sets on disk, written without Spark, and the data that goes into them."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurize.backbones.spec import BackboneSpec
from featurize.building.shard_files import ShardWriter
from featurize.digests import combine_digests, settings_digest
from featurize.tables.manifests import DataFile, FeaturesManifest, add_counts, library_versions, utc_now
from featurize.tables.schemas import features_schema
from featurize.timings import Timings
from finetune.rows.batches import PADDING
from finetune.rows.loader import BatchPlan
from finetune.rows.splits import SplitData
from helpers.tables.publishing import write_manifest
from helpers.toml_files import write_toml

Floats = NDArray[np.float32]
Labels = NDArray[np.int32]


def make_clusters(
    rows: int, *, dim: int = 6, n_classes: int = 3, spread: float = 0.3, seed: int = 0
) -> tuple[Floats, Labels]:
    """Clusters around corners of a simplex, a class each: float32 (rows, dim) and int32 (rows,). Separable up to 0.3."""
    random = np.random.default_rng(seed)
    label_index = np.arange(rows) % n_classes
    random.shuffle(label_index)
    centres = 3 * np.eye(n_classes, dim)
    features = centres[label_index] + random.uniform(-spread, spread, (rows, dim))
    return features.astype(np.float32), label_index.astype(np.int32)


def make_split(rows: int, *, features: NDArray[Any] | None = None, **options: Any) -> SplitData:
    """`make_clusters` as a split in memory, or other features with its labels."""
    clusters, label_index = make_clusters(rows, **options)
    features = clusters if features is None else features
    paths = pa.array([f"{row:05d}.png" for row in range(rows)], pa.large_string())
    return SplitData(features, label_index, paths, np.arange(rows, dtype=np.int64))


def rows_of_steps(plan: BatchPlan) -> list[NDArray[np.int64]]:
    """The rows of each step of a plan, without what fills them up."""
    return [rows[rows != PADDING] for rows in plan.rows]


def empty_split(dim: int = 6) -> SplitData:
    """A split without rows."""
    nothing = np.empty(0, np.int32)
    return SplitData(np.empty((0, dim), np.float32), nothing, pa.array([], pa.large_string()), nothing.astype(np.int64))


def uneven_shards(rows: int, n_shards: int, *, seed: int = 0) -> list[list[int]]:
    """Every row in one of `n_shards` shards of very different sizes, in no order; some shards may be empty."""
    random = np.random.default_rng(seed)
    cuts = np.sort(np.floor(rows * random.random(n_shards - 1) ** 3).astype(int))
    return [part.tolist() for part in np.split(random.permutation(rows), cuts)]


def in_order(*counts: int) -> list[list[int]]:
    """Shards of so many rows each, in order."""
    ends = np.cumsum(counts)
    return [list(range(end - count, end)) for end, count in zip(ends, counts, strict=True)]


def image_ids(rows: int) -> list[str]:
    """The ids that `write_feature_set` gives to its rows."""
    return [hashlib.sha256(f"image {row}".encode()).hexdigest() for row in range(rows)]


def spec_of(features: NDArray[Any], **changes: Any) -> BackboneSpec:
    """The backbone that could have made `features`: `pixels` for uint8, else an invented network."""
    pixels = features.dtype == np.uint8
    shape = features.shape[1:]
    spec = BackboneSpec(
        name="pixels" if pixels else "Invented",
        network_sha256=None,
        layer=None if pixels else "pool",
        weights=None if pixels else "random",
        weights_digest=None if pixels else "0" * 64,
        preprocessing="none",
        resizing="bilinear",
        height=shape[0] if pixels else 32,
        width=shape[1] if pixels else 32,
        channels=shape[2] if pixels else 3,
        precision="float32",
        feature_shape=tuple(shape),
        feature_dtype="uint8" if pixels else "float32",
    )
    return replace(spec, **changes)


def write_feature_set(
    folder: Path,
    features: NDArray[Any],
    label_index: NDArray[Any],
    *,
    splits: Sequence[str] | None = None,
    classes: Sequence[str] = ("ant", "bee", "cat"),
    shards: Sequence[Sequence[int]] | None = None,
    rows_per_group: int = 16,
    spec: BackboneSpec | None = None,
) -> FeaturesManifest:
    """Writes a feature set as `featurize run` would, and returns its manifest.

    Args:
        features: float32 (rows, dim), or uint8 (rows, height, width, channels).
        splits: of each row; default: three in five are train, one validation, one test.
        shards: which rows each Spark task would have written, in which order; default: three uneven ones.
    """
    rows = len(label_index)
    spec = spec or spec_of(features)
    splits = (
        splits
        if splits is not None
        else [("train", "train", "train", "validation", "test")[i % 5] for i in range(rows)]
    )
    ids = image_ids(rows)
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for number, shard in enumerate(shards if shards is not None else uneven_shards(rows, 3)):
        writer = ShardWriter(
            str(folder),
            f"0123abcd-{number:05d}-{number}",
            features_schema({"features": spec.is_pixels}),
            rows_per_group=rows_per_group,
            by_split=True,
            plain_columns=("image_id", "path", "features"),
        )
        for start in range(0, len(shard), 7):  # in small batches, as a worker does
            part = list(shard[start : start + 7])
            writer.write(
                [splits[row] for row in part],
                ["1:1" for _ in part],
                {
                    "image_id": [ids[row] for row in part],
                    "path": [f"photos/{row:05d}.png" for row in part],
                    "label": [classes[label_index[row]] for row in part],
                    "label_index": [int(label_index[row]) for row in part],
                    "width": [32] * len(part),
                    "height": [32] * len(part),
                    "features": _column(features[part]),
                },
            )
        records.append(writer.close())
    settings = {"table": "features", "classes": list(classes), "backbone": spec.as_dict()}
    manifest = FeaturesManifest(
        identity=settings_digest(settings),
        settings=settings,
        classes=list(classes),
        rows=add_counts(record.rows for record in records),
        rejects={},
        content_digest=combine_digests(record.content_digest for record in records),
        shards=records,
        created_at=utc_now(),
        updated_at=utc_now(),
        seconds=1.0,
        timings=Timings(),
        versions=library_versions(),
        preparation_id=spec.preparation_id,
        backbone={**spec.as_dict(), "weights_file_sha256": None},
        feature_shape=list(spec.feature_shape),
        feature_dtype=spec.feature_dtype,
        rows_per_group=rows_per_group,
        recipe={},
        lineage={},
    )
    write_manifest(str(folder), manifest)
    return manifest


def with_files(manifest: FeaturesManifest, files: Sequence[DataFile]) -> FeaturesManifest:
    """`manifest` with these files, in this order, each in a shard of its own."""
    shards = [manifest.shards[0].model_copy(update={"files": [file]}) for file in files]
    return manifest.model_copy(update={"shards": shards})


def write_recipe(path: Path, *, features: str, model: str, **training: Any) -> Path:
    """A recipe's lower half as TOML."""
    return write_toml(path, {"features": {"url": features}, "model": {"url": model}, "training": training})


def _column(features: NDArray[Any]) -> pa.Array:
    if features.dtype == np.uint8:
        return pa.array([image.tobytes() for image in features], type=pa.binary())
    return pa.array([row.tolist() for row in features], type=pa.list_(pa.float32()))
