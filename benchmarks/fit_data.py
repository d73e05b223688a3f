"""Features for the benchmarks of training, as arrays in a folder, so that every process uses the same ones."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from featurize.tables.readable import read_features_manifest
from finetune.rows.splits import SplitData, read_split

SPLITS = ("train", "validation")
_LATENT = 128  # directions in which the classes of random features differ
_SCALE = 0.55  # ratio of the distance between classes to that within them: a linear model has an accuracy of about 3/4
_ROWS_PER_GROUP = 512


@dataclass(frozen=True)
class Arrays:
    """Features ``float32 (n_rows, feature_dim)`` and labels ``int32 (n_rows,)``."""

    features: NDArray[np.float32]
    labels: NDArray[np.int32]

    def as_split(self) -> SplitData:
        rows = len(self.labels)
        return SplitData(self.features, self.labels, pa.nulls(rows, pa.large_string()), np.arange(rows, dtype=np.int64))


def load(folder: str | Path, split: str) -> Arrays:
    return Arrays(np.load(Path(folder, f"{split}-features.npy")), np.load(Path(folder, f"{split}-labels.npy")))


def copy_features(url: str, folder: Path) -> dict[str, Any]:
    """Writes the features of a feature set to `folder`; returns their description."""
    manifest = read_features_manifest(url)
    for split in SPLITS:
        data = read_split(url, manifest, split)
        _save(folder, split, data.features, data.label_index)
    return _describe(folder, len(manifest.classes))


def make_features(rows: int, feature_dim: int, n_classes: int, folder: Path) -> dict[str, Any]:
    """Writes random features to `folder`, `rows` for training and a fifth as many for validation; returns their description.

    Every class is a cloud around its centre in a space of few dimensions, which a random linear map and a ReLU map to
    `feature_dim` dimensions, with noise in each. Like those of a network's last layers, they are half zero and correlated.
    """
    random = np.random.default_rng(0)
    centres = random.standard_normal((n_classes, _LATENT), np.float32) * _SCALE
    mixing = random.standard_normal((_LATENT, feature_dim), np.float32) / np.float32(np.sqrt(_LATENT))
    for split, count in zip(SPLITS, (rows, rows // 5), strict=True):
        labels = random.integers(0, n_classes, count).astype(np.int32)
        latent = centres[labels] + random.standard_normal((count, _LATENT), np.float32)
        noise = random.standard_normal((count, feature_dim), np.float32) * np.float32(0.5)
        _save(folder, split, np.maximum(latent @ mixing + noise, 0), labels)
    return _describe(folder, n_classes)


def write_parquet(folder: Path) -> None:
    """Writes the training rows beside the arrays, for Spark: columns `features` and `label`."""
    data = load(folder, "train")
    schema = pa.schema([("features", pa.list_(pa.float32())), ("label", pa.float64())])
    with pq.ParquetWriter(folder / "train.parquet", schema) as writer:
        for start in range(0, len(data.labels), _ROWS_PER_GROUP):
            part = data.features[start : start + _ROWS_PER_GROUP]
            offsets = np.arange(len(part) + 1, dtype=np.int32) * part.shape[1]
            columns = [
                pa.ListArray.from_arrays(offsets, part.reshape(-1)),
                pa.array(data.labels[start : start + _ROWS_PER_GROUP].astype(np.float64)),
            ]
            writer.write_table(pa.table(columns, schema=schema))


def _save(folder: Path, split: str, features: NDArray[np.float32], labels: NDArray[np.int32]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{split}-features.npy", features)
    np.save(folder / f"{split}-labels.npy", labels)


def _describe(folder: Path, n_classes: int) -> dict[str, Any]:
    rows = {split: len(np.load(folder / f"{split}-labels.npy")) for split in SPLITS}
    shape = np.load(folder / "train-features.npy", mmap_mode="r").shape
    described = {"rows": rows, "feature_dim": shape[1], "n_classes": n_classes}
    (folder / "about.json").write_text(json.dumps(described), encoding="utf-8")
    return described
