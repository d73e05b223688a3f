"""Tests of `finetune.sweep`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

import finetune
from finetune.api.sweeping import Sweep
from finetune.sweeps.folder import Trial, rank_settings

Document = Callable[..., dict[str, Any]]


def with_sweep(document: dict[str, Any], folder: Path, **values: Any) -> dict[str, Any]:
    swept = {f"training.{name}": each for name, each in values.items()}
    return {**document, "sweep": {"url": str(folder), "seeds": 2, "values": swept}}


@pytest.fixture(scope="module")
def made(make_document: Document, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Three learning rates, with two seeds each."""
    folder = tmp_path_factory.mktemp("sweep")
    return finetune.sweep(with_sweep(make_document(folder / "m"), folder / "sweep", learning_rate=[0.001, 0.1, 0.3]))


def test_settings_are_ranked_and_the_best_model_can_be_used(made: Sweep) -> None:
    assert (made.trained, made.reused, made.failed) == (6, 0, 0)
    settings = made.settings
    assert list(settings["models"]) == [2, 2, 2]
    assert settings["mean"].is_monotonic_decreasing
    ranked = rank_settings(made.card)
    assert list(settings["training.learning_rate"]) == [each.values["training.learning_rate"] for each in ranked]
    best = made.best
    of_best = made.trials[made.trials["training.learning_rate"] == settings["training.learning_rate"][0]]
    assert best.url in set(of_best["url"])
    assert best.metrics[made.metric] == of_best[made.metric].max()
    assert best.evaluate().rows > 0


def test_the_ranking_is_shown(made: Sweep) -> None:
    for shown in (repr(made), made._repr_html_()):
        assert "learning_rate" in shown
        assert f"{made.settings['mean'][0]:.4f}" in shown
        assert "6 trained" in shown


def test_again_it_trains_what_is_missing_and_tells_of_each_group(made: Sweep, make_document: Document) -> None:
    folder = Path(made.url.removeprefix("file://"))
    told: list[tuple[int, int]] = []

    def tell(trials: Sequence[Trial], most: int) -> None:
        told.append((len(trials), most))

    again = finetune.sweep(
        with_sweep(make_document(folder.parent / "m"), folder, learning_rate=[0.1, 0.3]), on_trials=tell
    )
    assert (again.trained, again.reused) == (0, 4)
    assert sum(count for count, _ in told) == 4
    assert {most for _, most in told} == {4}


@pytest.mark.spark
@pytest.mark.slow
def test_in_the_callers_session_it_gives_the_same_models(
    made: Sweep, make_document: Document, tmp_path: Path, spark: SparkSession
) -> None:
    document = with_sweep(make_document(tmp_path / "m"), tmp_path / "sweep", learning_rate=[0.1])
    on_spark = finetune.sweep(document, spark=spark)
    here = made.trials[made.trials["training.learning_rate"] == 0.1].sort_values("seed")
    there = on_spark.trials.sort_values("seed")
    assert list(there["validation_loss"]) == pytest.approx(list(here["validation_loss"]), abs=1e-5)
    assert spark.range(3).count() == 3


def test_what_is_wrong_with_a_call_is_said(make_document: Document, tmp_path: Path) -> None:
    with pytest.raises(finetune.UsageError, match=r"^`tasks` must be at least 1. Got 0.$"):
        finetune.sweep(make_document(tmp_path), tasks=0)
    with pytest.raises(finetune.UsageError, match=r"the recipe: the section \[sweep\] is missing"):
        finetune.sweep(make_document(tmp_path))
