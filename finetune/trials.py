"""Training the models of a sweep: those that can be trained together in one process, each claimed so that nobody else does."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from featurize import storage
from featurize.claims import Claim, claim_output
from featurize.errors import FirnError, JobError
from featurize.manifests import FeaturesManifest
from featurize.training_settings import TrainingSettings
from finetune.checkpoints import read_checkpoint, remove_checkpoint, write_checkpoint
from finetune.fit import FitResult, fit
from finetune.loader import Data, cache_of, open_split
from finetune.model_folder import ModelCard, read_model_card
from finetune.plans import TrainingPlan, weights_of_classes
from finetune.stacked import fit_stack
from finetune.stacks import Stacks
from finetune.sweep_folder import Trial
from finetune.sweep_plan import PlannedTrial, group_trials
from finetune.training import build_network, publish

MOST_TOGETHER = 16  # heads of 1,024 x 102: more are no faster, as their weights leave the cache (benchmarks/sweep.py)


@dataclass(frozen=True)
class Outcome:
    """What has come of a group of trials.

    Attributes:
        trials: those that were trained, or failed.
        others: those that another job is training, or has trained meanwhile.
    """

    trials: list[Trial]
    others: list[PlannedTrial]


class TrialRunner(Protocol):
    """Trains trials, wherever."""

    def run(self, trials: Sequence[PlannedTrial]) -> Iterator[Outcome]:
        """What comes of the trials, group by group as they are through.

        Raises:
            JobError: the features cannot be read, or the work cannot go on.
        """
        ...


class InProcess:
    """Trains the trials of a feature set in this process, with all its cores."""

    def __init__(self) -> None:
        self._trainer = Trainer()

    def run(self, trials: Sequence[PlannedTrial]) -> Iterator[Outcome]:
        """As `TrialRunner` says."""
        for group in group_trials(trials, most=MOST_TOGETHER):
            yield self._trainer.train(group)


class Trainer:
    """Trains groups of trials one after another. It reads a feature set once, and keeps the last one."""

    def __init__(self) -> None:
        self._data: dict[tuple[str, str, int], tuple[Data, Data]] = {}
        self._stacks = Stacks()

    def train(self, group: Sequence[PlannedTrial]) -> Outcome:
        """Trains a group as `group_trials` makes them."""
        with ExitStack() as held:
            claimed, others = list[tuple[PlannedTrial, Claim]](), list[PlannedTrial]()
            for trial in group:
                try:
                    held.enter_context(storage.no_empty_folder(trial.plan.recipe.model.url))
                    claim = held.enter_context(claim_output(trial.plan.recipe.model.url))
                except JobError:  # another job holds it
                    others.append(trial)
                    continue
                if card_of(trial) is None:
                    claimed.append((trial, claim))
                else:
                    others.append(trial)
            return Outcome(self._train_claimed(claimed) if claimed else [], others)

    def _train_claimed(self, claimed: Sequence[tuple[PlannedTrial, Claim]]) -> list[Trial]:
        plans = [trial.plan for trial, _ in claimed]
        train_data, validation_data = self._open(
            plans[0].recipe.features.url, plans[0].manifest, plans[0].recipe.training
        )
        started = time.perf_counter()
        results = _fit_together(plans, train_data, validation_data, self._stacks)
        seconds = (time.perf_counter() - started) / len(plans)
        trials = []
        for (trial, claim), result in zip(claimed, results, strict=True):
            if isinstance(result, FirnError):
                trials.append(_failed(trial, result, seconds=seconds))
                continue
            claim.verify()
            card = publish(trial.plan, result, train_rows=train_data.rows, validation_rows=validation_data.rows)
            remove_checkpoint(trial.plan.recipe.model.url)
            trials.append(as_trial(trial, card))
        return trials

    def _open(self, url: str, manifest: FeaturesManifest, settings: TrainingSettings) -> tuple[Data, Data]:
        key = (manifest.content_digest, cache_of(settings, manifest), settings.shuffle_rows)
        if key not in self._data:
            self._data = {kept: data for kept, data in self._data.items() if kept[0] == key[0]}
            train_data, validation_data = (
                open_split(url, manifest, split, settings) for split in ("train", "validation")
            )
            self._data[key] = train_data, validation_data
        return self._data[key]


def card_of(trial: PlannedTrial) -> ModelCard | None:
    """The card of the model of a trial, if it has been trained."""
    card = read_model_card(trial.plan.recipe.model.url)
    return card if card is not None and card.model_id == trial.plan.model_id else None


def find_done(trials: Sequence[PlannedTrial]) -> list[Trial]:
    """Those of the trials whose models are there."""
    found = ((trial, card_of(trial)) for trial in trials)
    return [as_trial(trial, card) for trial, card in found if card is not None]


def as_trial(trial: PlannedTrial, card: ModelCard) -> Trial:
    """A trial whose model is there."""
    return Trial(
        values=trial.values,
        seed=trial.seed,
        model_id=card.model_id,
        url=trial.plan.recipe.model.url,
        state="done",
        metrics=card.metrics,
        epochs=len(card.history),
        seconds=sum(entry["seconds"] for entry in card.history),
    )


def _failed(trial: PlannedTrial, error: FirnError, *, seconds: float) -> Trial:
    return Trial(
        values=trial.values,
        seed=trial.seed,
        model_id=trial.plan.model_id,
        url=trial.plan.recipe.model.url,
        state="failed",
        error=str(error),
        seconds=seconds,
    )


def _fit_together(
    plans: Sequence[TrainingPlan], train_data: Data, validation_data: Data, stacks: Stacks
) -> Sequence[FitResult | FirnError]:
    """Trains what `group_trials` has put together: many as a stack, one alone, from its checkpoint if it has left one."""
    plan, settings = plans[0], [plan.recipe.training for plan in plans]
    weights = weights_of_classes(settings[0], plan.manifest)
    try:
        models = [build_network(plan, train_data) for plan in plans]
        if len(plans) > 1:
            return fit_stack(models, train_data, validation_data, settings, class_weights=weights, stacks=stacks)
        url = plan.recipe.model.url
        result = fit(
            models[0],
            train_data,
            validation_data,
            settings[0],
            class_weights=weights,
            state=read_checkpoint(url, plan.model_id),
            keep=lambda state: write_checkpoint(url, plan.model_id, state),
        )
    except FirnError as error:
        return [error for _ in plans]
    return [result]
