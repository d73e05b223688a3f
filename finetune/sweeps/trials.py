"""Training the models of a sweep: together in one process where possible, each claimed so that no other job trains it."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from queue import Queue
from typing import Protocol

from featurize import storage
from featurize.errors import FirnError, JobError
from featurize.recipes.training_section import TrainingSettings
from featurize.storage.claims import Claim, claim_output
from featurize.tables.manifests import FeaturesManifest
from finetune.models.folder import ModelCard, read_model_card
from finetune.rows.loader import Data, cache_of, open_split
from finetune.sweeps.folder import Trial
from finetune.sweeps.plan import PlannedTrial, group_trials
from finetune.sweeps.stacked_fit import fit_stack
from finetune.sweeps.stacks import Stacks
from finetune.training.checkpoints import read_checkpoint, remove_checkpoint, write_checkpoint
from finetune.training.loop import FitResult, InterruptedTrainingError, fit
from finetune.training.plan import TrainingPlan, identity_of_rows, weights_of_classes
from finetune.training.train import build_network, publish

MOST_TOGETHER = 20  # for heads of 1,024 x 102, both 40 and 14 are slower (benchmarks/sweep.py)


_building = (
    threading.Lock()
)  # networks are built one at a time: a user's own function may use the process's random state


@dataclass(frozen=True)
class Outcome:
    """The outcome for a group of trials.

    Attributes:
        trials: Trials that were trained, or failed.
        others: Trials that another job is training, or has trained in the meantime.
    """

    trials: list[Trial]
    others: list[PlannedTrial]


class TrialRunner(Protocol):
    """Trains trials, in this process or on Spark."""

    def run(self, trials: Sequence[PlannedTrial]) -> Iterator[Outcome]:
        """The outcomes of the trials, group by group as they finish.

        Raises:
            JobError: The features cannot be read, or the work cannot continue.
        """
        ...


class InProcess:
    """Trains trials in this process, several groups at a time, each in a thread.

    Two stacks on one thread each are half as fast again as one on two threads: splitting small operations gains little.

    Args:
        at_once: Groups at a time: the number given to `set_threads`, or one.
    """

    def __init__(self, *, at_once: int = 1) -> None:
        self._at_once = at_once
        self._opened = OpenedData()
        self._trainers: Queue[Trainer] = Queue()  # the idle trainers
        self._is_stopping = threading.Event()
        for _ in range(at_once):
            self._trainers.put(Trainer(self._opened, is_asked_to_stop=self._is_stopping.is_set))

    def run(self, trials: Sequence[PlannedTrial]) -> Iterator[Outcome]:
        """See `TrialRunner`. When left early, it ends with the epochs in progress."""
        self._is_stopping.clear()
        return train_groups(fair_groups(trials, self._at_once), self._train, self._at_once, stop=self._is_stopping.set)

    def _train(self, group: list[PlannedTrial]) -> Outcome:
        trainer = self._trainers.get()
        try:
            return trainer.train(group)
        finally:
            self._trainers.put(trainer)


def fair_groups(trials: Sequence[PlannedTrial], at_once: int) -> list[list[PlannedTrial]]:
    """The trials in groups that can be trained together, small enough that `at_once` groups have work."""
    return list(group_trials(trials, most=min(MOST_TOGETHER, max(1, -(-len(trials) // at_once)))))


def train_groups(
    groups: Sequence[list[PlannedTrial]],
    train: Callable[[list[PlannedTrial]], Outcome],
    at_once: int,
    *,
    stop: Callable[[], None],
) -> Iterator[Outcome]:
    """The outcomes of `train` for the groups, `at_once` of them at a time, in the order in which they finish.

    Args:
        groups: Groups of trials.
        train: Trains one group.
        at_once: Groups in progress at a time.
        stop: Called if one fails or the caller stops reading.
    """
    with ThreadPoolExecutor(at_once) as threads:
        under_way = [threads.submit(train, group) for group in groups]
        try:
            for done in as_completed(under_way):
                yield done.result()
        except BaseException:
            for waiting in under_way:
                waiting.cancel()
            stop()
            raise


class OpenedData:
    """The open splits of the last feature set; rows in memory are shared by all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._data: dict[tuple[tuple[str, ...], str, tuple[int, int] | None], tuple[Data, Data]] = {}

    def open(self, url: str, manifest: FeaturesManifest, settings: TrainingSettings) -> tuple[Data, Data]:
        """Training and validation rows; where rows are read from disk, those of the calling thread.

        Raises:
            JobError: The features cannot be read.
        """
        cache = cache_of(settings, manifest)
        own = (settings.shuffle_rows, threading.get_ident()) if cache == "stream" else None
        key = ((manifest.content_digest, str(manifest.column), *identity_of_rows(manifest).values()), cache, own)
        with self._lock:
            if key not in self._data:
                self._data = {kept: data for kept, data in self._data.items() if kept[0] == key[0]}
                train_data, validation_data = (
                    open_split(url, manifest, split, settings) for split in ("train", "validation")
                )
                self._data[key] = train_data, validation_data
            return self._data[key]


