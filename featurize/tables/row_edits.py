"""Row edits: how rows of a feature set differ from its files, by corrected labels and by selection.

An edit belongs to a row group and names rows by position. It is made once, where the manifest is read: `read_features_manifest`
makes the edits of corrections. From there it travels with the manifest, also to other processes, so that all read the same rows
whatever is corrected in the meantime. `featurize.tables.row_groups` applies it; features are not touched before.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurize.digests import sha256_bytes

if TYPE_CHECKING:
    pass

KEYS = ("image_id", "path")


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
    return GroupEdit(key_of(table), none, none, kept, tuple(classes))


def key_of(table: pa.Table) -> str:
    """The `group_key` of a table that has the columns `KEYS` for all rows of a row group."""
    ids, paths = (table[name].to_pylist() for name in KEYS)
    return group_key(ids, paths)
