"""Two models on the same images: how often they agree, where they differ, and from which model's reference the images drift."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from featurize.errors import UsageError
from featurize.tables.manifests import PredictionsManifest
from featurize.tables.predictions import PublishedViews, read_views
from finetune.drift.check import reference_of
from finetune.drift.read import EVERYTHING, Selection, find_predictions, match, read_rows, window_of
from finetune.drift.window import FALSE_ALARM_RATE, LEAST_IMAGES, WindowResult, check_rate, check_window
from finetune.scores.calibration import wilson_interval

_MOST_PAIRS = 10


@dataclass(frozen=True)
class Side:
    """One of the two models.

    Attributes:
        name: The model as the caller named it.
        images: Number of selected images that it has labelled.
        confidence_where_they_differ: Its mean probability on images where the models differ; None where they never do.
        result: The tests of all images that both have labelled, against this model's own reference.
    """

    name: str
    model_id: str
    images: int
    confidence_where_they_differ: float | None
    result: WindowResult


@dataclass(frozen=True)
class Comparison:
    """The result of `compare_predictions`.

    Attributes:
        images: Number of images that both have labelled.
        agreement: Share of them for which both have the same most probable class, whether they abstain or not.
        interval: 95 % interval of the agreement (Wilson).
        differences: Pairs of labels that differ, most frequent first, at most ten: (first's label, second's label, images).
    """

    first: Side
    second: Side
    images: int
    agreement: float
    interval: tuple[float, float]
    differences: tuple[tuple[str, str, int], ...]

    def as_dict(self) -> dict[str, Any]:
        """The comparison as a JSON-ready dict."""
        sides = {
            side: {**asdict(value), "result": value.result.as_dict()}
            for side, value in (("first", self.first), ("second", self.second))
        }
        return {**asdict(self), **sides}


def compare_predictions(
    output: str,
    first: str,
    second: str,
    *,
    selection: Selection = EVERYTHING,
    false_alarm_rate: float = FALSE_ALARM_RATE,
) -> Comparison:
    """Compares the answers of two models for the same images, such as the champion and a challenger. Needs no Spark.

    Args:
        first: A view, a `model_id` or its first digits, a folder, the id of a run, ``name@alias``, or a node, ``zk://host:port/path``.
        second: The other model, named in the same way.
        selection: Which of the first model's predictions to compare; the second's may have been made at any time.

    Raises:
        UsageError: There are no predictions, no such models, too few images in common, or no reference.
        JobError: Files are damaged.
    """
    check_rate(false_alarm_rate)
    published = read_views(output)
    manifests = [find_predictions(published, name) for name in (first, second)]
    if manifests[0].model_id == manifests[1].model_id:
        raise UsageError(f"{first} and {second} are the same model, {manifests[0].model_id[:16]}.")
    selected = read_rows(published.url, manifests[0], selection)
    others = read_rows(published.url, manifests[1], EVERYTHING)
    rows, other_rows = match(selected, others)
    if rows.num_rows < LEAST_IMAGES:
        raise UsageError(
            f"{first} and {second} have labelled {rows.num_rows} images in common at {published.url}; a comparison needs "
            f"{LEAST_IMAGES}. Run `finetune predict` with both models on the same images."
        )
    pairs = list(zip(rows["label"].to_pylist(), other_rows["label"].to_pylist(), strict=True))
    differs = [one != other for one, other in pairs]
    agreeing = len(pairs) - sum(differs)
    counts = Counter(pair for pair, differ in zip(pairs, differs, strict=True) if differ)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_MOST_PAIRS]
    sides = [
        _side(published, name, manifest, matched, images=images, differs=differs, rate=false_alarm_rate)
        for name, manifest, matched, images in zip(
            (first, second), manifests, (rows, other_rows), (selected.num_rows, others.num_rows), strict=True
        )
    ]
    return Comparison(
        first=sides[0],
        second=sides[1],
        images=len(pairs),
        agreement=agreeing / len(pairs),
        interval=wilson_interval(agreeing, len(pairs)),
        differences=tuple((one, other, count) for (one, other), count in ranked),
    )


def _side(
    published: PublishedViews,
    name: str,
    manifest: PredictionsManifest,
    rows: pa.Table,
    *,
    images: int,
    differs: list[bool],
    rate: float,
) -> Side:
    window = window_of(rows)
    there = window.probabilities[differs]
    return Side(
        name=name,
        model_id=manifest.model_id,
        images=images,
        confidence_where_they_differ=float(there.mean(dtype=float)) if len(there) else None,
        result=check_window(reference_of(published.url, manifest), window, false_alarm_rate=rate),
    )
