"""Drift in a stream: a model's predictions, cut into windows, each tested once against the model's reference.

<output>/drift/stream/<model_id>-<number>.parquet    windows from that number on, a row for each; see `finetune.drift.check`
<output>/drift/stream/_<model_id>.json               how many windows there are, and the last shard of predictions in them

The windows follow from the published predictions. A manifest lists shards in the order of their publication, and a window ends
where a micro-batch ends: a batch that is repeated after a kill makes the same windows, in a file of the same name. How a batch
was cut into shards does not matter, since images that fill more than one window are assigned to windows by their ids.
"""

from dataclasses import dataclass
from itertools import pairwise

from pydantic import BaseModel, ConfigDict

from featurize import storage
from featurize.console import warn
from featurize.errors import JobError, UsageError
from featurize.storage.inner_path import InnerPath
from featurize.tables.documents import read_document
from featurize.tables.manifests import Manifest, PredictionsManifest
from featurize.tables.predictions import WINDOWS_FOLDERS, partition_url
from featurize.tables.publication import read_manifest
from finetune.drift.check import CheckedWindow, check_rows, write_windows
from finetune.drift.read import EVERYTHING, read_rows
from finetune.drift.reference import Reference
from finetune.drift.window import FALSE_ALARM_RATE, LEAST_IMAGES, check_rate

SCHEMA_VERSION = 1
"""The schema version of `_<model_id>.json`."""


@dataclass(frozen=True)
class WindowSettings:
    """How a stream is tested for drift.

    Attributes:
        images: Fewest images in a window; the most are one less than twice as many.
        false_alarm_rate: Chance of a false alarm for each window; see `check_window`.
    """

    images: int
    false_alarm_rate: float = FALSE_ALARM_RATE

    def check(self) -> None:
        """Raises UsageError where such windows are impossible."""
        check_rate(self.false_alarm_rate)
        if self.images < LEAST_IMAGES:
            raise UsageError(
                f"a drift window (--drift-window) must have at least {LEAST_IMAGES} images. Got {self.images}."
            )


class Position(BaseModel):
    """`_<model_id>.json`: how many of a model's predictions the windows cover.

    Attributes:
        windows: Number of windows ever made: the number of the next one.
        through: Index file of the last shard whose images belong to a window or are passed over; None: there is none.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA_VERSION
    windows: int = 0
    through: InnerPath | None = None


class StreamDrift:
    """The windows of one model. The process that makes them holds the claim on the model's predictions.

    They begin with the images that are labelled after this output first made windows of the model; everything that it labels
    later, by whatever command, belongs to a window, even if the stream was stopped or used another model in between.

    Raises:
        JobError: The position or the manifest is damaged.
    """

    def __init__(self, output: str, model_id: str, reference: Reference, settings: WindowSettings) -> None:
        self._model_id, self._reference, self._settings = model_id, reference, settings
        self._output, self._folder = output, windows_url(output)
        self._position = self._find_position()

    def check(self, manifest: PredictionsManifest) -> tuple[CheckedWindow, ...]:
        """Tests the windows that the predictions in `manifest` have newly filled, and writes the results.

        Raises:
            JobError: A file is missing or damaged.
        """
        shards = manifest.shards[_shards_through(manifest, self._position) :]
        least = self._settings.images
        if sum(shard.row_count for shard in shards) < least:
            return ()
        rows = read_rows(self._output, manifest.model_copy(update={"shards": shards}), EVERYTHING).sort_by("image_id")
        count = rows.num_rows // least  # may be 0, as images with equal bytes count once
        if not count:
            return ()
        rate, first = self._settings.false_alarm_rate, self._position.windows
        bounds = [rows.num_rows * number // count for number in range(count + 1)]
        windows = tuple(
            check_rows(first + number, rows.slice(begin, end - begin), self._reference, false_alarm_rate=rate)
            for number, (begin, end) in enumerate(pairwise(bounds))
        )
        url = storage.join_url(self._folder, f"{self._model_id}-{first:06d}.parquet")
        write_windows(url, self._model_id, self._reference, windows, false_alarm_rate=rate)
        self._position = self._write(Position(windows=first + count, through=shards[-1].index_file.path))
        return windows

    def _find_position(self) -> Position:
        """The position after the last window; where there is none, or its shard is gone, after all present predictions."""
        kept = read_position(self._output, self._model_id)
        manifest = read_manifest(partition_url(self._output, self._model_id))
        names = [] if manifest is None else [shard.index_file.path for shard in manifest.shards]
        if kept is not None and kept.through in (None, *names):
            return kept
        if kept is not None:
            warn(
                f"drift: `finetune predict` has made the predictions of {self._model_id[:16]} again since the last window; "
                "the next window begins with the images that are labelled from now on."
            )
        return self._write(Position(windows=0 if kept is None else kept.windows, through=names[-1] if names else None))

    def _write(self, position: Position) -> Position:
        storage.write_json(_position_url(self._output, self._model_id), position.model_dump())
        return position


def read_position(output: str, model_id: str) -> Position | None:
    """How many of a model's predictions the windows cover; None where there never was a window.

    Raises:
        JobError: The position is damaged, or has another schema version.
    """
    return read_document(_position_url(output, model_id), Position, version=SCHEMA_VERSION)


def windows_url(output: str) -> str:
    """URL of the folder with the table of windows of streams to `output`."""
    return storage.join_url(output, WINDOWS_FOLDERS["stream"])


def _position_url(output: str, model_id: str) -> str:
    return storage.join_url(windows_url(output), f"_{model_id}.json")


def _shards_through(manifest: Manifest, position: Position) -> int:
    """How many shards the windows cover.

    Raises:
        JobError: The last of these shards is gone.
    """
    if position.through is None:
        return 0
    for number, shard in enumerate(manifest.shards, start=1):
        if shard.index_file.path == position.through:
            return number
    raise JobError(f"the predictions of the last window, up to {position.through}, are no longer in the manifest.")
