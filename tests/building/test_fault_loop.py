"""Every call that a job makes of the file system fails once, in every way; then a rerun gives what an undisturbed run gives.

The workers run in this process, one after the other, as Spark would start them; everything else is as it is.
"""

import shutil
import threading
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from helpers.faults import Job, check_every_fault
from helpers.local_builds import look, run_on, without_spark
from helpers.tables.building import read_rows
from helpers.tables.grown_predictions import MODEL, Predictions
from helpers.tables.listings import put

from featurize.storage.claims import claim_output
from featurize.tables import publication
from featurize.tables.manifests import PredictionsManifest
from featurize.tables.publication import read_manifest
from featurize.upkeep.compaction import compact_table
from featurize.upkeep.versions import vacuum
from finetune.evaluation.relabel import correct_labels

pytestmark = pytest.mark.faults
IMAGES, LATER = ("a/1.png", "a/2.png", "a/3.png", "b/1.png", "b/2.png"), "b/3.png"


@pytest.fixture(autouse=True)
def _no_spark(monkeypatch: pytest.MonkeyPatch) -> None:
    without_spark(monkeypatch)


def run(folder: Path) -> None:
    run_on(folder.parent / "images", folder)


def images(folder: Path) -> None:
    put(folder.parent / "images", *IMAGES)
    (folder.parent / "images" / "a" / "broken.png").write_bytes(b"broken")


def grown(folder: Path) -> None:
    images(folder)
    run(folder)
    put(folder.parent / "images", LATER)


def changed(folder: Path) -> None:
    grown(folder)
    pictures = folder.parent / "images" / "a"
    shutil.copy(pictures / "2.png", pictures / "1.png")


def replaced(folder: Path) -> None:
    changed(folder)
    run(folder)


def relabel(folder: Path) -> None:
    ids = sorted(read_rows(folder)["image_id"])
    correct_labels([(ids[0], "b"), (ids[-1], "a")], str(folder), reason="a mistake", by="Ada", origin="the test")


def clean(folder: Path) -> None:
    vacuum(str(folder), older_than="0s")


def small_shards(folder: Path) -> None:
    made = Predictions(folder)
    for step in range(4):
        made.label(range(5 * step, 5 * step + 5), rejects=step % 2)


def compact(folder: Path) -> None:
    url = f"file://{folder}/model_id={MODEL}"
    with claim_output(url) as claim:
        compact_table(url, claim, least_images=10)


def predictions_in(folder: Path) -> dict[str, Any]:
    publication._cached.clear()
    table = folder / f"model_id={MODEL}"
    manifest = read_manifest(str(table))
    assert isinstance(manifest, PredictionsManifest)
    rows, rejects = (
        [row for file in files for row in pq.read_table(table / file.path).to_pylist()]
        for files in (manifest.files, manifest.reject_files)
    )
    return {"rows": rows, "rejects": rejects, "counts": (manifest.rows, manifest.content_digest)}


def compacted(folder: Path) -> tuple[dict[str, Any], int]:
    manifest = read_manifest(str(folder / f"model_id={MODEL}"))
    assert manifest is not None
    return predictions_in(folder), len(manifest.shards)


JOBS = {
    "run": Job(images, run, look),
    "a run that adds images": Job(grown, run, look),
    "a run after an image has changed": Job(changed, run, look),
    "relabel": Job(grown, relabel, look),
    "vacuum": Job(replaced, clean, look),
    "compact": Job(small_shards, compact, compacted),
}


@pytest.mark.parametrize("job", JOBS)
def test_whatever_fails_nothing_is_lost_and_a_rerun_gives_what_an_undisturbed_run_gives(
    tmp_path: Path, job: str
) -> None:
    assert check_every_fault(JOBS[job], tmp_path / "table") > 20
    assert threading.active_count() < 20
