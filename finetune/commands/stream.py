"""The command `finetune stream`."""

import signal
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from featurize.commands.options import DecodeTimeoutOption, JsonOption, print_result, reported_errors
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
    checkpoint: Annotated[str, typer.Option(help="A folder in which the stream keeps how far it is.")],
    trigger_s: Annotated[float, typer.Option(min=0, help="Seconds between looks for new images.")] = TRIGGER_S,
    once: Annotated[bool, typer.Option("--once", help="Labels what is there, and ends.")] = False,
    max_images_per_batch: Annotated[
        int, typer.Option(min=1, help="A model is exchanged between two batches.")
    ] = MAX_IMAGES_PER_BATCH,
    messages: Annotated[
        str | None, typer.Option(help="Of a topic: images, named-images (the key is the path), or urls of images.")
    ] = None,
    kafka_options: Annotated[
        str | None, typer.Option(help="Of a topic: a file of name=value lines for Spark's connector.")
    ] = None,
    target_precision: TargetPrecisionOption = None,
    precision: OldPrecisionOption = None,
    max_reject_fraction: Annotated[
        float, typer.Option(min=0, max=1, help="Of a batch; if more cannot be read, a warning says so.")
    ] = MAX_REJECT_FRACTION,
    decode_timeout_s: DecodeTimeoutOption = DECODE_TIMEOUT_S,
    drift_window: Annotated[
        int | None, typer.Option(help="Images labelled by one model that are tested for drift together; default: none.")
    ] = None,
    false_alarm_rate: Annotated[
        float, typer.Option(help="Of one window of --drift-window: how often there may be an alarm without a change.")
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
            target_precision=target_precision,
            windows=windows,
        )
        stopped = stop_on_signals(signal.SIGTERM, signal.SIGINT, second_ends=True)
        with open_session("firn stream") as session, stopped as is_asked_to_stop:
            until = "" if once else f", every {trigger_s:g} s; Ctrl-C ends it after the batch under way"
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
            raise JobError("stopped as asked, before all images were labelled; started again, it goes on.")


def report_batch(batch: "LabelledBatch", *, max_reject_fraction: float) -> None:
    """A line on a batch that is done, and another one for what should not be overlooked."""
    result = batch.result
    parts = [f"{result.added} labelled by {batch.model_id[:16]}"]
    parts += [f"{result.skipped} were there already"] if result.skipped else []
    parts += [f"{result.rejected} rejected"] if result.rejected else []
    say(f"batch {batch.batch_id}: {batch.images} images, {', '.join(parts)}, {batch.seconds:.1f} s.")
    if result.rejected > max_reject_fraction * (result.added + result.rejected):
        warn(
            f"{result.rejected} of {result.added + result.rejected} images of batch {batch.batch_id} could not be read, more "
            f"than `max_reject_fraction` = {max_reject_fraction:g}. They are in the rejects; the stream goes on."
        )
    if batch.views_fault is not None:
        warn(f"the views are as they were: {batch.views_fault}")
    for window in batch.windows:
        text = f"window {window.number} of {batch.model_id[:16]}: {describe(window.result)}"
        (warn if window.result.alarm else say)(text)
    if batch.drift_fault is not None:
        warn(f"drift: nothing was tested after batch {batch.batch_id}, its images wait: {batch.drift_fault}")


def _report(plan: "StreamPlan", done: "Streamed", *, as_json: bool, seconds: float) -> None:
    labelled = sum(done.added.values())
    say(
        f"{plan.output}: {labelled} images labelled in {done.batches} batches, {done.rejected} rejected; {seconds:.0f} s."
    )
    if done.alarms and plan.windows is not None:
        expected = plan.windows.false_alarm_rate * done.windows
        say(f"{done.alarms} of {done.windows} windows gave alarm; {expected:.2g} would if nothing had changed.")
    numbers = {
        "predictions": plan.output,
        "checkpoint": plan.checkpoint.url,
        "batches": done.batches,
        "rows": labelled,
        "rows_by_model": done.added,
        "rejects": done.rejected,
        "skipped": done.skipped,
        "is_stopped": done.is_stopped,
        "drift": None if plan.windows is None else _drift_numbers(plan.output, done),
        "views": None if done.views is None else done.views.views.by_name(),
        "seconds": round(seconds, 2),
    }
    print_result(numbers, as_json=as_json)


def _drift_numbers(output: str, done: "Streamed") -> dict[str, object]:
    from finetune.streams.drift_windows import windows_url

    return {"windows": done.windows, "alarms": done.alarms, "table": windows_url(output)}
