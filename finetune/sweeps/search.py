"""Which settings a sweep tries next, by what the earlier ones came to.

A search is a generator: it yields the settings of a round and is sent, for each of them, the mean of the sweep's metric, or None
where no training ended well. It is a function of its settings and of what it is sent alone. So a sweep that is run again asks
for the same models in the same order, finds those that are there, and goes on where it was.
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
"""Of the swept keys: a setting."""
Search = Generator[list[Values], Sequence[float | None], None]

PROPOSED_AT_ONCE = 8  # of a Bayesian search, whatever trains them: as many on any machine
_REPEATS = 20  # of a setting that was proposed before, until the space counts as used up


def start_search(sweep: SweepSettings, *, epochs: int) -> Search:
    """The search of a sweep.

    Args:
        epochs: the recipe's.
    """
    if sweep.search == "bayesian":
        return _bayesian(sweep)
    settings = list_settings(sweep)
    if sweep.halving is None:
        return _all_at_once(settings)
    return _halving(settings, rungs_of(sweep, len(settings), epochs=epochs), is_loss=sweep.metric.endswith("loss"))


def count_settings(sweep: SweepSettings, *, epochs: int) -> int:
    """How many settings the search tries, at most."""
    if sweep.search == "bayesian":
        return sweep.n_settings or 0
    n_settings = len(list_settings(sweep))
    if sweep.halving is None:
        return n_settings
    return sum(settings for settings, _ in rungs_of(sweep, n_settings, epochs=epochs))


def list_settings(sweep: SweepSettings) -> list[Values]:
    """The settings of a search that does not learn, in the order of the recipe: all combinations, or some drawn at random.

    The first of a random search are the same whatever `n_settings`. Without ranges none is drawn twice.
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
    """How many settings are trained in each round of successive halving, and for how many epochs.

    Every round has a `halving`-th of the settings of the one before, and as many times its epochs. Source: K. Jamieson,
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
    """Settings of which each has random numbers of its own, so that more settings are these and others."""
    settings = []
    for number in range(sweep.n_settings or 0):
        random = np.random.default_rng([sweep.search_seed, number])
        settings.append({key: _drawn(each, float(random.random())) for key, each in values.items()})
    return settings


def _drawn(values: list[Any] | ValueRange, place: float) -> Any:
    """The value at `place` in [0, 1)."""
    if not isinstance(values, ValueRange):
        return values[int(place * len(values))]
    low, high = float(values.low), float(values.high) + values.is_whole
    value = low * (high / low) ** place if values.log else low + (high - low) * place
    return min(math.floor(value), int(values.high)) if values.is_whole else float(f"{value:.6g}")


def _all_at_once(settings: list[Values]) -> Search:
    yield settings


def _halving(settings: list[Values], rungs: Sequence[tuple[int, int]], *, is_loss: bool) -> Search:
    """Each round has the best of the one before. Every model is trained from its start: it is the one that `fit` trains."""
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
        return CategoricalDistribution(range(len(values)))  # places, as a value may be a list
    if values.is_whole:
        return IntDistribution(int(values.low), int(values.high), log=values.log)
    return FloatDistribution(float(values.low), float(values.high), log=values.log)


def _value(values: list[Any] | ValueRange, drawn: Any) -> Any:
    if not isinstance(values, ValueRange):
        return values[drawn]
    return int(drawn) if values.is_whole else float(f"{drawn:.6g}")
