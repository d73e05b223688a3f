"""Which settings a sweep tries next, given the results of the earlier ones.

A search is a generator: it yields the settings of a round and is sent, for each of them, the mean of the sweep's metric, or None
where no training succeeded. It depends only on its settings and on the values it is sent. So a repeated sweep asks for the same
models in the same order, finds those that exist, and resumes where it stopped.
"""

import itertools
import math
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from featurize.recipes.sweep_section import EPOCHS, SweepSettings, ValueRange

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Values = dict[str, Any]
"""A setting: the values of the swept keys."""
Search = Generator[list[Values], Sequence[float | None], None]

PROPOSED_AT_ONCE = 8  # proposals of a Bayesian search at a time, the same on any machine
_REPEATS = 20  # repeated proposals until the space counts as exhausted


def start_search(sweep: SweepSettings, *, epochs: int) -> Search:
    """The search of a sweep.

    Args:
        sweep: The `[sweep]` section.
        epochs: The recipe's number of epochs.
    """
    if sweep.search == "bayesian":
        return _bayesian(sweep)
    settings = list_settings(sweep)
    if sweep.halving is None:
        return _all_at_once(settings)
    return _halving(settings, rungs_of(sweep, len(settings), epochs=epochs), is_loss=sweep.metric.endswith("loss"))


def count_settings(sweep: SweepSettings, *, epochs: int) -> int:
    """The largest number of settings that the search tries."""
    if sweep.search == "bayesian":
        return sweep.n_settings or 0
    n_settings = len(list_settings(sweep))
    if sweep.halving is None:
        return n_settings
    return sum(settings for settings, _ in rungs_of(sweep, n_settings, epochs=epochs))


def list_settings(sweep: SweepSettings) -> list[Values]:
    """The settings of a search that does not learn, in the order of the recipe: all combinations, or some drawn at random.

    A random search begins with the same settings whatever `n_settings` is. Without ranges, none is drawn twice.
    """
    values = sweep.values_by_key()
    lists = {key: each for key, each in values.items() if not isinstance(each, ValueRange)}
    if len(lists) < len(values):
        return _draw(values, sweep)
    total = math.prod(len(each) for each in lists.values())
    if sweep.n_settings is None or sweep.n_settings >= total:
        return [dict(zip(lists, each, strict=True)) for each in itertools.product(*lists.values())]
    places = np.random.default_rng(sweep.search_seed).permutation(total)[: sweep.n_settings]
    shape = tuple(len(each) for each in lists.values())
    return [
        {key: each[place] for (key, each), place in zip(lists.items(), np.unravel_index(number, shape), strict=True)}
        for number in places
    ]


def rungs_of(sweep: SweepSettings, n_settings: int, *, epochs: int) -> list[tuple[int, int]]:
    """The number of settings and of epochs in each round of successive halving.

    Every round keeps one in `halving` of the settings and multiplies the epochs by `halving`. Source: K. Jamieson,
    A. Talwalkar: Non-stochastic Best Arm Identification and Hyperparameter Optimization, 2016.
    """
    factor = sweep.halving or 2
    rounds = 1
    while n_settings >= factor**rounds and epochs >= sweep.min_epochs * factor**rounds:
        rounds += 1
    return [
        (n_settings // factor**place, max(1, round(epochs / factor ** (rounds - 1 - place)))) for place in range(rounds)
    ]


def _draw(values: Mapping[str, list[Any] | ValueRange], sweep: SweepSettings) -> list[Values]:
    """Settings drawn with random numbers of their own, so that a larger number begins with the same settings."""
    settings = []
    for number in range(sweep.n_settings or 0):
        random = np.random.default_rng([sweep.search_seed, number])
        settings.append({key: _drawn(each, float(random.random())) for key, each in values.items()})
    return settings


def _drawn(values: list[Any] | ValueRange, place: float) -> Any:
    """The value at `place`, in [0, 1)."""
    if not isinstance(values, ValueRange):
        return values[int(place * len(values))]
    low, high = float(values.low), float(values.high) + values.is_whole
    value = low * (high / low) ** place if values.log else low + (high - low) * place
    return min(math.floor(value), int(values.high)) if values.is_whole else float(f"{value:.6g}")


def _all_at_once(settings: list[Values]) -> Search:
    yield settings


def _halving(settings: list[Values], rungs: Sequence[tuple[int, int]], *, is_loss: bool) -> Search:
    """Each round keeps the best of the one before. Every model is trained from its start, so that it equals that of `fit`."""
    for n_settings, epochs in rungs:
        settings = settings[:n_settings]
        means = yield [{**values, EPOCHS: epochs} for values in settings]
        sign = 1 if is_loss else -1
        found = [(sign * mean, place) for place, mean in enumerate(means) if mean is not None]
        settings = [settings[place] for _, place in sorted(found)]
        if not settings:
            return


def _bayesian(sweep: SweepSettings) -> Search:
    """Proposals of a tree-structured Parzen estimator: J. Bergstra et al.: Algorithms for Hyper-Parameter Optimization, 2011."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    values = sweep.values_by_key()
    distributions = {key: _distribution(each) for key, each in values.items()}
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=sweep.search_seed, constant_liar=True),
        direction="minimize" if sweep.metric.endswith("loss") else "maximize",
    )
    known = dict[str, float | None]()
    left, repeats = sweep.n_settings or 0, 0
    while left > 0 and repeats < _REPEATS:
        asked = dict[str, tuple[optuna.Trial, Values]]()
        while len(asked) < min(PROPOSED_AT_ONCE, left) and repeats < _REPEATS:
            trial = study.ask(distributions)
            setting = {key: _value(each, trial.params[key]) for key, each in values.items()}
            name = repr(setting)
            if name in known or name in asked:
                repeats += 1
                _tell(study, trial, known.get(name))
            else:
                repeats = 0
                asked[name] = trial, setting
        if not asked:
            return
        means = yield [setting for _, setting in asked.values()]
        for (name, (trial, _)), mean in zip(asked.items(), means, strict=True):
            known[name] = mean
            _tell(study, trial, mean)
        left -= len(asked)


def _tell(study: Any, trial: Any, mean: float | None) -> None:
    import optuna

    if mean is None:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    else:
        study.tell(trial, mean)


def _distribution(values: list[Any] | ValueRange) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(values, ValueRange):
        return CategoricalDistribution(range(len(values)))  # positions, as a value may be a list
    if values.is_whole:
        return IntDistribution(int(values.low), int(values.high), log=values.log)
    return FloatDistribution(float(values.low), float(values.high), log=values.log)


def _value(values: list[Any] | ValueRange, drawn: Any) -> Any:
    if not isinstance(values, ValueRange):
        return values[drawn]
    return int(drawn) if values.is_whole else float(f"{drawn:.6g}")
