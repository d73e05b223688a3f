"""A split larger than memory: every epoch's batches come from a few streams that Petastorm reads, each shuffled in a buffer.

The row groups of a split are dealt to `N_STREAMS` streams, whatever the number of ranks; each rank reads some of the streams.
The number of rows that a stream gives to a step is fixed, so that a step's global batch depends only on seed, epoch and step,
and every row comes once in an epoch.

Shuffle quality. In each epoch the row groups of a stream come in a random order, and each row then waits in a buffer of
`shuffle_rows` divided by the number of streams, from which rows are drawn at random. A split of up to `shuffle_rows` rows is
shuffled completely within each stream. In a larger one a row's position in an epoch is independent of its position on disk (their
rank correlation is that of chance), and two rows of one row group, which are adjacent on disk, come about `shuffle_rows` rows
apart on average (a third of the split for a perfect shuffle), as the times they wait are exponential:
tests/rows/test_disk_rows.py measures both. So rows sorted by class on disk are well mixed where `shuffle_rows` covers many row
groups.
"""

import math
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurize.errors import FirnError, JobError, first_line
from featurize.tables.manifests import FeaturesManifest
from featurize.tables.row_edits import GroupEdit, group_key
from featurize.tables.row_groups import (
    RowGroup,
    features_of,
    list_row_groups,
    read_footer,
    read_row_group,
    row_shape,
    wrong_features,
)
from finetune.rows.batches import PADDING
from finetune.rows.petastorm_reader import open_ordered_reader
from finetune.rows.shuffle_buffer import Rows, ShuffleBuffer
from finetune.rows.splits import iterate_groups, row_ids_of

if TYPE_CHECKING:
    import tensorflow as tf

N_STREAMS = 8
_COLUMNS = ("image_id", "label_index")  # besides that of features
_EDITED_COLUMNS = (*_COLUMNS, "path")  # the path finds the edit of a row group
_ROWS_AT_ONCE = 512  # rows handed to TensorFlow at a time, as each call of Python takes a millisecond
_CALLS_IN_FLIGHT = 4
_EVEN = 1.1  # how much longer the longest stream may become so that each file belongs to one stream
# For each stream: four in Petastorm, one being made and its copy, one in use, and two that are not released (measured).
_GROUPS_IN_FLIGHT = 9


@dataclass(frozen=True)
class Stream:
    """The rows that one reader reads: `groups`, every `parts`-th of all row groups of `files`, from number `part` on.

    Rows that a selection leaves out are read and dropped.
    """

    files: tuple[str, ...]
    groups: tuple[RowGroup, ...]
    part: int = 0
    parts: int = 1

    @property
    def rows(self) -> int:
        """Number of images."""
        return sum(group.rows for group in self.groups)


