"""The command `finetune predict`."""

from typing import TYPE_CHECKING, Annotated

import typer

from featurize.cli import JsonOption, print_result, reported_errors
from featurize.defaults import DECODE_TIMEOUT_S, MAX_REJECT_FRACTION

if TYPE_CHECKING:
    from featurize.tables import BuildResult
    from finetune.predict import PredictionPlan


def predict_command(
    model: Annotated[str, typer.Argument(help="The folder of a model, the id of its run, or name@alias.")],
    output: Annotated[str, typer.Option(help="URL of the predictions, of this model and of others.")],
    images: Annotated[
        str | None, typer.Option(help="A folder with images at whatever depth, an images table, or a card.")
    ] = None,
    features: Annotated[str | None, typer.Option(help="A feature set, in place of images.")] = None,
    max_reject_fraction: Annotated[
        float, typer.Option(min=0, max=1, help="Of the images; if more cannot be read, nothing is published.")
    ] = MAX_REJECT_FRACTION,
    decode_timeout_s: Annotated[
        float, typer.Option(min=0.001, help="Seconds; an image that takes longer to decode is rejected.")
    ] = DECODE_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Labels images that nobody has labelled, or ready features; run again, it adds what is missing."""
    with reported_errors():
        from featurize.session import open_session
        from finetune.predict import plan_prediction, predict

        plan = plan_prediction(model, output, images=images, features=features)
        with open_session("firn predict") as session:
            result = predict(session, plan, max_reject_fraction=max_reject_fraction, decode_timeout_s=decode_timeout_s)
        _report(plan, result, as_json=as_json)


def _report(plan: "PredictionPlan", result: "BuildResult", *, as_json: bool) -> None:
    from featurize.reporting import build_numbers, report_build

    report_build(result, plan.url, is_whole_source=False)
    numbers = {"predictions": plan.url, "model_id": plan.card.model_id, "model": plan.folder, **build_numbers(result)}
    print_result(numbers, as_json=as_json)
