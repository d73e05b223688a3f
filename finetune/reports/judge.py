"""The subject of a report, a model or a sweep, and the predictions of its models on one split."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featurize import storage
from featurize.errors import UsageError
from featurize.tables.manifests import FeaturesManifest
from finetune.evaluation.split_answers import open_split_rows
from finetune.models.folder import CARD_NAME, ModelCard, load_model, read_model_card
from finetune.scores.calibration import wilson_interval
from finetune.sweeps.folder import CARD_NAME as SWEEP_CARD_NAME
from finetune.sweeps.folder import Setting, SweepCard, Trial, rank_settings, read_sweep, with_metric
from finetune.sweeps.setting_names import as_text, describe_values


@dataclass(frozen=True)
class Candidate:
    """A model to be judged, and its name in the report."""

    name: str
    url: str
    seed: int | None = None
    setting: int | None = None  # its position among the settings of the sweep


@dataclass(frozen=True)
class Target:
    """The subject of a report: `candidates[0]` is the model that it shows in full."""

    url: str
    candidates: list[Candidate]
    sweep: SweepCard | None = None
    settings: tuple[Setting, ...] = ()

    @property
    def kind(self) -> str:
        """``model`` or ``sweep``."""
        return "model" if self.sweep is None else "sweep"


@dataclass(frozen=True, eq=False)
class JudgedModel:
    """One model's predictions on the split, `predicted` int64 ``(n_rows,)``, and their accuracy with its 95 % interval."""

    candidate: Candidate
    card: ModelCard
    predicted: NDArray[np.int64]
    accuracy: float
    interval: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Judgement:
    """The predictions of all models on one split.

    Attributes:
        probabilities: float32 ``(n_rows, n_classes)``, of the first model.
        label_index: int32 ``(n_rows,)``, the given labels.
        paths: Paths of the images.
        models: The judged models; the subject of the report comes first.
    """

    features_url: str
    manifest: FeaturesManifest
    split: str
    probabilities: NDArray[np.float32]
    label_index: NDArray[np.int32]
    paths: list[str]
    models: list[JudgedModel]

    @property
    def classes(self) -> list[str]:
        """The class labels, in the order of `label_index`."""
        return self.models[0].card.classes


def find_target(url: str, compared: Sequence[str] = ()) -> Target:
    """The model or the sweep at `url`.

    Args:
        url: URL of the folder.
        compared: URLs of other models to compare with it.

    Raises:
        UsageError: There is neither a model nor a sweep, or no trial of the sweep is done.
    """
    url = storage.absolute_url(url)
    others = [Candidate(_last_part(other), storage.absolute_url(other)) for other in compared]
    sweep = read_sweep(url)
    if sweep is not None:
        settings = tuple(rank_settings(sweep))
        return Target(url, [*_best_trials(url, sweep, settings), *others], sweep, settings)
    if read_model_card(url) is None:
        raise UsageError(
            f"{url} is neither a model (it has no {CARD_NAME}) nor a sweep (it has no {SWEEP_CARD_NAME}). "
            "Make one with `finetune fit` or `finetune sweep`."
        )
    return Target(url, [Candidate(_last_part(url), url), *others])


def judge(target: Target, split: str) -> Judgement:
    """Lets all models of `target` predict one split of the feature set that the first was trained on.

    If the first model was trained on a `where`, all are judged by the rows that it selects. Rows are read once, a row group at a
    time; for all models but the first, only the predicted classes are kept.

    Raises:
        UsageError: A model is missing, or was trained on other classes or another backbone; or the split has no rows.
        JobError: Files are damaged.
    """
    loaded = [load_model(candidate.url) for candidate in target.candidates]
    rows = open_split_rows([card for _, card in loaded], split)
    probabilities, predicted = [], list[NDArray[np.int64]]()
    labels, paths = [], list[str]()
    for part, said in rows.answers([network for network, _ in loaded]):
        probabilities.append(said[0])
        predicted.append(np.stack([each.argmax(axis=1) for each in said]))
        labels.append(part.label_index)
        paths += part.paths.to_pylist()
    label_index, by_model = np.concatenate(labels), np.concatenate(predicted, axis=1)
    models = [
        _judged(candidate, card, classes, label_index)
        for candidate, (_, card), classes in zip(target.candidates, loaded, by_model, strict=True)
    ]
    return Judgement(rows.url, rows.manifest, split, np.concatenate(probabilities), label_index, paths, models)


def varying_keys(sweep: SweepCard) -> list[str]:
    """The keys with more than one value among the trials."""
    return [
        key
        for key in sweep.keys
        if len({as_text(trial.values[key]) for trial in sweep.trials if key in trial.values}) > 1
    ]


def best_trial(setting: Setting, metric: str) -> Trial | None:
    """The best trial of a setting by the sweep's metric; None where none is done."""
    done = with_metric(setting.trials, metric)
    sign = -1 if metric.endswith("loss") else 1
    return max(done, key=lambda trial: sign * trial.metrics[metric], default=None)


def _best_trials(url: str, sweep: SweepCard, settings: Sequence[Setting]) -> list[Candidate]:
    """All trials of the two best settings, each setting's best trial first."""
    found = []
    keys = varying_keys(sweep)
    for place, setting in enumerate(settings[:2]):
        best = best_trial(setting, sweep.metric)
        done = [trial for trial in setting.trials if trial.state == "done" and trial is not best]
        for trial in [best, *done] if best is not None else []:
            name = f"{describe_values(trial.values, keys)}; seed {trial.seed}"
            found.append(Candidate(name, trial.url, trial.seed, place))
    if not found:
        raise UsageError(f"{url} is a sweep in which no trial is done. Resume it with `finetune sweep`.")
    return found


def _judged(
    candidate: Candidate, card: ModelCard, predicted: NDArray[np.int64], label_index: NDArray[np.int32]
) -> JudgedModel:
    right, rows = int((predicted == label_index).sum()), len(label_index)
    return JudgedModel(candidate, card, predicted, right / rows, wilson_interval(right, rows))


def _last_part(url: str) -> str:
    return storage.absolute_url(url).rpartition("/")[2]
