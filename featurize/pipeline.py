"""What every worker does with source images: read them from Arrow batches, and work ahead on them in threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
from pyspark import TaskContext

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One row of a source. `label` is None outside class folders, `own_split` where the source brings none."""

    image_id: str
    path: str
    label: str | None
    own_split: str | None
    content: bytes

    def reject(self, stage: str, error: object) -> dict[str, Any]:
        """The row of the rejects table that this image becomes."""
        return {
            "image_id": self.image_id,
            "path": self.path,
            "bytes_size": len(self.content),
            "stage": stage,
            "error": str(error),
        }


def read_images(batches: Iterable[pa.RecordBatch]) -> Iterator[SourceImage]:
    """The images in Arrow batches of a source, one after the other."""
    for batch in batches:
        names = ("image_id", "path", "label", "own_split", "content")
        columns = [batch.column(batch.schema.get_field_index(name)) for name in names]
        for row in range(batch.num_rows):
            yield SourceImage(*(column[row].as_py() for column in columns))


def map_ahead(
    work: Callable[[SourceImage], Result], images: Iterable[SourceImage], threads: int, *, ahead: int | None = None
) -> Iterator[tuple[SourceImage, Result]]:
    """Applies `work` in `threads` threads, up to `ahead` images before they are asked for; results come in order.

    Whoever consumes the results can compute meanwhile. No more than `ahead` images are held at a time.
    """
    limit = ahead if ahead is not None else 2 * threads
    waiting: deque[tuple[SourceImage, Future[Result]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="firn-decode") as pool:
        for image in images:
            waiting.append((image, pool.submit(work, image)))
            if len(waiting) >= limit:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()


def worker_threads() -> int:
    """The cores that Spark gave this task: `spark.task.cpus`. Outside a task, one."""
    context = TaskContext.get()
    return max(1, context.cpus()) if context is not None else 1
