"""The progress of a Spark job, counted in images, from the reports of workers and from finished tasks."""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from uuid import uuid4

from py4j.protocol import Py4JError
from pyspark import SparkContext

from featurize.building.image_reports import ReportListener, ReportTo, ShardReport
from featurize.image_progress import Bound, ImageProgress, View
from featurize.progress import current_view

_LOOK_S = 0.25
_TASKS_LOOK_S = 2.0
_RECENT_S = 30.0  # the time over which the rate is measured
_LEAST_S = 1.0  # the shortest such time
_PHASES = ("read", "decode", "wait", "forward", "write")


@dataclass
class _Shard:
    """The most that any attempt at a shard has reported."""

    done: int = 0
    rejected: int = 0


class ImageCounts:
    """Counts the images that are done and rejected in the shards of a plan.

    Neither number ever falls, and no image counts twice: of several attempts at a shard the furthest counts.

    Args:
        planned: Number of images in each shard.
        what: The unit, for `ImageProgress`.
    """

    def __init__(self, planned: Sequence[int], *, what: str = "images") -> None:
        self._planned, self._what = list(planned), what
        self._shards = [_Shard() for _ in planned]
        self._smallest_first = sorted(planned)
        self._by_tasks = 0
        self._attempts: dict[tuple[int, int], ShardReport] = {}
        self._spent: deque[tuple[float, dict[str, float]]] = deque()
        self._pace: deque[tuple[float, int]] = deque()

    @property
    def total(self) -> int:
        """Number of images in all shards."""
        return sum(self._planned)

    @property
    def done(self) -> int:
        """Number of images that are done: according to the reports, or to the finished tasks if that is more."""
        return max(sum(shard.done for shard in self._shards), self._by_tasks)

    @property
    def rejected(self) -> int:
        """Number of rejects that were reported."""
        return sum(shard.rejected for shard in self._shards)

    def add(self, report: ShardReport, now: float) -> None:
        """Adds a report that came at `now`, in seconds of a monotonic clock."""
        if report.shard >= len(self._planned):
            return
        shard, most = self._shards[report.shard], self._planned[report.shard]
        shard.done = max(shard.done, min(report.done, most))
        shard.rejected = max(shard.rejected, min(report.rejected, most))
        key = (report.shard, report.attempt)
        before = self._attempts.get(key, ShardReport(report.shard, report.attempt, 0, 0))
        spent = {phase: getattr(report, phase) - getattr(before, phase) for phase in _PHASES}
        if min(spent.values()) >= 0:  # if not, a later report came first
            self._attempts[key] = report
            self._spend(now, spent)

    def tasks_ended(self, tasks: int) -> None:
        """Notes that so many tasks, one for each shard, have ended: at least the images of the smallest shards are done."""
        self._by_tasks = max(self._by_tasks, sum(self._smallest_first[:tasks]))

    def finish(self) -> None:
        """Notes that the job has succeeded: all images are done."""
        self._by_tasks = self.total

    def progress(self, now: float) -> ImageProgress:
        """How far the job has come at `now`."""
        while self._spent and now - self._spent[0][0] > _RECENT_S:
            self._spent.popleft()
        done = self.done
        return ImageProgress(
            what=self._what,
            done=done,
            total=self.total,
            rejected=self.rejected,
            rate=self._rate(now, done),
            bound=self._bound(),
        )

    def _spend(self, now: float, seconds: dict[str, float]) -> None:
        """Keeps the seconds that were spent, one sum for each moment."""
        if self._spent and self._spent[-1][0] == now:
            before = self._spent.pop()[1]
            seconds = {phase: seconds[phase] + before[phase] for phase in _PHASES}
        self._spent.append((now, seconds))

    def _rate(self, now: float, done: int) -> float | None:
        """Images per second over the last half minute; time before the first image does not count."""
        if not done:
            return None
        self._pace.append((now, done))
        while len(self._pace) > 2 and now - self._pace[0][0] > _RECENT_S:
            self._pace.popleft()
        (since, first), (until, last) = self._pace[0], self._pace[-1]
        return (last - first) / (until - since) if until - since >= _LEAST_S and last > first else None

    def _bound(self) -> Bound | None:
        """What took most of the last half minute.

        If there was more waiting for pixels than computing, which go on at the same time, it is reading or decoding, whichever
        took longer in the threads that work ahead; see `Timings`. Otherwise it is the network, or writing to storage.
        """
        spent = {phase: sum(seconds[phase] for _, seconds in self._spent) for phase in _PHASES}
        if not self.done or not any(spent.values()):  # before the first image all threads wait for the network
            return None
        if spent["wait"] > max(spent["forward"], spent["write"]):
            return "storage" if spent["read"] > spent["decode"] else "decode"
        return "network" if spent["forward"] >= spent["write"] else "storage"


