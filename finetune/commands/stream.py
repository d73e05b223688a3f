"""The command `finetune stream`."""

import signal
from dataclasses import asdict
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from featurize.commands.options import (
    DecodeTimeoutOption,
    FollowLinksOption,
    JsonOption,
    print_result,
    reported_errors,
)
from featurize.console import say, warn
from featurize.defaults import DECODE_TIMEOUT_S, MAX_REJECT_FRACTION
from featurize.errors import JobError
from featurize.progress import shown_progress
from finetune.commands.drift import describe
from finetune.commands.predict import ModelArgument, OldPrecisionOption, PredictionsOption, TargetPrecisionOption
from finetune.ranks.signals import stop_on_signals

if TYPE_CHECKING:
    from finetune.streams.stream import LabelledBatch, Streamed, StreamPlan

TRIGGER_S = 10.0
MAX_IMAGES_PER_BATCH = 10_000


def stream_command(
    model: ModelArgument,
    images: Annotated[
        str, typer.Option(help="The folder in which images arrive, or kafka://host:port,host:port/topic.")
    ],
    output: PredictionsOption,
    checkpoint: Annotated[str, typer.Option(help="The folder in which the stream keeps its progress.")],
    trigger_s: Annotated[float, typer.Option(min=0, help="Seconds between checks for new images.")] = TRIGGER_S,
    once: Annotated[bool, typer.Option("--once", help="Labels the images that are there, and ends.")] = False,
    max_images_per_batch: Annotated[
        int,
        typer.Option(
            min=1, help="The largest number of images in a batch; a new model takes effect with the next batch."
        ),
    ] = MAX_IMAGES_PER_BATCH,
    messages: Annotated[
        str | None,
        typer.Option(help="The kind of a topic's messages: images, named-images (the key is the path), or urls."),
    ] = None,
    kafka_options: Annotated[
        str | None, typer.Option(help="The file of options, lines of name=value, for Spark's Kafka connector.")
    ] = None,
    allow_urls: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PREFIX",
            help="A folder, by path or URL, whose files messages of the kind urls may name; repeatable.",
        ),
    ] = None,
    target_precision: TargetPrecisionOption = None,
    precision: OldPrecisionOption = None,
    follow_links: FollowLinksOption = False,
    max_reject_fraction: Annotated[
        float,
        typer.Option(min=0, max=1, help="The share of unreadable images in a batch above which there is a warning."),
    ] = MAX_REJECT_FRACTION,
    decode_timeout_s: DecodeTimeoutOption = DECODE_TIMEOUT_S,
    drift_window: Annotated[
        int | None, typer.Option(help="The number of images in a drift window; default: drift is not tested.")
    ] = None,
    false_alarm_rate: Annotated[
        float, typer.Option(help="The share of drift windows that may give an alarm although nothing has changed.")
    ] = 0.01,
    as_json: JsonOption = False,
) -> None:
    """Labels images as they arrive in a folder or a Kafka topic, each once, until Ctrl-C or SIGTERM."""
    with reported_errors(), shown_progress(as_json=as_json):
        from featurize.building.session import open_session
        from finetune.streams.drift_windows import WindowSettings
        from finetune.streams.stream import plan_stream, run_stream

        started = perf_counter()
        windows = None if drift_window is None else WindowSettings(drift_window, false_alarm_rate)
        plan = plan_stream(
            model,
            images,
            output,
            checkpoint,
            messages=messages,
            kafka_options=kafka_options,
            allow_urls=allow_urls,
            target_precision=target_precision,
            follow_links=follow_links,
            windows=windows,
        )
        stopped = stop_on_signals(signal.SIGTERM, signal.SIGINT, second_ends=True)
        with open_session("firn stream") as session, stopped as is_asked_to_stop:
            until = "" if once else f", every {trigger_s:g} s; Ctrl-C ends it after the current batch"
            say(f"{plan.arriving.url}: labelled by {model}, {plan.first.card.model_id[:16]}, to {plan.output}{until}.")
            done = run_stream(
                session,
                plan,
                once=once,
                trigger_s=trigger_s,
                most_per_batch=max_images_per_batch,
                decode_timeout_s=decode_timeout_s,
                is_asked_to_stop=is_asked_to_stop,
                on_batch=lambda batch: report_batch(batch, max_reject_fraction=max_reject_fraction),
            )
        _report(plan, done, as_json=as_json, seconds=perf_counter() - started)
        if once and done.is_stopped:
            raise JobError("stopped on request, before all images were labelled; the next run labels the others.")


def report_batch(batch: "LabelledBatch", *, max_reject_fraction: float) -> None:
    """Prints a line on a finished batch, and a warning for each thing that needs attention."""
    account = batch.account
    became = account.describe(model=batch.model_id[:16])
    say(f"batch {batch.batch_id}: {account.found} images found, {became}; {batch.seconds:.1f} s.")
    if account.rejected > max_reject_fraction * (account.labelled + account.rejected):
        warn(
            f"{account.rejected} of {account.labelled + account.rejected} images of batch {batch.batch_id} could not be read, "
            f"more than `max_reject_fraction` = {max_reject_fraction:g}. They are in the rejects; the stream continues."
        )
    if batch.views_fault is not None:
        warn(f"the views were not updated: {batch.views_fault}")
    for window in batch.windows:
        text = f"window {window.number} of {batch.model_id[:16]}: {describe(window.result)}"
        (warn if window.result.alarm else say)(text)
    if batch.drift_fault is not None:
        warn(f"drift was not tested after batch {batch.batch_id}; its images are tested later: {batch.drift_fault}")


def _report(plan: "StreamPlan", done: "Streamed", *, as_json: bool, seconds: float) -> None:
    account = done.account
    say(
        f"{plan.output}: {account.found} images found in {done.batches} batches, {account.describe()}; {seconds:.0f} s."
    )
    if done.alarms and plan.windows is not None:
        expected = plan.windows.false_alarm_rate * done.windows
        say(f"{done.alarms} of {done.windows} windows gave an alarm; without a change {expected:.2g} would.")
    numbers = {
        "predictions": plan.output,
        "checkpoint": plan.checkpoint.url,
        "batches": done.batches,
        "images": asdict(account),
        "rows": account.labelled,
        "rows_by_model": done.added,
        "rejects": account.rejected,
        "skipped": account.labelled_before,
        "is_stopped": done.is_stopped,
        "drift": None if plan.windows is None else _drift_numbers(plan.output, done),
        "views": None if done.views is None else done.views.views.by_name(),
        "seconds": round(seconds, 2),
    }
    print_result(numbers, as_json=as_json)


def _drift_numbers(output: str, done: "Streamed") -> dict[str, object]:
    from finetune.streams.drift_windows import windows_url

    return {"windows": done.windows, "alarms": done.alarms, "table": windows_url(output)}
