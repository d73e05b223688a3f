"""What readers of a feature set see otherwise than its files have it: labels that were corrected, rows that were not selected.

An edit belongs to a row group, by the places of its rows, and is made once, where the manifest is read: `read_features_manifest`
makes those of corrections. From there it goes with the manifest, to other processes as well, so that all read the same
whatever is corrected meanwhile. `featurize.reading` applies it; features stay where they are until then.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featurize.digests import multiset_digest, sha256_bytes
from featurize.errors import JobError

if TYPE_CHECKING:
    from featurize.corrections import Corrections
    from featurize.manifests import FeaturesManifest
    from featurize.reading import RowGroup

KEYS = ("image_id", "path")
_TRAINED_ON = ("train", "validation")


@dataclass(frozen=True, eq=False)
class GroupEdit:
    """What is read otherwise of one row group.

    Attributes:
        key: `group_key` of the rows that the file has, by which a reader that does not know the row group finds the edit.
        places: int32 ``(n_corrected,)``, rows whose label was corrected.
        labels: int32 ``(n_corrected,)``, the index of their label.
        kept: bool ``(n_rows,)``, which rows count; None: all.
        classes: the label of every index.
    """

    key: str
    places: NDArray[np.int32]
    labels: NDArray[np.int32]
    kept: NDArray[np.bool_] | None
    classes: tuple[str, ...]

    def apply(self, table: pa.Table) -> pa.Table:
        """The rows that count of `table`, which has all rows of the row group and any columns; with their corrected labels."""
        if len(self.places):
            for name in ("label_index", "label"):
                if name in table.column_names:
                    number = table.column_names.index(name)
                    table = table.set_column(number, table.field(number), self._corrected(table[name], name))
        return table if self.kept is None else table.filter(pa.array(self.kept))

    def apply_to_labels(self, label_index: NDArray[np.int32]) -> NDArray[np.int32]:
        """A copy of the indices of all rows of the row group with the corrected ones put in; rows are not left out."""
        corrected = label_index.copy()
        corrected[self.places] = self.labels
        return corrected

    def _corrected(self, column: pa.ChunkedArray, name: str) -> pa.Array:
        if name == "label_index":
            indices = column.to_numpy().astype(np.int32, copy=False)
            return pa.array(self.apply_to_labels(indices)).cast(column.type)
        values = column.to_pylist()
        for place, index in zip(self.places.tolist(), self.labels.tolist(), strict=True):
            values[place] = self.classes[index]
        return pa.array(values, column.type)


@dataclass(frozen=True, eq=False)
class RowEdits:
    """The edits of a feature set.

    Attributes:
        groups: by the path of a file in the manifest and the number of the row group in it; those without edits are not there.
        corrected: rows of each split whose label is not that of the file, of those that count.
        left_out: rows of each split that do not count.
        corrections_digest: of the corrected labels in training and validation; None where there are none.
        where: the query by which rows were selected; None: no selection was made.
        selection_digest: of the rows of training and validation that count, in their order; None as well.
    """

    groups: Mapping[tuple[str, int], GroupEdit]
    corrected: Mapping[str, int]
    left_out: Mapping[str, int]
    corrections_digest: str | None = None
    where: str | None = None
    selection_digest: str | None = None


def group_key(image_ids: Sequence[str], paths: Sequence[str]) -> str:
    """What the rows of a row group are known by: a path is in a feature set once."""
    return sha256_bytes("\0".join((*image_ids, *paths)).encode())


def correct_rows(url: str, manifest: "FeaturesManifest") -> "FeaturesManifest":
    """The manifest of the feature set at `url` as published, with the edits of its corrections; itself where there are none.

    Reads the ids of all rows where there are any, a few row groups at a time.

    Raises:
        JobError: files are missing or damaged.
    """
    from featurize.corrections import read_corrections

    log = read_corrections(url)
    if not log.count:
        return manifest
    groups: dict[tuple[str, int], GroupEdit] = {}
    find = _finder(log, manifest.classes, url)
    for _, path, group, table in scan_rows(url, manifest, (*KEYS, "label_index")):
        places, labels = find(table)
        if len(places):
            ids, paths = (table[name].to_pylist() for name in KEYS)
            key = group_key(ids, paths)
            groups[path, group.index] = GroupEdit(key, places, labels, None, tuple(manifest.classes))
    return with_edits(url, manifest, groups) if groups else manifest


def with_edits(
    url: str, manifest: "FeaturesManifest", groups: Mapping[tuple[str, int], GroupEdit], *, where: str | None = None
) -> "FeaturesManifest":
    """`manifest` with the edits `groups` in place of those it has, and its numbers of rows as they are read then.

    Args:
        where: the query that selected rows.
    """
    bare = manifest.with_edits(RowEdits(groups, {}, {}), manifest.rows)
    rows: dict[str, dict[str, int]] = {split: {} for split in manifest.rows}
    corrected, left_out = dict.fromkeys(manifest.rows, 0), dict.fromkeys(manifest.rows, 0)
    changes, selected = list[str](), list[str]()
    for split, path, group, table in scan_rows(url, bare, (*KEYS, "label_index")):
        counts = np.bincount(table["label_index"].to_numpy(), minlength=len(manifest.classes))
        for label, count in zip(manifest.classes, counts.tolist(), strict=True):
            if count:
                rows[split][label] = rows[split].get(label, 0) + count
        edit = groups.get((path, group.index))
        if edit is not None:
            left_out[split] += len(edit.kept) - table.num_rows if edit.kept is not None else 0
            lines = _changed_lines(edit, table)
            corrected[split] += len(lines)
            changes += lines if split in _TRAINED_ON else []
        if where is not None and split in _TRAINED_ON:
            selected.append(_rows_digest(split, table))
    edits = RowEdits(
        groups,
        corrected,
        left_out,
        multiset_digest(changes) if changes else None,
        where,
        sha256_bytes("\0".join(selected).encode()) if where is not None else None,
    )
    return manifest.with_edits(edits, {split: dict(sorted(counts.items())) for split, counts in rows.items()})


def scan_rows(
    url: str, manifest: "FeaturesManifest", columns: Sequence[str]
) -> "Iterator[tuple[str, str, RowGroup, pa.Table]]":
    """Some columns of all rows as `manifest` has them read: split, path of the file, row group and table of each row group."""
    from featurize.reading import iterate_row_groups, list_row_groups

    for split in manifest.rows:
        groups = list_row_groups(url, manifest, split)
        for group, table in zip(groups, iterate_row_groups(groups, columns), strict=True):
            yield split, group.path, group, table


def keep_rows(edit: GroupEdit | None, kept: NDArray[np.bool_], *, table: pa.Table, classes: Iterable[str]) -> GroupEdit:
    """An edit that also leaves rows out.

    Args:
        kept: which of the rows of the row group count.
        table: `KEYS` of all its rows.
    """
    if edit is not None:
        return replace(edit, kept=kept)
    none = np.empty(0, np.int32)
    ids, paths = (table[name].to_pylist() for name in KEYS)
    return GroupEdit(group_key(ids, paths), none, none, kept, tuple(classes))


def _finder(
    log: "Corrections", classes: Sequence[str], url: str
) -> Callable[[pa.Table], tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """A function that gives the places in a table of which the label is to be another, and the indices of that label."""
    last = log.last()
    indices = {label: index for index, label in enumerate(classes)}
    unknown = sorted(set(last["label"].to_pylist()) - indices.keys())
    if unknown:
        raise JobError(f"{url}: a correction gives the label {unknown[0]!r}, which is no class of the feature set.")
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
    """What was corrected of a row group, of the rows that count: a line each. `table` has these rows only."""
    n_rows = table.num_rows if edit.kept is None else len(edit.kept)
    numbers = np.full(n_rows, -1, np.int64)  # of the rows among those that count
    numbers[slice(None) if edit.kept is None else edit.kept] = np.arange(table.num_rows)
    places = numbers[edit.places]
    ids, paths = (table[name] for name in KEYS)
    return [
        f"{ids[int(place)].as_py()}\0{paths[int(place)].as_py()}\0{edit.classes[label]}"
        for place, label in zip(places, edit.labels, strict=True)
        if place >= 0
    ]


def _rows_digest(split: str, table: pa.Table) -> str:
    return sha256_bytes("\0".join([split, *table["image_id"].to_pylist(), *table["path"].to_pylist()]).encode())
