"""Reading the Parquet files of a feature set with Petastorm, on any file system that Firn knows."""

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from featurize import storage
from featurize.errors import UsageError
from featurize.tables.manifests import FeaturesManifest

if TYPE_CHECKING:
    from petastorm.reader import Reader

_importing = threading.Lock()  # warning filters belong to the whole process


def open_petastorm_reader(
    url: str, manifest: FeaturesManifest, split: str, columns: Sequence[str], *, num_epochs: int | None = None
) -> "Reader":
    """Petastorm's `make_batch_reader` on one split, for your own training loop; a context manager.

    It yields a row group at a time, endlessly unless `num_epochs` is given. Use `num_epochs` with care: at the end of its work
    the thread pool of Petastorm 0.13.1 may lose row groups, as it checks whether its workers are idle before it checks whether
    all work has been handed out. An endless reader never reaches that end.

    Raises:
        UsageError: The split has no rows.
    """
    files = [storage.join_url(url, file.path) for file in manifest.files if file.split == split]
    if not files:
        raise UsageError(f"{url}: split {split!r} has no rows.")
    return _make_reader(files, columns, num_epochs=num_epochs)


@contextmanager
def open_ordered_reader(
    files: Sequence[str], columns: Sequence[str], *, seed: int, part: int = 0, parts: int = 1
) -> Iterator["Reader"]:
    """Petastorm's `make_batch_reader` on some files, whose row groups come in an order that follows from `seed`, endlessly.

    One thread reads and decodes, up to four row groups ahead: with more threads the order would be random.

    Args:
        files: URLs of the files.
        columns: Columns to read.
        seed: 1 or more, as Petastorm reads 0 as no seed.
        part: Which share of the row groups to read: those whose number, in the order of the files, is `part` modulo `parts`.
        parts: Number of shares.
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
    finally:  # like its own __exit__, which also prints a line
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
    """`make_batch_reader`, and the file system that it reads from."""
    with _importing, warnings.catch_warnings():  # Petastorm imports deprecated parts of pyarrow and setuptools
        warnings.simplefilter("ignore")
        from petastorm import make_batch_reader

        from finetune.rows.petastorm_files import LegacyFiles
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module="petastorm"
    )  # Petastorm continues to use it in its threads
    return make_batch_reader, LegacyFiles