class StreamData:
    """A split that is read again in every epoch, each rank reading its own streams. Implements `finetune.rows.loader.Data`.

    Args:
        url: URL of the feature set.
        manifest: Its manifest.
        split: Name of the split.
        shuffle_rows: Rows in the buffers of all ranks together.

    Raises:
        JobError: A file is missing, damaged, or has other rows than the manifest says.
    """

    def __init__(self, url: str, manifest: FeaturesManifest, split: str, *, shuffle_rows: int) -> None:
        self._manifest, self._shuffle_rows = manifest, shuffle_rows
        self._groups = list_row_groups(url, manifest, split)
        self._streams = deal_streams(self._groups)
        self.rows = sum(group.rows for group in self._groups)
        self._failure: FirnError | None = None

    def steps(self, global_batch_size: int) -> int:
        """Number of steps in an epoch."""
        return math.ceil(self.rows / global_batch_size)

    def memory_bytes(self, *, rank: int = 0, size: int = 1) -> int:
        """See `Data.memory_bytes`: buffers, row groups in transit, some batches."""
        streams = [self._streams[number] for number in self._own(rank, size)]
        in_flight = sum(_GROUPS_IN_FLIGHT * max(group.stored_rows for group in stream.groups) for stream in streams)
        rows = in_flight + sum(map(self._capacity, streams)) + (_CALLS_IN_FLIGHT * _ROWS_AT_ONCE if streams else 0)
        return rows * int(np.prod(self._manifest.feature_shape)) * np.dtype(self._manifest.feature_dtype).itemsize

    def batches(
        self, epoch: int, *, seed: int, global_batch_size: int, rank: int = 0, size: int = 1
    ) -> "tf.data.Dataset":
        """See `Data.batches`. Iterate it inside `failures`, so that errors name damaged files.

        The readers are closed when an iterator ends, fails or is deleted.
        """
        import tensorflow as tf

        own = self._own(rank, size)
        shares = plan_shares([stream.rows for stream in self._streams], global_batch_size)[own]
        global_rows = np.diff(_ends(self.rows, global_batch_size)).astype(np.float32)
        shape, dtype = row_shape(self._manifest), self._manifest.feature_dtype
        most = max(1, int(shares.sum(0).max(initial=0)))
        at_once = max(1, _ROWS_AT_ONCE // most)

        def generate() -> Iterator[tuple[Any, ...]]:
            spare = np.zeros(shape, dtype)
            with self._kept_failure(), self._open_buffers(epoch, seed, own) as buffers:
                for first in range(0, len(global_rows), at_once):
                    steps = range(first, min(first + at_once, len(global_rows)))
                    batches = Rows(
                        np.empty((len(steps), most, *shape), dtype),
                        np.full((len(steps), most), PADDING, np.int32),
                        np.zeros((len(steps), most), np.int64),
                    )
                    for place, step in enumerate(steps):
                        batch = Rows(*(part[place] for part in batches))
                        spare = _fill_batch(batch, buffers, shares[:, step].tolist(), spare)
                    yield (*batches, global_rows[first : first + len(steps)])

        signature = (
            tf.TensorSpec((None, most, *shape), dtype),
            tf.TensorSpec((None, most), tf.int32),
            tf.TensorSpec((None, most), tf.int64),
            tf.TensorSpec((None,), tf.float32),
        )
        return tf.data.Dataset.from_generator(generate, output_signature=signature).unbatch()

    def slices(self, *, rank: int = 0, size: int = 1) -> Iterator[tuple[NDArray[Any], NDArray[np.int32]]]:
        """See `Data.slices`: a row group at a time, every `size`-th of them, read by pyarrow."""
        for rows in iterate_groups(self._groups[rank::size], self._manifest):
            yield rows.features, rows.label_index

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Raises the `JobError` that ended `batches`, in place of TensorFlow's own error."""
        import tensorflow as tf

        self._failure = None
        try:
            yield
        except tf.errors.OpError as error:
            if self._failure is None:
                raise
            raise self._failure from error

    @contextmanager
    def _kept_failure(self) -> Iterator[None]:
        try:
            yield
        except FirnError as error:
            self._failure = error
            raise

    @contextmanager
    def _open_buffers(self, epoch: int, seed: int, own: Sequence[int]) -> Iterator[list[ShuffleBuffer]]:
        """A full buffer for each of the streams with these numbers."""
        buffers: list[ShuffleBuffer] = []
        with ExitStack() as stack:
            for number in own:
                stream = self._streams[number]
                reader_seed, buffer_seed = np.random.SeedSequence([seed, epoch, number]).spawn(2)
                source = stack.enter_context(closing(_read_stream(stream, self._manifest, seed=_nonzero(reader_seed))))
                random = np.random.Generator(np.random.PCG64(buffer_seed))
                buffers.append(ShuffleBuffer(source, capacity=self._capacity(stream), random=random))
            if buffers:
                with ThreadPoolExecutor(len(buffers)) as pool:
                    list(pool.map(ShuffleBuffer.fill, buffers))
            yield buffers

    def _capacity(self, stream: Stream) -> int:
        return min(stream.rows, max(1, self._shuffle_rows // len(self._streams)))

    def _own(self, rank: int, size: int) -> list[int]:
        """The numbers of the streams that a rank reads; none for a rank beyond the number of streams."""
        streams = len(self._streams)
        return [number for number in range(streams) if number * size // streams == rank]


def deal_streams(groups: Sequence[RowGroup]) -> list[Stream]:
    """Deals the row groups of a split to `N_STREAMS` streams, or to one stream for each row group where there are fewer.

    Each file belongs to one stream where the streams come out about even, so that few footers are read; otherwise each stream
    reads row groups of all files. Depends only on `groups`.
    """
    parts = min(N_STREAMS, len(groups))
    files = tuple(dict.fromkeys(group.url for group in groups))
    by_group = [Stream(files, tuple(groups[part::parts]), part, parts) for part in range(parts)]
    by_file = _deal_files(groups, parts)
    longest = [max((stream.rows for stream in streams), default=0) for streams in (by_group, by_file)]
    chosen = by_file if longest[1] <= _EVEN * longest[0] and len(by_file) == parts else by_group
    return [stream for stream in chosen if stream.rows]  # a selection may leave a stream no rows


def plan_shares(stream_rows: Sequence[int], global_batch_size: int) -> NDArray[np.int64]:
    """Plans how many rows each stream gives to each step: int64 ``(n_streams, n_steps)``.

    The sum over a step is `global_batch_size`, or the rest in the last one; the sum over a stream is its rows; and every step
    takes about the same share of each stream.
    """
    ends = _ends(sum(stream_rows), global_batch_size)
    return np.diff(np.array(_split_ends(stream_rows, ends), np.int64).reshape(len(stream_rows), len(ends)))


def _split_ends(stream_rows: Sequence[int], ends: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Splits `ends`, the rows that all streams gave before each step, by stream: by halves, so that no step becomes negative."""
    if len(stream_rows) < 2:
        return [ends] * len(stream_rows)
    half = len(stream_rows) // 2
    first = ends * sum(stream_rows[:half]) // sum(stream_rows)
    return _split_ends(stream_rows[:half], first) + _split_ends(stream_rows[half:], ends - first)


def _ends(rows: int, global_batch_size: int) -> NDArray[np.int64]:
    """The number of rows given before each step, and at the end."""
    return np.minimum(np.arange(math.ceil(rows / global_batch_size) + 1) * global_batch_size, rows)


def _deal_files(groups: Sequence[RowGroup], parts: int) -> list[Stream]:
    """Deals the files, longest first, each to the stream with the fewest rows; leaves out empty streams."""
    files: dict[str, list[RowGroup]] = {}
    for group in groups:
        files.setdefault(group.url, []).append(group)
    rows = {url: sum(group.rows for group in own) for url, own in files.items()}
    dealt: list[list[str]] = [[] for _ in range(parts)]
    loads = [0] * parts
    for url in sorted(files, key=lambda url: -rows[url]):
        least = loads.index(min(loads))
        dealt[least].append(url)
        loads[least] += rows[url]
    return [Stream(tuple(urls), tuple(group for url in urls for group in files[url])) for urls in dealt if urls]


def _fill_batch(
    batch: Rows, buffers: Sequence[ShuffleBuffer], counts: Sequence[int], spare: NDArray[Any]
) -> NDArray[Any]:
    """Takes `counts` rows from the buffers, pads with a real row (`spare` where there is none), and returns that row."""
    first = 0
    for buffer, count in zip(buffers, counts, strict=True):
        buffer.take(batch, first=first, count=count)
        first += count
    batch.features[first:] = batch.features[0] if first else spare
    return np.array(batch.features[0])


def _nonzero(sequence: np.random.SeedSequence) -> int:
    """A seed for Petastorm, which reads 0 as no seed."""
    return int(sequence.generate_state(1, np.uint32)[0]) + 1


def _read_stream(stream: Stream, manifest: FeaturesManifest, *, seed: int) -> Generator[Rows, None, None]:
    """Every row of a stream once, a row group at a time, in an order that follows from `seed`.

    Raises:
        JobError: A file is missing or damaged, or has other rows or features than the manifest says.
    """
    _check_files(stream)
    left = stream.rows
    edits = {group.edit.key: group.edit for group in stream.groups if group.edit is not None}
    columns = (*(_EDITED_COLUMNS if edits else _COLUMNS), str(manifest.column))
    try:
        with open_ordered_reader(stream.files, columns, seed=seed, part=stream.part, parts=stream.parts) as reader:
            while left > 0:
                batch = next(reader)
                rows = _rows_of(batch, manifest, origin=stream.files[0])
                if edits:
                    rows = _edited(rows, edits.get(group_key(batch.image_id.tolist(), batch.path.tolist())))
                left -= rows.n_rows
                if rows.n_rows:
                    yield rows
    except (OSError, ValueError, RuntimeError, pa.ArrowException) as error:
        raise _find_damage(stream, manifest, error) from error


def _check_files(stream: Stream) -> None:
    """Checks that all files are there and unchanged, as Petastorm leaves a thread pool behind where one is not."""
    footers = {group.url: group.footer for group in stream.groups}
    for url in stream.files:
        footer = read_footer(url)
        if url in footers and not footer.equals(footers[url]):
            raise JobError(f"{url} has changed since training began.")


def _rows_of(batch: Any, manifest: FeaturesManifest, *, origin: str) -> Rows:
    """A row group in the form that Petastorm returns."""
    shape = row_shape(manifest)
    size, features = int(np.prod(shape)), getattr(batch, str(manifest.column))
    if manifest.feature_dtype == "uint8":
        if {len(image) for image in features} != {size}:
            raise wrong_features(origin, size)
        features = np.frombuffer(b"".join(features), np.uint8)
    elif features.shape[1:] != (size,):
        raise wrong_features(origin, size)
    labels = batch.label_index.astype(np.int32, copy=False)
    return Rows(features.reshape(len(labels), *shape), labels, row_ids_of(batch.image_id.tolist(), origin=origin))


def _edited(rows: Rows, edit: GroupEdit | None) -> Rows:
    """The selected rows of a row group, with corrected labels."""
    if edit is None:
        return rows
    rows = rows._replace(label_index=edit.apply_to_labels(rows.label_index))
    return rows if edit.kept is None else Rows(*(part[edit.kept] for part in rows))


def _find_damage(stream: Stream, manifest: FeaturesManifest, error: Exception) -> JobError:
    """An error that names the damaged file, which Petastorm's error does not."""
    for group in stream.groups:
        try:
            features_of(read_row_group(group, ("features",)), manifest, origin=group.url)
        except JobError as named:
            return named
    return JobError(f"{stream.files[0]} or a later file could not be read for a while: {first_line(error)}.")
