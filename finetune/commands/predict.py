"""The command `finetune predict`."""

from typing import TYPE_CHECKING, Annotated

import typer

from featurize.commands.options import (
    DecodeTimeoutOption,
    FollowLinksOption,
    JsonOption,
    RejectFractionOption,
    print_result,
    reported_errors,
)
from featurize.console import say, warn
from featurize.defaults import DECODE_TIMEOUT_S, MAX_REJECT_FRACTION
from featurize.progress import shown_progress
from finetune.commands.views import report_views

if TYPE_CHECKING:
    from finetune.prediction.answers import Threshold
    from finetune.prediction.predict import Predicted, PredictionPlan

ModelArgument = Annotated[
    str, typer.Argument(help="The model: its folder, the id of its run, name@alias or zk://host:port/path.")
]
PredictionsOption = Annotated[str, typer.Option(help="The URL of the predictions; several models may share it.")]
TargetPrecisionOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="The share of right labels to reach, judged by the validation split; less certain images get no label. "
        "Default: every image gets one.",
    ),
]


def _refuse_precision(given: str | None) -> None:
    """Refuses the name that the option had in Firn 0.1, where it could be taken for the number format of a recipe."""
    if given is not None:
        raise typer.BadParameter("it is called `--target-precision` now.", param_hint="'--precision'")


OldPrecisionOption = Annotated[str | None, typer.Option("--precision", hidden=True, callback=_refuse_precision)]


def predict_command(
    model: ModelArgument,
    output: PredictionsOption,
    images: Annotated[
        str | None,
        typer.Option(help="The images: a folder, searched at every depth, an images table, or a data set card."),
    ] = None,
    features: Annotated[str | None, typer.Option(help="The feature set to label, in place of images.")] = None,
    target_precision: TargetPrecisionOption = None,
    precision: OldPrecisionOption = None,
    follow_links: FollowLinksOption = False,
    max_reject_fraction: RejectFractionOption = MAX_REJECT_FRACTION,
    decode_timeout_s: DecodeTimeoutOption = DECODE_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Labels new images, or a feature set; run again, it adds what is missing."""
    with reported_errors(), shown_progress(as_json=as_json):
        from finetune.api.predicting import predict

        found = predict(
            model,
            images,
            features=features,
            output=output,
            target_precision=target_precision,
            follow_links=follow_links,
            max_reject_fraction=max_reject_fraction,
            decode_timeout_s=decode_timeout_s,
        )
        _report(found.plan, found.predicted, as_json=as_json)


def _report(plan: "PredictionPlan", predicted: "Predicted", *, as_json: bool) -> None:
    from featurize.commands.build_report import build_numbers, report_build
    from featurize.tables.manifests import PREDICTED

    report_build(predicted.result, plan.url, is_whole_source=False)
    threshold = predicted.threshold
    if threshold is not None:
        report_threshold(threshold, abstained=predicted.result.manifest.rows.get(PREDICTED, {}).get("", 0))
    if predicted.views is not None:
        report_views(predicted.views)
    else:
        warn(f"the views on {plan.output} were not updated: {predicted.views_fault}")
    if predicted.reference_fault is not None:
        warn(f"`finetune drift` will not see drift of features in these predictions: {predicted.reference_fault}")
    numbers = {
        "predictions": plan.url,
        "model_id": plan.card.model_id,
        "model": plan.folder,
        "threshold": None if threshold is None else threshold.as_dict(),
        "views": None if predicted.views is None else predicted.views.views.by_name(),
        **build_numbers(predicted.result),
    }
    print_result(numbers, as_json=as_json)


def report_threshold(threshold: "Threshold", *, abstained: int) -> None:
    """Prints the threshold, how it does on the images that it was chosen by, and how many images got no label."""
    say(
        f"threshold {threshold.threshold:.4f} for a precision of {threshold.precision:g}: of {threshold.rows} images of the "
        f"{threshold.split} split {threshold.kept} get a label and {threshold.right} of these the right one "
        f"({threshold.right / threshold.kept:.4f}; with 95 % confidence at least {threshold.precision_low:.4f}). "
        f"{abstained} of the new images got no label."
    )
