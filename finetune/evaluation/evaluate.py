"""Evaluation of a model on one split of a feature set: scores, confusion matrix, plot."""

import io
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from featurize import storage
from featurize.display import as_cell
from featurize.foreign_text import CsvWriter, shown
from featurize.shortening import name_some
from finetune.evaluation.split_answers import open_split_rows
from finetune.models.folder import load_model
from finetune.registry.run_values import SCHEMA_VERSION
from finetune.scores.figures import plot_confusion_matrix, render_png
from finetune.scores.metrics import Evaluation, class_scores, evaluate_probabilities, f1_of_means, most_confused

_MOST_CLASSES_ON_SCREEN = 12


def evaluate_model(
    model_url: str, features_url: str | None, split: str, output: str | None, *, all_rows: bool = False
) -> dict[str, Any]:
    """Evaluates a model and writes `evaluation-<split>.json`, `confusion-<split>.csv` and `confusion-<split>.png`.

    Args:
        model_url: URL of the model's folder.
        features_url: URL of the feature set; default: the one that the model was trained on.
        split: Name of the split.
        output: URL of the folder for the three files; default: the model's.
        all_rows: Whether to evaluate on all rows; otherwise on those that the model's `where` selects, if it has one.

    Returns:
        The scores as in `Evaluation.as_dict`, `f1_of_means`, the scores `per_class`, the classes `without_rows` in this split,
        `most_confused`, the paths of the written files, the number of rows of the split
        that were `left_out` by the `where`, and the number that have `corrected_labels`.

    Raises:
        UsageError: There is no model or feature set, the features come from another backbone, or the split has no rows.
    """
    storage.give(features_url, output)
    network, card = load_model(model_url)
    rows = open_split_rows([card], split, url=features_url, all_rows=all_rows)
    # part by part: only the probabilities of all rows are in memory at once
    parts = [(probabilities, part.label_index) for part, (probabilities,) in rows.answers([network])]
    probabilities, label_index = (np.concatenate(column) for column in zip(*parts, strict=True))
    evaluation = evaluate_probabilities(probabilities, label_index, card.classes)
    confused = [
        {"true": pair.true_label, "predicted": pair.predicted_label, "count": pair.count, "fraction": pair.fraction}
        for pair in most_confused(evaluation.confusion_matrix, evaluation.classes)
    ]
    per_class = _per_class(evaluation)
    folder = storage.absolute_url(output or model_url)
    edits = rows.manifest.edits
    paths = {name: storage.join_url(folder, f"{stem}-{split}.{ending}") for name, stem, ending in _OUTPUTS}
    result = {
        "schema_version": SCHEMA_VERSION,
        **evaluation.as_dict(),
        "f1_of_means": f1_of_means(evaluation.precision, evaluation.recall),
        "per_class": per_class,
        "without_rows": [row["class"] for row in per_class if not row["support"]],
        "most_confused": confused,
        "model_id": card.model_id,
        "features": storage.absolute_url(rows.url),
        "split": split,
        "left_out": edits.left_out[split] if edits is not None else 0,
        "corrected_labels": edits.corrected[split] if edits is not None else 0,
    }
    storage.write_json(paths["evaluation"], result)
    storage.write_bytes(paths["table"], confusion_csv(evaluation).encode())
    name = card.recipe["model"]["name"]
    figure = plot_confusion_matrix(evaluation.confusion_matrix, evaluation.classes, title=f"{name} on {split}")
    storage.write_bytes(paths["plot"], render_png(figure))
    return {**result, "files": paths}


def _per_class(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Precision, recall, F1 and the number of rows of each class, in the order of `label_index`."""
    scores = class_scores(evaluation.confusion_matrix)
    columns = (scores.precision.tolist(), scores.recall.tolist(), scores.f1.tolist(), scores.support.tolist())
    names = ("class", "precision", "recall", "f1", "support")
    return [dict(zip(names, row, strict=True)) for row in zip(evaluation.classes, *columns, strict=True)]


def confusion_csv(evaluation: Evaluation) -> str:
    """The confusion matrix as CSV: a row for each true class, a column for each predicted one."""
    text = io.StringIO()
    writer = CsvWriter(text)
    writer.write_row(["true \\ predicted", *evaluation.classes])
    for label, counts in zip(evaluation.classes, evaluation.confusion_matrix.tolist(), strict=True):
        writer.write_row([label, *counts])
    return text.getvalue()


def print_evaluation(result: dict[str, Any], console: Console) -> None:
    """Prints the result of `evaluate_model` as text."""
    scores = Table.grid(padding=(0, 2))
    for key in ("accuracy", "top5_accuracy", "precision", "recall", "f1", "log_loss"):
        of_means = f", the mean of the classes' F1 (F1 of the means: {result['f1_of_means']:.4f})"
        scores.add_row(f"[bold]{key}", f"{result[key]:.4f}{of_means if key == 'f1' else ''}")
    left_out = f", {result['left_out']} left out by `where`" if result["left_out"] else ""
    scores.add_row("[bold]rows", f"{result['rows']} of split {result['split']}{left_out}")
    console.print(scores, highlight=False)
    if without := result["without_rows"]:
        line = f"{result['split']} has no rows of {name_some(without)}: precision, recall and F1 are means over the classes"
        console.print(shown(f"{line} that occur."), highlight=False, markup=False, soft_wrap=True)
    if len(result["classes"]) <= _MOST_CLASSES_ON_SCREEN:
        console.print("confusion matrix, a column for each predicted class:", highlight=False)
        console.print(_confusion_table(result), highlight=False)
        console.print(_class_table(result), highlight=False)
    for pair in result["most_confused"]:
        times = "once" if pair["count"] == 1 else f"{pair['count']} times"
        line = f"{pair['true']} taken for {pair['predicted']}: {times} ({pair['fraction']:.0%} of its images)"
        console.print(shown(line), highlight=False, markup=False)
    console.print(shown(f"plot: {result['files']['plot']}"), highlight=False, markup=False, soft_wrap=True)


_OUTPUTS = (("evaluation", "evaluation", "json"), ("table", "confusion", "csv"), ("plot", "confusion", "png"))


def _class_table(result: dict[str, Any]) -> Table:
    """The scores of each class."""
    names = ("precision", "recall", "f1")
    table = Table("class", *names, "rows", box=None, padding=(0, 1), header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in result["per_class"]:
        table.add_row(as_cell(row["class"]), *(f"{row[name]:.4f}" for name in names), str(row["support"]))
    return table


def _confusion_table(result: dict[str, Any]) -> Table:
    table = Table(
        "true",
        *(as_cell(label) for label in result["classes"]),
        box=None,
        padding=(0, 1),
        header_style="bold",
    )
    for column in table.columns:
        column.no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for label, counts in zip(result["classes"], result["confusion_matrix"], strict=True):
        table.add_row(as_cell(label), *(str(count) if count else "." for count in counts))
    return table
