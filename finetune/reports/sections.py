"""The sections of a report on one model, as plain values for the template."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from featurize.tables.manifests import FeaturesManifest
from finetune.models.folder import ModelCard
from finetune.reports.judge import Judgement
from finetune.reports.svg import Line, calibration_plot, line_plot, percent
from finetune.scores.calibration import (
    calibration_bins,
    expected_calibration_error,
    most_confident_mistakes,
    most_frequent_class,
    order_by_confusion,
    wilson_interval,
)
from finetune.scores.metrics import ConfusedPair, Evaluation, class_scores, evaluate_probabilities, most_confused
from finetune.sweeps.setting_names import as_text

MAX_MISTAKES = 24
MAX_PAIRS = 20
MAX_COMPARED = 16
_ABOUT_EQUAL = 0.01

Section = dict[str, Any]


def verdict_section(judged: Judgement) -> Section:
    """Accuracy and its interval, compared with the baseline and the other models."""
    model, rows = judged.models[0], len(judged.label_index)
    guess = most_frequent_class(judged.manifest.rows.get("train", {}), judged.classes)
    right = int((judged.label_index == guess).sum())
    scores = evaluate_probabilities(judged.probabilities, judged.label_index, judged.classes)
    entries = [_entry(m.candidate.name, m.accuracy, m.interval, "other") for m in judged.models[:MAX_COMPARED]]
    entries[0]["style"] = "this"
    baseline = _entry(
        f"baseline: always {judged.classes[guess]}", right / rows, wilson_interval(right, rows), "baseline"
    )
    return {
        "accuracy": model.accuracy,
        "interval": model.interval,
        "rows": rows,
        "right": round(model.accuracy * rows),
        "baseline": right / rows,
        "baseline_class": judged.classes[guess],
        "entries": [*entries, baseline],
        "more": max(0, len(judged.models) - MAX_COMPARED),
        "scores": [
            ("Top-5 accuracy", percent(scores.top5_accuracy, 1)),
            ("Macro precision", percent(scores.precision, 1)),
            ("Macro recall", percent(scores.recall, 1)),
            ("Macro F1", percent(scores.f1, 1)),
            ("Log loss", f"{scores.log_loss:.3f} nats"),
        ],
        "evaluation": scores,
    }


def curves_section(card: ModelCard) -> Section:
    """Loss and accuracy over the epochs; no plots where nothing was trained."""
    plots = []
    for key, name, form in (("accuracy", "Accuracy", _percent_1), ("loss", "Loss (nats)", _three_digits)):
        lines = [
            Line(label, label, [(e["epoch"], e[column]) for e in card.history if column in e])
            for label, column in (("training", key), ("validation", f"validation_{key}"))
        ]
        lines = [line for line in lines if line.points]
        if lines:
            plot = line_plot(f"{name} over epochs", lines, x_label="epoch", y_format=form, mark=float(card.best_epoch))
            plots.append({"title": name, "svg": plot})
    ended = ", stopped early" if card.is_stopped_early else ""
    has_validation = any("validation_loss" in entry for entry in card.history)
    return {
        "plots": plots,
        "epochs": len(card.history),
        "ended": ended,
        "best": card.best_epoch,
        "validated": has_validation,
    }


def confusion_section(evaluation: Evaluation) -> Section:
    """The confusion matrix, as sparse cells for the canvas, and the most confused pairs."""
    matrix, classes = evaluation.confusion_matrix, evaluation.classes
    scores = class_scores(matrix)
    cells = [[int(t), int(p), int(matrix[t, p])] for t, p in zip(*np.nonzero(matrix), strict=True)]
    pairs = most_confused(matrix, classes, n=MAX_PAIRS)
    return {
        "data": {
            "classes": list(classes),
            "cells": cells,
            "support": scores.support.tolist(),
            "recall": [round(value, 4) for value in scores.recall.tolist()],
            "chain": order_by_confusion(matrix),
        },
        "pairs": [_pair(pair) for pair in pairs],
        "mistakes": int(matrix.sum() - np.trace(matrix)),
        "n_pairs": len(cells) - int((np.diagonal(matrix) > 0).sum()),
    }


def class_section(evaluation: Evaluation, manifest: FeaturesManifest) -> list[Section]:
    """One row of the table of classes for each class."""
    scores, train = class_scores(evaluation.confusion_matrix), manifest.rows.get("train", {})
    rows = []
    for index, label in enumerate(evaluation.classes):
        support = int(scores.support[index])
        right = int(evaluation.confusion_matrix[index, index])
        rows.append(
            {
                "label": label,
                "support": support,
                "train": train.get(label, 0),
                "recall": float(scores.recall[index]) if support else None,
                "interval": wilson_interval(right, support) if support else None,
                "precision": float(scores.precision[index]),
                "f1": float(scores.f1[index]),
            }
        )
    return rows


def mistakes_section(judged: Judgement) -> list[Section]:
    """The most confident mistakes."""
    rows = most_confident_mistakes(judged.probabilities, judged.label_index, MAX_MISTAKES)
    predicted = judged.models[0].predicted
    return [
        {
            "path": judged.paths[row],
            "true": judged.classes[judged.label_index[row]],
            "predicted": judged.classes[predicted[row]],
            "confidence": float(judged.probabilities[row].max()),
        }
        for row in rows.tolist()
    ]


def calibration_section(judged: Judgement) -> Section:
    """Accuracy by confidence: how well the model's probabilities match its accuracy."""
    bins = calibration_bins(judged.probabilities, judged.label_index)
    confidence = float(judged.probabilities.max(axis=1).astype(np.float64).mean())
    return {
        "plot": calibration_plot(bins),
        "error": expected_calibration_error(bins),
        "confidence": confidence,
        "bins": bins,
        "tendency": _tendency(confidence - judged.models[0].accuracy),
    }