@contextmanager
def image_progress(context: SparkContext, planned: Sequence[int], *, what: str = "images") -> Iterator[ReportTo | None]:
    """Shows how many images the Spark job within the block has done, if the current view shows images.

    Args:
        planned: Number of images in each shard; the job has a task for each.
        what: The unit, as in ``images``.

    Yields:
        Where workers send their reports. None: the view shows no images, or no port can be opened and finished tasks are counted.
    """
    view = current_view()
    if not view.wants_images:
        yield None
        return
    counts, listener, tag = ImageCounts(planned, what=what), _listen(context), f"firn-{uuid4().hex}"
    ended = threading.Event()
    watcher = threading.Thread(
        target=_watch, args=(context, view, counts, listener, tag, ended), name="firn-progress", daemon=True
    )
    view.show_images(counts.progress(monotonic()))
    context.addJobTag(tag)
    watcher.start()
    try:
        yield listener.report_to if listener is not None else None
        counts.finish()
    finally:
        ended.set()
        watcher.join()
        with suppress(Py4JError, OSError):  # Spark is gone: the error that ended it matters more
            context.removeJobTag(tag)
        if listener is not None:
            listener.close()
    view.show_images(counts.progress(monotonic()))


def _listen(context: SparkContext) -> ReportListener | None:
    """A listener at the driver's address; None if that is not an address of this machine."""
    host = context.getConf().get("spark.driver.host") or "127.0.0.1"
    try:
        return ReportListener(context.getConf().get("spark.driver.bindAddress") or host, known_as=host)
    except OSError:
        return None


def _watch(
    context: SparkContext,
    view: View,
    counts: ImageCounts,
    listener: ReportListener | None,
    tag: str,
    ended: threading.Event,
) -> None:
    """Reads reports and counts finished tasks until the job has ended."""
    next_look, is_ended = 0.0, False
    while not is_ended:
        is_ended = ended.wait(_LOOK_S)
        now = monotonic()
        for report in listener.received() if listener is not None else ():
            counts.add(report, now)
        if now >= next_look and not is_ended:
            counts.tasks_ended(_ended_tasks(context, tag))
            next_look = now + _TASKS_LOOK_S
        view.show_images(counts.progress(now))
    _disconnect(context)


def _disconnect(context: SparkContext) -> None:
    """Closes this thread's own connection to Spark, if it has one, so that its thread in the JVM ends too."""
    find = getattr(getattr(context._gateway, "_gateway_client", None), "get_thread_connection", None)
    connection = find() if find is not None else None
    if connection is not None:
        connection.close()


def _ended_tasks(context: SparkContext, tag: str) -> int:
    """How many tasks of the job with this tag have ended; 0 if Spark cannot be asked, as when it is being stopped."""
    if context._jsc is None:
        return 0
    try:
        tracker = context.statusTracker()
        jobs = [tracker.getJobInfo(job) for job in context._jsc.sc().statusTracker().getJobIdsForTag(tag)]
        stages = [tracker.getStageInfo(stage) for job in jobs if job is not None for stage in job.stageIds]
    except (Py4JError, OSError):
        return 0
    return sum(stage.numCompletedTasks for stage in stages if stage is not None)
