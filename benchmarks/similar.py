"""Seconds to find the nearest images of one image, exactly, beside scikit-learn's brute force and a NumPy one-liner.

    python benchmarks/similar.py                     # 30,000 random rows of 4,096 floats, after a ReLU
    python benchmarks/similar.py --rows 10000 --values 1024

Features in memory: `find_nearest` (float32, then float64 for near rows), scikit-learn's `NearestNeighbors` by brute force, and
the formula in float64 on all rows, which gives the true answer. From Parquet: `find_similar`, which holds a few row groups at a
time, and reading the same files with pyarrow. The ways are measured in turn, `--repeats` times. Prints one JSON object: median
seconds.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pyarrow.parquet as pq
from helpers.tables.feature_sets import write_feature_set
from numpy.typing import NDArray

from featurize.similar.nearest import METRICS, Metric, find_nearest
from featurize.similar.search import find_similar

N_CLASSES = 3
SLICE = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=30_000)
    parser.add_argument("--values", type=int, default=4096)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="firn-") as folder:
        from_parquet = measure_parquet(Path(folder), options.rows, options.values, options.k, options.repeats)
    in_memory = measure_memory(options.rows, options.values, options.k, options.repeats)
    size = {"rows": options.rows, "values": options.values, "k": options.k, "cores": len(os.sched_getaffinity(0))}
    print(json.dumps({**size, "in_memory": in_memory, "from_parquet": from_parquet}))


def _rows_of_nearest(features: NDArray[Any], query: NDArray[Any], k: int, metric: Metric) -> NDArray[Any]:
    return find_nearest(features, query, k=k, metric=metric).rows


def _rows_of_neighbours(index: Any, query: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(index.kneighbors(query[None], return_distance=False)[0])


def measure_memory(rows: int, values: int, k: int, repeats: int) -> dict[str, Any]:
    """For each metric the seconds of each way, and whether `find_nearest` returns the rows of float64 in the same order."""
    from sklearn.neighbors import NearestNeighbors

    features = make_features(rows, values)
    query = features[rows // 2] * np.float32(0.9) + features[0] * np.float32(0.1)
    found: dict[str, Any] = {}
    for metric in METRICS:
        index = NearestNeighbors(n_neighbors=k, metric=metric, algorithm="brute").fit(features)
        ways: dict[str, Callable[[], Any]] = {
            "find_nearest": partial(_rows_of_nearest, features, query, k, metric),
            "scikit_learn": partial(_rows_of_neighbours, index, query),
            "float64": partial(search_in_float64, features, query, k, metric),
        }
        seconds, answers = take_turns(ways, repeats)
        found[metric] = {
            "seconds": seconds,
            "same_as_float64": answers["find_nearest"].tolist() == answers["float64"].tolist(),
            "scikit_learn_same_as_float64": answers["scikit_learn"].tolist() == answers["float64"].tolist(),
        }
    return found


def measure_parquet(folder: Path, rows: int, values: int, k: int, repeats: int) -> dict[str, Any]:
    """Seconds of `find_similar` on a feature set and of reading its files."""
    features = make_features(rows, values)
    manifest = write_feature_set(
        folder, features, np.arange(rows) % N_CLASSES, rows_per_group=512, splits=["train"] * rows
    )
    ways: dict[str, Callable[[], Any]] = {
        "find_similar": lambda: find_similar(str(folder), "photos/00007.png", k=k).rows,
        "pyarrow_reads": lambda: sum(pq.ParquetFile(folder / file.path).read().num_rows for file in manifest.files),
    }
    seconds, answers = take_turns(ways, repeats)
    return {"seconds": seconds, "rows_found": answers, "bytes_of_files": manifest.byte_count}


def take_turns(ways: dict[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, float], dict[str, Any]]:
    """The median seconds of each way, and its last answer."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    answers: dict[str, Any] = {}
    for _ in range(repeats):
        for name, way in ways.items():
            started = perf_counter()
            answers[name] = way()
            seconds[name].append(perf_counter() - started)
    return {name: round(median(values), 3) for name, values in seconds.items()}, answers


def search_in_float64(features: Any, query: Any, k: int, metric: Metric) -> Any:
    one, distances = query.astype(np.float64), np.empty(len(features))
    for start in range(0, len(features), SLICE):
        rows = features[start : start + SLICE].astype(np.float64)
        part = slice(start, start + len(rows))
        if metric == "euclidean":
            distances[part] = np.linalg.norm(rows - one, axis=1)
        else:
            distances[part] = 1 - rows @ one / (np.linalg.norm(rows, axis=1) * np.linalg.norm(one))
    return np.argsort(distances, kind="stable")[:k]


def make_features(rows: int, values: int) -> Any:
    """Random features: noise after a ReLU."""
    random = np.random.default_rng(0)
    features = np.empty((rows, values), np.float32)
    for start in range(0, rows, SLICE):
        part = random.standard_normal((min(SLICE, rows - start), values), np.float32)
        np.maximum(part, 0, out=features[start : start + SLICE])
    return features


if __name__ == "__main__":
    main()
