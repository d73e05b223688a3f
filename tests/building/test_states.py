"""Anything that may happen to a feature set, in any order, against a plain dictionary of what is in the folder of images.

Jobs run, die at any call of the file system, are paused at one while others go on, and are resumed. After every step each
readable version is whole, and no image is in it twice; after an undisturbed run the set is the folder, with all corrections.
FIRN_STATES is the number of sequences.
"""

import builtins
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.faults import FaultyFolder, Killed
from helpers.local_builds import run_on, without_spark
from helpers.tables.building import read_rows
from helpers.tables.listings import picture
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from featurize.errors import FirnError
from featurize.storage.claims import CLAIM_NAME
from featurize.tables import publication
from featurize.tables.publication import read_manifest, read_published_features
from featurize.upkeep.versions import vacuum
from finetune.evaluation.relabel import correct_labels

CLASSES = ("ant", "bee")
NAMES = [f"{label}/{number}.png" for label in CLASSES for number in range(4)]
_CALLS = ("open", "link", "replace", "rename", "unlink", "remove", "rmdir", "mkdir")
at_call = st.integers(0, 120)


class PausedJob:
    """A job in a thread of its own, which stands still before its call number `at` of what changes the file system."""

    def __init__(self, body: Callable[[], object], at: int) -> None:
        self._left, self._stands, self._go = at, threading.Event(), threading.Event()
        self._patch = pytest.MonkeyPatch()
        self._thread = threading.Thread(target=self._run, args=(body,), daemon=True)
        for module, names in ((os, _CALLS), (builtins, ("open",))):
            for name in names:
                self._patch.setattr(module, name, self._slow(getattr(module, name)))
        self._thread.start()
        assert self._stands.wait(60)

    def _slow(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if threading.current_thread() is self._thread:
                self._left -= 1
                if self._left < 0 and not self._stands.is_set():
                    self._stands.set()
                    assert self._go.wait(120)
            return real(*arguments, **named)

        return call

    def _run(self, body: Callable[[], object]) -> None:
        try:
            body()
        except (FirnError, OSError):  # it has lost: that is what it is to say
            pass
        finally:
            self._stands.set()

    def resume(self) -> None:
        self._go.set()
        self._thread.join(120)
        assert not self._thread.is_alive()
        self._patch.undo()


class FeatureSet(RuleBasedStateMachine):
    """A folder of images, its feature set, and at most one job that is paused."""

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(prefix="firn-states-"))
        self.images, self.table = self.place / "images", self.place / "table"
        self.files: dict[str, bytes] = {}
        self.labels: dict[str, str] = {}
        self.paused: PausedJob | None = None
        self.patch = pytest.MonkeyPatch()
        without_spark(self.patch)

    @initialize()
    def begin(self) -> None:
        for number, label in enumerate(CLASSES):
            self.put(f"{label}/0.png", number)

    def put(self, name: str, seed: int) -> None:
        path = self.images / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.files[name] = picture(seed)
        path.write_bytes(self.files[name])

    def job(self) -> None:
        run_on(self.images, self.table)

    @rule(name=st.sampled_from(NAMES), seed=st.integers(0, 1_000))
    def grow_or_change(self, name: str, seed: int) -> None:
        self.put(name, seed)

    @rule()
    def run(self) -> None:
        (self.table / CLAIM_NAME).unlink(missing_ok=True)  # a paused holder has been taken for dead
        self.job()
        self.check_equal()

    @rule(at=at_call, fault=st.sampled_from(["broken", "lost", "killed before", "killed after"]))
    def run_and_fail(self, at: int, fault: str) -> None:
        (self.table / CLAIM_NAME).unlink(missing_ok=True)
        with FaultyFolder(self.table, at, fault):
            try:
                self.job()
            except (FirnError, OSError, Killed):
                pass
        (self.table / CLAIM_NAME).unlink(missing_ok=True)

    @precondition(lambda self: self.paused is None)
    @rule(at=at_call)
    def run_and_pause(self, at: int) -> None:
        (self.table / CLAIM_NAME).unlink(missing_ok=True)
        self.paused = PausedJob(self.job, at)

    @precondition(lambda self: self.paused is None and self.is_published)
    @rule(at=st.integers(0, 40))
    def vacuum_and_pause(self, at: int) -> None:
        (self.table / CLAIM_NAME).unlink(missing_ok=True)
        self.paused = PausedJob(self.clean, at)

    @precondition(lambda self: self.paused is not None)
    @rule()
    def resume(self) -> None:
        assert self.paused is not None
        self.paused.resume()
        self.paused = None

    @precondition(lambda self: self.is_published)
    @rule()
    def vacuum(self) -> None:
        (self.table / CLAIM_NAME).unlink(missing_ok=True)
        self.clean()

    def clean(self) -> None:
        vacuum(str(self.table), older_than="0s")

    @precondition(lambda self: self.is_published)
    @rule(number=st.integers(0, 7), label=st.sampled_from(CLASSES))
    def relabel(self, number: int, label: str) -> None:
        ids = sorted(read_rows(self.table)["image_id"])
        image_id = ids[number % len(ids)]
        correct_labels([(image_id, label)], str(self.table), reason="a mistake", by="Ada", origin="the test")
        self.labels[image_id] = label

    @property
    def is_published(self) -> bool:
        return read_manifest(str(self.table)) is not None

    @invariant()
    def every_version_is_whole(self) -> None:
        publication._cached.clear()
        last = read_manifest(str(self.table))
        if last is None:
            return
        for number in range(last.version.oldest, last.version.number + 1):
            manifest = read_published_features(str(self.table), number)
            for shard in manifest.shards:
                for file in shard.all_files:
                    assert (self.table / file.path).stat().st_size == file.bytes, (number, file.path)
            paths = read_rows(self.table, number).index
            assert paths.is_unique, number

    def check_equal(self) -> None:
        """The set is the folder."""
        rows = read_rows(self.table)
        ids = {name: hashlib.sha256(content).hexdigest() for name, content in self.files.items()}
        there = {
            str(path).removeprefix(f"file://{self.images}/"): image_id
            for path, image_id in rows["image_id"].to_dict().items()
        }
        assert there == ids
        import featurize

        labels = featurize.open_features(str(self.table)).to_pandas(columns=["image_id", "path", "label"])
        for image_id, path, label in labels.to_numpy().tolist():
            assert label == self.labels.get(image_id, Path(path).parent.name)

    def teardown(self) -> None:
        if self.paused is not None:
            self.paused.resume()
            self.every_version_is_whole()
        (self.table / CLAIM_NAME).unlink(missing_ok=True)
        self.job()
        self.check_equal()
        self.patch.undo()
        shutil.rmtree(self.place)


FeatureSet.TestCase.settings = settings(
    max_examples=int(os.environ.get("FIRN_STATES", "15")),
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
test_whatever_happens_in_whatever_order = FeatureSet.TestCase
