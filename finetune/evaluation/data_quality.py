"""The quality of a feature set's images and labels: probable label errors, and duplicates within and across splits."""

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from featurize import storage
from featurize.foreign_text import CsvWriter
from featurize.recipes.recipe import SPLITS
from featurize.tables.manifests import FeaturesManifest
from featurize.tables.readable import read_features_manifest
from finetune.evaluation.duplicates import MAX_PAIRS, DuplicatePair, Duplicates, find_duplicates
from finetune.evaluation.label_errors import find_label_errors
from finetune.evaluation.out_of_fold import N_FOLDS, out_of_fold_probabilities
from finetune.rows.splits import SplitData, read_split

JUDGED_SPLITS = ("train", "validation")
"""Splits whose labels are judged. The test labels are left alone: correcting them by a model would favour that model."""
LABEL_ERRORS_NAME = "label-errors.csv"
DUPLICATES_NAME = "duplicates.csv"


class LabelError(NamedTuple):
    """An image whose label is probably wrong; see `label_errors.LabelErrors`.

    Attributes:
        path: Path of the image.
        split: The image's split.
        given: The given label.
        suggested: The most probable label.
        given_probability: Probability of the given label, in [0, 1].
        suggested_probability: Probability of the suggested label, in [0, 1].
        score: In [0, 1], 0 being the most suspicious: the probability of the given label.
    """

    path: str
    split: str
    given: str
    suggested: str
    given_probability: float
    suggested_probability: float
    score: float


@dataclass(frozen=True)
class DataQuality:
    """The findings about a feature set.

    Attributes:
        url: URL of the feature set.
        rows: Number of rows by split.
        rows_judged: Number of rows whose labels were judged; 0 where training and validation have fewer rows than folds, or one
            class.
        label_errors: Probable label errors, the most suspicious first.
        label_error_share: Share of the judged rows that is mislabelled, as confident learning estimates it, in [0, 1].
        out_of_fold_accuracy: Share of the judged rows whose given label is the most probable one; 0 where none is judged.
        duplicates: Duplicates within and across all splits.
    """

    url: str
    rows: dict[str, int]
    rows_judged: int
    label_errors: list[LabelError]
    label_error_share: float
    out_of_fold_accuracy: float
    duplicates: Duplicates

    def as_dict(self) -> dict[str, Any]:
        """The figures, without the lists, as a JSON-ready dict."""
        return {
            "features": self.url,
            "rows": self.rows,
            "rows_judged": self.rows_judged,
            "label_errors": len(self.label_errors),
            "label_error_share": self.label_error_share,
            "out_of_fold_accuracy": self.out_of_fold_accuracy,
            "exact_duplicates": self.duplicates.n_exact,
            "near_duplicates": self.duplicates.n_near,
            "threshold": self.duplicates.threshold,
            "leaks": self.duplicates.leaks,
        }


def check_data(
    url: str,
    *,
    seed: int = 42,
    threshold: float | None = None,
    max_pairs: int = MAX_PAIRS,
    manifest: FeaturesManifest | None = None,
) -> DataQuality:
    """Finds label errors in training and validation, and duplicates in all splits, of the feature set at `url`.

    The features of all splits are held in memory, and those of training and validation up to three times.

    Args:
        url: URL of the feature set.
        seed: Seed of the folds and the heads.
        threshold: Smallest cosine similarity of near duplicates; default: `duplicates.choose_threshold`.
        max_pairs: Most pairs to list, as for `find_duplicates`.
        manifest: The feature set's manifest, where only the rows that it selects are to be checked.

    Raises:
        UsageError: There is no feature set.
        JobError: Files are missing or damaged, or features are not finite.
    """
    manifest = manifest or read_features_manifest(url)
    names = [*SPLITS, *(name for name in manifest.rows if name not in SPLITS)]
    splits = {name: read_split(url, manifest, name) for name in names if manifest.split_rows(name)}
    errors, share, accuracy = _judge_labels(splits, manifest, seed=seed)
    return DataQuality(
        url=storage.absolute_url(url),
        rows={name: part.rows for name, part in splits.items()},
        rows_judged=sum(part.rows for part in _judged(splits).values()),
        label_errors=errors,
        label_error_share=share,
        out_of_fold_accuracy=accuracy,
        duplicates=find_duplicates(splits, manifest.classes, threshold=threshold, max_pairs=max_pairs),
    )


def write_findings(quality: DataQuality, folder: str) -> dict[str, str]:
    """Writes `label-errors.csv` and `duplicates.csv` to the folder at a URL; returns their URLs."""
    files = {
        "label_errors": storage.join_url(folder, LABEL_ERRORS_NAME),
        "duplicates": storage.join_url(folder, DUPLICATES_NAME),
    }
    storage.write_bytes(files["label_errors"], _as_csv(LabelError._fields, quality.label_errors))
    storage.write_bytes(files["duplicates"], _as_csv(DuplicatePair._fields, quality.duplicates.pairs))
    return files


def _judged(splits: Mapping[str, SplitData]) -> dict[str, SplitData]:
    """The splits whose labels are judged; none if they have too few rows or classes."""
    parts = {name: part for name, part in splits.items() if name in JUDGED_SPLITS}
    classes = {int(index) for part in parts.values() for index in np.unique(part.label_index)}
    return parts if len(classes) > 1 and sum(part.rows for part in parts.values()) >= N_FOLDS else {}


def _judge_labels(
    splits: Mapping[str, SplitData], manifest: FeaturesManifest, *, seed: int
) -> tuple[list[LabelError], float, float]:
    """The probable label errors, their estimated share, and the accuracy out of fold."""
    parts = _judged(splits)
    if not parts:
        return [], 0.0, 0.0
    label_index = np.concatenate([part.label_index for part in parts.values()])
    probabilities = out_of_fold_probabilities(
        np.concatenate([part.features for part in parts.values()]),
        label_index,
        n_classes=len(manifest.classes),
        row_ids=np.concatenate([part.row_ids for part in parts.values()]),
        seed=seed,
    )
    found = find_label_errors(probabilities, label_index)
    paths = [path for part in parts.values() for path in part.paths.to_pylist()]
    names = [name for name, part in parts.items() for _ in range(part.rows)]
    errors = [
        LabelError(paths[row], names[row], manifest.classes[given], manifest.classes[suggested], *map(float, values))
        for row, given, suggested, *values in zip(
            found.rows,
            found.given,
            found.suggested,
            found.given_probability,
            found.suggested_probability,
            found.score,
            strict=True,
        )
    ]
    return errors, found.estimated_share, float(np.mean(probabilities.argmax(axis=1) == label_index))


def _as_csv(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO()
    writer = CsvWriter(text)
    writer.write_row(header)
    writer.write_rows([f"{value:.6f}" if isinstance(value, float) else value for value in row] for row in rows)
    return text.getvalue().encode()
