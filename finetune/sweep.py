"""Running a sweep: what is there is kept, what can be trained together is, and two sweeps at once share the work."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from featurize import storage
from featurize.claims import Claim, claim_output
from featurize.errors import FirnError, JobError
from featurize.manifests import utc_now
from featurize.training_settings import TrainingSettings
from finetune.checkpoints import read_checkpoint, remove_checkpoint, write_checkpoint
from finetune.fit import FitResult, fit
from finetune.loader import Data, cache_of, open_split
from finetune.model_folder import ModelCard, read_model_card, refer_to_features
from finetune.plans import TrainingPlan, weights_of_classes
from finetune.stacked import fit_stack
from finetune.stacks import Stacks
from finetune.sweep_folder import CARD_NAME, SweepCard, Trial, read_sweep
from finetune.sweep_plan import PlannedTrial, SweepPlan, group_trials
from finetune.training import build_network, publish

MOST_TOGETHER = 16  # heads of 1,024 x 102: more are no faster, as their weights leave the cache (benchmarks/sweep.py)
_POLL_S = 1.0


@dataclass(frozen=True)
class SweepResult:
    """What a call of `run_sweep` has come to.

    Attributes:
        trained: how many models this call trained.
        reused: how many were there, or were trained by another job meanwhile.
        failed: how many trainings failed.
    """

    card: SweepCard
    trained: int
    reused: int
    failed: int


def run_sweep(plan: SweepPlan, *, on_trials: Callable[[Sequence[Trial]], None] | None = None) -> SweepResult:
    """Trains what `plan` lacks, in this process, and writes `sweep.json` after every group of trials.

    A trial that has failed before is tried again. One that another job is training is waited for, and trained here if that job
    dies.

    Args:
        on_trials: called with every group of trials that is through.

    Raises:
        JobError: the features cannot be read, or the sweep's folder not be written.
    """
    done = [_as_trial(trial, card) for trial, card in _find_done(plan.trials)]
    reused = len(done)
    write_card(plan, done)
    finished = {trial.model_id for trial in done}
    todo = [trial for trial in plan.trials if trial.plan.model_id not in finished]
    if todo:
        trainer = Trainer(plan)
        while todo:
            waiting = list[PlannedTrial]()
            for group in group_trials(todo, most=MOST_TOGETHER):
                trials, others = trainer.train(group)
                waiting += others
                done += trials
                write_card(plan, done)
                if on_trials is not None and trials:
                    on_trials(trials)
            reused_now = [_as_trial(trial, card) for trial, card in _find_done(waiting)]
            done, reused = done + reused_now, reused + len(reused_now)
            there = {trial.model_id for trial in reused_now}
            if (todo := [trial for trial in waiting if trial.plan.model_id not in there]) and len(todo) == len(waiting):
                time.sleep(_POLL_S)
    card = write_card(plan, done)
    failed = sum(trial.state == "failed" for trial in done)
    return SweepResult(card=card, trained=len(done) - reused - failed, reused=reused, failed=failed)


class Trainer:
    """Trains groups of trials on one feature set, which it reads once."""

    def __init__(self, plan: SweepPlan) -> None:
        self._plan = plan
        self._data: dict[tuple[str, int], tuple[Data, Data]] = {}
        self._stacks = Stacks()

    def train(self, group: Sequence[PlannedTrial]) -> tuple[list[Trial], list[PlannedTrial]]:
        """Trains a group as `group_trials` makes them.

        Returns:
            What has come of the trials, and those that another job is training.
        """
        with ExitStack() as held:
            claimed, others = list[tuple[PlannedTrial, Claim]](), list[PlannedTrial]()
            for trial in group:
                try:
                    held.enter_context(storage.no_empty_folder(trial.plan.recipe.model.url))
                    claim = held.enter_context(claim_output(trial.plan.recipe.model.url))
                except JobError:  # another sweep holds it
                    others.append(trial)
                    continue
                if _card_of(trial) is None:
                    claimed.append((trial, claim))
                else:
                    others.append(trial)
            return (self._train_claimed(claimed) if claimed else []), others

    def _train_claimed(self, claimed: Sequence[tuple[PlannedTrial, Claim]]) -> list[Trial]:
        plans = [trial.plan for trial, _ in claimed]
        train_data, validation_data = self._open(plans[0].recipe.training)
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
            trials.append(_as_trial(trial, card))
        return trials

    def _open(self, settings: TrainingSettings) -> tuple[Data, Data]:
        url, manifest = self._plan.recipe.features.url, self._plan.manifest
        key = (cache_of(settings, manifest), settings.shuffle_rows)
        if key not in self._data:
            train_data, validation_data = (
                open_split(url, manifest, split, settings) for split in ("train", "validation")
            )
            self._data[key] = train_data, validation_data
        return self._data[key]


def write_card(plan: SweepPlan, trials: Sequence[Trial]) -> SweepCard:
    """Writes `sweep.json`: `trials`, and those of earlier calls with other values, whose models are there still."""
    before = read_sweep(plan.url)
    known = {trial.model_id for trial in trials}
    kept = [trial for trial in before.trials if trial.model_id not in known] if before is not None else []
    card = SweepCard(
        recipe=plan.recipe.model_dump(),
        features=refer_to_features(plan.recipe.features.url, plan.manifest),
        classes=plan.manifest.classes,
        keys=list(dict.fromkeys(key for trial in (*kept, *trials) for key in trial.values)),
        seeds=sorted({trial.seed for trial in (*kept, *trials)}),
        metric=plan.settings.metric,
        trials=[*kept, *trials],
        created_at=before.created_at if before is not None else utc_now(),
        updated_at=utc_now(),
    )
    storage.write_json(storage.join_url(plan.url, CARD_NAME), card.model_dump())
    return card


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


def _card_of(trial: PlannedTrial) -> ModelCard | None:
    card = read_model_card(trial.plan.recipe.model.url)
    return card if card is not None and card.model_id == trial.plan.model_id else None


def _find_done(trials: Sequence[PlannedTrial]) -> Iterator[tuple[PlannedTrial, ModelCard]]:
    for trial in trials:
        if (card := _card_of(trial)) is not None:
            yield trial, card


def _as_trial(trial: PlannedTrial, card: ModelCard) -> Trial:
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
