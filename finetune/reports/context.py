"""Collects everything that the report's template shows."""

from collections.abc import Iterable
from typing import Any

from featurize import __version__
from featurize.pages.thumbnails import read_thumbnails
from featurize.tables.manifests import FeaturesManifest, utc_now
from finetune.reports.judge import Judgement, Target
from finetune.reports.quality import is_checked, quality_section
from finetune.reports.sections import (
    calibration_section,
    class_section,
    confusion_section,
    cost_section,
    curves_section,
    lineage_section,
    mistakes_section,
    verdict_section,
)
from finetune.reports.sweep import comparison_section, stability_section, sweep_section


def report_context(target: Target, judged: Judgement, *, title: str | None, check_data: bool | None) -> dict[str, Any]:
    """The values for all sections of a report.

    Args:
        target: The model or sweep to report on.
        judged: The predictions of its models.
        title: The heading; None: the folder's name.
        check_data: Whether to look for label errors and duplicates; None: only if the feature set is small.
    """
    model, manifest = judged.models[0], judged.manifest
    verdict = verdict_section(judged)
    mistakes, stability = mistakes_section(judged), stability_section(judged)
    quality = quality_section(judged.features_url, manifest) if is_checked(manifest, check_data) else []
    shown = [*mistakes, *(stability["images"] if stability else []), *_images_of(quality)]
    thumbnails, reason = read_thumbnails(manifest, [item["path"] for item in shown], url=judged.features_url)
    missing = len({item["path"] for item in shown} - thumbnails.keys())
    return {
        "title": title or target.url.rpartition("/")[2],
        "kind": target.kind,
        "subtitle": _subtitle(target, judged),
        "split": judged.split,
        "verdict": verdict,
        "sweep": sweep_section(target.sweep, target.settings) if target.sweep is not None else None,
        "stability": stability,
        "comparisons": comparison_section(judged),
        "curves": curves_section(model.card),
        "confusion": confusion_section(verdict["evaluation"]),
        "classes": class_section(verdict["evaluation"], manifest),
        "mistakes": mistakes,
        "images_note": _images_note(missing, reason),
        "thumbnails": thumbnails,
        "images_root": _root_of(manifest),
        "calibration": calibration_section(judged),
        "quality": quality,
        "cost": cost_section(model.card),
        "lineage": lineage_section(model.card, judged),
        "firn_version": __version__,
        "made_at": utc_now(),
    }


def _subtitle(target: Target, judged: Judgement) -> str:
    card = judged.models[0].card
    network = f"{card.recipe['model']['name']} on {card.features.backbone.get('name')}, {len(card.classes)} classes"
    return network if target.sweep is None else f"best of the sweep: {judged.models[0].candidate.name}. {network}"


def _images_of(quality: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [image for part in quality for item in part["items"] for image in item["images"]]


def _root_of(manifest: FeaturesManifest) -> str:
    """The common beginning of the images' paths, which the report does not repeat for each image."""
    source = (manifest.settings.get("source") or {}).get("source")
    return f"{source}/" if source else ""


def _images_note(missing: int, reason: str | None) -> str:
    if not missing:
        return ""
    images = "One image" if missing == 1 else f"{missing} images"
    return f"{images} could not be read from where the features were made: {reason}. Only paths are shown for these."
