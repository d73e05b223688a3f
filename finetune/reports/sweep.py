"""The sections of a report on a sweep: its settings, the effect of each parameter, and the effect of the seed."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np

from finetune.reports.judge import JudgedModel, Judgement, varying_keys
from finetune.reports.sections import duration
from finetune.reports.svg import Dot, Format, percent, sweep_plot
from finetune.scores.seed_stability import class_stability, mcnemar_test, row_stability
from finetune.sweeps.folder import Setting, SweepCard, Trial, with_metric
from finetune.sweeps.setting_names import as_text, describe_values, short_names

MAX_UNSTABLE = 12
MAX_CLASSES = 12
_LOG_FROM = 8.0  # ratio of the largest to the smallest value from which an axis is logarithmic
_SIGNIFICANT = 0.05

Section = dict[str, Any]


def sweep_section(sweep: SweepCard, settings: Sequence[Setting]) -> Section:
    """The settings by rank, a plot for each parameter, and the failed trials."""
    write = metric_format(sweep.metric)
    keys, names = varying_keys(sweep), short_names(sweep.keys)
    fixed = {key: value for key, value in settings[0].values.items() if key not in keys}
    done = [trial for trial in sweep.trials if trial.state == "done"]
    return {
        "metric": sweep.metric.replace("_", " "),
        "keys": [names[key] for key in keys],
        "fixed": describe_values(fixed, list(fixed)) if fixed else "",
        "settings": [_setting_row(setting, keys, write) for setting in settings],
        "plots": [_parameter(sweep, settings, key, names[key], write) for key in keys if _varies(done, key)],
        "seeds": len(sweep.seeds),
        "done": len(done),
        "seconds": duration(sum(trial.seconds for trial in sweep.trials)),
        "failed": [
            (f"{describe_values(trial.values, keys)}; seed {trial.seed}", trial.error or "the reason was not recorded")
            for trial in sweep.trials
            if trial.state == "failed"
        ],
    }


def metric_format(metric: str) -> Format:
    """The format of a metric's values: shares in per cent, losses unchanged."""
    return (lambda value: f"{value:.4g}") if metric.endswith("loss") else (lambda value: percent(value, 1))


def stability_section(judged: Judgement) -> Section | None:
    """How much the predictions of the best setting depend on the seed; None with fewer than two seeds."""
    models = [model for model in judged.models if model.candidate.setting == 0]
    if len(models) < 2:
        return None
    predictions = np.stack([model.predicted for model in models])
    rows = row_stability(predictions)
    classes = class_stability(predictions, judged.label_index, len(judged.classes))
    accuracies = [model.accuracy for model in models]
    return {
        "seeds": len(models),
        "changing": int(rows.is_changing.sum()),
        "changing_share": rows.changing_share,
        "accuracy": {"mean": fmean(accuracies), "low": min(accuracies), "high": max(accuracies)},
        "images": [_unstable_image(judged, models, row) for row in rows.most_unstable(MAX_UNSTABLE)],
        "classes": [
            {
                "label": judged.classes[index],
                "low": float(classes.recall[:, index].min()),
                "high": float(classes.recall[:, index].max()),
                "changing": float(classes.changing_share[index]),
                "support": int(classes.support[index]),
            }
            for index in classes.most_dependent(MAX_CLASSES)
        ],
    }


def comparison_section(judged: Judgement) -> list[Section]:
    """McNemar's test of the model against the best of the second setting and against each model to compare with."""
    first = judged.models[0]
    seconds = [model for model in judged.models[1:] if model.candidate.setting == 1][:1]
    seconds += [model for model in judged.models[1:] if model.candidate.setting is None]
    return [_compare(first, second, judged) for second in seconds]


def _compare(first: JudgedModel, second: JudgedModel, judged: Judgement) -> Section:
    test = mcnemar_test(first.predicted, second.predicted, judged.label_index)
    return {
        "first": first.candidate.name,
        "second": second.candidate.name,
        "only_first": test.only_first,
        "only_second": test.only_second,
        "differing": test.differing,
        "p_value": "below 0.001" if test.p_value < 0.001 else f"{test.p_value:.3f}",
        "differs": test.p_value < _SIGNIFICANT,
    }


def _unstable_image(judged: Judgement, models: Sequence[JudgedModel], row: int) -> Section:
    said = [judged.classes[model.predicted[row]] for model in models]
    votes = sorted({label: said.count(label) for label in said}.items(), key=lambda item: -item[1])
    return {
        "path": judged.paths[row],
        "true": judged.classes[judged.label_index[row]],
        "votes": ", ".join(f"{label} ({count})" for label, count in votes),
    }


def _setting_row(setting: Setting, keys: Sequence[str], write: Format) -> Section:
    done = [trial for trial in setting.trials if trial.state == "done"]
    return {
        "values": [as_text(setting.values.get(key)) for key in keys],
        "raw": [setting.values.get(key) for key in keys],
        "mean": setting.mean,
        "mean_text": "failed" if setting.mean is None else write(setting.mean),
        "sd": setting.sd,
        "sd_text": "" if setting.sd is None else write(setting.sd),
        "interval": "" if setting.interval is None else " to ".join(write(end) for end in setting.interval),
        "done": len(done),
        "trials": len(setting.trials),
        "seconds": sum(trial.seconds for trial in done),
    }


def _varies(trials: Sequence[Trial], key: str) -> bool:
    return len({as_text(trial.values.get(key)) for trial in trials}) > 1


def _parameter(sweep: SweepCard, settings: Sequence[Setting], key: str, name: str, write: Format) -> Section:
    """Every trial by its value of `key`; and for each value the best setting that has it, with the range over its seeds."""
    metric = sweep.metric
    trials = with_metric(sweep.trials, metric)
    places, is_log = _places([trial.values.get(key) for trial in trials])
    dots = [
        Dot(places[as_text(t.values.get(key))], t.metrics[metric], _note(t, sweep, write(t.metrics[metric])))
        for t in trials
    ]
    means = list[Dot]()
    for text, place in sorted(places.items(), key=lambda item: item[1]):
        best = next((s for s in settings if s.mean is not None and as_text(s.values.get(key)) == text), None)
        if best is None or best.mean is None:
            continue
        found = [trial.metrics[metric] for trial in with_metric(best.trials, metric)]
        note = f"best setting with {name} {text}: mean {write(best.mean)} of {len(found)} seeds"
        means.append(Dot(place, best.mean, note, (min(found), max(found))))
    labels = [(place, text) for text, place in places.items()]
    plot = sweep_plot(name, trials=dots, means=means, labels=labels, is_log=is_log, y_format=write)
    return {"name": name, "svg": plot, "is_log": is_log}


def _places(values: Sequence[Any]) -> tuple[dict[str, float], bool]:
    """The position on x of each value, by its text, and whether x is logarithmic; other values than numbers are spaced evenly."""
    distinct = {as_text(value): value for value in values}
    numbers = [value for value in distinct.values() if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(distinct):
        return {text: float(place) for place, text in enumerate(distinct)}, False
    is_log = min(numbers) > 0 and max(numbers) / min(numbers) >= _LOG_FROM
    return {text: float(value) for text, value in distinct.items()}, is_log


def _note(trial: Trial, sweep: SweepCard, value: str) -> str:
    return f"{describe_values(trial.values, varying_keys(sweep))}; seed {trial.seed}: {value}"
