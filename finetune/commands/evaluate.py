"""The command `finetune evaluate`."""

from typing import TYPE_CHECKING, Annotated

import typer

from featurize.commands.options import JsonOption, print_result, reported_errors
from featurize.console import make_console
from finetune.commands.models import RegistryOption, report_logged

if TYPE_CHECKING:
    from finetune.api.evaluating import ModelEvaluation


def evaluate_command(
    model: Annotated[
        str, typer.Argument(help="The model: its folder, the id of its run, name@alias or zk://host:port/path.")
    ],
    features: Annotated[str | None, typer.Option(help="The feature set; default: that of the training.")] = None,
    split: Annotated[str, typer.Option(help="The split: train, validation or test.")] = "test",
    output: Annotated[
        str | None, typer.Option(help="The folder for scores, table and plot; default: the model's.")
    ] = None,
    all_rows: Annotated[
        bool, typer.Option("--all-rows", help="Evaluates on all rows, also those that the model's `where` leaves out.")
    ] = False,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluates a model: accuracy, precision, recall, F1, confusion matrix as table and plot."""
    with reported_errors():
        from finetune.api.evaluating import evaluate
        from finetune.evaluation.evaluate import print_evaluation

        def show(found: "ModelEvaluation") -> None:
            result = {**found.result, "files": found.files}
            print_evaluation(result, make_console(stderr=as_json))
            print_result(result, as_json=as_json)

        found = evaluate(
            model, features, split=split, output=output, all_rows=all_rows, registry=registry, on_result=show
        )
        report_logged(found.logged)
