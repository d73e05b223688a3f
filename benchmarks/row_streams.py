"""Rows per second from a feature set: from disk and from memory by Firn, and only read by pyarrow and by Petastorm.

    python benchmarks/row_streams.py --rows 32768            # random: 4,096 floats per row, ReLU, zstd, row groups of 512
    python benchmarks/row_streams.py --rows 32768 --storage hdfs://namenode:8020/tmp

One rank, no training: batches are made and dropped. All ways read the same files, from the machine's page cache if possible, and
are measured in turn, `--repeats` times. Prints one JSON object: medians, and the peak memory of a process that only reads rows
from disk.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pyarrow as pa

from featurize import storage
from featurize.building.shard_files import ShardWriter
from featurize.digests import combine_digests
from featurize.memory import peak_memory_bytes
from featurize.tables.manifests import FeaturesManifest, add_counts, utc_now
from featurize.tables.publication import publish
from featurize.tables.readable import read_features_manifest
from featurize.tables.row_groups import iterate_row_groups, list_row_groups
from featurize.timings import Timings
from finetune.rows.disk_rows import StreamData
from finetune.rows.loader import MemoryData
from finetune.rows.petastorm_reader import open_petastorm_reader
from finetune.rows.splits import read_split

FEATURES, CLASSES, FILES, ROWS_PER_GROUP = 4096, 257, 16, 512
COLUMNS = ("image_id", "label_index", "features")
SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("path", pa.string()),
        ("label", pa.string()),
        ("label_index", pa.int32()),
        ("features", pa.list_(pa.float32())),
    ]
)
ON_RECORD = {
    "pyarrow": 32_000,
    "petastorm": 18_000,
    "petastorm_tf_data_unbatched": 16_000,
}  # measured before Firn existed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32_768)
    parser.add_argument("--shuffle-rows", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--storage", help="folder for the feature set; default: a temporary one on the local disk")
    parser.add_argument(
        "--only-stream",
        metavar="URL",
        help="only read the feature set at URL from disk, and print the memory that it took",
    )
    arguments = parser.parse_args()
    if arguments.only_stream:
        print(json.dumps(memory_of_streaming(arguments.only_stream, arguments.shuffle_rows)))
        return
    with tempfile.TemporaryDirectory(prefix="firn-") as temporary:
        url = storage.join_url(arguments.storage or temporary, "streams")
        try:
            write_features(url, arguments.rows)
            print(json.dumps(measure(url, arguments.shuffle_rows, arguments.repeats)))
        finally:
            storage.remove(url)


def measure(url: str, shuffle_rows: int, repeats: int) -> dict[str, Any]:
    manifest = read_features_manifest(url)
    stream = StreamData(url, manifest, "train", shuffle_rows=shuffle_rows)
    memory = MemoryData(read_split(url, manifest, "train"))
    ways: dict[str, Callable[[int], int]] = {
        "pyarrow": lambda epoch: sum(
            len(table) for table in iterate_row_groups(list_row_groups(url, manifest, "train"), COLUMNS)
        ),
        "petastorm": lambda epoch: read_by_petastorm(url, manifest),
        "read_split": lambda epoch: read_split(url, manifest, "train").rows,
        "slices": lambda epoch: sum(len(labels) for _, labels in stream.slices()),
        "stream_batch_512": lambda epoch: count_batches(stream, epoch, 512),
        "stream_batch_32": lambda epoch: count_batches(stream, epoch, 32),
        "memory_batch_512": lambda epoch: count_batches(memory, epoch, 512),
        "memory_batch_32": lambda epoch: count_batches(memory, epoch, 32),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for epoch in range(repeats + 1):
        for name, read in ways.items():
            started = perf_counter()
            rows = read(epoch)
            rates[name].append(rows / (perf_counter() - started))
    command = [sys.executable, __file__, "--only-stream", url, "--shuffle-rows", str(shuffle_rows)]
    alone = subprocess.run(command, capture_output=True, text=True, check=True)
    return {
        "rows": stream.rows,
        "floats_per_row": FEATURES,
        "bytes_on_disk": manifest.byte_count,
        "bytes_of_features": stream.rows * FEATURES * 4,
        "shuffle_rows": shuffle_rows,
        "cores": os.cpu_count(),
        "rows_per_second": {name: round(median(values[1:])) for name, values in rates.items()},  # the first warms up
        "rows_per_second_on_record": ON_RECORD,
        "memory": json.loads(alone.stdout.splitlines()[-1]),
    }


def count_batches(data: StreamData | MemoryData, epoch: int, batch_size: int) -> int:
    """Makes the batches of an epoch, two ahead as in training, and counts their rows."""
    batches: Any = data.batches(epoch, seed=1, global_batch_size=batch_size)
    return int(sum(float(rows) for *_, rows in batches.prefetch(2)))


def read_by_petastorm(url: str, manifest: FeaturesManifest) -> int:
    """Reads about as many rows as the set has, by an endless reader, as Petastorm's readers lose rows at the end of an epoch."""
    rows = 0
    reader = open_petastorm_reader(url, manifest, "train", COLUMNS)
    while rows < manifest.split_rows("train"):
        rows += len(next(reader).label_index)
    reader.stop()  # not by `with`, which prints a line
    reader.join()
    return rows


