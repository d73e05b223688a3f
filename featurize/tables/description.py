"""The description of a published table: as text for a terminal, as HTML for a notebook, and as a JSON-ready document."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from featurize import storage
from featurize.display import as_cell, as_lines, html_facts, html_table, plain_text
from featurize.errors import UsageError
from featurize.foreign_text import without_secrets
from featurize.shortening import name_some, some_lines
from featurize.tables.manifests import NAMES, PREDICTED, FeatureColumn, FeaturesManifest, Manifest, PredictionsManifest
from featurize.tables.publication import read_manifest
from featurize.tables.readable import correct_rows

SPLIT_ORDER = ("train", "validation", "test", PREDICTED)
"""The order in which splits are shown and read."""
FEW = 5
"""A class with fewer rows in a split is named: neither a head nor a score can say much of it."""
_MOST_CLASSES = 12
_MOST_REASONS = 5


@dataclass(frozen=True, repr=False)
class Description:
    """The description of a table: its kind, its rows per split and class, and how it was made.

    Attributes:
        url: URL of the table.
        manifest: manifest of the table; that of a feature set includes corrected labels.
    """

    url: str
    manifest: Manifest

    def __repr__(self) -> str:
        return plain_text(self.__rich__())

    def __rich__(self) -> RenderableType:
        grid = Table.grid(padding=(0, 2))
        for name, value in facts_of(self.url, self.manifest):
            grid.add_row(f"[bold]{name}", as_cell(without_secrets(value)))
        parts: list[RenderableType] = [grid, _class_table(self.manifest)]
        if self.manifest.reject_count:
            reasons = as_lines(summarize_rejects(self.manifest.rejects, most=_MOST_REASONS))
            parts.append(f"[bold]rejects[/] {self.manifest.reject_count}\n{reasons}")
        return Group(*parts)

    def _repr_html_(self) -> str:
        header, rows = _class_rows(self.manifest)
        parts = [
            html_facts(facts_of(self.url, self.manifest)),
            html_table(header, rows, numbers=range(1, len(header)), first_is_name=True),
        ]
        if self.manifest.reject_count:
            ranked = sorted(self.manifest.rejects.items(), key=lambda item: (-item[1], item[0]))[:_MOST_REASONS]
            reasons = [[reason, str(count)] for reason, count in ranked]
            parts.append(html_table(["rejects", str(self.manifest.reject_count)], reasons, numbers=(1,)))
        return "".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """The description as a JSON-ready dict, which `featurize describe --json` prints."""
        manifest = self.manifest
        document: dict[str, Any] = {
            "url": self.url,
            "kind": manifest.kind,
            "identity": manifest.identity,
            "content_digest": manifest.content_digest,
            "rows": manifest.row_count,
            "rows_per_split": {split: manifest.split_rows(split) for split in manifest.rows},
            "rows_per_split_and_class": manifest.rows,
            "classes": manifest.classes,
            "rejects": manifest.reject_count,
            "rejects_by_reason": manifest.rejects,
            "files": len(manifest.files),
            "bytes": manifest.byte_count,
            "seconds": manifest.seconds,
            "timings": manifest.timings.rounded(),
            "created_at": manifest.created_at,
            "updated_at": manifest.updated_at,
        }
        return document | _own_fields(manifest)


def describe(url: str) -> Description:
    """Describes the table at `url`: an images table, a feature set with its corrected labels, or the predictions of a model.

    Raises:
        UsageError: there is no table.
        JobError: its manifest or its corrections are damaged.
    """
    manifest = read_manifest(url)
    if manifest is None:
        raise UsageError(f"{storage.absolute_url(url)} holds neither a feature set nor an images table.")
    if isinstance(manifest, FeaturesManifest):
        manifest = correct_rows(url, manifest)
    return Description(storage.absolute_url(url), manifest)


def summarize_rejects(rejects: Mapping[str, int], most: int = 8) -> str:
    """The reasons for rejects, most frequent first, a line each."""
    ranked = sorted(rejects.items(), key=lambda item: (-item[1], item[0]))
    return "\n".join(some_lines((f"  - {count} x {reason}" for reason, count in ranked), most, things="reasons"))


def _own_fields(manifest: Manifest) -> dict[str, Any]:
    """The fields that only tables of this kind have."""
    if isinstance(manifest, FeaturesManifest):
        return {
            "backbone": manifest.backbone,
            "preparation_id": manifest.preparation_id,
            "feature_shape": manifest.feature_shape,
            "feature_dtype": manifest.feature_dtype,
            "columns": [column.model_dump(exclude={"settings"}) for column in manifest.columns],
            "corrected_labels": _corrected(manifest),
        }
    if isinstance(manifest, PredictionsManifest):
        return {
            "model": manifest.model,
            "preparation_id": manifest.preparation_id,
            "threshold": manifest.threshold,
            "source": manifest.source,
        }
    return {}


def notes_on_rows(rows: Mapping[str, Mapping[str, int]], classes: Sequence[str]) -> list[str]:
    """Which classes have no rows, or fewer than `FEW`, in which split: a sentence for each split that lacks some.

    Args:
        rows: The number of rows by split and class; a split without any rows is passed over.
        classes: The class labels.
    """
    notes = list[str]()
    for split in (split for split in SPLIT_ORDER if split != PREDICTED and any(rows.get(split, {}).values())):
        counts = {label: rows[split].get(label, 0) for label in classes}
        none = [label for label, count in counts.items() if not count]
        few = [f"{label} ({count})" for label, count in counts.items() if 0 < count < FEW]
        parts = [f"no rows of {name_some(none)}"] if none else []
        parts += [f"fewer than {FEW} of {name_some(few)}"] if few else []
        if parts:
            notes.append(f"the split {split} has {', and '.join(parts)}.")
    return notes


def facts_of(url: str, manifest: Manifest) -> list[tuple[str, str]]:
    """Names and values of the main facts about a table, in the order in which they are shown."""
    facts = [(NAMES[manifest.kind].partition(" ")[2], url)]
    if isinstance(manifest, FeaturesManifest):
        backbone = manifest.backbone
        layer = f" at {backbone['layer']}" if backbone["layer"] else ""
        shape = " x ".join(str(size) for size in manifest.feature_shape)
        facts += [
            ("backbone", f"{backbone['name']}{layer}, {backbone['precision']}"),
            ("weights", str(backbone["weights"] or "none")),
            ("input", f"{backbone['height']} x {backbone['width']}, preprocessing {backbone['preprocessing']}"),
            ("features", f"{shape} {manifest.feature_dtype}"),
        ]
        if len(manifest.columns) > 1:
            facts = [*facts[:1], *map(_fact_of_column, manifest.columns)]
        if corrected := _corrected(manifest):
            facts.append(("labels", f"{corrected:,} of {manifest.row_count:,} corrected"))
    if isinstance(manifest, PredictionsManifest):
        threshold = manifest.threshold
        facts += [
            ("model", f"{manifest.model['name']}, {manifest.model_id[:16]}"),
            (
                "threshold",
                f"{threshold['threshold']:.4f}" if threshold is not None else "none: every image has a label",
            ),
        ]
    rejects = f", {manifest.reject_count} rejects" if manifest.reject_count else ""
    facts += [
        ("rows", f"{manifest.row_count:,} in {len(manifest.classes)} classes{rejects}"),
        ("size", f"{manifest.byte_count / 1e6:,.1f} MB in {len(manifest.files)} files"),
        ("identity", f"{manifest.identity[:16]}, updated {manifest.updated_at}"),
    ]
    return facts


def _fact_of_column(column: FeatureColumn) -> tuple[str, str]:
    backbone = column.backbone
    layer = f" at {backbone['layer']}" if backbone["layer"] else ""
    shape = " x ".join(str(size) for size in column.feature_shape)
    return column.name, f"{shape} {column.feature_dtype}, {backbone['name']}{layer}, {backbone['precision']}"


def _corrected(manifest: FeaturesManifest) -> int:
    """Number of rows whose corrected label differs from that in the files."""
    return sum(manifest.edits.corrected.values()) if manifest.edits is not None else 0


def _class_table(manifest: Manifest) -> Table:
    header, rows = _class_rows(manifest)
    table = Table(*header, box=None, padding=(0, 2), header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows[:-1]:
        table.add_row(*(as_cell(text) for text in row))
    table.add_row(*rows[-1], style="bold")
    return table


def _class_rows(manifest: Manifest) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the rows per split and class; if there are many classes, only the smallest and the largest."""
    splits = [split for split in SPLIT_ORDER if split in manifest.rows]
    labels = [*manifest.classes, *([""] if any("" in counts for counts in manifest.rows.values()) else [])]
    totals = {label: sum(manifest.rows[split].get(label, 0) for split in splits) for label in labels}
    lines = []
    for label in _shown_classes(totals):
        if label is None:
            lines.append(["..."] * (len(splits) + 2))
        else:
            counts = [manifest.rows[split].get(label, 0) for split in splits]
            lines.append([label or "no label", *map(str, counts), str(totals[label])])
    lines.append(["all", *(str(manifest.split_rows(split)) for split in splits), str(manifest.row_count)])
    return ["class", *splits, "all"], lines


def _shown_classes(totals: Mapping[str, int]) -> list[str | None]:
    if len(totals) <= _MOST_CLASSES:
        return list(totals)
    ranked = sorted(totals, key=lambda label: (totals[label], label))
    half = _MOST_CLASSES // 2
    return [*ranked[:half], None, *ranked[-half:]]
