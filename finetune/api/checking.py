"""`check_data`, `check_drift` and `relabel`: checks of labels and images, tests for drift, and corrections of labels."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurize.tables.predictions import LATEST
from featurize.tables.readable import read_features_manifest
from finetune.api.names import HasUrl, url_of
from finetune.api.tables import MOST_ROWS, Summarised, Summary
from finetune.drift.check import DriftReport, check_predictions
from finetune.drift.read import Selection, parse_time
from finetune.drift.window import FALSE_ALARM_RATE
from finetune.evaluation import data_quality
from finetune.evaluation import relabel as relabelling
from finetune.evaluation.data_quality import DataQuality, LabelError, write_findings
from finetune.evaluation.duplicates import DuplicatePair

if TYPE_CHECKING:
    import pandas as pd
    from pyspark.sql import DataFrame


@dataclass(frozen=True, repr=False, eq=False)
class DataFindings(Summarised):
    """What was found in the images and labels of a feature set. Its `repr` is a table, in a notebook too.

    Attributes:
        quality: all that was found.
        files: URLs of the two CSV files, `label_errors` and `duplicates`; empty where nothing was written.
    """

    quality: DataQuality
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def label_errors(self) -> "pd.DataFrame":
        """Images whose label is probably wrong, the most suspicious first: `path`, `split`, `given`, `suggested`, and more."""
        import pandas as pd

        return pd.DataFrame(self.quality.label_errors, columns=list(LabelError._fields))

    @property
    def duplicates(self) -> "pd.DataFrame":
        """Pairs of images that are equal, or nearly equal across splits: a row for each pair."""
        import pandas as pd

        return pd.DataFrame(self.quality.duplicates.pairs, columns=list(DuplicatePair._fields))

    @property
    def leaks(self) -> dict[str, dict[str, int]]:
        """For each split and each other one, how many images of the first have a duplicate in the second."""
        return self.quality.duplicates.leaks

    def _summary(self) -> Summary:
        quality, found = self.quality, self.quality.duplicates
        facts = [
            ("images", ", ".join(f"{name} {count:,}" for name, count in quality.rows.items())),
            ("labels judged", f"{quality.rows_judged:,}"),
            ("probably wrong", f"{len(quality.label_errors):,} (estimated share {quality.label_error_share:.1%})"),
            ("exact duplicates", f"{found.n_exact:,} pairs"),
            ("near duplicates across splits", f"{found.n_near:,} pairs of similarity {found.threshold:.4f} or more"),
        ]
        rows = [
            (error.path, error.split, error.given, error.suggested, f"{error.suggested_probability:.3f}")
            for error in quality.label_errors[:MOST_ROWS]
        ]
        columns = ("image", "split", "label", "suggested", "probability") if rows else ()
        more = max(0, len(quality.label_errors) - MOST_ROWS)
        return Summary(f"Data of {quality.url}", facts, columns, rows, numbers=(4,), more=more)


def check_data(
    features: HasUrl | str | Path,
    *,
    seed: int = 42,
    threshold: float | None = None,
    output: str | Path | None = None,
    column: str | None = None,
) -> DataFindings:
    """Looks for probable label errors in training and validation, and for duplicates within and across splits.

    The features of all splits are held in memory, and those of training and validation up to three times.

    Args:
        features: a feature set or its URL.
        seed: the seed of the folds and of the heads that judge the labels.
        threshold: the least similarity of near duplicates, in [0, 1]; default: chosen by how alike different images are.
        output: a folder for `label-errors.csv` and `duplicates.csv`; default: nothing is written.
        column: the column of features to judge by, of a set with several.

    Raises:
        UsageError: there is no feature set or column.
        JobError: files are missing or damaged, or features are not finite.
    """
    url = url_of(features)
    manifest = read_features_manifest(url).of_column(column, url)
    quality = data_quality.check_data(url, seed=seed, threshold=threshold, manifest=manifest)
    return DataFindings(quality, {} if output is None else write_findings(quality, str(output)))


@dataclass(frozen=True, repr=False, eq=False)
class DriftFindings(Summarised):
    """Whether images have changed since training. Its `repr` is a table, in a notebook too.

    Attributes:
        report: all that was found.
    """

    report: DriftReport

    @property
    def alarms(self) -> int:
        """The number of windows that gave an alarm."""
        return self.report.alarms

    @property
    def table(self) -> str | None:
        """The URL of the file that has a row for each window; None where there was no window."""
        return self.report.table

    @property
    def windows(self) -> "pd.DataFrame":
        """A row for each window, by its number: times, number of images, the p-value of each test, and `alarm`."""
        import pandas as pd

        return pd.DataFrame([_row_of_window(window) for window in self.report.windows]).set_index(
            pd.Index([window.number for window in self.report.windows], name="window")
        )

    def _summary(self) -> Summary:
        report = self.report
        expected = report.false_alarm_rate * len(report.windows)
        facts = [
            ("images", f"{report.images:,}, {report.left_over:,} in no window"),
            ("reference", f"{report.reference.rows:,} images of the model's validation split"),
            (
                "alarms",
                f"{report.alarms} of {len(report.windows)} windows; without a change {expected:.2g} are expected",
            ),
        ]
        rows = [
            (
                str(window.number),
                window.first.isoformat(timespec="seconds"),
                f"{window.result.images:,}",
                "alarm" if window.result.alarm else "",
                ", ".join(window.result.fired),
            )
            for window in report.windows[:MOST_ROWS]
        ]
        columns = ("window", "first prediction", "images", "alarm", "drift of") if rows else ()
        more = max(0, len(report.windows) - MOST_ROWS)
        return Summary(f"Drift of model {report.model_id[:16]}", facts, columns, rows, numbers=(0, 2), more=more)


def check_drift(
    predictions: HasUrl | str | Path,
    *,
    model: str = LATEST,
    since: datetime | str | None = None,
    until: datetime | str | None = None,
    last: int | None = None,
    window: int | None = None,
    false_alarm_rate: float = FALSE_ALARM_RATE,
    output: str | Path | None = None,
) -> DriftFindings:
    """Tests published predictions for drift: predicted labels, confidence, and features. A row for each window is kept.

    Args:
        predictions: published predictions or their URL.
        model: a view, a `model_id` or its first digits, a folder, the id of a run, ``name@alias`` or ``zk://host:port/path``.
        since: the time from which on images were labelled; as text in ISO 8601, UTC where it names no zone. None: all.
        until: the time before which images were labelled. None: all.
        last: the number of these images, those labelled last. None: all.
        window: the number of images in one window, in the order of labelling; None: all images are one window.
        false_alarm_rate: the share of windows that may give an alarm although nothing has changed.
        output: the folder for the table of windows; default: ``<predictions>/drift/windows``.

    Raises:
        UsageError: there are no predictions, no such model, or nothing to compare with; or a value is out of range.
        JobError: files are damaged.
    """
    return DriftFindings(
        check_predictions(
            url_of(predictions),
            model=model,
            selection=select_predictions(since=since, until=until, last=last),
            window=window,
            false_alarm_rate=false_alarm_rate,
            report=None if output is None else str(output),
        )
    )


def select_predictions(
    *, since: datetime | str | None = None, until: datetime | str | None = None, last: int | None = None
) -> Selection:
    """The selection of predictions by time and number; for the arguments see `check_drift`.

    Raises:
        UsageError: `since` or `until` is not a date or time.
    """
    times = {
        name: None if value is None else parse_time(value if isinstance(value, str) else value.isoformat(), name)
        for name, value in (("since", since), ("until", until))
    }
    return Selection(since=times["since"], until=times["until"], last=last)


def _row_of_window(window: Any) -> dict[str, Any]:
    result = window.result.as_dict()
    tests = {f"{name}_p": test["corrected"] for name, test in result.pop("tests").items()}
    return {"first_predicted_at": window.first, "last_predicted_at": window.last, **result, **tests}


@dataclass(frozen=True, repr=False)
class Relabelling(Summarised):
    """What `relabel` did. Its `repr` is a table, in a notebook too.

    Attributes:
        features: the URL of the feature set.
        number: the number of these corrections in its log; None where there was nothing to correct.
        corrected: images that got another label.
        unchanged: images that had the label already.
    """

    features: str
    number: int | None
    corrected: int
    unchanged: int

    def _summary(self) -> Summary:
        facts = [("corrected", f"{self.corrected:,}"), ("unchanged", f"{self.unchanged:,}")]
        return Summary(f"Labels of {self.features}", facts)


def relabel(
    table: "str | Path | Mapping[str, str] | pd.DataFrame | DataFrame",
    features: HasUrl | str | Path,
    *,
    reason: str,
    by: str | None = None,
) -> Relabelling:
    """Corrects labels of a feature set: all that the table says, or none. Every later read sees the last label of an image.

    Args:
        table: the URL of a CSV file with the columns `image_id` and `label`; a pandas or Spark DataFrame with these columns;
            or a mapping from image id to label.
        features: the feature set or its URL.
        reason: the reason, which is kept with each correction.
        by: the person who corrects; default: the user who runs this.

    Raises:
        UsageError: the table is empty, or names an image twice, one that is not in the set, or a label that is no class.
        JobError: files are damaged.
    """
    url = url_of(features)
    if isinstance(table, str | Path):
        done = relabelling.relabel(str(table), url, reason=reason, by=by)
    else:
        done = relabelling.correct_labels(_labels_of(table), url, reason=reason, by=by, origin="the table")
    return Relabelling(done.features, done.number, done.corrected, done.unchanged)


def _labels_of(table: Any) -> list[tuple[Any, Any]]:
    """The pairs of image id and label in a frame or a mapping."""
    if isinstance(table, Mapping):
        return list(table.items())
    return relabelling.labels_of_columns(table, origin="the table")
