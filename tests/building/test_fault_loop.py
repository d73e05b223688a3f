"""Every call that a job makes of the file system fails once, in every way; then a rerun gives what an undisturbed run gives.

The workers run in this process, one after the other, as Spark would start them; everything else is as it is.
"""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.faults import FAULTS, FaultyFolder, Killed
from helpers.local_builds import look, run_on, without_spark
from helpers.tables.building import read_rows
from helpers.tables.listings import put

from featurize.building.staging import STAGING
from featurize.errors import FirnError
from featurize.storage.claims import CLAIM_NAME
from featurize.tables import publication
from featurize.upkeep.versions import vacuum
from finetune.evaluation.relabel import correct_labels

IMAGES, LATER = ("a/1.png", "a/2.png", "a/3.png", "b/1.png", "b/2.png"), ("b/3.png", "c/1.png")
READS = ("stat", "scandir")
MOST_TRIALS = 90
"""Trials of a job, evenly spread over all of them; with FIRN_ALL_FAULTS=1 there is no limit (`make faults`)."""


@pytest.fixture(autouse=True)
def _no_spark(monkeypatch: pytest.MonkeyPatch) -> None:
    without_spark(monkeypatch)


def run(folder: Path) -> None:
    run_on(folder.parent.parent / "images", folder)


def images(folder: Path) -> None:
    put(folder.parent.parent / "images", *IMAGES)
    (folder.parent.parent / "images" / "a" / "broken.png").write_bytes(b"broken")


def grown(folder: Path) -> None:
    images(folder)
    run(folder)
    put(folder.parent.parent / "images", *(name for name in LATER if name[0] != "c"))


def changed(folder: Path) -> None:
    grown(folder)
    pictures = folder.parent.parent / "images" / "a"
    shutil.copy(pictures / "2.png", pictures / "1.png")


def replaced(folder: Path) -> None:
    changed(folder)
    run(folder)


def relabel(folder: Path) -> None:
    ids = sorted(read_rows(folder)["image_id"])
    correct_labels([(ids[0], "b"), (ids[-1], "a")], str(folder), reason="a mistake", by="Ada", origin="the test")


def clean(folder: Path) -> None:
    vacuum(str(folder), older_than="0s")


JOBS: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "run": (images, run),
    "a run that adds images": (grown, run),
    "a run after an image has changed": (changed, run),
    "relabel": (grown, relabel),
    "vacuum": (replaced, clean),
}
"""What is there before, and the job."""


def clear_away(folder: Path) -> None:
    """The claim of a holder who is known to be dead does not stop the next one."""
    (folder / CLAIM_NAME).unlink(missing_ok=True)


@pytest.mark.parametrize("job", JOBS)
def test_whatever_fails_nothing_is_lost_and_a_rerun_gives_what_an_undisturbed_run_gives(
    tmp_path: Path, job: str
) -> None:
    prepare, act = JOBS[job]
    begun, folder = tmp_path / "begun" / "table", tmp_path / "now" / "table"
    begun.parent.mkdir()
    prepare(begun)

    def begin() -> None:
        shutil.rmtree(folder.parent, ignore_errors=True)
        shutil.copytree(begun.parent, folder.parent)
        publication._cached.clear()

    begin()
    before = look(folder) if folder.exists() else None
    with FaultyFolder(folder) as counted:
        act(folder)
    wanted = look(folder)
    trials = [
        (at, fault)
        for at, call in enumerate(counted.calls)
        for fault in (("broken",) if call.startswith(READS) else FAULTS)
    ]
    step = 1 if "FIRN_ALL_FAULTS" in os.environ else 1 + len(trials) // MOST_TRIALS
    for at, fault in trials[:: step if step % len(FAULTS) else step + 1]:
        what = f"{fault} at {at}: {counted.calls[at]}"
        begin()
        with FaultyFolder(folder, at, fault) as faulty:
            try:
                act(folder)
            except (FirnError, OSError, Killed):
                assert faulty.happened, what
        clear_away(folder)
        if before is not None:
            assert look(folder) in (before, wanted), what
        act(folder)
        assert look(folder) == wanted, what
        assert not (folder / STAGING).exists(), what
        assert len(list(folder.rglob("*.tmp"))) <= 1, what  # that whose removal failed
    assert len(trials) > 20
    assert threading.active_count() < 20
