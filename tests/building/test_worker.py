"""Workers: a shard is made whole or leaves nothing, and a bad image is one reject."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from helpers.images.poison import scan_bomb
from helpers.tables.listings import picture, put
from helpers.tables.shard_files import files_in
from helpers.tables.worker_runs import RUN, as_spark_task, make_run, make_task, no_file_over, rejects_of, rows_of

from featurize.building import shipped_backbone, worker
from featurize.building.staging import STAGING, commit, plan_url
from featurize.building.worker import assigned_gpus, make_hasher, make_shard, make_worker, worker_threads
from featurize.jobs.run_task import FeaturizeTask
from featurize.sources.listing import Fetch, ImageSource, PlannedImage, planned_images
from featurize.sources.opening import open_source
from featurize.tables.manifests import ShardRecord

NAMES = [f"{'ab'[index % 2]}/{index:02d}.png" for index in range(20)]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    put(tmp_path / "photos", *NAMES)
    return tmp_path / "photos"


def open_photos(photos: Path) -> ImageSource:
    return open_source(str(photos), None)


def left_by_shards(table: Path) -> set[str]:
    """All but the plan."""
    return files_in(table) - {plan_url(str(table), RUN).removeprefix(f"file://{table}/")}


def commits_in(table: Path) -> list[str]:
    return sorted(name for name in files_in(table) if name.startswith(f"{STAGING}/commits/"))


# Bad images


def test_an_image_on_which_decoding_hangs_is_one_reject(tmp_path: Path, photos: Path) -> None:
    (photos / "a" / "bomb.jpg").write_bytes(scan_bomb(5000, 4000))
    source = open_photos(photos)
    run = make_run(tmp_path / "table", source, decode_timeout_s=1.0)
    record = make_shard(run, make_task(source), 0)
    assert set(rows_of(tmp_path / "table", record)) == {name[2:] for name in NAMES}
    assert record.rejects == {"decode: decoding took longer than 1 s": 1}
    assert record.unread == 0


def test_each_bad_image_is_a_reject_with_its_reason_and_all_that_is_known_of_it(tmp_path: Path, photos: Path) -> None:
    (photos / "a" / "empty.png").write_bytes(b"")
    (photos / "b" / "text.png").write_bytes(b"no picture")
    (photos / "loose.png").write_bytes(picture(1))
    put(photos, "a/gone.png")
    source = open_photos(photos)
    (photos / "a" / "gone.png").unlink()
    record = make_shard(make_run(tmp_path / "table", source), make_task(source), 0)
    rejects = rejects_of(tmp_path / "table", record)
    assert {name: (row["stage"], row["error"]) for name, row in rejects.items()} == {
        "empty.png": ("decode", "the file is empty"),
        "text.png": ("decode", "not an image in a known format, but a text file"),
        "loose.png": ("layout", "not in a class folder"),
        "gone.png": ("read", "the file is gone"),
    }
    sizes = {image.path.rsplit("/", 1)[1]: image.bytes_size for image in planned_images(source.listing)}
    assert {name: row["bytes_size"] for name, row in rejects.items()} == {name: sizes[name] for name in rejects}
    for name, content in (("empty.png", b""), ("text.png", b"no picture"), ("loose.png", picture(1))):
        assert rejects[name]["image_id"] == hashlib.sha256(content).hexdigest()
    assert rejects["gone.png"]["image_id"] is None
    assert (record.unread, record.row_count) == (1, 20)


# Faults


@dataclasses.dataclass(frozen=True)
class FailingReader:
    """Storage that stops answering at one image."""

    inner: Any
    at: int

    def open(self, images: Sequence[PlannedImage]) -> Iterator[Fetch]:
        def fail() -> bytes:
            raise OSError("the storage does not answer")

        for number, fetch in enumerate(self.inner.open(images)):
            yield fail if number == self.at else fetch

    def identify(self, image: PlannedImage, content: bytes) -> str:
        return str(self.inner.identify(image, content))


@pytest.mark.parametrize("at", [0, 9, 19])
def test_a_fault_of_the_storage_fails_the_task_and_leaves_no_file(tmp_path: Path, photos: Path, at: int) -> None:
    source, table = open_photos(photos), tmp_path / "table"
    run = make_run(table, source, reader=FailingReader(source.reader, at))
    with pytest.raises(OSError, match="does not answer"):
        make_shard(run, make_task(source), 0)
    assert left_by_shards(table) == set()
    good = dataclasses.replace(run, reader=source.reader)
    assert make_shard(good, make_task(source), 0).row_count == 20


@pytest.fixture
def no_backbone() -> Iterator[None]:
    """As in a fresh worker process, before the test and after it."""
    shipped_backbone.forget_backbone()
    yield
    shipped_backbone.forget_backbone()


@pytest.mark.usefixtures("no_backbone")
def test_a_fault_of_the_network_leaves_no_file(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> Any:
        def forward(images: Any) -> Any:
            if len(images) == 2:  # the last batch, when rows of the others are written
                raise MemoryError
            return images

        return forward

    monkeypatch.setattr(shipped_backbone, "load_backbone", load)
    source, table = open_photos(photos), tmp_path / "table"
    with pytest.raises(MemoryError):
        make_shard(make_run(table, source), make_task(source, batch_size=3), 0)
    assert left_by_shards(table) == set()


def test_a_disk_that_is_full_leaves_no_file_wherever_it_happens(tmp_path: Path, photos: Path) -> None:
    for index in range(200):  # so that the rejects and the index are larger than the data
        (photos / "a" / f"{hashlib.sha256(bytes([index])).hexdigest()}.png").write_bytes(bytes([index]))
    source, table = open_photos(photos), tmp_path / "table"
    run, task = make_run(table, source), make_task(source, rows_per_group=100)
    sizes = [file.bytes for file in make_shard(run, task, 0).all_files]
    assert max(sizes[:3]) < sizes[3] < sizes[4]
    for name in left_by_shards(table):
        (table / name).unlink()
    for size in (0, *sizes):
        with no_file_over(max(size - 1, 0)), pytest.raises(OSError):
            make_shard(run, task, 0)
        assert left_by_shards(table) == set()
    with no_file_over(max(sizes)):
        record = make_shard(run, task, 0)
    assert [file.bytes for file in record.all_files] == sizes


# Shards


def test_the_shards_of_a_plan_hold_every_image_once(tmp_path: Path, photos: Path) -> None:
    source, table = open_photos(photos), tmp_path / "table"
    run, task = make_run(table, source, cuts=[1, 8, 12]), make_task(source)
    found = [rows_of(table, make_shard(run, task, shard)) for shard in (2, 0, 3, 1)]
    assert [len(rows) for rows in found] == [4, 1, 8, 7]
    assert {name for rows in found for name in rows} == {name[2:] for name in NAMES}
    assert len(commits_in(table)) == 4


def test_the_records_that_a_task_returns_are_those_it_committed(tmp_path: Path, photos: Path) -> None:
    source, table = open_photos(photos), tmp_path / "table"
    run, task = make_run(table, source, cuts=[3, 4, 11]), make_task(source)
    batches = [pa.RecordBatch.from_pydict({"id": numbers}) for numbers in ([2, 0], [], [3])]
    returned = [batch.column("record").to_pylist() for batch in make_worker(run, task)(iter(batches))]
    committed = [ShardRecord.model_validate_json((table / name).read_text()) for name in commits_in(table)]
    made = [ShardRecord.model_validate_json(text) for (text,) in returned]
    assert sorted(made, key=str) == sorted(committed, key=str)
    assert [ShardRecord.model_validate_json(text).row_count for (text,) in returned] == [7, 3, 9]


def test_of_two_attempts_at_a_shard_the_first_counts(tmp_path: Path, photos: Path) -> None:
    source, table = open_photos(photos), tmp_path / "table"
    run, task = make_run(table, source), make_task(source)
    with as_spark_task(7):
        first = make_shard(run, task, 0)
    before = left_by_shards(table)
    with as_spark_task(8):
        assert make_shard(run, task, 0) == first
    assert left_by_shards(table) == before


def test_two_attempts_at_the_same_time_do_not_touch_each_others_files(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second runs from its start to its end just before the first would commit."""
    source, table = open_photos(photos), tmp_path / "table"
    run, task = make_run(table, source), make_task(source)
    others: list[ShardRecord] = []

    def commit_second(*arguments: Any) -> ShardRecord:
        monkeypatch.undo()
        with as_spark_task(8):
            others.append(make_shard(run, task, 0))
        assert not {file.path for file in arguments[-1].all_files} & {file.path for file in others[0].all_files}
        return commit(*arguments)

    monkeypatch.setattr("featurize.building.staging.commit", commit_second)
    with as_spark_task(7):
        assert [make_shard(run, task, 0)] == others
    assert {name[2:] for name in NAMES} == set(rows_of(table, others[0]))
    assert len(left_by_shards(table)) == len(others[0].all_files) + 1


