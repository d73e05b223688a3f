"""The Parquet of a feature set streamed by Petastorm, on any file system that Firn knows; by pyarrow: `tables.row_groups`."""

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

_importing = threading.Lock()  # the filters of warnings are of the whole process


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

        from finetune.rows.petastorm_files import LegacyFiles
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module="petastorm"
    )  # which goes on using it, in its threads
    return make_batch_reader, LegacyFiles
