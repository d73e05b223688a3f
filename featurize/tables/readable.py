"""Feature sets as their rows should be read: with corrected labels, and with rows left out that a query did not select.

The manifest that `read_features_manifest` returns carries the edits, also to other processes, so that all read the same rows
whatever is corrected meanwhile; `row_groups` applies them.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featurize.digests import multiset_digest, sha256_bytes
from featurize.errors import JobError
from featurize.tables.corrections import Corrections, read_corrections
from featurize.tables.manifests import FeaturesManifest
from featurize.tables.publication import read_published_features
from featurize.tables.row_edits import KEYS, GroupEdit, RowEdits, key_of
from featurize.tables.row_groups import RowGroup, iterate_row_groups, list_row_groups

_TRAINED_ON = ("train", "validation")


def read_features_manifest(url: str, version: int | None = None) -> FeaturesManifest:
    """The manifest of the feature set at `url` for reading rows: through it every reader sees the corrected labels.

    Args:
        url: URL of the feature set.
        version: an older version, whose labels are corrected as they are today; None: the last one.

    Raises:
        UsageError: There is no feature set, or no such version.
        JobError: It, or its corrections, are damaged.
    """
    return correct_rows(url, read_published_features(url, version))


def correct_rows(url: str, manifest: FeaturesManifest) -> FeaturesManifest:
    """The published manifest of the feature set at `url` with the edits of its corrections; unchanged where there are none.

    If there are corrections, it reads the ids of all rows, a few row groups at a time.

    Raises:
        JobError: Files are missing or damaged.
    """
    log = read_corrections(url)
    if not log.count:
        return manifest
    edited = EditedRows(manifest)
    find = _finder(log, manifest.classes, url)
    for split, path, group, table in scan_rows(url, manifest, (*KEYS, "label_index")):
        places, labels = find(table)
        edit = None
        if len(places):
            edit = GroupEdit(key_of(table), places, labels, None, tuple(manifest.classes))
        edited.add(split, (path, group.index), table, edit)
    return edited.manifest() if edited.has_edits else manifest


class EditedRows:
    """Collects the edits of a feature set, row group by row group, and their totals.

    Args:
        manifest: The manifest whose edits are replaced.
        where: The query that selected rows.
    """

    def __init__(self, manifest: FeaturesManifest, *, where: str | None = None) -> None:
        self._manifest, self._where = manifest, where
        self._groups: dict[tuple[str, int], GroupEdit] = {}
        self._rows: dict[str, dict[str, int]] = {split: {} for split in manifest.rows}
        self._corrected, self._left_out = dict.fromkeys(manifest.rows, 0), dict.fromkeys(manifest.rows, 0)
        self._changes, self._selected = list[str](), list[str]()

    @property
    def has_edits(self) -> bool:
        """Whether any row differs from the files."""
        return bool(self._groups)

    def add(self, split: str, place: tuple[str, int], table: pa.Table, edit: GroupEdit | None) -> None:
        """Adds a row group; every row group must be added.

        Args:
            split: The row group's split.
            place: Path of the file in the manifest, and number of the row group in it.
            table: `KEYS` and `label_index` of all its rows.
            edit: The edits of the row group, or None.
        """
        counted = table if edit is None else edit.apply(table)
        counts = np.bincount(counted["label_index"].to_numpy(), minlength=len(self._manifest.classes))
        for label, count in zip(self._manifest.classes, counts.tolist(), strict=True):
            if count:
                self._rows[split][label] = self._rows[split].get(label, 0) + count
        if edit is not None:
            self._groups[place] = edit
            self._left_out[split] += table.num_rows - counted.num_rows
            lines = _changed_lines(edit, table)
            self._corrected[split] += len(lines)
            self._changes += lines if split in _TRAINED_ON else []
        if self._where is not None and split in _TRAINED_ON:
            self._selected.append(_rows_digest(split, counted))

    def manifest(self) -> FeaturesManifest:
        """The manifest with these edits, and the numbers of edited rows."""
        edits = RowEdits(
            self._groups,
            self._corrected,
            self._left_out,
            multiset_digest(self._changes) if self._changes else None,
            self._where,
            sha256_bytes("\0".join(self._selected).encode()) if self._where is not None else None,
        )
        return self._manifest.with_edits(
            edits, {split: dict(sorted(counts.items())) for split, counts in self._rows.items()}
        )


def scan_rows(
    url: str, manifest: FeaturesManifest, columns: Sequence[str]
) -> Iterator[tuple[str, str, RowGroup, pa.Table]]:
    """Some columns of all rows, edited as `manifest` says: split, path of the file, row group and table of each row group."""
    for split in manifest.rows:
        groups = list_row_groups(url, manifest, split)
        for group, table in zip(groups, iterate_row_groups(groups, columns), strict=True):
            yield split, group.path, group, table


def _finder(
    log: Corrections, classes: Sequence[str], url: str
) -> Callable[[pa.Table], tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """A function that returns the positions in a table whose label must change, and the new label indices."""
    last = log.last()
    indices = {label: index for index, label in enumerate(classes)}
    unknown = sorted(set(last["label"].to_pylist()) - indices.keys())
    if unknown:
        raise JobError(f"{url}: a correction gives the label {unknown[0]!r}, which is not a class of the feature set.")
    order = pc.sort_indices(last["image_id"])
    ids = np.array(last["image_id"].take(order).to_pylist(), dtype="S")
    labels = np.array([indices[label] for label in last["label"].take(order).to_pylist()], np.int32)

    def find(table: pa.Table) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        own = np.array(table["image_id"].to_pylist(), dtype="S")
        nearest = np.minimum(np.searchsorted(ids, own), len(ids) - 1)
        there = table["label_index"].to_numpy()
        places = np.flatnonzero((ids[nearest] == own) & (labels[nearest] != there))
        return places.astype(np.int32), labels[nearest[places]]

    return find


def _changed_lines(edit: GroupEdit, table: pa.Table) -> list[str]:
    """A line for each corrected and selected row of a row group."""
    ids, paths = (table[name] for name in KEYS)
    return [
        f"{ids[place].as_py()}\0{paths[place].as_py()}\0{edit.classes[label]}"
        for place, label in zip(edit.places.tolist(), edit.labels.tolist(), strict=True)
        if edit.kept is None or edit.kept[place]
    ]


def _rows_digest(split: str, table: pa.Table) -> str:
    return sha256_bytes("\0".join([split, *table["image_id"].to_pylist(), *table["path"].to_pylist()]).encode())
