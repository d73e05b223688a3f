"""Tests of streams.drift_windows: every image is in one window, whatever dies; and windows of other images give alarm."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.tables.drift_sets import Known, Pixels, draw_many, grey, train_on_shapes
from helpers.tables.grown_predictions import BEGIN, MODEL, Predictions, image_id
from helpers.tables.publishing import write_manifest
from helpers.tables.stream_places import Place
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyspark.sql import SparkSession
from typer.testing import CliRunner

from featurize.errors import UsageError
from featurize.sql.ddl import make_ddl
from featurize.sql.query import register_views
from featurize.sql.tables import find_tables
from featurize.storage.claims import claim_output
from featurize.tables.publication import read_manifest
from featurize.upkeep.compaction import compact_table
from finetune.__main__ import app
from finetune.commands.stream import report_batch
from finetune.drift import check
from finetune.drift.projection import Projection
from finetune.drift.reference import Reference
from finetune.streams import drift_windows
from finetune.streams.checkpoint import Pin
from finetune.streams.current_model import StreamModels
from finetune.streams.drift_windows import StreamDrift, WindowSettings, read_position
from finetune.streams.stream import LabelledBatch, Streamed

pytestmark = [pytest.mark.slow]
LEAST = 20
RANDOM = np.random.default_rng(0)
REFERENCE = Reference(
    labels=tuple(RANDOM.choice(["ant", "bee"], 60)),
    probabilities=RANDOM.random(60, np.float32),
    projections=RANDOM.normal(size=(60, 4)).astype(np.float32),
    projection=Projection(seed=1, size=4, bandwidth=1.0),
    origin={},
)
Windows = dict[int, list[str]]


class Killed(BaseException):
    """Ends a process at this point."""


class Watched(Predictions):
    """Predictions, and the images of each window of them that was tested."""

    def __init__(self, output: Path, model_id: str = MODEL) -> None:
        super().__init__(output, model_id)
        self.windows: Windows = {}

    @contextmanager
    def dies(self, where: str) -> Iterator[None]:
        """A process that is killed `where`, with the windows that it has begun to test noted."""

        def check_rows(number: int, rows: pa.Table, *given: Any, **named: Any) -> check.CheckedWindow:
            self.windows[number] = rows["image_id"].to_pylist()
            return check.check_rows(number, rows, *given, **named)

        def write_windows(*given: Any, **named: Any) -> None:
            if where == "before the windows":
                raise Killed
            check.write_windows(*given, **named)
            if where == "before the position":
                raise Killed

        with pytest.MonkeyPatch.context() as patch, suppress(Killed):
            patch.setattr(drift_windows, "check_rows", check_rows)
            patch.setattr(drift_windows, "write_windows", write_windows)
            yield

    def begin(self, least: int = LEAST) -> StreamDrift:
        return StreamDrift(str(self.output), self.model_id, REFERENCE, WindowSettings(least))

    def compact(self) -> None:
        position = read_position(str(self.output), self.model_id)
        with claim_output(f"file://{self.folder}") as claim:
            kept = [position.through] if position is not None and position.through is not None else []
            compact_table(f"file://{self.folder}", claim, least_images=30, kept=kept)
        manifest = read_manifest(str(self.folder))
        assert manifest is not None
        self.shards = manifest.shards

    def table(self) -> list[dict[str, Any]]:
        """The rows of the table of windows, but for times, which depend on when a process died."""
        folder = self.output / "drift" / "stream"
        rows = [row for path in folder.glob("*.parquet") for row in pq.read_table(path).to_pylist()]
        kept = [{name: value for name, value in row.items() if not name.endswith("_at")} for row in rows]
        return sorted(kept, key=lambda row: row["window"])


KILLS = ("nowhere", "before the test", "before the windows", "before the position", "after all", "and is compacted")


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 3), st.sampled_from(KILLS)), min_size=1, max_size=7))
@example(
    [
        (19, 2, "before the test"),
        (1, 3, "before the position"),
        (45, 2, "before the windows"),
        (9, 1, "and is compacted"),
        (9, 2, "and is compacted"),
        (0, 1, "after all"),
    ]
)
def test_a_killed_stream_makes_the_windows_of_an_undisturbed_one(batches: list[tuple[int, int, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        killed, undisturbed = (Watched(Path(folder, name)) for name in ("killed", "undisturbed"))
        in_killed, in_undisturbed = killed.begin(), undisturbed.begin()
        images = 0
        for count, parts, where in batches:
            batch = range(images, images + count)
            images += count
            undisturbed.label(batch)
            with undisturbed.dies("nowhere"):
                in_undisturbed.check(undisturbed.manifest)
            killed.label(batch, parts=parts)
            if where != "before the test":
                with killed.dies(where):
                    in_killed.check(killed.manifest)
            if where == "and is compacted":
                killed.compact()
            if where != "nowhere":  # started again, it is given the batch again, which is published
                in_killed = killed.begin()
                with killed.dies("nowhere"):
                    in_killed.check(killed.manifest)
        assert killed.windows == undisturbed.windows
        assert killed.table() == undisturbed.table()
        assert [row["window"] for row in killed.table()] == list(range(len(killed.windows)))
        assert all(LEAST <= len(window) < 2 * LEAST for window in killed.windows.values())
        tested = [one for window in killed.windows.values() for one in window]
        assert len(set(tested)) == len(tested) == sum(row["images"] for row in killed.table())
        whole = [sum(count for count, *_ in batches[:end]) for end in range(len(batches) + 1)]
        assert len(tested) in whole  # whole batches, and less than a window waits
        assert set(tested) == {image_id(image) for image in range(len(tested))}
        assert images - len(tested) < LEAST


def test_what_was_there_before_is_in_no_window_and_what_comes_while_nobody_looks_is(tmp_path: Path) -> None:
    predictions = Watched(tmp_path)
    predictions.label(range(100))
    predictions.begin()
    predictions.label(range(100, 115))  # by a stream without windows
    windows = predictions.begin()
    assert windows.check(predictions.manifest) == ()
    predictions.label(range(115, 120))
    (window,) = windows.check(predictions.manifest)
    assert (window.number, window.result.images) == (0, 20)
    assert (window.first, window.last) == (BEGIN + timedelta(seconds=1), BEGIN + timedelta(seconds=2))


def test_a_window_is_of_one_model_and_waits_for_it(tmp_path: Path) -> None:
    old, new = Watched(tmp_path), Watched(tmp_path, "6" * 64)
    for predictions, images, wanted in (
        (old, range(15), []),
        (new, range(15, 37), [(0, 22)]),
        (old, range(37, 47), [(0, 25)]),
        (new, range(47, 67), [(1, 20)]),
    ):
        windows = predictions.begin()  # the model is taken up
        predictions.label(images)
        found = [(window.number, window.result.images) for window in windows.check(predictions.manifest)]
        assert found == wanted
    rows = [(row["model_id"], row["window"], row["images"]) for row in old.table()]
    assert sorted(rows) == [(old.model_id, 0, 25), (new.model_id, 0, 22), (new.model_id, 1, 20)]


def test_equal_images_count_once_in_a_window(tmp_path: Path) -> None:
    predictions = Watched(tmp_path)
    windows = predictions.begin()
    predictions.label([7] * 60)
    predictions.label(range(18))
    assert windows.check(predictions.manifest) == ()
    predictions.label(range(18, 25))
    assert [window.result.images for window in windows.check(predictions.manifest)] == [25]


def test_windows_begin_anew_where_the_predictions_were_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions = Watched(tmp_path)
    windows = predictions.begin()
    predictions.label(range(20))
    assert len(windows.check(predictions.manifest)) == 1
    predictions.shards.clear()
    shutil.rmtree(predictions.folder)
    predictions.label([1000])
    predictions.label(range(20))
    del predictions.shards[0]  # the shard of the last window was of this name
    write_manifest(str(predictions.folder), predictions.manifest)
    windows = predictions.begin()
    assert "has made the predictions of" in capsys.readouterr().err.replace("\n", " ")
    predictions.label(range(20, 45))
    assert [window.number for window in windows.check(predictions.manifest)] == [1]
    assert [row["images"] for row in predictions.table()] == [20, 25]


def test_windows_that_cannot_be_are_refused(known: Known, place: Place) -> None:
    where = ["--images", place.images, "--output", place.out, "--checkpoint", place.checkpoint]
    for option, value, message in (
        ("--drift-window", "5", "a drift window (--drift-window) must have at least 20 images. Got 5."),
        ("--false-alarm-rate", "0.9", "`false_alarm_rate` must be in [0.001, 0.2]"),
    ):
        arguments = ["stream", known.folder, *where, "--once", "--drift-window", "100", option, value]
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 2
        assert message in result.stderr.replace("\n", " ")
    assert not place.out.exists()


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    return train_on_shapes(tmp_path_factory.mktemp("drift"), epochs=4)


@pytest.fixture
def place(spark: SparkSession, tmp_path: Path) -> Place:
    place = Place(spark, tmp_path)
    place.images.mkdir()
    return place


def arrive(place: Place, pixels: Pixels, name: str) -> None:
    folder = place.folder / name
    folder.mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number}.png")
    folder.rename(place.images / name)


class Watch:
    """Keeps what was said of each batch, and fails after batches of these numbers, of which Spark then does not know."""

    def __init__(self, *fails: int) -> None:
        self._fails, self.batches = fails, list[LabelledBatch]()

    def __call__(self, batch: LabelledBatch) -> None:
        self.batches.append(batch)
        report_batch(batch, max_reject_fraction=0.05)
        if batch.batch_id in self._fails:
            raise RuntimeError("in mid-batch")

    def images(self) -> list[list[int]]:
        """In the windows of each batch."""
        return [[window.result.images for window in batch.windows] for batch in self.batches]


def run(place: Place, model: Path, watch: Watch, least: int = 120) -> Streamed:
    return place.run(model, windows=WindowSettings(least), most_per_batch=130, on_batch=watch)


@pytest.mark.spark
def test_a_stream_gives_alarm_when_other_images_come_and_not_before(
    known: Known, place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    arrive(place, draw_many(260, seed=1), "same")
    watch = Watch(0)
    with pytest.raises(RuntimeError, match="in mid-batch"):
        run(place, known.folder, watch)
    again = Watch()
    done = run(place, known.folder, again)
    assert (watch.images(), again.images()) == ([[130]], [[], [130]])  # the first batch was run twice
    assert (done.windows, done.alarms) == (1, 0)
    assert "DRIFT" not in capfd.readouterr().err

    arrive(place, grey(draw_many(120, seed=2)), "other")
    done = run(place, known.folder, last := Watch())
    assert (last.images(), done.windows, done.alarms) == ([[120]], 1, 1)
    said = capfd.readouterr().err.replace("\n", " ")
    assert f"window 2 of {known.card.model_id[:16]}: DRIFT of labels and confidence and features: 120 images" in said
    register_views(place.spark, tables := find_tables(predictions=str(place.out)))
    rows = place.spark.sql("SELECT * FROM drift ORDER BY window").collect()
    assert [(row["window"], row["images"], row["alarm"]) for row in rows] == [
        (0, 130, False),
        (1, 130, False),
        (2, 120, True),
    ]
    assert {(row["tested_by"], row["model_id"]) for row in rows} == {("stream", known.card.model_id)}
    assert "drift_files" in make_ddl(tables, "hive")


@pytest.mark.spark
def test_a_test_that_fails_is_told_and_costs_no_image_its_label_nor_its_window(
    known: Known, place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    kept, away = place.out / "drift" / "stream", place.folder / "away"
    batches: list[LabelledBatch] = []

    def spoil(batch: LabelledBatch) -> None:
        batches.append(batch)
        report_batch(batch, max_reject_fraction=0.05)
        if batch.batch_id == 0:
            shutil.move(kept, away)
            kept.write_text("no folder")
        elif batch.batch_id == 1:
            kept.unlink()
            shutil.move(away, kept)

    arrive(place, draw_many(45, seed=3), "some")
    done = place.run(known.folder, windows=WindowSettings(20), most_per_batch=15, on_batch=spoil)
    assert (done.added, done.windows) == ({known.card.model_id: 45}, 2)
    assert [len(batch.windows) for batch in batches] == [0, 0, 2]
    assert [batch.drift_fault is None for batch in batches] == [True, False, True]
    assert sum(window.result.images for window in batches[2].windows) == 45
    assert "drift was not tested after batch 1; its images are tested later" in capfd.readouterr().err.replace(
        "\n", " "
    )


@pytest.mark.spark
def test_without_a_reference_a_stream_is_refused_at_its_start_and_goes_on_after_an_exchange(
    known: Known, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    other = train_on_shapes(place.folder / "models", seed=1, epochs=1)
    shutil.rmtree(place.folder / "models" / "features")
    arrive(place, draw_many(5, seed=4), "some")
    with pytest.raises(UsageError, match=r"\(--drift-window\) .* has no reference: .*no _delta_log"):
        place.run(other.folder, windows=WindowSettings(20))
    assert not place.out.exists()

    plan = place.plan(known.folder, windows=WindowSettings(20))
    plan.checkpoint.begin(plan.record)
    pin = Pin(
        query="q", model_id=other.card.model_id, name=str(other.folder), url=f"file://{other.folder}", pinned_at=""
    )
    with closing(StreamModels(place.spark, plan.first, plan.checkpoint, plan.windows)) as models:
        assert models.for_batch(0, "q").drift is not None
        plan.checkpoint.write_pin(1, pin)
        exchanged = models.for_batch(1, "q")
        assert (exchanged.model_id, exchanged.drift) == (other.card.model_id, None)
    said = capsys.readouterr().err.replace("\n", " ")
    assert f"images labelled by {other.card.model_id[:16]} are not tested for drift" in said
    assert "drift of labels: to detect a moderate change with 80 % certainty, a window needs about" in said
