"""Training sets by query: rows of a feature set selected by their metadata, by predictions and by tables of labels.

The query is the condition of a recipe's `[features] where`, in DuckDB's SQL. It runs once over all rows, without reading
features. The selection becomes edits of the manifest, which go to every rank and every reader.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurize.errors import UsageError
from featurize.recipes.recipe import JOINED, FeaturesSettings
from featurize.recipes.toml_settings import check_settings
from featurize.shortening import name_some
from featurize.tables.manifests import FeaturesManifest
from featurize.tables.readable import EditedRows, read_features_manifest, scan_rows
from featurize.tables.row_edits import keep_rows
from finetune.models.folder import ModelCard

if TYPE_CHECKING:
    from finetune.rows.joined_tables import JoinedTable

_COLUMNS = ("image_id", "path", "label", "label_index", "width", "height")
_ROW = "firn row"  # a name that no query would use


def read_selected(features: FeaturesSettings, *, all_columns: bool = False) -> FeaturesManifest:
    """The manifest of a recipe's feature set with the rows to train on: selected by the recipe, with corrected labels.

    Args:
        features: the section of the recipe.
        all_columns: whether the column is chosen later, with `FeaturesManifest.of_column`.

    Raises:
        UsageError: There is no feature set or column; or the query is wrong, selects nothing, or leaves a class that it does
            not name without training rows.
        JobError: Files are damaged.
    """
    manifest = read_features_manifest(features.url)
    if not all_columns:
        manifest = manifest.of_column(features.column, features.url)
    if features.where is None:
        return manifest
    selected = select_rows(features, manifest)
    _check_classes(features.where, manifest, selected)
    return selected


def read_selected_by_model(card: ModelCard, url: str, *, all_rows: bool = False) -> FeaturesManifest:
    """The manifest of the feature set at `url` with the rows that a model's query selects there.

    Args:
        card: The model's description.
        url: URL of the feature set that the model was trained on, or of another.
        all_rows: Whether to select all rows, whatever the model was trained on.

    Raises:
        UsageError: There is no feature set, or the query cannot be run there or selects nothing.
        JobError: Files are damaged.
    """
    section = {key: value for key, value in card.recipe["features"].items() if value is not None}
    tables = (
        {} if all_rows else {name: card.named(section[name]) for name in JOINED if isinstance(section.get(name), str)}
    )
    origin = f"the recipe in {card.document or f'the model {card.model_id[:16]}'}"
    features = check_settings(FeaturesSettings, {**section, **tables, "url": str(url)}, origin=origin)
    manifest = read_features_manifest(url).made_by(card.features.preparation_id)
    if features.where is None or all_rows:
        return manifest
    try:
        return select_rows(features, manifest)
    except UsageError as error:
        raise UsageError(f"{origin}: {error}") from error


def select_rows(features: FeaturesSettings, manifest: FeaturesManifest) -> FeaturesManifest:
    """`manifest` with only the rows that `features.where` selects, in all splits.

    Raises:
        UsageError: The query is wrong, or selects nothing.
        JobError: Files are damaged.
    """
    from finetune.rows.joined_tables import read_joined_tables  # imports Spark

    places, tables = list[tuple[str, str, int, int]](), list[pa.Table]()
    for split, path, group, table in scan_rows(features.url, manifest, _COLUMNS):
        places.append((split, path, group.index, len(table)))
        tables.append(table.append_column("split", pa.array([split] * len(table), pa.string())))
    if not tables:
        raise UsageError(f"{features.url} has no rows to select from.")
    rows = pa.concat_tables(tables)
    kept = ask(features.where or "true", rows, read_joined_tables(features))
    if not kept.any():
        raise UsageError(f"`features.where` selects none of the {len(rows):,} rows of {features.url}: {features.where}")
    before = manifest.edits.groups if manifest.edits is not None else {}
    selected, first = EditedRows(manifest, where=features.where), 0
    for split, path, index, count in places:
        own, chosen, edit = rows.slice(first, count), kept[first : first + count], before.get((path, index))
        if not chosen.all():
            edit = keep_rows(edit, chosen, table=own, classes=manifest.classes)
        selected.add(split, (path, index), own, edit)
        first += count
    return selected.manifest()


def ask(where: str, rows: pa.Table, others: "Sequence[JoinedTable]") -> NDArray[np.bool_]:
    """The rows that a condition selects: bool ``(n_rows,)``.

    The columns of `rows` go by their names, or as `features.label`; those of other tables by table and name
    (`predictions.label`), or by name alone where no other table has it. A row for which the condition is null is not selected.

    Raises:
        UsageError: The condition is wrong.
    """
    import duckdb

    plain = _plain_names(rows, others)
    with duckdb.connect() as connection:
        connection.execute("SET enable_external_access = false")
        connection.register("firn_rows", rows.append_column(_ROW, pa.array(np.arange(len(rows)))))
        for other in others:
            connection.register(f"firn_{other.name}", other.table)
        query = f'SELECT "{_ROW}", (\n{where}\n) AS chosen FROM ({_joined(rows, others, plain)}) AS features'
        try:
            relation = connection.sql(query)
            if relation is None or str(relation.types[1]) != "BOOLEAN":
                kind = relation.types[1] if relation is not None else "nothing"
                raise UsageError(f"`features.where` must be a condition, true or false. Got {kind}: {where}")
            found = relation.arrow()
        except duckdb.Error as error:
            fault = str(error).splitlines()[0]
            columns = ", ".join(_shown_names(rows, others, plain))
            raise UsageError(f"`features.where` cannot be run: {fault}\nColumns: {columns}.") from error
        answer = found.read_all() if isinstance(found, pa.RecordBatchReader) else found
    kept = np.zeros(len(rows), np.bool_)
    chosen = answer["chosen"].fill_null(False).to_numpy()
    kept[answer[_ROW].to_numpy()[chosen]] = True
    return kept


def describe_selection(manifest: FeaturesManifest) -> str:
    """The number of selected rows in each split, in words; empty where there is no selection."""
    edits = manifest.edits
    if edits is None or edits.where is None:
        return ""
    parts = [
        f"{split} {manifest.split_rows(split):,} of {manifest.split_rows(split) + edits.left_out[split]:,}"
        for split in manifest.rows
    ]
    return f"`where` selects {', '.join(parts)} rows."


def _check_classes(where: str, before: FeaturesManifest, after: FeaturesManifest) -> None:
    """Checks that no class has lost all its training rows: no model could learn it, but the other splits would test it.

    Raises:
        UsageError: There is such a class, and the query does not name it.
    """
    left = after.rows.get("train", {})
    lost = [label for label, rows in before.rows.get("train", {}).items() if rows and not left.get(label)]
    unnamed = [label for label in lost if "'" + label.replace("'", "''") + "'" not in where]
    if unnamed:
        raise UsageError(
            f"`features.where` leaves no training rows of {name_some(unnamed)}. Select some; "
            f"or, if this is intended, name the class in the query, as in label != '{unnamed[0]}'."
        )


def _plain_names(rows: pa.Table, others: "Sequence[JoinedTable]") -> dict[str, list[str]]:
    """The columns of each other table that can be named without the table; names are case-insensitive."""
    taken = [name.lower() for name in rows.column_names] + [other.name for other in others]
    taken += [name.lower() for other in others for name in other.table.column_names]
    return {other.name: [name for name in other.columns if taken.count(name.lower()) == 1] for other in others}


def _shown_names(rows: pa.Table, others: "Sequence[JoinedTable]", plain: dict[str, list[str]]) -> list[str]:
    names = list(rows.column_names)
    for other in others:
        names += [name if name in plain[other.name] else f"{other.name}.{name}" for name in other.columns]
    return names


def _joined(rows: pa.Table, others: "Sequence[JoinedTable]", plain: dict[str, list[str]]) -> str:
    """All tables side by side, a row for each of `rows`; each other table also as a struct of its name."""
    columns = [f"firn_rows.{_quoted(name)}" for name in (_ROW, *rows.column_names)]
    joins = ""
    for other in others:
        table = f"firn_{other.name}"
        fields = ", ".join(f"{_quoted(name)} := {table}.{_quoted(name)}" for name in other.columns)
        columns += [f"struct_pack({fields}) AS {other.name}"]
        columns += [f"{table}.{_quoted(name)}" for name in plain[other.name]]
        joins += f" LEFT JOIN {table} ON {table}.image_id = firn_rows.image_id"
    return f"SELECT {', '.join(columns)} FROM firn_rows{joins}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
