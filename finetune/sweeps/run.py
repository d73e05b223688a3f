"""Running a sweep, round by round of its search: existing models are reused, and concurrent sweeps share the work."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from featurize import storage
from featurize.tables.manifests import utc_now
from finetune.models.folder import refer_to_features
from finetune.sweeps.folder import CARD_NAME, SweepCard, Trial, mean_of, read_sweep
from finetune.sweeps.plan import PlannedTrial, SweepPlan
from finetune.sweeps.search import Values
from finetune.sweeps.trials import InProcess, TrialRunner, find_done

_POLL_S = 1.0


@dataclass(frozen=True)
class SweepResult:
    """The result of `run_sweep`.

    Attributes:
        trained: Number of models that this call trained.
        reused: Number of models that were trained before, or by another job in the meantime.
        failed: Number of trainings that failed.
    """

    card: SweepCard
    trained: int
    reused: int
    failed: int


def run_sweep(
    plan: SweepPlan,
    *,
    runner: TrialRunner | None = None,
    on_trials: Callable[[Sequence[Trial]], None] | None = None,
) -> SweepResult:
    """Trains the missing models of `plan`, and writes `sweep.json` after every group of trials.

    A trial that failed before is tried again. The call waits for a trial that another job is training, and trains it itself if
    that job dies.

    Args:
        plan: The checked sweep.
        runner: Where to train; default: in this process.
        on_trials: Called with every group of trials that is finished or was found.

    Raises:
        UsageError: A proposal of a Bayesian search is invalid.
        JobError: The features cannot be read, or the sweep's folder cannot be written.
    """
    sweep = _Sweep(plan, runner or InProcess(), on_trials or (lambda trials: None))
    search = plan.search()
    settings = next(search)
    while True:
        means = sweep.run_round(settings)
        try:
            settings = search.send(means)
        except StopIteration:
            return sweep.result()


@dataclass
class _Sweep:
    """A sweep in progress, with the trials that are done."""

    plan: SweepPlan
    runner: TrialRunner
    on_trials: Callable[[Sequence[Trial]], None]
    done: dict[str, Trial] = field(default_factory=dict)  # by the model's identity
    reused: int = 0

    def run_round(self, settings: Sequence[Values]) -> list[float | None]:
        """Makes sure that the models of `settings` exist.

        Returns:
            For each setting the mean of the sweep's metric; None where none of its models could be trained.
        """
        trials = self.plan.plan_trials(settings)
        todo = self._without_done(trials)
        while todo:
            waiting = list[PlannedTrial]()
            for outcome in self.runner.run(todo):
                waiting += outcome.others
                if outcome.trials:
                    self._take(outcome.trials)
            todo = self._without_done(waiting)
            if todo and len(todo) == len(waiting):
                time.sleep(_POLL_S)
        seeds = len(self.plan.seeds)
        ids = [trial.plan.model_id for trial in trials]
        groups = [ids[start : start + seeds] for start in range(0, len(ids), seeds)]
        return [mean_of([self.done[model_id] for model_id in group], self.plan.settings.metric) for group in groups]

    def result(self) -> SweepResult:
        """The result so far."""
        trials = list(self.done.values())
        failed = sum(trial.state == "failed" for trial in trials)
        card = write_card(self.plan, trials)
        return SweepResult(card=card, trained=len(trials) - self.reused - failed, reused=self.reused, failed=failed)

    def _without_done(self, trials: Sequence[PlannedTrial]) -> list[PlannedTrial]:
        """The trials that are not finished; finished models that exist already are taken over."""
        left = [trial for trial in trials if trial.plan.model_id not in self.done]
        if found := find_done(left):
            self.reused += len(found)
            self._take(found)
        return [trial for trial in left if trial.plan.model_id not in self.done]

    def _take(self, trials: Sequence[Trial]) -> None:
        self.done |= {trial.model_id: trial for trial in trials}
        write_card(self.plan, list(self.done.values()))
        self.on_trials(trials)


def write_card(plan: SweepPlan, trials: Sequence[Trial]) -> SweepCard:
    """Writes `sweep.json`: `trials`, and trials of earlier calls with other values whose models still exist."""
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
        is_halving=plan.settings.halving is not None,
        trials=[*kept, *trials],
        created_at=before.created_at if before is not None else utc_now(),
        updated_at=utc_now(),
    )
    storage.write_json(storage.join_url(plan.url, CARD_NAME), card.model_dump())
    return card
