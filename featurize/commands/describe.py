"""The command `featurize describe`: a feature set, an images table or predictions on one screen."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table

from featurize.commands.options import JsonOption, print_result, reported_errors
from featurize.errors import UsageError

if TYPE_CHECKING:
    from featurize.tables.manifests import FeaturesManifest, Manifest

_MOST_CLASSES = 12


def describe_command(
    url: Annotated[str, typer.Argument(help="A feature set, an images table, or the predictions of a model.")],
    as_json: JsonOption = False,
) -> None:
    """Says what a table is, on one screen: a feature set, an images table, or the predictions of a model."""
    with reported_errors():
        from featurize import storage
        from featurize.tables.manifests import FeaturesManifest, read_manifest
        from featurize.tables.row_edits import correct_rows

        manifest = read_manifest(url)
        if manifest is None:
            raise UsageError(f"{storage.absolute_url(url)} holds neither a feature set nor an images table.")
        if isinstance(manifest, FeaturesManifest):
            manifest = correct_rows(url, manifest)
        if as_json:
            print_result(describe(storage.absolute_url(url), manifest), as_json=True)
        else:
            print_description(storage.absolute_url(url), manifest, Console())


def describe(url: str, manifest: "Manifest") -> dict[str, Any]:
    """What is in the table, JSON-ready: what `featurize describe --json` prints."""
    from featurize.tables.manifests import FeaturesManifest, PredictionsManifest

    document: dict[str, Any] = {
        "url": url,
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
    if isinstance(manifest, FeaturesManifest):
        document |= {
            "backbone": manifest.backbone,
            "preparation_id": manifest.preparation_id,
            "feature_shape": manifest.feature_shape,
            "feature_dtype": manifest.feature_dtype,
            "corrected_labels": _corrected(manifest),
        }
    if isinstance(manifest, PredictionsManifest):
        document |= {
            "model": manifest.model,
            "preparation_id": manifest.preparation_id,
            "threshold": manifest.threshold,
            "source": manifest.source,
        }
    return document


def print_description(url: str, manifest: "Manifest", console: Console) -> None:
    """Prints the table at `url` for people."""
    from featurize.building.build import summarize_rejects

    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(url, manifest):
        facts.add_row(f"[bold]{name}", escape(value))
    parts: list[Any] = [facts, _class_table(manifest)]
    if manifest.reject_count:
        parts.append(f"[bold]rejects[/] {manifest.reject_count}\n{escape(summarize_rejects(manifest.rejects, most=5))}")
    console.print(Group(*parts), highlight=False)


def _facts(url: str, manifest: "Manifest") -> list[tuple[str, str]]:
    from featurize.tables.manifests import NAMES, FeaturesManifest, PredictionsManifest

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


def _corrected(manifest: "FeaturesManifest") -> int:
    """Rows with another label than the files have."""
    return sum(manifest.edits.corrected.values()) if manifest.edits is not None else 0


def _class_table(manifest: "Manifest") -> Table:
    """Rows per split and class; of many classes the smallest and the largest only."""
    from featurize.recipes.recipe import SPLITS
    from featurize.tables.manifests import PREDICTED

    splits = [split for split in (*SPLITS, PREDICTED) if split in manifest.rows]
    labels = [*manifest.classes, *([""] if any("" in counts for counts in manifest.rows.values()) else [])]
    totals = {label: sum(manifest.rows[split].get(label, 0) for split in splits) for label in labels}
    table = Table("class", *splits, "all", box=None, padding=(0, 2), header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    for label in _shown_classes(totals):
        if label is None:
            table.add_row("...", *["..."] * (len(splits) + 1))
        else:
            table.add_row(
                escape(label) or "no label",
                *(str(manifest.rows[split].get(label, 0)) for split in splits),
                str(totals[label]),
            )
    table.add_row("all", *(str(manifest.split_rows(split)) for split in splits), str(manifest.row_count), style="bold")
    return table


def _shown_classes(totals: Mapping[str, int]) -> list[str | None]:
    if len(totals) <= _MOST_CLASSES:
        return list(totals)
    ranked = sorted(totals, key=lambda label: (totals[label], label))
    half = _MOST_CLASSES // 2
    return [*ranked[:half], None, *ranked[-half:]]
