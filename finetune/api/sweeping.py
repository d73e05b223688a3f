"""`sweep`: many models of one recipe, and which settings are best."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurize import storage
from featurize.backbones.keras_network import set_threads
from featurize.errors import UsageError
from featurize.recipes.recipe import Recipe, origin_of, read_recipe
from finetune.api.model import Model, load_model
from finetune.api.notebook import displayable, live_count
from finetune.api.tables import MOST_ROWS, Summarised, Summary
from finetune.registry.client import check_registry, shown, used_registry
from finetune.registry.log_model import is_logged, log_fit
from finetune.reports.judge import best_trial
from finetune.sweeps.folder import SweepCard, Trial, rank_settings
from finetune.sweeps.plan import SweepPlan, plan_sweep
from finetune.sweeps.run import run_sweep
from finetune.sweeps.setting_names import as_text, describe_values, short_names
from finetune.sweeps.trials import InProcess, TrialRunner

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from pyspark.sql import SparkSession

    from finetune.api.reporting import Report

_MOST_PLOTTED = 40
OnTrials = Callable[[Sequence[Trial], int], None]
"""Called with trials that are done, and with how many models the sweep will have at most."""


@dataclass(frozen=True)
class LoggedTrials:
    """Where the models of a sweep were logged.

    Attributes:
        registry: the URL of the registry, as it may be shown.
        logged: models that this call logged.
        there: models that were logged before.
    """

    registry: str
    logged: int
    there: int


@dataclass(frozen=True, repr=False, eq=False)
class Sweep(Summarised):
    """The models of a sweep. Its `repr` is the ranking of the settings, in a notebook too.

    Attributes:
        url: the folder of the sweep.
        card: all that is known of it: what was varied, and what came of each training.
        trained: models that this call trained.
        reused: models that were trained before, or by another job meanwhile.
        failed: trainings that failed; `trials` says why.
        registered: where the models were logged; None where no registry is named.
    """

    url: str
    card: SweepCard
    trained: int
    reused: int
    failed: int
    registered: LoggedTrials | None = field(default=None)

    @property
    def metric(self) -> str:
        """The score by which the settings are ranked, such as ``validation_accuracy``."""
        return self.card.metric

    @property
    def settings(self) -> "pd.DataFrame":
        """The settings, best first: the swept keys; `mean`, `sd` and 95 % interval (`low`, `high`) of the metric; `models`."""
        import pandas as pd

        rows = [
            {
                **{key: setting.values.get(key) for key in self.card.keys},
                "mean": setting.mean,
                "sd": setting.sd,
                "low": None if setting.interval is None else setting.interval[0],
                "high": None if setting.interval is None else setting.interval[1],
                "models": sum(trial.state == "done" for trial in setting.trials),
            }
            for setting in rank_settings(self.card)
        ]
        return pd.DataFrame(rows)

    @property
    def trials(self) -> "pd.DataFrame":
        """A row for each training: values of the swept keys, `seed`, `state`, `error`, `url`, scores of the best epoch."""
        import pandas as pd

        facts = ("seed", "state", "error", "url", "epochs", "seconds")
        return pd.DataFrame(
            [
                {**trial.values, **{name: getattr(trial, name) for name in facts}, **trial.metrics}
                for trial in self.card.trials
            ]
        )

    @property
    def best(self) -> Model:
        """The best model of the best setting.

        Raises:
            UsageError: no training has succeeded.
        """
        ranked = rank_settings(self.card)
        trial = best_trial(ranked[0], self.metric) if ranked else None
        if trial is None:
            raise UsageError(f"{self.url} is a sweep in which no training has succeeded.")
        return load_model(trial.url)

    def plot(self) -> "Figure":
        """The mean of the metric for each setting with its 95 % interval, the best setting on top; at most 40 settings."""
        from matplotlib.figure import Figure

        ranked, names = rank_settings(self.card)[:_MOST_PLOTTED], short_names(self.card.keys)
        figure = Figure(figsize=(7, 1.2 + 0.3 * len(ranked)), layout="constrained")
        axes = figure.subplots()
        for place, setting in enumerate(ranked):
            if setting.interval is not None:
                axes.hlines(-place, *setting.interval, color="0.6")
            if setting.mean is not None:
                axes.plot(setting.mean, -place, "o", color="C0")
        labels = [describe_values(setting.values, list(names)) for setting in ranked]
        axes.set_yticks([-place for place in range(len(ranked))], labels)
        axes.set_xlabel(f"{self.metric.replace('_', ' ')}: mean and 95 % interval")
        axes.spines[["top", "right"]].set_visible(False)
        return displayable(figure)

    def report(self, output: str | Path | None = None, **options: Any) -> "Report":
        """The sweep on one page; see `finetune.report`, which also names the options."""
        from finetune.api.reporting import report

        return report(self, output, **options)

    def _summary(self) -> Summary:
        ranked, names = rank_settings(self.card), short_names(self.card.keys)
        rows = []
        for setting in ranked[:MOST_ROWS]:
            interval = "" if setting.interval is None else f"{setting.interval[0]:.4f} to {setting.interval[1]:.4f}"
            scores = ["" if value is None else f"{value:.4f}" for value in (setting.mean, setting.sd)]
            done = sum(trial.state == "done" for trial in setting.trials)
            values = [as_text(setting.values.get(key, "")) for key in self.card.keys]
            rows.append((*values, *scores, interval, str(done)))
        columns = (*names.values(), self.metric, "sd", "95 % interval", "models")
        facts = [("models", f"{self.trained:,} trained, {self.reused:,} trained before, {self.failed:,} failed")]
        more = max(0, len(ranked) - MOST_ROWS)
        return Summary(f"Sweep {self.url}", facts, columns, rows, numbers=range(len(columns)), more=more)


def sweep(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    tasks: int | None = None,
    spark: "SparkSession | None" = None,
    overrides: Mapping[str, Any] | Sequence[str] | None = None,
    on_trials: OnTrials | None = None,
    on_result: Callable[[Sweep], None] = lambda result: None,
) -> Sweep:
    """Trains a model for every setting and seed of a recipe's section `sweep`, many at once, and ranks the settings.

    Models that were trained before are not trained again; those that failed are. If the recipe or the environment names a
    registry, the models are logged there.

    Args:
        recipe: the path of a TOML file; or its sections by name; or a recipe that was read before.
        tasks: the number of Spark tasks at a time, each of which trains a group of models. None: trains in this process,
            unless `spark` is given, whose free slots are then taken.
        spark: the session for the tasks; it is not stopped. Default, with `tasks`: the active session, or else one made for
            this call.
        overrides: values by dotted key, as in ``{"training.epochs": 20}``; or texts of the form ``training.epochs=20``.
        on_trials: called with every group of trials that is done.
        on_result: called with the result before the models are logged, so that a registry that fails does not hide it.

    Raises:
        UsageError: the recipe has faults, or there is no feature set.
        JobError: the features cannot be read, the folder of the sweep cannot be written, or a model could not be logged.
    """
    if tasks is not None and tasks < 1:
        raise UsageError(f"`tasks` must be at least 1. Got {tasks}.")
    plan = plan_sweep(read_recipe(recipe, overrides), origin=origin_of(recipe))
    check_registry(plan.recipe.registry)
    done = 0
    with _runner(plan, tasks, spark) as runner, live_count("models") as show:

        def report(trials: Sequence[Trial]) -> None:
            nonlocal done
            done += len(trials)
            if on_trials is not None:
                on_trials(trials, plan.most_models)
            if show is not None:
                show(done, plan.most_models)

        result = run_sweep(plan, runner=runner, on_trials=report)
    found = Sweep(plan.url, result.card, result.trained, result.reused, result.failed)
    on_result(found)
    return replace(found, registered=_log(plan, result.card))


@contextmanager
def _runner(plan: SweepPlan, tasks: int | None, spark: "SparkSession | None") -> Iterator[TrialRunner]:
    if tasks is None and spark is None:
        cores = len(os.sched_getaffinity(0))
        at_once = min(cores, plan.most_models)
        set_threads(cores // at_once, at_once=at_once)
        yield InProcess(at_once=at_once)
        return
    from contextlib import ExitStack

    from featurize.building.session import borrowed_session, concurrent_tasks
    from finetune.sweeps.spark_tasks import OnSpark

    number = tasks if tasks is not None or spark is None else concurrent_tasks(spark)
    with ExitStack() as opened:

        def start() -> Any:
            return opened.enter_context(borrowed_session(spark, "firn sweep", slots=number)).sparkContext

        yield OnSpark(start, tasks=number or 1)


def _log(plan: SweepPlan, card: SweepCard) -> LoggedTrials | None:
    """Logs the models of the sweep that are not in the registry, if one is named.

    Logging sends files and leaves a record, so models elsewhere that `sweep.json` names are passed over.
    """
    registry = used_registry(plan.recipe.registry)
    if registry is None:
        return None
    folder = storage.absolute_url(plan.url)
    done = [trial for trial in card.trials if trial.state == "done" and storage.is_within(trial.url, folder)]
    todo = [trial for trial in done if not is_logged(trial.url, registry, model_id=trial.model_id)]
    for trial in todo:
        log_fit(trial.url, registry)
    return LoggedTrials(shown(registry.url), len(todo), len(done) - len(todo))
