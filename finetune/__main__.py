"""The command `finetune`; also `python -m finetune`, and the same under `horovodrun`."""

import os
import sys
from pathlib import Path
from typing import Annotated

if not __package__:  # run by path: the folder above is where the packages are
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import typer
from rich.console import Console

from featurize.cli import JsonOption, SetOption, make_app, print_result, reported_errors, say
from featurize.errors import UsageError
from featurize.recipe import lower_half, read_recipe
from featurize.storage import absolute_url
from finetune.model_folder import ModelCard, read_model_card
from finetune.training import TrainingPlan, find_trained, plan_training, train

app = make_app("Features to models, on any number of ranks.")


@app.command("fit")
def fit_command(
    recipe: Annotated[str, typer.Argument(help="The TOML recipe; its lower half is read.")],
    num_proc: Annotated[
        int, typer.Option(min=1, help="Ranks, through Horovod on Spark; 1 trains in this process.")
    ] = 1,
    overrides: SetOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replaces another model at `model.url`.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Trains a model on a feature set: in this process, on Spark (--num-proc), or as the ranks of horovodrun."""
    with reported_errors():
        from finetune.distributed import launched_by_horovodrun, run_on_spark

        under_horovodrun = launched_by_horovodrun()
        if under_horovodrun and num_proc != 1:
            raise UsageError("`--num-proc` has no use under horovodrun, which has started the ranks already.")
        ranks = int(os.environ["HOROVOD_SIZE"]) if under_horovodrun else num_proc
        plan = plan_training(lower_half(read_recipe(recipe, overrides or ()), origin=recipe), ranks=ranks)
        card = find_trained(plan, overwrite=overwrite)
        reused = card is not None
        if card is None and under_horovodrun:
            card = _train_as_rank(plan, distributed=True, overwrite=overwrite)
        elif card is None and num_proc > 1:
            run_on_spark(lambda: _train_as_rank(plan, distributed=True, overwrite=overwrite) is not None, num_proc)
            card = read_model_card(plan.recipe.model.url)
        elif card is None:
            card = _train_as_rank(plan, distributed=False, overwrite=overwrite)
        if card is not None and os.environ.get("HOROVOD_RANK", "0") == "0":
            _report(card, absolute_url(plan.recipe.model.url), reused=reused, as_json=as_json)


@app.command("evaluate")
def evaluate_command(
    model: Annotated[str, typer.Argument(help="The folder of a model.")],
    features: Annotated[str | None, typer.Option(help="A feature set; default: the one it was trained on.")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    output: Annotated[str | None, typer.Option(help="Folder for scores, table and plot; default: the model's.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluates a model: accuracy, precision, recall, F1, confusion matrix as table and plot."""
    with reported_errors():
        from finetune.evaluate import evaluate_model, print_evaluation

        result = evaluate_model(model, features, split, output)
        print_evaluation(result, Console(stderr=as_json))
        print_result(result, as_json=as_json)


def _train_as_rank(plan: TrainingPlan, *, distributed: bool, overwrite: bool) -> ModelCard | None:
    """Trains in this process, as one of the ranks; rank 0 shows the progress and returns the card."""
    from finetune.distributed import open_ranks
    from finetune.progress import epoch_progress

    with open_ranks(distributed=distributed) as ranks:
        if ranks.rank != 0:
            return train(plan, ranks, overwrite=overwrite)
        with epoch_progress(plan.recipe.training.epochs) as on_epoch:
            return train(plan, ranks, overwrite=overwrite, on_epoch=on_epoch)


def _report(card: ModelCard, url: str, *, reused: bool, as_json: bool) -> None:
    epochs = len(card.history)
    if reused:
        say(f"{url}: trained already, with these settings on these features; nothing to do.")
    else:
        ranks = "1 rank" if card.ranks == 1 else f"{card.ranks} ranks"
        say(f"{url}: best of {epochs} epochs is {card.best_epoch}; {card.rows_per_second:,.0f} rows/s on {ranks}.")
    say("  ".join(f"{name} {value:.4f}" for name, value in card.metrics.items()))
    result = {
        "model": url,
        "model_id": card.model_id,
        "metrics": card.metrics,
        "epochs": epochs,
        "best_epoch": card.best_epoch,
        "rows_per_second": card.rows_per_second,
        "ranks": card.ranks,
        "reused": reused,
    }
    print_result(result, as_json=as_json)


def main() -> None:
    """Entry point of the command."""
    app()


if __name__ == "__main__":
    main()
