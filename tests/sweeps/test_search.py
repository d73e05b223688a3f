"""Tests of finetune.sweeps.search: what is tried, in which order, and that a search asks for the same again."""

import math
from collections.abc import Callable
from itertools import chain
from typing import Any

import pytest

from featurize.recipes.sweep_section import SweepSettings
from featurize.recipes.toml_settings import check_settings
from finetune.sweeps.search import PROPOSED_AT_ONCE, Values, count_settings, list_settings, rungs_of, start_search

RATES = {"training.learning_rate": [0.01, 0.1], "training.l2": [0.0, 0.01]}
RANGES = {
    "training.learning_rate": {"low": 0.001, "high": 1.0, "log": True},
    "training.momentum": {"low": 0.0, "high": 0.9},
    "training.batch_size": {"low": 8, "high": 64},
    "model.hidden": [[16], [32, 16]],
}


def settings_of(values: dict[str, Any], **changes: Any) -> SweepSettings:
    return check_settings(SweepSettings, {"url": "sweep", "values": values, **changes}, origin="test")


def run(sweep: SweepSettings, score: Callable[[Values], float | None], *, epochs: int = 27) -> list[list[Values]]:
    """The rounds of a search whose settings come to what `score` says."""
    search = start_search(sweep, epochs=epochs)
    rounds = [next(search)]
    while True:
        try:
            rounds.append(search.send([score(values) for values in rounds[-1]]))
        except StopIteration:
            return rounds


def peak(values: Values) -> float:
    """Best at a learning rate of 0.03."""
    return -abs(math.log10(values["training.learning_rate"] / 0.03))


def test_a_grid_has_every_combination_once_however_the_keys_are_written() -> None:
    combined = list_settings(settings_of(RATES))
    assert combined == [
        {"training.learning_rate": rate, "training.l2": l2} for rate in (0.01, 0.1) for l2 in (0.0, 0.01)
    ]
    assert list_settings(settings_of({"training": {"learning_rate": [0.01, 0.1], "l2": [0.0, 0.01]}})) == combined


def test_a_random_search_draws_from_the_grid_and_more_of_it_keeps_what_was_drawn() -> None:
    values = {"training.learning_rate": [0.1 * n for n in range(1, 8)], "training.l2": [0.0, 0.1, 0.2]}
    grid = list_settings(settings_of(values))
    few, more = (list_settings(settings_of(values, search="random", n_settings=n)) for n in (5, 9))
    assert few == more[:5]
    assert len({repr(setting) for setting in more}) == 9
    assert all(setting in grid for setting in more)
    assert list_settings(settings_of(values, search="random", n_settings=5, search_seed=1)) != few
    assert len(list_settings(settings_of(values, search="random", n_settings=99))) == 21


def test_a_random_search_draws_from_ranges_by_their_scale_and_more_of_it_keeps_what_was_drawn() -> None:
    few, many = (list_settings(settings_of(RANGES, search="random", n_settings=n)) for n in (20, 400))
    assert many[:20] == few
    rates = sorted(values["training.learning_rate"] for values in many)
    assert 0.001 <= rates[0] < 0.002
    assert 0.5 < rates[-1] <= 1.0
    assert rates[200] == pytest.approx(math.sqrt(0.001), rel=0.5)  # the middle of a logarithmic scale
    assert {values["training.batch_size"] for values in many} == set(range(8, 65))
    assert {repr(values["model.hidden"]) for values in many} == {"[16]", "[32, 16]"}
    assert 0.4 < sum(values["training.momentum"] for values in many) / 400 < 0.5


def test_a_bayesian_search_is_better_than_chance_and_asks_for_the_same_again() -> None:
    found = []
    for search in ("bayesian", "random"):
        sweep = settings_of({"training.learning_rate": RANGES["training.learning_rate"]}, search=search, n_settings=40)
        rounds = run(sweep, peak)
        assert run(sweep, peak) == rounds
        found.append(sorted((peak(values) for values in chain.from_iterable(rounds)), reverse=True)[:10])
    assert sum(found[0]) > sum(found[1])


def test_a_bayesian_search_that_is_made_longer_begins_as_it_did() -> None:
    short, long = (run(settings_of(RANGES, search="bayesian", n_settings=n), peak) for n in (16, 24))
    assert long[:2] == short
    assert [len(settings) for settings in long] == [PROPOSED_AT_ONCE] * 3


def test_a_bayesian_search_tries_nothing_twice_and_ends_when_all_has_been_tried() -> None:
    rounds = run(settings_of(RATES, search="bayesian", n_settings=30), lambda values: 0.5)
    assert sorted(map(repr, chain.from_iterable(rounds))) == sorted(map(repr, list_settings(settings_of(RATES))))


def test_a_bayesian_search_goes_on_where_trainings_fail() -> None:
    tried = run(settings_of(RANGES, search="bayesian", n_settings=20), lambda values: None)
    assert [len(settings) for settings in tried] == [8, 8, 4]


@pytest.mark.parametrize(
    ("n_settings", "epochs", "min_epochs", "rungs"),
    [
        (27, 27, 1, [(27, 1), (9, 3), (3, 9), (1, 27)]),  # the example of Jamieson and Talwalkar
        (27, 27, 3, [(27, 3), (9, 9), (3, 27)]),
        (10, 30, 1, [(10, 3), (3, 10), (1, 30)]),
        (10, 30, 30, [(10, 30)]),
        (2, 30, 1, [(2, 30)]),
    ],
)
def test_rungs_of_successive_halving(n_settings: int, epochs: int, min_epochs: int, rungs: list[Any]) -> None:
    sweep = settings_of(RATES, halving=3, min_epochs=min_epochs)
    assert rungs_of(sweep, n_settings, epochs=epochs) == rungs


@pytest.mark.parametrize("metric", ["validation_accuracy", "validation_loss"])
def test_halving_keeps_the_best(metric: str) -> None:
    rates = [0.001, 0.003, 0.01, 0.02, 0.03, 0.05, 0.1, 0.3, 1.0]
    sign = 1 if metric == "validation_accuracy" else -1
    sweep = settings_of({"training.learning_rate": rates}, halving=3, metric=metric)
    rounds = run(sweep, lambda values: sign * peak(values))
    assert [{values["training.epochs"] for values in settings} for settings in rounds] == [{3}, {9}, {27}]
    kept = [[values["training.learning_rate"] for values in settings] for settings in rounds]
    assert kept[0] == rates
    assert sorted(kept[1]) == [0.02, 0.03, 0.05]
    assert kept[2] == [0.03]
    assert count_settings(sweep, epochs=27) == 13


def test_halving_drops_what_could_not_be_trained() -> None:
    sweep = settings_of({"training.learning_rate": [0.01, 0.03, 0.1, 0.3]}, halving=2)
    rounds = run(sweep, lambda values: None if values["training.learning_rate"] == 0.03 else peak(values), epochs=4)
    assert [[values["training.learning_rate"] for values in settings] for settings in rounds][1] == [0.01, 0.1]
    assert len(run(sweep, lambda values: None)) == 1
