"""The command `finetune sweep`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from featurize.commands.options import JsonOption, SetOption, print_result, reported_errors
from featurize.console import console, say
from featurize.display import as_cell
from featurize.errors import JobError
from featurize.shortening import and_more, some_lines

if TYPE_CHECKING:
    from finetune.api.sweeping import OnTrials, Sweep
    from finetune.sweeps.folder import Setting, SweepCard, Trial

_SETTINGS_SHOWN = 10


def sweep_command(
    recipe: Annotated[str, typer.Argument(help="The TOML recipe, with a section [sweep].")],
    tasks: Annotated[
        int | None, typer.Option(min=1, help="The number of Spark tasks at a time; default: trains in this process.")
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Trains a model for every setting and seed of a sweep, many at once, and ranks the settings."""
    with reported_errors():
        from finetune.api.sweeping import sweep
        from finetune.networks.user_functions import see_working_folder
        from finetune.sweeps.folder import rank_settings

        see_working_folder()

        with _progress_bar() as (on_trials, close_bar):

            def show(found: "Sweep") -> None:
                close_bar()
                ranked = rank_settings(found.card)
                say(
                    f"{found.url}: {found.trained} models trained, {found.reused} trained before, {found.failed} failed."
                )
                console.print(_table(found.card, ranked), highlight=True)
                print_result(_as_json(found.url, found.card, ranked, found.trained, found.reused), as_json=as_json)

            found = sweep(recipe, tasks=tasks, overrides=overrides or (), on_trials=on_trials, on_result=show)
        if found.registered is not None:
            logged = found.registered
            say(f"logged: {logged.logged} models, {logged.there} were logged before, in {logged.registry}")
        if found.failed:
            raise JobError(_failures(found.card))


@contextmanager
def _progress_bar() -> "Iterator[tuple[OnTrials, Callable[[], None]]]":
    """A function that advances a progress bar by finished trials, and one that removes the bar; on a terminal only."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=console, transient=True)
    bar = progress.add_task("models", total=None)

    def advance(trials: "Sequence[Trial]", most_models: int) -> None:
        progress.update(bar, total=most_models, advance=len(trials))

    if console.is_terminal:
        progress.start()
    try:
        yield advance, progress.live.stop
    finally:
        progress.live.stop()


def _table(card: "SweepCard", ranked: "Sequence[Setting]") -> Table:
    from finetune.sweeps.setting_names import as_text, short_names

    names = short_names(card.keys)
    table = Table(box=None, padding=(0, 1))
    for name in (*names.values(), card.metric, "sd", "95 % interval", "models"):
        table.add_column(name, no_wrap=True)
    for setting in ranked[:_SETTINGS_SHOWN]:
        interval = "" if setting.interval is None else f"{setting.interval[0]:.4f} to {setting.interval[1]:.4f}"
        mean, sd = ("" if value is None else f"{value:.4f}" for value in (setting.mean, setting.sd))
        values = [as_cell(as_text(setting.values.get(key, ""))) for key in card.keys]
        table.add_row(*values, mean, sd, interval, str(sum(trial.state == "done" for trial in setting.trials)))
    table.caption = and_more(len(ranked) - _SETTINGS_SHOWN, "settings") or None
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
    lines = (f"  - {in_words(trial.values)}, seed {trial.seed}: {trial.error}" for trial in failed)
    return "\n".join(
        [f"{len(failed)} models could not be trained; run the sweep again to retry them:", *some_lines(lines, 5)]
    )