def test_timings_are_of_this_shard_and_add_up(tmp_path: Path, photos: Path) -> None:
    source = open_photos(photos)
    record = make_shard(make_run(tmp_path / "table", source), make_task(source), 0)
    timings = record.timings
    assert min(timings.read, timings.decode, timings.wait, timings.forward, timings.write) > 0
    assert timings.wait + timings.write <= timings.tasks
    assert timings.forward + timings.startup <= timings.tasks


def test_decoders_are_kept_from_shard_to_shard_unless_their_limit_changes(tmp_path: Path, photos: Path) -> None:
    source, task = open_photos(photos), make_task(open_photos(photos))
    pools = []
    for number, timeout_s in enumerate((50.0, 50.0, 51.0)):
        make_shard(make_run(tmp_path / str(number), source, decode_timeout_s=timeout_s), task, 0)
        pools.append(worker.DECODERS[0])
    assert pools[0] is pools[1] is not pools[2]
    assert pools[0].pids == []


# Digests, threads, GPUs


def test_digests_are_those_of_the_contents_and_null_where_there_is_none(tmp_path: Path, photos: Path) -> None:
    run = make_run(tmp_path / "table", open_photos(photos), cuts=[6])
    (photos / "b" / "03.png").unlink()
    batches = iter([pa.RecordBatch.from_pydict({"id": [1, 0]})])
    found = [row for batch in make_hasher(plan_url(run.url, RUN), run.reader)(batches) for row in batch.to_pylist()]
    assert {row["path"]: row["image_id"] for row in found} == {
        f"file://{photos}/{name}": None
        if name == "b/03.png"
        else hashlib.sha256((photos / name).read_bytes()).hexdigest()
        for name in NAMES
    }


def test_threads_and_gpus_are_those_that_spark_gave() -> None:
    assert (worker_threads(), assigned_gpus()) == (1, None)
    with as_spark_task(cpus=4):
        assert (worker_threads(), assigned_gpus()) == (4, None)
    with as_spark_task(gpus=["2", "0"]):
        assert (worker_threads(), assigned_gpus()) == (1, ["2", "0"])


def test_as_many_decoders_work_as_there_are_threads(tmp_path: Path, photos: Path) -> None:
    source = open_photos(photos)
    task: FeaturizeTask = make_task(source)
    with as_spark_task(cpus=3):
        record = make_shard(make_run(tmp_path / "table", source, decode_timeout_s=55.0), task, 0)
    assert record.row_count == 20
    assert worker.DECODERS[0].size == 3
