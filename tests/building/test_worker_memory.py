"""Memory: what a worker holds grows neither with the number of images nor with their size. Each case has a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.project import ROOT
from PIL import Image

pytestmark = pytest.mark.slow
PROGRAM = """
import json, sys
from pathlib import Path
from featurize.jobs.ingest import IngestTask
from featurize.recipes.recipe import FractionSplit
from featurize.sources.splits import SplitRule
from featurize.sources.opening import open_source
from featurize.building.worker import make_shard
from helpers.tables.worker_runs import make_run, make_task

source, table, kind, cuts = open_source(sys.argv[1], None), Path(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
run = make_run(table, source, cuts=cuts)
task = make_task(source, batch_size=32, rows_per_group=512)
if kind == "ingest":
    task = IngestTask(classes=source.classes, split_rule=SplitRule(fractions=FractionSplit()))
records = [make_shard(run, task, shard) for shard in range(len(cuts) + 1)]
print(json.dumps([sum(record.row_count for record in records), records[-1].memory_bytes]))
"""
MIB = 1 << 20


def peak_bytes(images: Path, table: Path, kind: str, *, rows: int, cuts: tuple[int, ...] = ()) -> int:
    """The most that a process had in memory that made all shards of a folder, one after the other."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(images), str(table), kind, json.dumps(cuts)],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made, memory = json.loads(done.stdout)
    assert made == rows
    return int(memory)


def write_links(folder: Path, picture: Path, count: int) -> None:
    """A class folder of `count` names for one file, and another class with one."""
    for label, number in (("a", count - 1), ("b", 1)):
        (folder / label).mkdir(parents=True)
        for index in range(number):
            (folder / label / f"{index:06d}{picture.suffix}").hardlink_to(picture)


@pytest.mark.parametrize("kind", ["featurize", "ingest"])
def test_ten_times_the_images_take_no_more_memory(tmp_path: Path, kind: str) -> None:
    picture = tmp_path / "picture.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(picture, quality=95)
    peaks = []
    for count in (400, 4000):
        write_links(tmp_path / str(count), picture, count)
        cuts = tuple(range(400, count, 400))
        peaks.append(peak_bytes(tmp_path / str(count), tmp_path / f"{kind}{count}", kind, rows=count, cuts=cuts))
    assert peaks[1] - peaks[0] < 16 * MIB


@pytest.mark.parametrize(("kind", "limit"), [("featurize", 64 * MIB), ("ingest", 384 * MIB)])
def test_images_of_20_megapixels_take_little_more_memory_than_small_ones(tmp_path: Path, kind: str, limit: int) -> None:
    """The files have 9 MB each: a few of them are in memory at a time, but never their 60 MB of pixels."""
    small, large = tmp_path / "small.jpg", tmp_path / "large.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (912, 1368, 3), dtype=np.uint8)
    Image.fromarray(pixels[:60, :80]).save(small)
    Image.fromarray(pixels).resize((5472, 3648), Image.Resampling.BICUBIC).save(large, quality=88)
    assert 5 * MIB < large.stat().st_size < 10 * MIB
    peaks = []
    for picture in (small, large):
        write_links(tmp_path / picture.stem, picture, 40)
        peaks.append(peak_bytes(tmp_path / picture.stem, tmp_path / f"{kind}-{picture.stem}", kind, rows=40))
    assert peaks[1] - peaks[0] < limit
