"""The command `finetune drift`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurize.commands.options import JsonOption, print_result, reported_errors
from featurize.console import say, warn
from featurize.errors import UsageError

if TYPE_CHECKING:
    from finetune.drift.check import CheckedWindow, DriftReport
    from finetune.drift.compare import Comparison
    from finetune.drift.window import WindowResult

DRIFT_STATUS = 3
"""The exit status of `--fail-on-drift` after an alarm; a failed job and a wrong call have other ones."""


def drift_command(
    output: Annotated[str, typer.Argument(help="The URL of the predictions.")],
    model: Annotated[
        str,
        typer.Option(
            help="The model: a view, a model_id or its first digits, a folder, the id of a run, name@alias or zk://host:port/path."
        ),
    ] = "latest",
    since: Annotated[
        str | None, typer.Option(help="The date or time (UTC) since which images were labelled; default: all.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="The date or time (UTC) before which images were labelled; default: all.")
    ] = None,
    last: Annotated[
        int | None, typer.Option(min=1, help="The number of images, the most recently labelled ones; default: all.")
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(help="The number of images in a window, in the order of labelling; default: one window of all."),
    ] = None,
    false_alarm_rate: Annotated[
        float, typer.Option(help="The share of windows that may give an alarm although nothing has changed.")
    ] = 0.01,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(help="Two models, named as for --model, to compare on the same images in place of windows."),
    ] = None,
    report: Annotated[
        str | None, typer.Option("--output", help="The folder for the table of windows; default: OUTPUT/drift/windows.")
    ] = None,
    fail_on_drift: Annotated[bool, typer.Option("--fail-on-drift", help="Exits with status 3 after an alarm.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Tests whether images have changed since training, by the labels, confidence and features of predictions."""
    with reported_errors():
        times: dict[str, Any] = {"since": since, "until": until, "last": last}
        if compare is not None:
            if model != "latest" or window is not None or report is not None:
                raise UsageError("`--compare` names both models and tests one window: leave out the other options.")
            alarm = _compare(output, compare, times, false_alarm_rate, as_json=as_json)
        else:
            from finetune.api.checking import check_drift

            found = check_drift(
                output, model=model, window=window, false_alarm_rate=false_alarm_rate, output=report, **times
            ).report
            _print_check(found, as_json=as_json)
            alarm = found.alarms > 0
    if alarm and fail_on_drift:
        raise typer.Exit(DRIFT_STATUS)


def _print_check(found: "DriftReport", *, as_json: bool) -> None:
    _report_windows(found)
    numbers = {
        "model_id": found.model_id,
        "reference": {**found.reference.origin, "images": found.reference.rows},
        "false_alarm_rate": found.false_alarm_rate,
        "images": found.images,
        "left_over": found.left_over,
        "images_needed": found.needed,
        "alarms": found.alarms,
        "windows": [_numbers(one) for one in found.windows],
        "table": found.table,
    }
    print_result(numbers, as_json=as_json)


def _compare(output: str, names: tuple[str, str], times: dict[str, Any], rate: float, *, as_json: bool) -> bool:
    from finetune.api.checking import select_predictions
    from finetune.drift.compare import compare_predictions

    found = compare_predictions(output, *names, selection=select_predictions(**times), false_alarm_rate=rate)
    _report_comparison(found)
    print_result(found.as_dict(), as_json=as_json)
    return found.first.result.alarm or found.second.result.alarm


def _numbers(window: "CheckedWindow") -> dict[str, Any]:
    times = {"first_predicted_at": window.first.isoformat(), "last_predicted_at": window.last.isoformat()}
    return {"window": window.number, **times, **window.result.as_dict()}


def _report_windows(found: "DriftReport") -> None:
    from finetune.drift.window import too_small

    say(
        f"model {found.model_id[:16]}: {found.images:,} images, {len(found.windows)} windows, "
        f"{found.reference.rows:,} images of its validation split as reference."
    )
    for window in found.windows:
        (warn if window.result.alarm else say)(f"window {window.number}: {describe(window.result)}")
    if found.left_over:
        say(f"{found.left_over} images fill no window and were not tested.")
    if found.windows and not all(window.result.projected for window in found.windows):
        warn("some predictions have no projections, so their features are not tested: see docs/drift.md.")
    for line in too_small(found.needed, min((window.result.images for window in found.windows), default=None)):
        warn(line)
    if found.alarms:
        expected = found.false_alarm_rate * len(found.windows)
        say(f"{found.alarms} of {len(found.windows)} windows gave an alarm; without a change {expected:.2g} would.")


def describe(result: "WindowResult") -> str:
    """One line on a window, for people and logs."""
    tests = ", ".join(f"{name} p {test.corrected:.2g}" for name, test in result.tests.items())
    state = f"DRIFT of {' and '.join(result.fired)}" if result.alarm else "no drift"
    hint = " Retraining is due: the images have changed and the model is less sure of them." if result.retrain else ""
    return (
        f"{state}: {result.images:,} images, {tests}; stability index {result.stability_index:.3f} "
        f"({result.stability_index_without_drift:.3f} without drift), confidence {result.confidence:.3f} "
        f"(reference {result.reference_confidence:.3f}).{hint}"
    )


def _report_comparison(found: "Comparison") -> None:
    low, high = found.interval
    say(
        f"{found.images:,} images labelled by both: {found.first.name} and {found.second.name} agree on "
        f"{found.agreement:.1%} (95 %: {low:.1%} to {high:.1%})."
    )
    for side in (found.first, found.second):
        there = side.confidence_where_they_differ
        where = f" Where they differ its confidence is {there:.3f}." if there is not None else ""
        (warn if side.result.alarm else say)(f"{side.name}: {describe(side.result)}{where}")
    for one, other, count in found.differences:
        say(f"{found.first.name} says {one}, {found.second.name} {other}: {count}")
