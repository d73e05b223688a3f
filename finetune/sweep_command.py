"""`finetune sweep`: the command."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from featurize.cli import JsonOption, SetOption, print_result, reported_errors, say
from featurize.errors import JobError
from featurize.recipe import read_recipe
from finetune.sweep_folder import Setting, SweepCard, Trial, rank_settings

_SETTINGS_SHOWN = 10


def sweep_command(
    recipe: Annotated[str, typer.Argument(help="The recipe, a TOML file with a table [sweep].")],
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Trains a model for every setting and seed of a sweep, many at once, and ranks the settings. What is done is kept."""
    with reported_errors():
        from finetune.sweep import run_sweep
        from finetune.sweep_plan import plan_sweep

        plan = plan_sweep(read_recipe(recipe, overrides or ()), origin=recipe)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("models", total=len(plan.trials))

            def advance(trials: Sequence[Trial]) -> None:
                progress.advance(task, len(trials))

            result = run_sweep(plan, on_trials=advance)
        ranked = rank_settings(result.card)
        say(f"{plan.url}: {result.trained} models trained, {result.reused} there already, {result.failed} failed.")
        Console(stderr=True).print(_table(result.card, ranked))
        print_result(_as_json(plan.url, result.card, ranked, result.trained, result.reused), as_json=as_json)
        if result.failed:
            raise JobError(_failures(result.card))


def _table(card: SweepCard, ranked: Sequence[Setting]) -> Table:
    table = Table(*card.keys, card.metric, "sd", "95 % interval", "models", box=None, padding=(0, 1))
    for setting in ranked[:_SETTINGS_SHOWN]:
        interval = "" if setting.interval is None else f"{setting.interval[0]:.4f} to {setting.interval[1]:.4f}"
        mean, sd = ("" if value is None else f"{value:.4f}" for value in (setting.mean, setting.sd))
        values = [str(setting.values.get(key, "")) for key in card.keys]
        table.add_row(*values, mean, sd, interval, str(sum(trial.state == "done" for trial in setting.trials)))
    if len(ranked) > _SETTINGS_SHOWN:
        table.add_row(f"... and {len(ranked) - _SETTINGS_SHOWN} more")
    return table


def _as_json(url: str, card: SweepCard, ranked: Sequence[Setting], trained: int, reused: int) -> dict[str, Any]:
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


def _failures(card: SweepCard) -> str:
    from finetune.sweep_plan import in_words

    failed = [trial for trial in card.trials if trial.state == "failed"]
    lines = [f"  - {in_words(trial.values)}, seed {trial.seed}: {trial.error}" for trial in failed[:5]]
    more = [f"  ... and {len(failed) - 5} more"] if len(failed) > 5 else []
    return "\n".join([f"{len(failed)} models could not be trained; run it again to try once more:", *lines, *more])
