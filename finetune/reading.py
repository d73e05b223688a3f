"""The Parquet of a feature set: row groups read by pyarrow, or streamed by Petastorm, on any file system that Firn knows."""

import threading
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from featurize import storage
from featurize.errors import JobError, UsageError, first_line
from featurize.manifests import FeaturesManifest

if TYPE_CHECKING:
    from petastorm.reader import Reader

READING_THREADS = 4
_importing = threading.Lock()  # the filters of warnings are of the whole process


@dataclass(frozen=True)
class RowGroup:
    """A row group of a data file.

    Attributes:
        url: of the file.
        index: in the file.
        footer: of the file, which need not be read again.
    """

    url: str
    index: int
    footer: pq.FileMetaData

    @property
    def rows(self) -> int:
        """Number of images."""
        return int(self.footer.row_group(self.index).num_rows)


def list_row_groups(url: str, manifest: FeaturesManifest, split: str) -> list[RowGroup]:
    """The row groups of one split, in the order of the files in the manifest. Reads the footers, in threads.

    Raises:
        JobError: a file is missing, damaged, or has other rows than the manifest says.
    """
    files = [file for file in manifest.files if file.split == split]
    urls = [storage.join_url(url, file.path) for file in files]
    with ThreadPoolExecutor(READING_THREADS) as pool:
        footers = list(pool.map(read_footer, urls))
    for file, file_url, footer in zip(files, urls, footers, strict=True):
        if footer.num_rows != file.rows:
            raise JobError(f"{file_url} has {footer.num_rows} rows, the manifest says {file.rows}.")
    rows = sum(footer.num_rows for footer in footers)
    if rows != manifest.split_rows(split):
        raise JobError(f"{url}: split {split} has {rows} rows, the manifest says {manifest.split_rows(split)}.")
    return [
        RowGroup(file_url, index, footer)
        for file_url, footer in zip(urls, footers, strict=True)
        for index in range(footer.num_row_groups)
        if footer.row_group(index).num_rows
    ]


def read_row_group(group: RowGroup, columns: Sequence[str]) -> pa.Table:
    """Some columns of a row group.

    Raises:
        JobError: the file is missing or damaged, or lacks a column.
    """
    with _open_parquet(group.url, group.footer) as file:
        table = file.read_row_group(group.index, columns=list(columns), use_threads=False)
    if missing := [name for name in columns if name not in table.column_names]:
        raise JobError(f"{group.url} has no column {missing[0]}.")
    return table


def iterate_row_groups(groups: Sequence[RowGroup], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Each of `groups`, in their order, a few read ahead in threads. An iterator left early leaves no thread behind."""
    pool = ThreadPoolExecutor(READING_THREADS)
    ahead: deque[Future[pa.Table]] = deque()
    try:
        for group in groups:
            ahead.append(pool.submit(read_row_group, group, columns))
            if len(ahead) > READING_THREADS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def read_table(url: str, manifest: FeaturesManifest, split: str, columns: Sequence[str]) -> pa.Table:
    """The rows of one split, from the files that the manifest lists, in their order.

    Raises:
        JobError: a file is missing, damaged, or has other rows than the manifest says.
    """
    tables = list(iterate_row_groups(list_row_groups(url, manifest, split), columns))
    return pa.concat_tables(tables) if tables else pa.table({name: pa.array([]) for name in columns})


def open_petastorm_reader(
    url: str, manifest: FeaturesManifest, split: str, columns: Sequence[str], *, num_epochs: int | None = None
) -> "Reader":
    """Petastorm's `make_batch_reader` on one split, for a training loop of one's own; a context manager.

    It yields a row group at a time, endlessly unless `num_epochs` is given. Give it with care: at the end of its work the thread
    pool of Petastorm 0.13.1 may lose row groups, as it looks whether its workers are idle before it looks whether all work
    has been handed out. An endless reader never comes to that end.

    Raises:
        UsageError: the split has no rows.
    """
    files = [storage.join_url(url, file.path) for file in manifest.files if file.split == split]
    if not files:
        raise UsageError(f"{url}: split {split!r} has no rows.")
    return _make_reader(files, columns, num_epochs=num_epochs)


@contextmanager
def open_ordered_reader(
    files: Sequence[str], columns: Sequence[str], *, seed: int, part: int = 0, parts: int = 1
) -> Iterator["Reader"]:
    """Petastorm's `make_batch_reader` on some files, whose row groups come in an order by `seed`, again and again.

    One thread reads and decodes, up to four row groups ahead: with more of them the order would be a matter of luck.

    Args:
        files: URLs.
        seed: from 1 up; Petastorm takes 0 for no seed.
        part: of `parts`; of all row groups in the order of the files, those whose place is `part` modulo `parts`.
    """
    reader = _make_reader(
        files,
        columns,
        num_epochs=None,
        seed=seed,
        cur_shard=part if parts > 1 else None,
        shard_count=parts if parts > 1 else None,
        workers_count=1,
        convert_early_to_numpy=True,
    )
    try:
        yield reader
    finally:  # its own __exit__ does this and prints a line
        reader.stop()
        reader.join()


def _make_reader(files: Sequence[str], columns: Sequence[str], **options: Any) -> "Reader":
    names = {f"/{number:08d}.parquet": file for number, file in enumerate(files)}
    make_batch_reader, filesystem_type = _load_petastorm()
    return make_batch_reader(
        [f"file://{name}" for name in names],
        schema_fields=[f"^{name}$" for name in columns],
        filesystem=filesystem_type(names),
        **options,
    )


def _load_petastorm() -> tuple[Any, Any]:
    """`make_batch_reader`, and the file system it is to read from."""
    with _importing, warnings.catch_warnings():  # Petastorm imports what pyarrow and setuptools deprecate
        warnings.simplefilter("ignore")
        from petastorm import make_batch_reader

        from finetune.legacy_files import LegacyFiles
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module="petastorm"
    )  # which goes on using it, in its threads
    return make_batch_reader, LegacyFiles


def read_footer(url: str) -> pq.FileMetaData:
    """The footer of a data file.

    Raises:
        JobError: the file is missing or damaged.
    """
    with _open_parquet(url, None) as file:
        return file.metadata


@contextmanager
def _open_parquet(url: str, footer: pq.FileMetaData | None) -> Iterator[pq.ParquetFile]:
    """A file that the manifest lists; what fails in a `with` block is the fault of this file."""
    try:
        with open_source(url) as source:
            yield pq.ParquetFile(source, metadata=footer)
    except (OSError, pa.ArrowException, RuntimeError) as error:  # RuntimeError: what hdfs-native raises
        raise JobError(f"{url} is listed in the manifest and cannot be read: {first_line(error)}") from error


def open_source(url: str) -> pa.NativeFile:
    """The file at `url` for pyarrow to read; a local one without a way through Python."""
    filesystem, inner = storage.open_filesystem(url)
    if storage.absolute_url(url).startswith("file://"):
        return pa.OSFile(inner)
    return pa.PythonFile(filesystem.open(inner, "rb"), mode="r")
