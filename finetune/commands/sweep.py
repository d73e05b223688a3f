"""`finetune sweep`: the command."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track
from rich.table import Table

from featurize.commands.options import JsonOption, SetOption, print_result, reported_errors
from featurize.console import say
from featurize.errors import JobError

if TYPE_CHECKING:
    from pyspark import SparkContext

    from finetune.sweeps.folder import Setting, SweepCard
    from finetune.sweeps.plan import SweepPlan
    from finetune.sweeps.run import SweepResult

_SETTINGS_SHOWN = 10


def sweep_command(
    recipe: Annotated[str, typer.Argument(help="The recipe, a TOML file with a table [sweep].")],
    tasks: Annotated[
        int | None, typer.Option(min=1, help="Trains on Spark, so many tasks at a time; left out: in this process.")
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Trains a model for every setting and seed of a sweep, many at once, and ranks the settings. What is done is kept."""
    with reported_errors():
        from featurize.recipes.recipe import read_recipe
        from finetune.networks.user_functions import see_working_folder
        from finetune.sweeps.folder import rank_settings
        from finetune.sweeps.plan import plan_sweep

        see_working_folder()
        plan = plan_sweep(read_recipe(recipe, overrides or ()), origin=recipe)
        result = _run(plan, tasks)
        ranked = rank_settings(result.card)
        say(f"{plan.url}: {result.trained} models trained, {result.reused} there already, {result.failed} failed.")
        Console(stderr=True).print(_table(result.card, ranked))
        print_result(_as_json(plan.url, result.card, ranked, result.trained, result.reused), as_json=as_json)
        _log(plan, result.card)
        if result.failed:
            raise JobError(_failures(result.card))


def _run(plan: "SweepPlan", tasks: int | None) -> "SweepResult":
    from featurize.backbones.backbone import set_threads
    from finetune.sweeps.run import run_sweep
    from finetune.sweeps.trials import InProcess, TrialRunner

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with ExitStack() as opened:
        runner: TrialRunner
        if tasks is None:
            cores = len(os.sched_getaffinity(0))
            at_once = min(cores, plan.most_models)
            set_threads(cores // at_once, at_once=at_once)
            runner = InProcess(at_once=at_once)
        else:
            from featurize.building.session import open_session
            from finetune.sweeps.spark_tasks import OnSpark

            def start() -> "SparkContext":
                return opened.enter_context(open_session("firn sweep", slots=tasks)).sparkContext

            runner = OnSpark(start, tasks=tasks)
        progress = opened.enter_context(Progress(*columns, console=Console(stderr=True), transient=True))
        bar = progress.add_task("models", total=plan.most_models)
        return run_sweep(plan, runner=runner, on_trials=lambda trials: progress.advance(bar, len(trials)))


def _log(plan: "SweepPlan", card: "SweepCard") -> None:
    """Logs the models of the sweep that are not in the registry, if one is named."""
    from finetune.registry.client import shown, used_registry
    from finetune.registry.log_model import is_logged, log_fit

    registry = used_registry(plan.recipe.registry)
    if registry is None:
        return
    done = [trial for trial in card.trials if trial.state == "done"]
    todo = [trial for trial in done if not is_logged(trial.url, registry, model_id=trial.model_id)]
    for trial in track(todo, "to the registry", console=Console(stderr=True), transient=True):
        log_fit(trial.url, registry)
    say(f"logged: {len(todo)} models, {len(done) - len(todo)} there already, in {shown(registry.url)}")


def _table(card: "SweepCard", ranked: "Sequence[Setting]") -> Table:
    from finetune.sweeps.setting_names import as_text, short_names

    names = short_names(card.keys)
    table = Table(box=None, padding=(0, 1))
    for name in (*names.values(), card.metric, "sd", "95 % interval", "models"):
        table.add_column(name, no_wrap=True)
    for setting in ranked[:_SETTINGS_SHOWN]:
        interval = "" if setting.interval is None else f"{setting.interval[0]:.4f} to {setting.interval[1]:.4f}"
        mean, sd = ("" if value is None else f"{value:.4f}" for value in (setting.mean, setting.sd))
        values = [as_text(setting.values.get(key, "")) for key in card.keys]
        table.add_row(*values, mean, sd, interval, str(sum(trial.state == "done" for trial in setting.trials)))
    if len(ranked) > _SETTINGS_SHOWN:
        table.caption = f"... and {len(ranked) - _SETTINGS_SHOWN} more settings"
    return table


def _as_json(url: str, card: "SweepCard", ranked: "Sequence[Setting]", trained: int, reused: int) -> dict[str, Any]:
    return {
        "sweep": url,
        "metric": card.metric,
        "trained": trained,
        "reused": reused,
        "settings": [
            {
                "values": setting.values,
                "mean": setting.mean,
                "sd": setting.sd,
                "interval": setting.interval,
                "models": [trial.url for trial in setting.trials if trial.state == "done"],
                "failed": sum(trial.state == "failed" for trial in setting.trials),
            }
            for setting in ranked
        ],
    }


def _failures(card: "SweepCard") -> str:
    from finetune.sweeps.plan import in_words

    failed = [trial for trial in card.trials if trial.state == "failed"]
    lines = [f"  - {in_words(trial.values)}, seed {trial.seed}: {trial.error}" for trial in failed[:5]]
    more = [f"  ... and {len(failed) - 5} more"] if len(failed) > 5 else []
    return "\n".join([f"{len(failed)} models could not be trained; run it again to try once more:", *lines, *more])
