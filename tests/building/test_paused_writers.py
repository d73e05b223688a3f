"""A writer that is paused between two of its steps, while another takes its place and publishes, takes nothing away."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.tables.feature_sets import make_clusters, write_feature_set

from featurize import storage
from featurize.building import staging
from featurize.building.staging import STAGING
from featurize.errors import JobError
from featurize.jobs import add_column
from featurize.storage import exclusive
from featurize.tables import publication
from featurize.tables.manifests import FeaturesManifest, ShardRecord
from featurize.tables.publication import publish, read_manifest, read_published_features


class Place:
    """The place of a table that is not published yet, whose shards can be staged any number of times."""

    def __init__(self, folder: Path) -> None:
        self._made = folder / "made"
        write_feature_set(self._made, *make_clusters(60), shards=[range(20), range(20, 60)])
        self.shards = read_published_features(str(self._made)).shards
        self.folder = folder / "table"
        self.folder.mkdir()
        self.url = str(self.folder)

    def stage(self) -> None:
        for path in staging.file_paths(self.shards):
            (self.folder / STAGING / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self._made / path, self.folder / STAGING / path)

    def publish(self) -> None:
        """All that a writer does after its shards are made."""
        staging.place_files(self.url, self.shards)
        made = read_published_features(str(self._made)).model_dump()
        publish(self.url, FeaturesManifest.model_validate(made), after=None)
        staging.remove_staging(self.url)

    def missing(self) -> list[str]:
        """Files that the last version lists and that are not there."""
        publication._cached.clear()
        manifest = read_manifest(self.url)
        assert manifest is not None, "nothing is published"
        return [path for path in staging.file_paths(manifest.shards) if not (self.folder / path).is_file()]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


class Paused:
    """A call in a thread of its own, which stops before it calls a function for the first time."""

    def __init__(self, module: Any, name: str, body: Callable[[], object]) -> None:
        self._reached, self._go = threading.Event(), threading.Event()
        self.error: BaseException | None = None
        real = getattr(module, name)

        def call(*arguments: Any, **named: Any) -> Any:
            if threading.current_thread() is self._thread and not self._reached.is_set():
                self._reached.set()
                assert self._go.wait(60)
            return real(*arguments, **named)

        def run() -> None:
            try:
                body()
            except (JobError, OSError) as error:
                self.error = error
            finally:
                self._reached.set()

        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(module, name, call)
        self._thread = threading.Thread(target=run)
        self._thread.start()
        assert self._reached.wait(60)

    def resume(self) -> None:
        self._go.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        self._patch.undo()


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize(
    ("module", "name"), [(storage, "move_files"), (exclusive, "rename_file"), (storage, "find_file")]
)
def test_one_that_is_placing_files(place: Place, there: bool, module: Any, name: str) -> None:
    place.stage()
    if there:
        (place.folder / "data").mkdir()
    paused = Paused(module, name, place.publish)
    place.stage()
    place.publish()
    paused.resume()
    assert place.missing() == []
    assert paused.error is not None


@pytest.mark.parametrize(("module", "name"), [(exclusive, "list_files"), (os, "rmdir")])
def test_one_that_has_failed_and_leaves_no_empty_folder_behind(place: Place, module: Any, name: str) -> None:
    def fail() -> None:
        (place.folder / "data" / "split=train").mkdir(parents=True, exist_ok=True)
        with storage.no_empty_folder(place.url):
            raise JobError("the source cannot be read")

    paused = Paused(module, name, fail)
    place.stage()
    place.publish()
    paused.resume()
    assert place.missing() == []


def test_one_that_cleans_up_while_the_other_places_its_files(place: Place) -> None:
    place.stage()
    paused = Paused(exclusive, "open_filesystem", place.publish)  # it has seen its files in the staging folder
    staging.remove_others(place.url, [])
    paused.resume()
    assert isinstance(paused.error, JobError)
    assert "is missing now; nothing was published" in str(paused.error)
    assert read_manifest(place.url) is None


def test_one_that_removes_its_staging_folder_name_by_name(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A removal that goes by open folders must not go on in one that was renamed to its published place."""
    place.stage()
    real = os.unlink
    reached, go = threading.Event(), threading.Event()

    def unlink(path: Any, *arguments: Any, **named: Any) -> None:
        if threading.current_thread() is thread and not reached.is_set() and str(path).startswith("part-"):
            reached.set()
            assert go.wait(60)
        real(path, *arguments, **named)

    def remove() -> None:
        try:
            staging.remove_staging(place.url)
        except OSError:
            reached.set()

    thread = threading.Thread(target=remove)
    monkeypatch.setattr(os, "unlink", unlink)
    thread.start()
    assert reached.wait(60)
    place.publish()
    go.set()
    thread.join(60)
    assert place.missing() == []


def test_one_that_keeps_its_networks_while_another_adds_some(place: Place, tmp_path: Path) -> None:
    (tmp_path / "network").write_bytes(b"1")
    own, other = (f"{letter * 64}.onnx" for letter in "ab")
    place.stage()
    place.publish()
    paused = Paused(storage, "list_files", lambda: staging.keep_networks(place.url, {own: tmp_path / "network"}))
    staging.keep_networks(place.url, {other: tmp_path / "network"})
    paused.resume()
    networks = {path.name for path in (place.folder / "_firn" / "networks").iterdir()}
    assert networks == {own, other}


@pytest.mark.parametrize("is_from_the_last", [False, True])
def test_one_that_adds_a_column_to_rows_that_another_has_replaced_since(tmp_path: Path, is_from_the_last: bool) -> None:
    url = str(tmp_path / "set")
    first = write_feature_set(tmp_path / "set", *make_clusters(60), shards=[range(20), range(20, 60)])

    def remade(name: str, below: str) -> ShardRecord:
        """The first shard with files of another name, as a job for some rows makes it; they lie in a folder."""
        shard, files = first.shards[0], []
        for file in shard.files:
            path = f"{file.path.rpartition('/')[0]}/part-{name * 8}-00000-0.parquet"
            (tmp_path / "set" / below / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tmp_path / "set" / file.path, tmp_path / "set" / below / path)
            files.append(file.model_copy(update={"path": path}))
        return shard.model_copy(update={"files": files})

    before = read_published_features(url)
    other = remade("b", ".")
    last = publish(url, before.model_copy(update={"shards": [other, *before.shards[1:]]}), after=before)
    own, base = remade("a", STAGING), last if is_from_the_last else before
    staging.write_state(url, settings=before.settings, run="x", records=[own], there=base, purpose="where")
    job = add_column._Job(url, last, last, ((other, ["path"]),), "where")
    assert list(add_column._taken_over(job).values()) == ([own] if is_from_the_last else [])
