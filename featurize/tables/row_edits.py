"""Row edits: how rows of a feature set differ from its files, by corrected labels and by selection.

An edit belongs to a row group and names rows by position. It is made once, where the manifest is read: `read_features_manifest`
makes the edits of corrections. From there it travels with the manifest, also to other processes, so that all read the same rows
whatever is corrected in the meantime. `featurize.tables.row_groups` applies it; features are not touched before.
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
    from featurize.tables.corrections import Corrections
    from featurize.tables.manifests import FeaturesManifest
    from featurize.tables.row_groups import RowGroup

KEYS = ("image_id", "path")
_TRAINED_ON = ("train", "validation")


@dataclass(frozen=True, eq=False)
class GroupEdit:
    """The edits of one row group.

    Attributes:
        key: `group_key` of the rows in the file, by which a reader that does not know the row group finds the edit.
        places: int32 ``(n_corrected,)``, positions of the rows whose label was corrected.
        labels: int32 ``(n_corrected,)``, their corrected label index.
        kept: bool ``(n_rows,)``, which rows are selected; None: all.
        classes: The class labels, in the order of `label_index`.
    """

    key: str
    places: NDArray[np.int32]
    labels: NDArray[np.int32]
    kept: NDArray[np.bool_] | None
    classes: tuple[str, ...]

    def apply(self, table: pa.Table) -> pa.Table:
        """The selected rows of `table`, which has all rows of the row group and any columns, with their corrected labels."""
        if len(self.places):
            for name in ("label_index", "label"):
                if name in table.column_names:
                    number = table.column_names.index(name)
                    table = table.set_column(number, table.field(number), self._corrected(table[name], name))
        return table if self.kept is None else table.filter(pa.array(self.kept))

    def apply_to_labels(self, label_index: NDArray[np.int32]) -> NDArray[np.int32]:
        """A copy of the label indices of all rows of the row group with corrections applied; no row is left out."""
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
        groups: Edits by the path of a file in the manifest and the number of the row group in it; only row groups with edits.
        corrected: For each split the number of selected rows whose label differs from the file's.
        left_out: For each split the number of rows that are not selected.
        corrections_digest: Digest of the corrected labels in training and validation; None where there are none.
        where: The query that selected the rows; None: all rows are selected.
        selection_digest: Digest of the selected rows of training and validation, in order; None without a query.
    """

    groups: Mapping[tuple[str, int], GroupEdit]
    corrected: Mapping[str, int]
    left_out: Mapping[str, int]
    corrections_digest: str | None = None
    where: str | None = None
    selection_digest: str | None = None


def group_key(image_ids: Sequence[str], paths: Sequence[str]) -> str:
    """A digest that identifies the rows of a row group, as a path occurs only once in a feature set."""
    return sha256_bytes("\0".join((*image_ids, *paths)).encode())


def correct_rows(url: str, manifest: "FeaturesManifest") -> "FeaturesManifest":
    """The published manifest of the feature set at `url` with the edits of its corrections; unchanged where there are none.

    If there are corrections, it reads the ids of all rows, a few row groups at a time.

    Raises:
        JobError: Files are missing or damaged.
    """
    from featurize.tables.corrections import read_corrections

    log = read_corrections(url)
    if not log.count:
        return manifest
    edited = EditedRows(manifest)
    find = _finder(log, manifest.classes, url)
    for split, path, group, table in scan_rows(url, manifest, (*KEYS, "label_index")):
        places, labels = find(table)
        edit = None
        if len(places):
            edit = GroupEdit(_key_of(table), places, labels, None, tuple(manifest.classes))
        edited.add(split, (path, group.index), table, edit)
    return edited.manifest() if edited.has_edits else manifest


class EditedRows:
    """Collects the edits of a feature set, row group by row group, and their totals.

    Args:
        manifest: The manifest whose edits are replaced.
        where: The query that selected rows.
    """

    def __init__(self, manifest: "FeaturesManifest", *, where: str | None = None) -> None:
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

    def manifest(self) -> "FeaturesManifest":
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
    url: str, manifest: "FeaturesManifest", columns: Sequence[str]
) -> "Iterator[tuple[str, str, RowGroup, pa.Table]]":
    """Some columns of all rows, edited as `manifest` says: split, path of the file, row group and table of each row group."""
    from featurize.tables.row_groups import iterate_row_groups, list_row_groups

    for split in manifest.rows:
        groups = list_row_groups(url, manifest, split)
        for group, table in zip(groups, iterate_row_groups(groups, columns), strict=True):
            yield split, group.path, group, table


def keep_rows(edit: GroupEdit | None, kept: NDArray[np.bool_], *, table: pa.Table, classes: Iterable[str]) -> GroupEdit:
    """An edit that also leaves rows out.

    Args:
        edit: The edit to extend, or None.
        kept: bool ``(n_rows,)``, which rows of the row group are selected.
        table: `KEYS` of all its rows.
        classes: The class labels, in the order of `label_index`.
    """
    if edit is not None:
        return replace(edit, kept=kept)
    none = np.empty(0, np.int32)
    return GroupEdit(_key_of(table), none, none, kept, tuple(classes))


def _key_of(table: pa.Table) -> str:
    ids, paths = (table[name].to_pylist() for name in KEYS)
    return group_key(ids, paths)


def _finder(
    log: "Corrections", classes: Sequence[str], url: str
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