def memory_of_streaming(url: str, shuffle_rows: int) -> dict[str, int]:
    """Peak memory of this process before and after it read two epochs from disk, and the stated memory, in bytes."""
    import tensorflow as tf

    manifest = read_features_manifest(url)
    next(iter(tf.data.Dataset.range(1)))
    read_by_petastorm(url, manifest.model_copy(update={"rows": {"train": {"": 1}}}))  # imports all libraries
    data = StreamData(url, manifest, "train", shuffle_rows=shuffle_rows)
    before = peak_memory_bytes()
    for epoch in (1, 2):
        count_batches(data, epoch, 512)
    return {"taken": peak_memory_bytes() - before, "stated": data.memory_bytes()}


def write_features(url: str, rows: int) -> None:
    """Writes a feature set of random features after a ReLU: about a third is not zero."""
    random, records = np.random.default_rng(0), []
    per_file = rows // FILES
    for number in range(FILES):
        name = f"0123abcd-{number:05d}-{number}"
        writer = ShardWriter(
            url,
            name,
            SCHEMA,
            rows_per_group=ROWS_PER_GROUP,
            by_split=True,
            plain_columns=("image_id", "path", "features"),
        )
        for first in range(0, per_file, ROWS_PER_GROUP):
            count = min(ROWS_PER_GROUP, per_file - first)
            values = np.maximum(random.standard_normal((count, FEATURES), np.float32) - 0.4, 0)
            labels = random.integers(0, CLASSES, count)
            ids = [random.bytes(32).hex() for _ in range(count)]
            columns = {
                "image_id": ids,
                "path": [f"photos/{text[:12]}.jpg" for text in ids],
                "label": [f"class {label:03d}" for label in labels],
                "label_index": labels.tolist(),
                "features": pa.ListArray.from_arrays(
                    np.arange(count + 1, dtype=np.int32) * FEATURES, values.reshape(-1)
                ),
            }
            writer.write(["train"] * count, ["1:1"] * count, columns)
        records.append(writer.close())
    publish(
        url,
        FeaturesManifest(
            identity="0" * 64,
            settings={},
            classes=[f"class {label:03d}" for label in range(CLASSES)],
            rows=add_counts(record.rows for record in records),
            rejects={},
            content_digest=combine_digests(record.content_digest for record in records),
            shards=records,
            created_at=utc_now(),
            updated_at=utc_now(),
            seconds=0.0,
            timings=Timings(),
            versions={},
            preparation_id="0" * 64,
            backbone={},
            feature_shape=[FEATURES],
            feature_dtype="float32",
            rows_per_group=ROWS_PER_GROUP,
            recipe={},
            lineage={},
        ),
        after=None,
    )


if __name__ == "__main__":
    main()
