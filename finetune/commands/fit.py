"""The command `finetune fit`."""

from typing import TYPE_CHECKING, Annotated

import typer

from featurize.commands.options import JsonOption, SetOption, print_result, reported_errors
from featurize.console import say, show_logs, warn
from featurize.errors import UsageError
from featurize.progress import current_view, shown_progress
from finetune.commands.epoch_progress import epoch_progress
from finetune.commands.models import report_logged

if TYPE_CHECKING:
    from finetune.models.folder import ModelCard


def fit_command(
    recipe: Annotated[
        str,
        typer.Argument(help="The TOML recipe; its sections features, model, training and registry are used."),
    ],
    num_proc: Annotated[
        int, typer.Option(min=1, help="The number of ranks, on Spark through Horovod; 1 trains in this process.")
    ] = 1,
    overrides: SetOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replaces another model at `model.url`.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resumes from the checkpoint, if this training has left one.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Trains a model on a feature set: in this process, on Spark (--num-proc), or as the ranks of horovodrun."""
    with reported_errors(), shown_progress(as_json=as_json):
        from finetune.api.training import train_recipe
        from finetune.networks.user_functions import see_working_folder
        from finetune.training.launch import launched_ranks

        launched = launched_ranks()
        if launched is not None and num_proc != 1:
            raise UsageError("leave out `--num-proc` under horovodrun, which has started the ranks already.")
        see_working_folder()
        show_logs("finetune")
        model = train_recipe(
            recipe,
            ranks=num_proc,
            overrides=overrides or (),
            overwrite=overwrite,
            resume=resume,
            on_epoch=lambda plan: epoch_progress(plan.recipe.training.epochs),
            on_trained=lambda model: _report(model.card, model.url, reused=model.is_reused, as_json=as_json),
        )
        if model is not None:
            report_logged(model.logged)


def _report(card: "ModelCard", url: str, *, reused: bool, as_json: bool) -> None:
    current_view().close()  # the table of epochs stands above
    epochs = len(card.history)
    if reused:
        say(f"{url}: trained already, with these settings on these features; nothing to do.")
    else:
        ranks = "1 rank" if card.ranks == 1 else f"{card.ranks} ranks"
        ended = " (stopped early)" if card.is_stopped_early else ""
        say(
            f"{url}: best of {epochs} epochs{ended} is {card.best_epoch}; {card.rows_per_second:,.0f} rows/s on {ranks}."
        )
        _report_memory(card)
        _report_cost_of_ranks(card)
    say("  ".join(f"{name} {value:.4f}" for name, value in card.metrics.items()))
    result = {
        "model": url,
        "model_id": card.model_id,
        "metrics": card.metrics,
        "epochs": epochs,
        "best_epoch": card.best_epoch,
        "rows_per_second": card.rows_per_second,
        "ranks": card.ranks,
        "seconds_of_ranks": card.seconds_of_ranks,
        "memory_of_ranks": card.memory_of_ranks,
        "is_stopped_early": card.is_stopped_early,
        "reused": reused,
    }
    print_result(result, as_json=as_json)


def _report_memory(card: "ModelCard") -> None:
    """Prints the memory of the rank that has taken most."""
    if card.memory_of_ranks:
        features, peak = (max(rank[key] for rank in card.memory_of_ranks) for key in ("feature_bytes", "peak_bytes"))
        held = "streamed features take up to about" if card.cache == "stream" else "features take"
        say(f"memory of a rank: {held} {features / 1e6:,.1f} MB; {peak / 1e6:,.0f} MB in all at most.")


def _report_cost_of_ranks(card: "ModelCard") -> None:
    """Warns if ranks got no rows, or if the all-reduce took more time than several ranks saved."""
    from finetune.rows.disk_rows import N_STREAMS

    if card.ranks == 1 or not card.seconds_of_ranks:
        return
    if card.cache == "stream" and card.ranks > N_STREAMS:
        warn(
            f'{card.ranks - N_STREAMS} of {card.ranks} ranks got no rows: with `cache = "stream"` at most {N_STREAMS} do.'
        )
    computing = sum(seconds["compute_seconds"] for seconds in card.seconds_of_ranks)
    slowest = max(seconds["compute_seconds"] + seconds["all_reduce_seconds"] for seconds in card.seconds_of_ranks)
    if slowest > computing:
        warn(
            f"{card.ranks} ranks took {slowest / computing:.1f} times as long as one would have: a step of this model on "
            f"{card.global_batch_size // card.ranks} rows is shorter than its all-reduce. Take larger batches, or one rank."
        )
