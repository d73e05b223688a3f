"""Tests of rows.disk_rows: how much memory it takes, measured in a process of its own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.project import ROOT
from helpers.tables.feature_sets import in_order, with_files, write_feature_set

from featurize.tables.manifests import FeaturesManifest

PROGRAM = """
import sys
from featurize.tables.readable import read_features_manifest
from featurize.memory import peak_memory_bytes
from finetune.rows.disk_rows import StreamData

manifest = read_features_manifest(sys.argv[1])
for _ in StreamData(sys.argv[1], manifest, "validation", shuffle_rows=1).batches(1, seed=0, global_batch_size=16):
    pass
before = peak_memory_bytes()
data = StreamData(sys.argv[1], manifest, "train", shuffle_rows=2048)
for epoch in (1, 2):
    rows = sum(int(rows) for *_, rows in data.batches(epoch, seed=0, global_batch_size=64).prefetch(2))
print(rows, peak_memory_bytes() - before, data.memory_bytes())
"""


def memory_of_streaming(folder: Path) -> tuple[int, int, int]:
    """The rows of an epoch, the most memory that streaming took in a process of its own, and what is stated, in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows, taken, stated = map(int, done.stdout.split())
    return rows, taken, stated


@pytest.mark.slow
def test_memory_is_as_stated_and_does_not_grow_with_the_split(tmp_path: Path) -> None:
    rows, mib = 4000, 1 << 20
    features = np.random.default_rng(0).integers(0, 256, (rows, 48, 48, 3), dtype=np.uint8)
    splits = ["validation" if row % 100 == 0 else "train" for row in range(rows)]
    shards = in_order(*[500] * 8)
    manifest = write_feature_set(
        tmp_path, features, np.zeros(rows, np.int32), splits=splits, shards=shards, rows_per_group=64
    )
    write_links(tmp_path, manifest, 4)
    small = memory_of_streaming(tmp_path)
    write_links(tmp_path, manifest, 16)
    large = memory_of_streaming(tmp_path)
    assert (small[0], large[0]) == (4 * 3960, 16 * 3960)
    assert small[2] == large[2] < 64 * mib
    assert large[1] < 16 * 3960 * 48 * 48 * 3 / 3
    assert large[1] - small[1] < 32 * mib
    assert large[1] < large[2] + 64 * mib


def write_links(folder: Path, manifest: FeaturesManifest, times: int) -> None:
    """Makes the feature set `times` as large, by further names of its files."""
    from helpers.tables.publishing import write_manifest

    files = []
    for number in range(times):
        for file in manifest.files:
            path = file.path.replace("part-", f"part-{times}-{number}-")
            (folder / path).hardlink_to(folder / file.path)
            files.append(file.model_copy(update={"path": path}))
    rows = {split: {name: times * count for name, count in counts.items()} for split, counts in manifest.rows.items()}
    write_manifest(str(folder), with_files(manifest, files).model_copy(update={"rows": rows}))
