"""`finetune report`: a model or a sweep on one page, or in plain text."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurize.commands.options import JsonOption, print_result, reported_errors
from featurize.console import say

if TYPE_CHECKING:
    from finetune.reports.judge import Judgement, Target

DEFAULT_OUTPUT = "report.html"


def report_command(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|SWEEP",
            help="The model (folder, id of its run, name@alias or zk://host:port/path) or the folder of a sweep.",
        ),
    ],
    output: Annotated[str, typer.Option(help="The HTML file to write.")] = DEFAULT_OUTPUT,
    split: Annotated[str, typer.Option(help="The split to judge by: train, validation or test.")] = "test",
    compare: Annotated[
        list[str] | None,
        typer.Option("--compare", metavar="MODEL", help="Another model to compare with; repeatable."),
    ] = None,
    title: Annotated[str | None, typer.Option(help="The heading; default: the name of the folder.")] = None,
    check_data: Annotated[
        bool | None,
        typer.Option(
            "--check-data/--no-check-data",
            help="Looks for label errors and duplicates; default: if the features take at most 1 GiB.",
        ),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Prints mistakes and scores as text, and writes no file.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Writes a report that opens without a network: verdict, curves, confusion, mistakes with their images, lineage."""
    with reported_errors():
        from finetune.api.reporting import report

        file = None if plain else output
        made = report(target, file, split=split, compare=compare or (), title=title, check_data=check_data)
        if plain:
            typer.echo(made.text, nl=False, err=as_json)
        else:
            judged = made.judged
            right = f"{judged.models[0].accuracy:.1%} of {len(judged.label_index):,}"
            say(f"{made.url}: {right} images of the {split} split got the right label.")
        print_result(_result(made.target, made.judged, made.url), as_json=as_json)


def _result(target: "Target", judged: "Judgement", url: str | None) -> dict[str, Any]:
    from finetune.reports.sections import verdict_section
    from finetune.scores.calibration import calibration_bins, expected_calibration_error

    verdict, model = verdict_section(judged), judged.models[0]
    bins = calibration_bins(judged.probabilities, judged.label_index)
    return {
        "report": url,
        "kind": target.kind,
        "target": target.url,
        "model": model.candidate.url,
        "model_id": model.card.model_id,
        "split": judged.split,
        "rows": verdict["rows"],
        "accuracy": verdict["accuracy"],
        "accuracy_interval": list(verdict["interval"]),
        "baseline_accuracy": verdict["baseline"],
        "baseline_class": verdict["baseline_class"],
        "expected_calibration_error": expected_calibration_error(bins),
        "models": {m.candidate.url: m.accuracy for m in judged.models},
    }
