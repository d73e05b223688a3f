"""Jobs of `featurize run` with their own Spark that are killed, or paused while another takes their place, at random moments.

The table is that of an undisturbed run, row for row. FIRN_KILL_ROUNDS=20 repeats both tests that often.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from helpers.images.photos import make_photos
from helpers.services.processes import kill_processes
from helpers.tables.building import assert_same_rows, read_rows, write_recipe

from featurize.building.staging import STAGING
from featurize.storage.claims import CLAIM_NAME
from featurize.tables.readable import read_features_manifest

pytestmark = [pytest.mark.spark, pytest.mark.slow]
ROUNDS = range(int(os.environ.get("FIRN_KILL_ROUNDS", "1")))
LONGEST_S = 300


class Run:
    """`featurize run` in a process of its own, with all that it starts."""

    def __init__(self, recipe: Path) -> None:
        self.log = recipe.with_name(f"{time.monotonic_ns()}.log")
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", "featurize", "run", str(recipe)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=recipe.parent, start_new_session=True)
        self._started = time.monotonic()

    def _all(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self._process.pid)
            return [process, *process.children(recursive=True)]
        return []

    def kill(self) -> None:
        kill_processes(self._all())
        self._process.wait()

    def pause(self) -> None:
        for process in self._all():
            with suppress(psutil.NoSuchProcess):
                process.suspend()

    def resume(self) -> None:
        for process in self._all():
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def wait(self) -> tuple[int, float]:
        """Its exit status, and the seconds that it took."""
        return self._process.wait(LONGEST_S), time.monotonic() - self._started

    def is_running(self) -> bool:
        return self._process.poll() is None


class Undisturbed:
    """The images, the table that an undisturbed run makes of them, and how long it takes."""

    def __init__(self, folder: Path) -> None:
        self.images, self._folder = folder / "images", folder / "table"
        make_photos(self.images, per_class=80)
        (self.images / "red" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
        run = Run(self.write(folder / "recipe.toml", self._folder))
        status, self.seconds = run.wait()
        assert status == 0, run.log.read_text()

    def write(self, recipe: Path, table: Path) -> Path:
        return write_recipe(recipe, source=self.images, url=table, backbone="pixels")

    def moment(self) -> float:
        """A random moment of a run, in seconds; more often late, when files are written and published."""
        return float(np.random.default_rng().triangular(0.2, 0.85, 1.0)) * self.seconds

    def assert_equal(self, table: Path) -> None:
        """Every image is one row or one reject, and nothing is staged any more."""
        ours, theirs = read_features_manifest(str(table)), read_features_manifest(str(self._folder))
        for key in ("identity", "content_digest", "rows", "rejects"):
            assert getattr(ours, key) == getattr(theirs, key), key
        assert_same_rows(read_rows(table), read_rows(self._folder))
        assert not (table / STAGING).exists()

    def missing_from(self, table: Path) -> set[str]:
        """The files that the table lists and that are not there."""
        manifest = read_features_manifest(str(table))
        there = {str(path.relative_to(table)) for path in table.rglob("*") if path.is_file()}
        listed = {file.path for shard in manifest.shards for file in shard.all_files}
        return listed - there


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def runs() -> Iterator[list[Run]]:
    """The runs of a test; none of them outlives it."""
    started = list[Run]()
    yield started
    for run in started:
        run.kill()


@pytest.mark.parametrize("round", ROUNDS)
def test_a_run_that_is_killed_twice_and_run_again(
    undisturbed: Undisturbed, runs: list[Run], tmp_path: Path, round: Any
) -> None:
    recipe, table = undisturbed.write(tmp_path / "recipe.toml", tmp_path / "table"), tmp_path / "table"
    for _ in range(2):
        runs.append(Run(recipe))
        time.sleep(undisturbed.moment())
        runs[-1].kill()
        if table.exists() and (table / "_delta_log").exists():
            assert undisturbed.missing_from(table) == set()
    runs.append(Run(recipe))
    assert runs[-1].wait()[0] == 0, runs[-1].log.read_text()
    undisturbed.assert_equal(table)


@pytest.mark.parametrize("round", ROUNDS)
def test_a_run_that_is_paused_while_another_takes_its_place(
    undisturbed: Undisturbed, runs: list[Run], tmp_path: Path, round: Any
) -> None:
    """The second one takes the first for dead, as on a host that cannot see its process; later the first goes on."""
    recipe, table = undisturbed.write(tmp_path / "recipe.toml", tmp_path / "table"), tmp_path / "table"
    first = Run(recipe)
    runs.append(first)
    time.sleep(undisturbed.moment())
    first.pause()
    (table / CLAIM_NAME).unlink(missing_ok=True)
    second = Run(recipe)
    runs.append(second)
    time.sleep(undisturbed.moment())
    first.resume()  # while the second one is at work
    statuses = [run.wait()[0] for run in (first, second)]
    words = [run.log.read_text() for run in (first, second)]
    assert set(statuses) <= {0, 1}, words
    assert all(("\nerror: " in text) == (status == 1) for text, status in zip(words, statuses, strict=True)), words
    if 0 in statuses:
        assert undisturbed.missing_from(table) == set()
    runs.append(Run(recipe))
    assert runs[-1].wait()[0] == 0, runs[-1].log.read_text()
    undisturbed.assert_equal(table)
    assert undisturbed.missing_from(table) == set()