def cost_section(card: ModelCard) -> list[tuple[str, str]]:
    """Time, memory and rows of the training."""
    seconds = sum(entry.get("seconds", 0.0) for entry in card.history)
    spent = [
        ("Training time", duration(seconds)),
        ("Speed", f"{card.rows_per_second:,.0f} rows/s"),
        ("Epochs", f"{len(card.history)}"),
        ("Training images", f"{card.rows.get('train', 0):,}"),
        ("Ranks", f"{card.ranks}"),
        ("Rows in a global batch", f"{card.global_batch_size:,}"),
    ]
    names = (
        ("data_seconds", "Waiting for data"),
        ("compute_seconds", "Computing"),
        ("all_reduce_seconds", "All-reduce"),
    )
    for key, name in names:
        total = sum(rank.get(key, 0.0) for rank in card.seconds_of_ranks)
        if total:
            spent.append((f"{name}, sum over ranks", duration(total)))
    if card.memory_of_ranks:
        peak = max(rank["peak_bytes"] for rank in card.memory_of_ranks)
        spent.append(("Memory of a rank, at most", f"{peak / 1e6:,.0f} MB"))
    return spent


def lineage_section(card: ModelCard, judged: Judgement) -> list[tuple[str, list[tuple[str, str]]]]:
    """All facts needed to train the model again, in groups."""
    backbone = card.features.backbone
    shown = ("name", "layer", "precision", "preprocessing", "weights_digest", "network_sha256")
    features = judged.manifest
    source = features.settings.get("source") or {}
    rows = ", ".join(f"{split} {features.split_rows(split):,}" for split in features.rows)
    images = [("Images", str(source.get("source") or source.get("layout") or "not recorded"))]
    if source.get("split"):
        images.append(("Split", _flat(source["split"])))
    same = card.features.content_digest == features.content_digest
    return [
        (
            "Model",
            [
                ("model_id", card.model_id),
                ("Made", card.created_at),
                ("Seed", str(card.seed)),
                ("Network (SHA-256)", card.network_sha256),
            ],
        ),
        (
            "Feature set",
            [
                ("URL", judged.features_url),
                ("Identity", card.features.identity),
                ("Content when trained", card.features.content_digest),
                (
                    "Content now",
                    "the same" if same else f"{features.content_digest}: images were added or removed since",
                ),
                ("Images by split", rows),
                *_edited_rows(features),
                ("Rejected images", f"{features.reject_count:,}"),
                *images,
            ],
        ),
        ("Backbone", [(key, as_text(backbone[key])) for key in shown if backbone.get(key) is not None]),
        ("Recipe", [(key, as_text(value)) for key, value in flatten(card.recipe) if value not in (None, {}, [])]),
        ("Versions", sorted(card.versions.items())),
    ]


def _edited_rows(features: FeaturesManifest) -> list[tuple[str, str]]:
    """Rows that differ from the files: left out or corrected."""
    edits = features.edits
    if edits is None:
        return []
    counts = {"Left out by `where`": edits.left_out, "Corrected labels": edits.corrected}
    return [
        (name, ", ".join(f"{split} {count:,}" for split, count in by_split.items()))
        for name, by_split in counts.items()
        if any(by_split.values())
    ]


def legend(*items: tuple[str, str]) -> Markup:
    """A legend: pairs of a style class and its meaning."""
    keys = [Markup('<li><span class="key {}"></span>{}</li>').format(style, text) for style, text in items]
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(keys))


def duration(seconds: float) -> str:
    """A duration in words: ``4.2 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def flatten(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings as pairs of a dotted key and a value."""
    pairs = list[tuple[str, Any]]()
    for key, value in settings.items():
        name = f"{prefix}{key}"
        pairs += flatten(value, f"{name}.") if isinstance(value, dict) and value else [(name, value)]
    return pairs


def _entry(name: str, accuracy: float, interval: Sequence[float], style: str) -> Section:
    return {"name": name, "accuracy": accuracy, "low": interval[0], "high": interval[1], "style": style}


def _pair(pair: ConfusedPair) -> Section:
    return {"true": pair.true_label, "predicted": pair.predicted_label, "count": pair.count, "fraction": pair.fraction}


def _flat(value: Any) -> str:
    return ", ".join(f"{key} {as_text(part)}" for key, part in value.items()) if isinstance(value, dict) else str(value)


def _tendency(excess: float) -> str:
    """How the model's confidence relates to its accuracy, from mean confidence minus accuracy."""
    if abs(excess) < _ABOUT_EQUAL:
        return "about as confident as it should be"
    return "over-confident" if excess > 0 else "under-confident"


def _percent_1(value: float) -> str:
    return f"{100 * value:.4g}\u00a0%"


def _three_digits(value: float) -> str:
    return f"{value:.3g}"
