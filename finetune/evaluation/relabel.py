"""Relabelling: turns a table of labels into corrections of a feature set, all or none."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from featurize import storage
from featurize.errors import UsageError
from featurize.foreign_text import read_cell
from featurize.shortening import name_some
from featurize.sources.names import twin_of
from featurize.storage.claims import user_name
from featurize.tables.corrections import CORRECTIONS_SCHEMA, Corrections, append_corrections
from featurize.tables.manifests import FeaturesManifest
from featurize.tables.publication import read_published_features
from featurize.tables.readable import scan_rows
from finetune.rows.csv_files import parse_csv

_COLUMNS = ("image_id", "label")
_MOST_NAMED = 5


@dataclass(frozen=True)
class Relabelled:
    """The result of `relabel`.

    Attributes:
        features: URL of the feature set.
        number: Number of the new corrections in the log; None where there was nothing to correct.
        corrected: Number of images with a new label.
        unchanged: Number of images that had the label already.
    """

    features: str
    number: int | None
    corrected: int
    unchanged: int


def relabel(table_url: str, features_url: str, *, reason: str, by: str | None = None) -> Relabelled:
    """Corrects labels of the feature set at `features_url` as the table at `table_url` says.

    Args:
        table_url: URL of a CSV file with the columns `image_id` and `label`; other columns are ignored.
        features_url: URL of the feature set.
        reason: Why the labels are corrected; kept with each correction.
        by: Who corrects them; default: the current user.

    Raises:
        UsageError: The table is empty, names an image twice, an image that is not in the feature set, or an unknown label.
        JobError: Files are damaged.
    """
    return correct_labels(read_labels(table_url).items(), features_url, reason=reason, by=by, origin=table_url)


def correct_labels(
    pairs: Iterable[tuple[Any, Any]], features_url: str, *, reason: str, by: str | None = None, origin: str
) -> Relabelled:
    """Corrects labels of the feature set at `features_url`: all of `pairs`, or none.

    Args:
        pairs: The id of each image with its label.
        reason: Why the labels are corrected; kept with each correction.
        by: Who corrects them; default: the current user.
        origin: The name of the pairs in messages.

    Raises:
        UsageError: there are no pairs; one names an image twice, one that is not in the set, or a label that is no class.
        JobError: files are damaged.
    """
    if not reason.strip():
        raise UsageError("`reason` is required and must not be empty.")
    labels = _check_pairs(pairs, origin=origin)
    url = storage.absolute_url(features_url)
    manifest = read_published_features(url)
    _check_labels(labels, manifest.classes, origin=origin, url=url)
    found = _find_images(url, manifest, list(labels))
    if unknown := [image_id for image_id in labels if image_id not in found]:
        raise UsageError(f"{origin}: {url} has no image {name_some(unknown, _MOST_NAMED)}.")
    now = datetime.now(UTC)

    def make(log: Corrections) -> pa.Table:
        last = log.last()
        there = found | {
            image_id: [label]
            for image_id, label in zip(last["image_id"].to_pylist(), last["label"].to_pylist(), strict=True)
        }
        rows = [
            (image_id, old, new, by or user_name(), now, reason)
            for image_id, new in labels.items()
            if there[image_id] != [new]
            for old in there[image_id]
        ]
        columns = list(zip(*rows, strict=True)) or [()] * len(CORRECTIONS_SCHEMA)
        return pa.table(
            [pa.array(list(column), field.type) for column, field in zip(columns, CORRECTIONS_SCHEMA, strict=True)],
            schema=CORRECTIONS_SCHEMA,
        )

    log, entries = append_corrections(url, make)
    corrected = len(set(entries["image_id"].to_pylist()))
    return Relabelled(url, log.count + 1 if corrected else None, corrected, len(labels) - corrected)


def read_labels(url: str) -> dict[str, str]:
    """The label of each image in a CSV file with the columns `image_id` and `label`, in the file's order.

    Raises:
        UsageError: There is no such file, or it is no such table.
    """
    try:
        table = parse_csv(storage.read_bytes(url), url)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UsageError(f"there is no table {url}.") from error
    table.check_columns(_COLUMNS)
    pairs = list[tuple[str, str]]()
    for (line, _), image_id, label in zip(table.rows, *(table.column(name) for name in _COLUMNS), strict=True):
        if not image_id or not label:
            raise UsageError(f"{url}: line {line} lacks an image_id or a label.")
        pairs.append((image_id, read_cell(label)))
    return _check_pairs(pairs, origin=url)


def labels_of_columns(frame: Any, *, origin: str) -> list[tuple[Any, Any]]:
    """The pairs of image id and label in a pandas or Spark DataFrame with the columns `image_id` and `label`.

    Raises:
        UsageError: a column is missing.
    """
    if missing := [name for name in _COLUMNS if name not in frame.columns]:
        raise UsageError(f"{origin} must have the columns {' and '.join(_COLUMNS)}. Got no {missing[0]}.")
    rows = frame[list(_COLUMNS)]
    rows = rows.toPandas() if hasattr(rows, "toPandas") else rows
    return list(rows.itertuples(index=False, name=None))


def _check_pairs(pairs: Iterable[tuple[Any, Any]], *, origin: str) -> dict[str, str]:
    """The label of each image, in the order of `pairs`."""
    labels: dict[str, str] = {}
    twice = list[str]()
    for image_id, label in pairs:
        if not (isinstance(image_id, str) and isinstance(label, str) and image_id and label):
            raise UsageError(f"{origin}: an image id and its label must be text. Got {image_id!r} and {label!r}.")
        twice += [image_id] if image_id in labels else []
        labels[image_id] = label
    if twice:
        raise UsageError(
            f"{origin} names an image more than once: {name_some(list(dict.fromkeys(twice)), _MOST_NAMED)}."
        )
    if not labels:
        raise UsageError(f"{origin} has no rows.")
    return labels


def _check_labels(labels: Mapping[str, str], classes: Sequence[str], *, origin: str, url: str) -> None:
    if unknown := sorted(set(labels.values()) - set(classes)):
        meant = [f"{label!a} and {twin!a}" for label in unknown if (twin := twin_of(label, classes)) is not None]
        hint = (
            f" {name_some(meant, _MOST_NAMED)} differ only in case, blanks or the form of their characters."
            if meant
            else ""
        )
        raise UsageError(
            f"{origin}: {name_some([repr(label) for label in unknown], _MOST_NAMED)} is not a class of {url}. "
            f"Its classes: {name_some(classes, 20)}.{hint}"
        )


def _find_images(url: str, manifest: FeaturesManifest, image_ids: Sequence[str]) -> dict[str, list[str]]:
    """The sorted labels that the files give each of the images that are in the set; one image may have several rows."""
    wanted = pa.array(image_ids, pa.string())
    found: dict[str, set[str]] = {}
    for *_, table in scan_rows(url, manifest, ("image_id", "label")):
        hits = table.filter(pc.is_in(table["image_id"], wanted))
        for image_id, label in zip(hits["image_id"].to_pylist(), hits["label"].to_pylist(), strict=True):
            found.setdefault(image_id, set()).add(label)
    return {image_id: sorted(labels) for image_id, labels in found.items()}
