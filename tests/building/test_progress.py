"""Progress of a build in images: laws of counting, datagrams that may be lost, and what a real build shows."""

import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from random import Random

import pyarrow as pa
import pytest
from helpers.images.photos import make_photos
from helpers.project import Firn
from helpers.tables.building import recipe, write_recipe
from helpers.terminals import run_in_terminal
from hypothesis import given
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from featurize.building.image_reports import (
    ReportListener,
    ReportTo,
    ShardReport,
    decode_report,
    encode_report,
    reporting,
)
from featurize.building.progress import ImageCounts, image_progress
from featurize.errors import JobError
from featurize.image_progress import ImageProgress
from featurize.jobs.run import featurize
from featurize.progress import shown_progress
from featurize.progress_views import LogView

KEY = bytes(32)
REPORTS = st.builds(
    ShardReport,
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    *[st.floats(0, 1e9)] * 5,
)


class Recorder(LogView):
    """A view that keeps how far the job was, each time that it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[ImageProgress] = []

    def stage(self, text: str) -> None:
        """Keeps nothing."""

    def show_images(self, progress: ImageProgress) -> None:
        self.seen.append(progress)

    @property
    def done(self) -> list[int]:
        return [progress.done for progress in self.seen]


# Counting


@st.composite
def jobs(draw: st.DrawFn) -> tuple[list[int], list[ShardReport]]:
    """The images of each shard, and what came of its attempts' reports: some lost, some twice, in any order."""
    planned = draw(st.lists(st.integers(1, 50), min_size=1, max_size=5))
    reports = []
    for shard, images in enumerate(planned):
        for attempt in range(draw(st.integers(0, 3))):
            for done in draw(st.lists(st.integers(0, images), max_size=6)):
                reports.append(ShardReport(shard, attempt, done, done // 3, wait=float(done)))
    return planned, draw(st.permutations(reports + reports[: draw(st.integers(0, len(reports)))]))


@given(jobs(), st.lists(st.integers(0, 5), max_size=10))
def test_counts_never_fall_count_no_image_twice_and_end_at_the_total(
    job: tuple[list[int], list[ShardReport]], tasks_ended: list[int]
) -> None:
    planned, reports = job
    counts, most = ImageCounts(planned), [0] * len(planned)
    seen = [counts.progress(0.0)]
    for now, report in enumerate(reports):
        counts.add(report, float(now))
        most[report.shard] = max(most[report.shard], report.done)
        seen.append(counts.progress(float(now)))
        assert seen[-1].done == sum(most)
    for tasks in tasks_ended:
        counts.tasks_ended(min(tasks, len(planned)))
        seen.append(counts.progress(float(len(reports))))
    counts.finish()
    seen.append(counts.progress(float(len(reports))))
    for before, after in pairwise(seen):
        assert before.done <= after.done
        assert before.rejected <= after.rejected <= after.done
    assert {progress.total for progress in seen} == {sum(planned)}
    assert seen[-1].done == sum(planned)
    assert seen[-1].left_s in (None, 0.0)


@given(jobs(), st.randoms())
def test_reports_that_are_lost_are_made_up_for_by_the_next(
    job: tuple[list[int], list[ShardReport]], random: Random
) -> None:
    planned, reports = job
    lossy, whole = ImageCounts(planned), ImageCounts(planned)
    for report in reports:
        whole.add(report, 0.0)
        if random.random() < 0.5:
            lossy.add(report, 0.0)
    for shard, images in enumerate(planned):
        for counts in (lossy, whole):
            counts.add(ShardReport(shard, 9, images, 1), 1.0)
    assert (lossy.done, lossy.rejected >= len(planned)) == (whole.done, True)


@given(jobs())
def test_tasks_that_ended_count_for_no_more_than_they_have_done(job: tuple[list[int], list[ShardReport]]) -> None:
    planned, _ = job
    counts = ImageCounts(planned)
    for tasks in range(len(planned) + 1):
        counts.tasks_ended(tasks)
        assert counts.done == sum(sorted(planned)[:tasks])
    assert counts.done == counts.total


def test_a_report_on_no_shard_of_the_plan_or_on_too_many_images_does_not_count() -> None:
    counts = ImageCounts([10, 20])
    counts.add(ShardReport(2, 0, 5, 0), 0.0)
    counts.add(ShardReport(0, 0, 999, 500), 0.0)
    assert (counts.done, counts.rejected, counts.total) == (10, 10, 30)


def test_the_rate_is_that_of_the_last_half_minute_and_tells_the_time_left() -> None:
    counts = ImageCounts([1000])
    assert counts.progress(0.0).rate is None
    for second in range(100):  # one a second for 50 s, then ten
        done = 1 + (second if second < 50 else 50 + 10 * (second - 50))
        counts.add(ShardReport(0, 0, done, 0), float(second))
        progress = counts.progress(float(second))
        if second == 45:
            assert progress.rate == pytest.approx(1.0)
    assert progress.rate == pytest.approx(10.0)
    assert progress.left_s == pytest.approx((1000 - progress.done) / 10)


@pytest.mark.parametrize(
    ("spent", "bound"),
    [
        ({"forward": 8.0, "wait": 1.0, "read": 5.0, "decode": 5.0}, "network"),
        ({"forward": 1.0, "wait": 8.0, "read": 2.0, "decode": 9.0}, "decode"),
        ({"forward": 1.0, "wait": 8.0, "read": 9.0, "decode": 2.0}, "storage"),
        ({"forward": 6.0, "wait": 9.0, "read": 2.0, "decode": 9.0}, "decode"),  # the network computes beside
        ({"write": 8.0, "wait": 1.0, "decode": 2.0}, "storage"),
        ({}, None),
    ],
)
def test_what_bounds_a_job_is_what_it_spent_the_last_half_minute_on(spent: dict[str, float], bound: str | None) -> None:
    counts = ImageCounts([1000])
    counts.add(ShardReport(0, 0, 100, 0, wait=1000.0, decode=1000.0), 0.0)
    whole = {"wait": 1000.0, "decode": 1000.0}
    now = {name: whole.get(name, 0.0) + spent.get(name, 0.0) for name in ("read", "decode", "wait", "forward", "write")}
    counts.add(ShardReport(0, 0, 200, 0, **now), 40.0)
    counts.add(ShardReport(0, 0, 100, 0, wait=1000.0, decode=1000.0), 40.0)  # comes late
    assert counts.progress(40.0).bound == bound


def test_nothing_bounds_a_job_before_its_first_image() -> None:
    counts = ImageCounts([1000])
    counts.add(ShardReport(0, 0, 0, 0, decode=3.0), 0.0)
    assert counts.progress(0.0).bound is None


# Datagrams


@given(REPORTS, st.binary(min_size=32, max_size=32))
def test_a_datagram_gives_back_its_report_to_those_who_have_the_key(report: ShardReport, other: bytes) -> None:
    datagram = encode_report(report, KEY)
    assert len(datagram) < 100
    assert decode_report(datagram, KEY) == report
    assert decode_report(datagram, other) in ((None,) if other != KEY else (report,))


@given(REPORTS, st.data())
def test_a_datagram_that_is_not_whole_is_none(report: ShardReport, data: st.DataObject) -> None:
    datagram = bytearray(encode_report(report, KEY))
    place = data.draw(st.integers(0, len(datagram) - 1))
    assert decode_report(bytes(datagram[:place]), KEY) is None
    assert decode_report(bytes(datagram) + b"x", KEY) is None
    datagram[place] ^= data.draw(st.integers(1, 255))
    assert decode_report(bytes(datagram), KEY) is None


@given(st.binary(max_size=200))
def test_stray_datagrams_are_none(datagram: bytes) -> None:
    assert decode_report(datagram, KEY) is None


def until(listener: ReportListener, done: int) -> list[ShardReport]:
    """All reports until the first one of so many images; fails after ten seconds."""
    found: list[ShardReport] = []
    give_up = time.monotonic() + 10
    while time.monotonic() < give_up:
        found += listener.received()
        if any(report.done == done for report in found):
            return found
        time.sleep(0.01)
    raise AssertionError(found)


def test_a_worker_reports_at_its_start_meanwhile_and_at_its_end() -> None:
    listener = ReportListener("127.0.0.1", known_as="localhost")
    done = 0
    with reporting(listener.report_to, lambda: ShardReport(7, 3, done, 0), period_s=0.05):
        assert until(listener, 0)
        done = 1
        assert until(listener, 1)
        stranger = ReportTo("127.0.0.1", listener.report_to.port, bytes(32))
        with reporting(stranger, lambda: ShardReport(7, 3, 1000, 0)):
            time.sleep(0.2)
        done = 2
    found = until(listener, 2)
    assert {report[:2] for report in found} == {(7, 3)}
    assert {report.done for report in found} <= {1, 2}
    listener.close()
    with pytest.raises(OSError, match=r"assign|address"):
        ReportListener("192.0.2.1", known_as="192.0.2.1")


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid", "127.0.0.1"])
def test_a_driver_that_cannot_be_reached_costs_a_worker_nothing(host: str) -> None:
    started = time.monotonic()
    with reporting(ReportTo(host, 9, KEY), lambda: ShardReport(0, 0, 0, 0), period_s=0.01):
        began_after_s = time.monotonic() - started
        time.sleep(0.05)
        ended = time.monotonic()
    assert max(began_after_s, time.monotonic() - ended) < 0.5
    assert not [thread for thread in threading.enumerate() if thread.name == "firn-reports" and not thread.daemon]


# On Spark


@pytest.fixture
def view() -> Iterator[Recorder]:
    recorder = Recorder()
    with shown_progress(view=recorder):
        yield recorder


@pytest.mark.spark
def test_a_build_ends_at_all_images_and_knows_the_rejects(
    spark: SparkSession, photos: Path, tmp_path: Path, view: Recorder
) -> None:
    result, _ = featurize(spark, recipe(photos, tmp_path / "set", "pixels"))
    assert view.done == sorted(view.done)
    assert view.seen[-1].done == view.seen[-1].total == result.added + result.rejected == 62
    assert view.seen[-1].rejected == result.rejected == 2  # reports alone know of them


@pytest.mark.spark
def test_images_that_were_touched_are_compared_and_so_it_says(
    spark: SparkSession, tmp_path: Path, view: Recorder
) -> None:
    make_photos(tmp_path / "photos", per_class=4, classes=("green", "red"))
    settings = recipe(tmp_path / "photos", tmp_path / "set", "pixels")
    featurize(spark, settings)
    assert {progress.what for progress in view.seen} == {"images"}
    view.seen.clear()
    for photo in (tmp_path / "photos" / "red").iterdir():
        os.utime(photo, (1, 1))
    featurize(spark, settings)
    assert {progress.what for progress in view.seen} == {"images compared"}
    assert (view.seen[-1].done, view.seen[-1].total) == (4, 4)


@pytest.mark.spark
@pytest.mark.slow
def test_where_no_report_comes_tasks_that_have_ended_tell(spark: SparkSession, view: Recorder) -> None:
    def work(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        time.sleep(2.5)
        yield from batches

    planned = [100, 10, 10]
    with image_progress(spark.sparkContext, planned) as report_to:
        assert report_to is not None
        other = threading.Thread(target=lambda: spark.range(0, 50, 1, 50).collect())  # a job of somebody else
        other.start()
        spark.range(0, 3, 1, 3).mapInArrow(work, "id long").collect()
        other.join()
    assert set(view.done) <= {0, 10, 20, 120}  # tasks of the other job count for nothing
    assert set(view.done) & {10, 20}
    assert view.done == sorted(view.done)
    assert view.done[-1] == 120


@pytest.mark.spark
def test_a_job_that_fails_is_told_as_before_and_is_not_at_its_end(spark: SparkSession, view: Recorder) -> None:
    from featurize.building.spark_jobs import job_errors, run_tasks

    def fail(_: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        raise ValueError("no such thing")
        yield

    with pytest.raises(JobError, match="no such thing"), image_progress(spark.sparkContext, [5]), job_errors():
        run_tasks(spark, fail, tasks=1)
    assert set(view.done) == {0}
    assert not [thread for thread in threading.enumerate() if thread.name == "firn-progress"]


@pytest.mark.spark
def test_nobody_listens_where_nobody_sees_it(spark: SparkSession) -> None:
    with shown_progress(as_json=True), image_progress(spark.sparkContext, [5]) as report_to:
        assert report_to is None


@pytest.mark.spark
def test_a_log_has_the_stages_and_lines_in_images(
    spark: SparkSession, photos: Path, mean_backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with shown_progress(view=LogView(first_s=0.0, period_s=0.0)):
        featurize(spark, recipe(photos, tmp_path / "set", mean_backbone))
    lines = capsys.readouterr().err.splitlines()
    stages = [
        "listing images",
        "cutting mean.keras",
        "sending the network to workers",
        "starting workers",
        "publishing",
    ]
    assert [line for line in lines if line in stages] == stages
    known = r"\d+ of 62 images \(\d+%\)(, [\d.]+ a second, \d:\d\d left)?, [0-2] rejected(, bound by \w+)?"
    images = [line for line in lines if " of 62 images" in line]
    assert all(re.fullmatch(known, line) for line in images)
    assert images[0].startswith("0 of 62 images (0%)")
    assert images[-1].startswith("62 of 62 images (100%)")
    assert ", 2 rejected" in images[-1]


# As users see it


@pytest.fixture
def place(tmp_path: Path) -> Path:
    make_photos(tmp_path / "photos", per_class=40, classes=("green", "red"))
    (tmp_path / "photos" / "red" / "broken.jpg").write_bytes(b"no picture")
    write_recipe(tmp_path / "recipe.toml", source="photos", url="features", backbone="pixels")
    return tmp_path


@pytest.mark.spark
@pytest.mark.slow
def test_a_terminal_shows_the_stages_and_a_bar_with_images_and_rejects(place: Path) -> None:
    command = [sys.executable, "-m", "featurize", "run", "recipe.toml", "--set", "images.max_reject_fraction=0.5"]
    status, lines = run_in_terminal(command, cwd=place)
    drawn = "\n".join(lines)
    assert status == 0, drawn
    assert re.search(r"^\s*\S waiting for Spark", drawn, flags=re.MULTILINE)
    assert re.search(r"starting workers ━+ 0/81  0 rejected", drawn)
    assert re.search(r"images ━+ 81/81 .*1 rejected", drawn)
    assert "80 images in" in drawn.partition("81/81")[2]


@pytest.mark.spark
@pytest.mark.slow
def test_with_json_nothing_moves(place: Path, firn: Firn) -> None:
    ended = firn("featurize", "run", "recipe.toml", "--json", "--set", "images.max_reject_fraction=0.5", cwd=place)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("\n") == 1
    for text in ("starting", "listing", "publishing", "━", " of 81 images", "bound by"):
        assert text not in ended.stderr
    assert "80 images in" in ended.stderr
