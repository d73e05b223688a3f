"""The folder of a sweep: `sweep.json`, which records settings and results, and a model folder for every trial."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from featurize import storage
from featurize.recipes.sweep_section import EPOCHS
from featurize.storage.inner_path import InnerName, NamedUrl
from featurize.tables.documents import read_document
from finetune.models.folder import FeaturesReference, TrainingRecipe
from finetune.scores.metrics import CONFIDENCE

SCHEMA_VERSION = 1
CARD_NAME = "sweep.json"
MODELS_FOLDER = "models"


class Trial(BaseModel):
    """One trained model: a setting with one seed."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    values: dict[str, Any]  # values of the swept keys, such as {"training.learning_rate": 0.1}; without the seed
    seed: int
    model_id: InnerName
    url: NamedUrl  # URL of the model folder
    state: Literal["done", "failed"]
    error: str | None = None
    metrics: dict[str, float] = {}  # metrics of the best epoch, as in the model's `model.json`
    epochs: int = 0
    seconds: float = 0.0  # training time; trials that were trained together share it equally


class Setting(BaseModel):
    """The trials that differ only in their seeds."""

    model_config = ConfigDict(frozen=True)

    values: dict[str, Any]
    trials: list[Trial]
    mean: float | None  # mean of the sweep's metric over the trials that are done; None where none is
    sd: float | None  # standard deviation; None with fewer than two trials
    interval: tuple[float, float] | None  # 95 % confidence interval of the mean; None with fewer than two trials


class SweepCard(BaseModel):
    """`sweep.json`."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA_VERSION
    recipe: TrainingRecipe  # recipe of every trial, without its own values and seed
    features: FeaturesReference
    classes: list[str]
    keys: list[str]  # the swept keys
    seeds: list[int]
    metric: str  # metric that ranks the settings, such as validation_accuracy
    is_halving: bool = False  # then settings that were trained for more epochs come first
    trials: list[Trial]
    created_at: str
    updated_at: str


def read_sweep(url: str) -> SweepCard | None:
    """The content of `sweep.json` of the sweep at `url`, or None where there is none.

    Raises:
        JobError: It is damaged, or has another schema version.
    """
    return read_document(storage.join_url(url, CARD_NAME), SweepCard, version=SCHEMA_VERSION)


def rank_settings(card: SweepCard) -> list[Setting]:
    """The settings of a sweep, best mean first (smallest, where the metric is a loss), those without a finished trial last.

    With successive halving, settings that were trained longer come first.
    """
    groups = dict[str, list[Trial]]()
    for trial in card.trials:
        groups.setdefault(repr(sorted(trial.values.items())), []).append(trial)
    settings = [_summarize(trials, card.metric) for trials in groups.values()]
    sign, all_epochs = 1 if card.metric.endswith("loss") else -1, card.recipe["training"]["epochs"]

    def place(setting: Setting) -> tuple[float, float]:
        if setting.mean is None:
            return math.inf, math.inf
        return (-setting.values.get(EPOCHS, all_epochs) if card.is_halving else 0), sign * setting.mean

    return sorted(settings, key=place)


def with_metric(trials: Sequence[Trial], metric: str) -> list[Trial]:
    """The trials that are done and have the metric."""
    return [trial for trial in trials if trial.state == "done" and metric in trial.metrics]


def mean_of(trials: Sequence[Trial], metric: str) -> float | None:
    """The mean of a metric over the trials that are done; None where none is."""
    found = _values_of(trials, metric)
    return fmean(found) if found else None


def confidence_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of two or more independent, normally distributed values: Student, 1908."""
    from scipy.stats import t

    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def _summarize(trials: list[Trial], metric: str) -> Setting:
    found = _values_of(trials, metric)
    several = len(found) > 1
    return Setting(
        values=trials[0].values,
        trials=trials,
        mean=mean_of(trials, metric),
        sd=stdev(found) if several else None,
        interval=confidence_interval(found) if several else None,
    )


def _values_of(trials: Sequence[Trial], metric: str) -> list[float]:
    return [trial.metrics[metric] for trial in with_metric(trials, metric)]
