"""Drift: compares a model's published predictions, window by window, with its predictions on its own validation split.

`finetune drift` runs `check_predictions`; `finetune.streams.drift_windows` makes and keeps the windows of a stream.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurize import storage
from featurize.errors import UsageError
from featurize.storage.inner_path import named_url
from featurize.tables.manifests import PredictionsManifest, utc_now
from featurize.tables.predictions import LATEST, WINDOWS_FOLDERS, partition_url, read_views
from finetune.drift.read import EVERYTHING, Selection, find_predictions, read_rows, window_of
from finetune.drift.reference import Reference, find_reference, read_reference, reference_url
from finetune.drift.window import (
    FALSE_ALARM_RATE,
    LEAST_IMAGES,
    TESTS,
    Window,
    WindowResult,
    check_rate,
    check_window,
    images_needed,
)
from finetune.registry.resolve import read_folder

__all__ = [
    "CheckedWindow",
    "DriftReport",
    "Selection",
    "Window",
    "WindowResult",
    "check_predictions",
    "check_rows",
    "check_window",
    "reference_of",
    "write_windows",
]
_NUMBERS = [(f"{test}_{what}", pa.float64()) for test in TESTS for what in ("statistic", "p", "corrected")]
WINDOWS_SCHEMA = pa.schema(
    [
        ("checked_at", pa.timestamp("us", tz="UTC")),
        ("model_id", pa.string()),
        ("window", pa.int64()),
        ("first_predicted_at", pa.timestamp("us", tz="UTC")),
        ("last_predicted_at", pa.timestamp("us", tz="UTC")),
        ("images", pa.int64()),
        ("projected", pa.int64()),
        ("reference_images", pa.int64()),
        ("false_alarm_rate", pa.float64()),
        *_NUMBERS,
        ("stability_index", pa.float64()),
        ("stability_index_without_drift", pa.float64()),
        ("confidence", pa.float64()),
        ("reference_confidence", pa.float64()),
        ("alarm", pa.bool_()),
        ("fired", pa.list_(pa.string())),
        ("retrain", pa.bool_()),
    ]
)
"""The columns of the table of windows; the columns of a test that could not be made are null."""


@dataclass(frozen=True)
class CheckedWindow:
    """A window: its number, counted from 0; the times of its first and last prediction; the results of its tests."""

    number: int
    first: datetime
    last: datetime
    result: WindowResult


@dataclass(frozen=True)
class DriftReport:
    """The result of `check_predictions`.

    Attributes:
        images: Number of images selected.
        left_over: Number of these that fill no complete window.
        needed: Images that each test needs in a window; see `images_needed`.
        table: URL of the file with one row for each window; None where there was no window.
    """

    model_id: str
    reference: Reference
    false_alarm_rate: float
    images: int
    left_over: int
    windows: tuple[CheckedWindow, ...]
    needed: dict[str, int | None]
    table: str | None

    @property
    def alarms(self) -> int:
        """Number of windows that raised an alarm."""
        return sum(window.result.alarm for window in self.windows)


def check_predictions(
    output: str,
    *,
    model: str = LATEST,
    selection: Selection = EVERYTHING,
    window: int | None = None,
    false_alarm_rate: float = FALSE_ALARM_RATE,
    report: str | None = None,
) -> DriftReport:
    """Tests published predictions against the model's reference, and writes the results. Needs no Spark.

    Args:
        output: URL of the predictions.
        model: A view, a `model_id` or its first digits, a folder, the id of a run, ``name@alias``, or a node, ``zk://host:port/path``.
        window: Images in a window, in the order in which they were labelled; the rest at the end is not tested. None: all
            selected images form one window.
        false_alarm_rate: Chance of a false alarm for each window.
        report: URL of the folder for the table of windows; default: ``<output>/drift/windows``.

    Raises:
        UsageError: There are no predictions, no such model, or no reference.
        JobError: Files are damaged.
    """
    check_rate(false_alarm_rate)
    if window is not None and window < LEAST_IMAGES:
        raise UsageError(f"`window` must be at least {LEAST_IMAGES} images. Got {window}.")
    published = read_views(output)
    manifest = find_predictions(published, model)
    reference = reference_of(published.url, manifest)
    rows = read_rows(published.url, manifest, selection)
    size = window or max(rows.num_rows, LEAST_IMAGES)
    parts = [rows.slice(start, size) for start in range(0, rows.num_rows - size + 1, size)]
    windows = tuple(
        check_rows(number, part, reference, false_alarm_rate=false_alarm_rate) for number, part in enumerate(parts)
    )
    table = None
    if windows:
        table = _new_url(report or storage.join_url(published.url, WINDOWS_FOLDERS["drift"]))
        write_windows(table, manifest.model_id, reference, windows, false_alarm_rate=false_alarm_rate)
    return DriftReport(
        model_id=manifest.model_id,
        reference=reference,
        false_alarm_rate=false_alarm_rate,
        images=rows.num_rows,
        left_over=rows.num_rows - size * len(windows),
        windows=windows,
        needed=images_needed(reference, false_alarm_rate=false_alarm_rate),
        table=table,
    )


def reference_of(output: str, manifest: PredictionsManifest) -> Reference:
    """The reference for published predictions; made now from the model's feature set where `finetune predict` left none.

    Raises:
        UsageError: There is none, and the model or its validation split is gone.
        JobError: It is damaged, or belongs to another network.
    """
    kept = read_reference(output, manifest.model_id)
    if kept is not None and kept.origin["network_sha256"] == manifest.model.get("network_sha256"):
        return kept
    if kept is not None:
        raise UsageError(f"{reference_url(output, manifest.model_id)} belongs to another network than the predictions.")
    url = named_url(str(manifest.model.get("url")), document=partition_url(output, manifest.model_id))
    card = read_folder(url)
    if card.network_sha256 != manifest.model.get("network_sha256"):
        raise UsageError(f"{url} now holds another model than the one that predicted, so no reference can be made.")
    return find_reference(output, url, card)


def write_windows(
    url: str, model_id: str, reference: Reference, windows: Sequence[CheckedWindow], *, false_alarm_rate: float
) -> None:
    """Writes a file of the table of windows, with a row for each window; the file appears complete or not at all."""
    common = {
        "checked_at": datetime.fromisoformat(utc_now()),
        "model_id": model_id,
        "reference_images": reference.rows,
        "false_alarm_rate": false_alarm_rate,
    }
    table = pa.Table.from_pylist([{**common, **_row(window)} for window in windows], WINDOWS_SCHEMA)
    storage.write_file(url, lambda file: pq.write_table(table, file, compression="zstd"))


def check_rows(number: int, rows: pa.Table, reference: Reference, *, false_alarm_rate: float) -> CheckedWindow:
    """Tests rows of `read_rows` as one window, seeded by the id of its first image; raises what `check_window` raises."""
    times, seed = pc.min_max(rows["predicted_at"]).as_py(), int(rows["image_id"][0].as_py()[:8], 16)
    result = check_window(reference, window_of(rows), false_alarm_rate=false_alarm_rate, seed=seed)
    return CheckedWindow(number, times["min"], times["max"], result)


def _new_url(folder: str) -> str:
    """URL of a new file in `folder`."""
    stamp = utc_now()[:19].replace(":", "").replace("-", "")
    return storage.join_url(folder, f"windows-{stamp}-{uuid4().hex[:8]}.parquet")


def _row(window: CheckedWindow) -> dict[str, Any]:
    result = window.result
    numbers = {
        f"{name}_{what}": getattr(test, what)
        for name, test in result.tests.items()
        for what in ("statistic", "p", "corrected")
    }
    return {
        "window": window.number,
        "first_predicted_at": window.first,
        "last_predicted_at": window.last,
        **{key: value for key, value in result.as_dict().items() if key != "tests"},
        **numbers,
    }
