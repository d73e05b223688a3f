"""Reading the predictions to check for drift: chosen by model, by time or by number; in the order in which they were made."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurize import storage
from featurize.errors import UsageError
from featurize.tables.manifests import PredictionsManifest
from featurize.tables.predictions import PublishedViews, partition_url
from featurize.tables.row_groups import open_parquet
from finetune.drift.window import Window

_KEYS = ("image_id", "predicted_at")
_VALUES = ("top_labels", "probability", "projection")
_SHORTEST_ID = 8
_EMPTY = pa.schema([("image_id", pa.string()), ("predicted_at", pa.timestamp("us", tz="UTC"))]).empty_table()


@dataclass(frozen=True)
class Selection:
    """Which of a model's predictions to read.

    Attributes:
        since: Only predictions made at this time or later.
        until: Only predictions made before this time.
        last: The number of these, those made last; None: all.
    """

    since: datetime | None = None
    until: datetime | None = None
    last: int | None = None


EVERYTHING = Selection()


def parse_time(text: str, name: str) -> datetime:
    """A time in ISO 8601; UTC where it names no time zone.

    Raises:
        UsageError: `text` is not a time; `name` is the parameter's name for the message.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(
            f"`{name}` must be a date or a time, as in 2026-11-21 or 2026-11-21T08:00. Got {text!r}."
        ) from error
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def find_predictions(published: PublishedViews, name: str) -> PredictionsManifest:
    """The predictions of the model that `name` means: a view, a model_id or its first digits, or a model named in another way.

    Raises:
        UsageError: No model of that name has predicted here.
    """
    views, manifests = published.views.by_name(), published.manifests
    if name in views:
        return manifests[views[name]]
    starting = [model_id for model_id in manifests if model_id.startswith(name)]
    if len(name) >= _SHORTEST_ID and len(starting) == 1:
        return manifests[starting[0]]
    known = f"Views: {', '.join(views)}. Models: {', '.join(model_id[:16] for model_id in manifests)}."
    model_id = _named_elsewhere(name)
    if model_id is None:
        raise UsageError(f"{published.url} has no view {name!r}, and there is no model of that name. {known}")
    if model_id not in manifests:
        raise UsageError(f"the model {name} has predicted nothing at {published.url}. {known}")
    return manifests[model_id]


def read_rows(output: str, manifest: PredictionsManifest, selection: Selection) -> pa.Table:
    """The predictions of one model that match `selection`, by `predicted_at`, then `image_id`; duplicates count once.

    Returns:
        A table with `image_id`, `predicted_at`, `label` (the most probable class, even where the model abstained),
        `probability`, `projection`.

    Raises:
        JobError: A file is missing or damaged.
    """
    folder = partition_url(output, manifest.model_id)
    urls = [storage.join_url(folder, file.path) for file in manifest.files if file.rows]
    keys = [
        table.append_column("file", pa.array(np.full(table.num_rows, number))).append_column(
            "row", pa.array(np.arange(table.num_rows))
        )
        for number, table in enumerate(_read(url, _KEYS) for url in urls)
    ]
    chosen = _select(pa.concat_tables(keys), selection) if keys else _EMPTY
    return _with_values(chosen, urls)


def match(rows: pa.Table, others: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The rows of both tables whose images are in both, in the order of the first."""
    place = {image_id: number for number, image_id in enumerate(others["image_id"].to_pylist())}
    pairs = [
        (number, place[image_id]) for number, image_id in enumerate(rows["image_id"].to_pylist()) if image_id in place
    ]
    first, second = (pa.array([pair[side] for pair in pairs], pa.int64()) for side in (0, 1))
    return rows.take(first), others.take(second)


def window_of(rows: pa.Table) -> Window:
    """Rows of `read_rows` as the `Window` that `check_window` takes."""
    projected = rows["projection"].combine_chunks().drop_null()
    flat = projected.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    return Window(
        labels=rows["label"].to_pylist(),
        probabilities=rows["probability"].to_numpy(),
        projections=flat.reshape(len(projected), -1) if len(projected) else np.empty((0, 0), np.float32),
    )


def _select(keys: pa.Table, selection: Selection) -> pa.Table:
    times = keys["predicted_at"]
    if selection.since is not None:
        keys = keys.filter(pc.greater_equal(times, pa.scalar(selection.since, times.type)))
    if selection.until is not None:
        keys = keys.filter(pc.less(keys["predicted_at"], pa.scalar(selection.until, times.type)))
    keys = keys.sort_by([("predicted_at", "ascending"), ("image_id", "ascending")])
    _, first = np.unique(keys["image_id"].to_numpy(), return_index=True)
    keys = keys.take(pa.array(np.sort(first)))
    return keys if selection.last is None else keys.slice(max(0, keys.num_rows - selection.last))


def _with_values(keys: pa.Table, urls: Sequence[str]) -> pa.Table:
    """The other columns of the rows in `keys`; of each file only these rows are kept in memory."""
    if not keys.num_rows:
        return (
            _EMPTY.append_column("label", pa.array([], pa.string()))
            .append_column("probability", pa.array([], pa.float32()))
            .append_column("projection", pa.array([], pa.list_(pa.float32())))
        )
    files, rows = keys["file"].to_numpy(), keys["row"].to_numpy()
    parts, places = [], []
    for number in np.unique(files):
        here = np.flatnonzero(files == number)
        parts.append(_read(urls[number], _VALUES).take(pa.array(rows[here])))
        places.append(here)
    order = pa.array(np.argsort(np.concatenate(places)))
    values = pa.concat_tables(parts).take(order)
    labels = pc.list_element(values["top_labels"].combine_chunks(), 0)
    return (
        keys.select(_KEYS)
        .append_column("label", labels)
        .append_column("probability", values["probability"])
        .append_column("projection", values["projection"])
    )


def _read(url: str, names: Iterable[str]) -> pa.Table:
    """Some columns of a file of predictions; `projection` is null in files of older versions."""
    with open_parquet(url) as file:
        there = [name for name in names if name in file.schema_arrow.names]
        table = file.read(columns=there)
    if "projection" in names and "projection" not in there:
        table = table.append_column("projection", pa.nulls(table.num_rows, pa.list_(pa.float32())))
    return table


def _named_elsewhere(name: str) -> str | None:
    """The `model_id` behind a folder, the id of a run, name@alias or a node; None where there is no such model."""
    from featurize.connectors.zookeeper import is_node
    from finetune.registry.resolve import read_folder, resolve_model

    try:
        return read_folder(resolve_model(name)).model_id
    except UsageError:
        if is_node(name):
            raise
        return None