class Trainer:
    """Trains groups of trials one after another, in one thread at a time.

    Args:
        opened: Source of the data.
        is_asked_to_stop: Called after each epoch; true ends the training.
    """

    def __init__(self, opened: OpenedData, *, is_asked_to_stop: Callable[[], bool] = lambda: False) -> None:
        self._opened, self._is_asked_to_stop = opened, is_asked_to_stop
        self._stacks = Stacks()

    def train(self, group: Sequence[PlannedTrial]) -> Outcome:
        """Trains a group made by `group_trials`."""
        with ExitStack() as held:
            claimed, others = list[tuple[PlannedTrial, Claim]](), list[PlannedTrial]()
            for trial in group:
                try:
                    held.enter_context(storage.no_empty_folder(trial.plan.recipe.model.url))
                    claim = held.enter_context(claim_output(trial.plan.recipe.model.url))
                except JobError:  # another job holds the claim
                    others.append(trial)
                    continue
                if card_of(trial) is None:
                    claimed.append((trial, claim))
                else:
                    others.append(trial)
            return Outcome(self._train_claimed(claimed) if claimed else [], others)

    def _train_claimed(self, claimed: Sequence[tuple[PlannedTrial, Claim]]) -> list[Trial]:
        plans = [trial.plan for trial, _ in claimed]
        recipe = plans[0].recipe
        train_data, validation_data = self._opened.open(recipe.features.url, plans[0].manifest, recipe.training)
        started = time.perf_counter()
        results = self._fit_together(plans, train_data, validation_data)
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

    def _fit_together(
        self, plans: Sequence[TrainingPlan], train_data: Data, validation_data: Data
    ) -> Sequence[FitResult | FirnError]:
        """Trains a group of `group_trials`: several trials as a stack; one alone, from its checkpoint where there is one."""
        plan, settings = plans[0], [plan.recipe.training for plan in plans]
        weights = weights_of_classes(settings[0], plan.manifest)
        asked = self._is_asked_to_stop
        try:
            with _building:
                models = [build_network(plan, train_data) for plan in plans]
            if len(plans) > 1:
                return fit_stack(
                    models,
                    train_data,
                    validation_data,
                    settings,
                    class_weights=weights,
                    stacks=self._stacks,
                    is_asked_to_stop=asked,
                )
            url = plan.recipe.model.url
            result = fit(
                models[0],
                train_data,
                validation_data,
                settings[0],
                class_weights=weights,
                state=read_checkpoint(url, plan.model_id),
                keep=lambda state: write_checkpoint(url, plan.model_id, state),
                is_asked_to_stop=asked,
            )
        except InterruptedTrainingError:
            raise
        except FirnError as error:
            return [error for _ in plans]
        return [result]


def card_of(trial: PlannedTrial) -> ModelCard | None:
    """The description of a trial's model, if it has been trained."""
    card = read_model_card(trial.plan.recipe.model.url)
    return card if card is not None and card.model_id == trial.plan.model_id else None


def find_done(trials: Sequence[PlannedTrial]) -> list[Trial]:
    """The trials whose models exist."""
    found = ((trial, card_of(trial)) for trial in trials)
    return [as_trial(trial, card) for trial, card in found if card is not None]


def as_trial(trial: PlannedTrial, card: ModelCard) -> Trial:
    """The record of a trial whose model exists."""
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
