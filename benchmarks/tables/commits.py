"""Seconds that a micro-batch of a stream takes to be published, as the table grows by one version with each.

    python benchmarks/tables/commits.py                  # 10,000 batches of 10 images
    python benchmarks/tables/commits.py --deltalake      # also: the package deltalake commits the same files

Each batch writes the shard of a table of predictions to the staging folder; timed is what `build_table` does from there on: the
files are placed, the manifest is made, and the version is committed, with its checkpoint at every hundredth. Then the first read
of the last version by another process is timed. With `--deltalake` the package opens the table and commits one file to it, as one
would write a stream with it. Prints one JSON object: median seconds of the 50 commits around the 100th, the 1,000th and the last.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import pyarrow as pa

from featurize.building import staging
from featurize.building.build import describe_content, describe_history
from featurize.building.shard_files import ShardWriter
from featurize.tables import publication
from featurize.tables.delta_log import CHECKPOINT_EVERY
from featurize.tables.manifests import PREDICTED, PredictionsManifest, ShardRecord
from featurize.tables.predictions import PLAIN_COLUMNS, ROWS_PER_GROUP
from featurize.tables.publication import publish, read_manifest
from featurize.tables.schemas import PREDICTIONS_SCHEMA

IMAGES = 10  # of a batch
AROUND = 25
CLASSES = ("ant", "bee", "cat")
SETTINGS = {"table": "predictions", "source": "made up"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=10_000)
    parser.add_argument("--deltalake", action="store_true")
    options = parser.parse_args()
    marks = sorted(mark for mark in {100, 1_000, options.batches - AROUND} if mark < options.batches)
    with tempfile.TemporaryDirectory(prefix="firn-") as folder:
        seconds = [commit_batch(f"{folder}/firn", number) for number in range(options.batches)]
        publication._cached.clear()
        started = perf_counter()
        manifest = read_manifest(f"{folder}/firn")
        result: dict[str, Any] = {"firn": summarize(seconds, marks), "first_read_seconds": perf_counter() - started}
        result["rows"] = 0 if manifest is None else manifest.row_count
        if options.deltalake:
            commit = make_deltalake(f"{folder}/deltalake")
            result["deltalake"] = summarize([commit(number) for number in range(options.batches)], marks)
    print(json.dumps(result))


def summarize(seconds: list[float], marks: list[int]) -> dict[str, Any]:
    """Medians around each mark, their ratios to the first, and the median of the commits that write a checkpoint."""
    medians = {mark: median(seconds[max(0, mark - AROUND) : mark + AROUND]) for mark in marks}
    last = [seconds[at] for at in range(CHECKPOINT_EVERY, len(seconds), CHECKPOINT_EVERY)][-5:]
    return {
        "seconds": {mark: round(value, 5) for mark, value in medians.items()},
        "ratios": {mark: round(value / medians[marks[0]], 2) for mark, value in medians.items()},
        "last_checkpoints": round(median(last), 5) if last else None,
    }


def commit_batch(url: str, number: int) -> float:
    """Writes a shard and publishes it; returns the seconds from its end to the commit."""
    shard = write_shard(url, number)
    started = perf_counter()
    existing = read_manifest(url)
    assert existing is None or isinstance(existing, PredictionsManifest)
    kept = [] if existing is None else existing.shards
    staging.place_files(url, [shard])
    manifest = PredictionsManifest(
        **describe_content(existing, kept, [shard], settings=SETTINGS, classes=CLASSES),
        **describe_history(existing, [shard], 0.1),
        model_id="0" * 64,
        preparation_id="0" * 64,
        model={},
        threshold=None,
        source={},
    )
    publish(url, manifest, after=existing)
    staging.remove_staging(url)
    return perf_counter() - started


def write_shard(url: str, number: int) -> ShardRecord:
    writer = ShardWriter(
        f"{url}/{staging.STAGING}",
        f"{number:08x}-00000-0",
        PREDICTIONS_SCHEMA,
        rows_per_group=ROWS_PER_GROUP,
        by_split=False,
        plain_columns=PLAIN_COLUMNS,
    )
    columns: dict[str, list[Any]] = {name: [None] * IMAGES for name in PREDICTIONS_SCHEMA.names}
    columns |= {
        "image_id": [f"{number:032x}{row:032x}" for row in range(IMAGES)],
        "path": [f"file:///in/{number:06d}-{row}.jpg" for row in range(IMAGES)],
        "label": [CLASSES[row % 3] for row in range(IMAGES)],
        "probability": [0.5] * IMAGES,
    }
    writer.write([PREDICTED] * IMAGES, ["1:1"] * IMAGES, columns)
    return writer.close()


def make_deltalake(url: str) -> Callable[[int], float]:
    """The same with the package `deltalake`, without writing the file."""
    from deltalake import DeltaTable, Schema
    from deltalake.transaction import AddAction, create_table_with_add_actions

    schema = Schema.from_arrow(pa.schema([("path", pa.string()), ("label", pa.string())]))

    def commit(number: int) -> float:
        started = perf_counter()
        action = AddAction(
            path=f"data/part-{number}.parquet",
            size=1000,
            partition_values={},
            modification_time=0,
            data_change=True,
            stats=json.dumps({"numRecords": IMAGES}),
        )
        if number:
            DeltaTable(url).create_write_transaction([action], mode="append", schema=schema)
        else:
            create_table_with_add_actions(url, schema, [action])
        return perf_counter() - started

    return commit


if __name__ == "__main__":
    main()
