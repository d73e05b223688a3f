"""Speed of the search for near duplicates, beside scikit-learn's search and the bare matrix product.

    python benchmarks/duplicates.py                     # 30,000 random rows of 4,096 floats, after a ReLU
    python benchmarks/duplicates.py --rows 10000 --values 1024

Three splits (60, 20 and 20 %); copies of 1 % of the rows, changed by 1 %, are planted across them and must all be found. The ways
are measured in turn, `--repeats` times. Prints one JSON object: medians of seconds, and the peak memory beyond the features.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pyarrow as pa

from featurize.memory import peak_memory_bytes
from finetune.evaluation.duplicates import choose_threshold, find_duplicates, unit_rows
from finetune.rows.splits import SplitData

N_CLASSES = 257
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}
PLANTED = 0.01
SLICE = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=30_000)
    parser.add_argument("--values", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(json.dumps(measure(make_splits(arguments.rows, arguments.values), arguments.repeats)))


def measure(splits: dict[str, SplitData], repeats: int) -> dict[str, Any]:
    before = peak_memory_bytes()
    found = find_duplicates(splits, [str(index) for index in range(N_CLASSES)])
    taken = peak_memory_bytes() - before
    ways: dict[str, Callable[[], Any]] = {
        "find_duplicates": lambda: find_duplicates(
            splits, [str(index) for index in range(N_CLASSES)], threshold=found.threshold
        ),
        "choose_threshold": lambda: choose_threshold(splits),
        "scikit_learn": lambda: search_by_scikit_learn(splits, 1 - found.threshold),
        "products_alone": lambda: multiply(splits),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            started = perf_counter()
            way()
            seconds[name].append(perf_counter() - started)
    train, *others = (part.rows for part in splits.values())
    return {
        "rows": sum(part.rows for part in splits.values()),
        "values": splits["train"].features.shape[1],
        "pairs_compared": train * sum(others) + others[0] * others[1],
        "planted": round(PLANTED * sum(part.rows for part in splits.values())),
        "found": found.n_near,
        "found_by_scikit_learn": search_by_scikit_learn(splits, 1 - found.threshold),
        "threshold": found.threshold,
        "seconds": {name: round(median(values), 2) for name, values in seconds.items()},
        "features_bytes": sum(part.features.nbytes for part in splits.values()),
        "bytes_taken": taken,
        "cores": os.cpu_count(),
    }


def search_by_scikit_learn(splits: dict[str, SplitData], distance: float) -> int:
    """Number of pairs from two splits that are at most `distance` apart, by cosine."""
    from sklearn.neighbors import NearestNeighbors

    parts, pairs = list(splits.values()), 0
    for number, part in enumerate(parts[:-1]):
        neighbours = NearestNeighbors(radius=distance, metric="cosine", algorithm="brute").fit(part.features)
        for other in parts[number + 1 :]:
            pairs += sum(map(len, neighbours.radius_neighbors(other.features, return_distance=False)))
    return pairs


def multiply(splits: dict[str, SplitData]) -> None:
    """Computes the products that any brute-force search computes."""
    parts = [unit_rows(part.features) for part in splits.values()]
    for number, part in enumerate(parts):
        for other in parts[number + 1 :]:
            for start in range(0, len(part), SLICE):
                for other_start in range(0, len(other), SLICE):
                    part[start : start + SLICE] @ other[other_start : other_start + SLICE].T


def make_splits(rows: int, values: int) -> dict[str, SplitData]:
    """Random features: clouds around the centres of classes, after a ReLU; some rows of train are in the other splits too."""
    random = np.random.default_rng(0)
    labels = random.integers(0, N_CLASSES, rows).astype(np.int32)
    centres = random.standard_normal((N_CLASSES, values), np.float32)
    features = np.empty((rows, values), np.float32)
    for start in range(0, rows, SLICE):
        part = labels[start : start + SLICE]
        features[start : start + SLICE] = np.maximum(
            centres[part] + random.standard_normal((len(part), values), np.float32), 0
        )
    copies = round(PLANTED * rows)
    noise = 1 + 0.01 * random.standard_normal((copies, values), np.float32)
    features[rows - copies :], labels[rows - copies :] = features[:copies] * noise, labels[:copies]
    ends = np.cumsum([round(share * rows) for share in SHARES.values()])
    ids = random.permutation(rows).astype(np.int64)
    return {
        name: SplitData(
            features[end - round(share * rows) : end],
            labels[end - round(share * rows) : end],
            pa.array([f"{name}/{number}.jpg" for number in range(round(share * rows))], pa.large_string()),
            ids[end - round(share * rows) : end],
        )
        for (name, share), end in zip(SHARES.items(), ends, strict=True)
    }


if __name__ == "__main__":
    main()
