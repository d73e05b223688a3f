"""The report's section on the images and labels: probable label errors and duplicates."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from featurize.tables.manifests import FeaturesManifest
from finetune.reports.svg import percent

if TYPE_CHECKING:
    from finetune.evaluation.data_quality import DataQuality, LabelError
    from finetune.evaluation.duplicates import DuplicatePair, Duplicates

MAX_ERRORS = 24
MAX_PAIRS = 12
AUTOMATIC_BYTES = 1 << 30
"""Largest number of rows that is checked without being asked: the check takes time and several times the set's size in memory."""

Section = dict[str, Any]


def is_checked(manifest: FeaturesManifest, asked: bool | None) -> bool:
    """Whether the data are checked; `asked` is the user's choice, None for no choice."""
    bytes_of_row = math.prod(manifest.feature_shape) * np.dtype(manifest.feature_dtype).itemsize
    return manifest.row_count * bytes_of_row <= AUTOMATIC_BYTES if asked is None else asked


def quality_section(url: str, manifest: FeaturesManifest) -> list[Section]:
    """The findings of `finetune check` in the selected rows of the feature set at `url`; the first of each kind with images.

    Raises:
        JobError: Raised by `data_quality.check_data`.
    """
    from finetune.evaluation.data_quality import check_data

    found = check_data(url, manifest=manifest)
    return [_labels(found), _duplicates(found.duplicates, found.rows)]


def _labels(found: "DataQuality") -> Section:
    if not found.rows_judged:
        text = "Labels were not judged: training and validation have too few images, or one class only."
        return {"title": "Probable label errors", "text": text, "items": [], "more": "", "is_pairs": False}
    count = len(found.label_errors)
    text = (
        f"Confident learning finds {count:,} of the {found.rows_judged:,} labels of training and validation probably wrong. "
        f"Heads that had not seen an image judged it; they agree with {percent(found.out_of_fold_accuracy, 1)} of the labels. "
        "Look at the images before correcting: hard ones are among them."
    )
    return {
        "title": "Probable label errors",
        "text": text,
        "items": [_label_error(error) for error in found.label_errors[:MAX_ERRORS]],
        "more": _more(count, MAX_ERRORS),
        "is_pairs": False,
    }


def _label_error(error: "LabelError") -> Section:
    text = (
        f"perhaps {error.suggested}: {percent(error.suggested_probability)} against {percent(error.given_probability)}"
    )
    return {"images": [{"path": error.path, "label": error.given, "split": error.split}], "text": text}


def _duplicates(found: "Duplicates", rows: dict[str, int]) -> Section:
    leaks = [
        f"{count} of {rows[split]:,} images of {split} have a duplicate in {other}."
        for split, counts in found.leaks.items()
        for other, count in counts.items()
        if count and (split, other) in (("validation", "train"), ("test", "train"), ("test", "validation"))
    ]
    text = (
        f"{found.n_exact:,} pairs of equal files; {found.n_near:,} pairs of almost equal images in different splits "
        f"(cosine of their features {found.threshold:.3f} or more). {' '.join(leaks)}"
    )
    across = sorted(found.pairs, key=lambda pair: (pair.label == pair.other_label, pair.split == pair.other_split))
    return {
        "title": "Duplicates",
        "text": text.strip(),
        "items": [_pair(pair) for pair in across[:MAX_PAIRS]],
        "more": _more(found.n_exact + found.n_near, MAX_PAIRS),
        "is_pairs": True,
    }


def _pair(pair: "DuplicatePair") -> Section:
    kind = "equal files" if pair.is_exact else f"similarity {pair.similarity:.3f}"
    conflict = "" if pair.label == pair.other_label else "; their labels differ, so one is wrong"
    return {
        "images": [
            {"path": pair.path, "label": pair.label, "split": pair.split},
            {"path": pair.other_path, "label": pair.other_label, "split": pair.other_split},
        ],
        "text": kind + conflict,
    }


def _more(count: int, shown: int) -> str:
    return f"{count - shown:,} more; `finetune check` writes all of them to a table." if count > shown else ""
