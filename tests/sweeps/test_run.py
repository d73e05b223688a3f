"""Tests of sweeps: what is planned, that each model is the one trained alone, and that nothing is computed twice."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tables.feature_sets import make_clusters, write_feature_set
from helpers.toml_files import write_toml

from featurize.errors import UsageError
from featurize.recipes.recipe import Recipe
from featurize.recipes.sweep_section import SweepSettings
from featurize.recipes.toml_settings import check_settings
from featurize.storage.claims import claim_output
from finetune.models.folder import load_model
from finetune.ranks.communicator import SingleRank
from finetune.sweeps.folder import SweepCard, Trial, confidence_interval, rank_settings, read_sweep
from finetune.sweeps.plan import PlannedTrial, SweepPlan, group_trials, plan_sweep
from finetune.sweeps.run import run_sweep
from finetune.sweeps.spark_tasks import OnSpark
from finetune.sweeps.trials import InProcess
from finetune.training.plan import plan_training
from finetune.training.train import train

RATES = {"training.learning_rate": [0.01, 0.1], "training.l2": [0.0, 0.01]}
TIMEOUT_S = 120


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Do not change it."""
    folder = tmp_path_factory.mktemp("sweep") / "features"
    write_feature_set(folder, *make_clusters(160, spread=2.5))
    return folder


def document(features: Path, url: Path, values: dict[str, Any], **changes: Any) -> dict[str, Any]:
    sections = {"model": {}, "training": {}, "sweep": {}} | changes
    return {
        "features": {"url": str(features)},
        "model": {"name": "softmax_head", "url": str(url / "unused"), **sections["model"]},
        "training": {"epochs": 3, "batch_size": 16, "seed": 5, **sections["training"]},
        "sweep": {"url": str(url), "values": values, "seeds": 2, **sections["sweep"]},
    }


def make_recipe(features: Path, url: Path, values: dict[str, Any], **changes: Any) -> Recipe:
    return check_settings(Recipe, document(features, url, values, **changes), origin="test")


def sweep(features: Path, url: Path, values: dict[str, Any], **changes: Any) -> tuple[int, int, int]:
    """How many models were trained, there, and failed."""
    result = run_sweep(plan_sweep(make_recipe(features, url, values, **changes), origin="test"))
    assert result.card == read_sweep(str(url))
    return result.trained, result.reused, result.failed


def trials_of(plan: SweepPlan) -> list[PlannedTrial]:
    """Of the first round."""
    return plan.plan_trials(next(plan.search()))


def assert_same_models(card: SweepCard, expected: SweepCard) -> None:
    by_id = {trial.model_id: trial for trial in card.trials}
    assert len(by_id) == len(expected.trials)
    for trial in expected.trials:
        assert by_id[trial.model_id].metrics == pytest.approx(trial.metrics, abs=1e-5)
        models = (load_model(url)[0].get_weights() for url in (trial.url, by_id[trial.model_id].url))
        for one, other in zip(*models, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"values": {}}, "must name at least one key"),
        ({"values": {"training.seed": [1]}}, "`sweep.seeds` sets the seeds"),
        ({"values": {"model.url": ["a"]}}, "`sweep.url` sets where models go"),
        ({"values": {"images.source": ["a"]}}, "images.source must be a key of [model] or [training]"),
        (
            {"values": {"training.l2": 0.1}},
            "training.l2 must have a list of values, or a range with low and high. Got 0.1",
        ),
        ({"values": {"training.l2": []}}, "must have a list of values"),
        ({"values": {"training.l2": [0.1, 0.1]}}, "training.l2 has a value twice"),
        ({"seeds": 0}, "`seeds` must be 1 or more. Got 0"),
        ({"seeds": [1, 1]}, "different numbers"),
        ({"search": "random"}, "`n_settings` needs `search` random or bayesian"),
        ({"search": "bayesian"}, "`n_settings` needs `search` random or bayesian"),
        ({"n_settings": 3}, "`n_settings` needs `search` random or bayesian"),
        ({"values": {"training.l2": {"low": 0.1, "high": 0.2}}}, "needs `search` random or bayesian"),
        ({"values": {"training.l2": {"low": 0.2, "high": 0.1}}}, "low less than high. Got 0.2 and 0.1"),
        ({"values": {"training.l2": {"low": 0.2}}}, "must have numbers low and high"),
        ({"values": {"training.l2": {"low": 0.0, "high": 0.1, "log": True}}}, "must have a low greater than 0"),
        ({"values": {"training.l2": {"low": 0.0, "high": 0.1, "step": 1}}}, "only low, high and log. Got step"),
        ({"search": "bayesian", "n_settings": 9, "halving": 3}, "`halving` needs `search` grid or random"),
        (
            {"values": {"training.epochs": [1, 2]}, "halving": 3},
            "training.epochs cannot be varied, as `halving` varies",
        ),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as raised:
        check_settings(SweepSettings, {"url": "sweep", "values": RATES, **changes}, origin="test")
    assert words in str(raised.value)


def test_wrong_values_are_refused_before_anything_is_trained(features: Path, tmp_path: Path) -> None:
    values = {"training.learning_rate": [0.1, -1.0], "training.epoch": [3]}
    with pytest.raises(UsageError) as raised:
        plan_sweep(make_recipe(features, tmp_path / "sweep", values), origin="my.toml")
    assert "my.toml with training.learning_rate = 0.1, training.epoch = 3" in str(raised.value)
    assert "epoch" in str(raised.value)
    assert not (tmp_path / "sweep").exists()


def test_a_recipe_without_a_sweep_is_refused(features: Path, tmp_path: Path) -> None:
    whole = document(features, tmp_path, RATES)
    del whole["sweep"]
    with pytest.raises(UsageError, match=r"my\.toml: the section \[sweep\] is missing"):
        plan_sweep(check_settings(Recipe, whole, origin="test"), origin="my.toml")


def test_identities_are_those_of_models_trained_alone(features: Path, tmp_path: Path) -> None:
    plan = plan_sweep(make_recipe(features, tmp_path / "sweep", RATES), origin="test")
    assert len({trial.plan.model_id for trial in trials_of(plan)}) == 8
    for trial in trials_of(plan):
        assert plan_training(trial.plan.recipe, ranks=1).model_id == trial.plan.model_id
        assert trial.plan.recipe.model.url == f"file://{tmp_path}/sweep/models/{trial.plan.model_id[:16]}"


def test_what_sees_the_same_batches_is_trained_together(features: Path, tmp_path: Path) -> None:
    values = RATES | {"training.batch_size": [8, 16], "model.name": ["softmax_head", "mlp_head"]}
    plan = plan_sweep(make_recipe(features, tmp_path / "sweep", values), origin="test")
    groups = list(group_trials(trials_of(plan), most=3))
    assert sorted(len(group) for group in groups) == [1] * 8 + [3] * 8
    for group in groups:
        shared = {(t.seed, t.values["training.batch_size"], t.values["model.name"]) for t in group}
        assert len(shared) == 1
    dropout = plan_sweep(
        make_recipe(features, tmp_path / "s", RATES, model={"name": "mlp_head", "dropout": 0.1}), origin="t"
    )
    assert [len(group) for group in group_trials(trials_of(dropout), most=3)] == [1] * 8


@pytest.mark.slow
@pytest.mark.parametrize("model", [{}, {"name": "mlp_head", "hidden": [5], "dropout": 0.2}], ids=["together", "alone"])
def test_each_model_is_the_one_that_fit_trains(features: Path, tmp_path: Path, model: dict[str, Any]) -> None:
    changes = {"model": model, "training": {"class_weights": "balanced"}}
    plan = plan_sweep(make_recipe(features, tmp_path / "sweep", RATES, **changes), origin="test")
    card = run_sweep(plan).card
    for number, planned in enumerate(trials_of(plan)):
        url = str(tmp_path / f"alone-{number}")
        settings = planned.plan.recipe.model.model_copy(update={"url": url})
        recipe = planned.plan.recipe.model_copy(update={"model": settings})
        alone = train(plan_training(recipe, ranks=1), SingleRank())
        assert alone is not None
        found, own = load_model(planned.plan.recipe.model.url)
        assert own.model_id == alone.model_id
        assert own.metrics == pytest.approx(alone.metrics, abs=1e-5)
        for one, other in zip(found.get_weights(), load_model(url)[0].get_weights(), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
    by_id = {trial.model_id: trial for trial in card.trials}
    assert {trial.state for trial in card.trials} == {"done"}
    assert all(by_id[planned.plan.model_id].values == planned.values for planned in trials_of(plan))


@pytest.mark.slow
def test_nothing_is_computed_twice(features: Path, tmp_path: Path) -> None:
    url = tmp_path / "sweep"
    assert sweep(features, url, RATES) == (8, 0, 0)
    before = {file: file.stat().st_mtime_ns for file in (url / "models").rglob("*")}
    assert sweep(features, url, RATES) == (0, 8, 0)
    assert {file: file.stat().st_mtime_ns for file in (url / "models").rglob("*")} == before
    assert sweep(features, url, RATES | {"training.l2": [0.0, 0.01, 0.1]}) == (4, 8, 0)
    assert sweep(features, url, RATES, sweep={"seeds": 3}) == (4, 8, 0)
    card = read_sweep(str(url))
    assert card is not None
    assert len(card.trials) == 16
    assert card.seeds == [5, 6, 7]


@pytest.mark.slow
def test_a_bayesian_search_goes_on_from_what_is_there(features: Path, tmp_path: Path) -> None:
    values = {"training.learning_rate": {"low": 1e-4, "high": 1.0, "log": True}}
    changes = {"sweep": {"search": "bayesian", "n_settings": 10}}
    assert sweep(features, tmp_path / "sweep", values, **changes) == (20, 0, 0)
    before = read_sweep(str(tmp_path / "sweep"))
    assert sweep(features, tmp_path / "sweep", values, **changes) == (0, 20, 0)
    after = read_sweep(str(tmp_path / "sweep"))
    assert before is not None
    assert after is not None
    assert {trial.model_id for trial in after.trials} == {trial.model_id for trial in before.trials}
    assert len({trial.values["training.learning_rate"] for trial in after.trials}) == 10


def test_wrong_ends_of_a_range_are_refused_before_anything_is_trained(features: Path, tmp_path: Path) -> None:
    values = {"training.momentum": {"low": 0.5, "high": 3.0}}
    changes = {"sweep": {"search": "bayesian", "n_settings": 10}}
    with pytest.raises(UsageError, match=r"my\.toml with training\.momentum = 3\.0"):
        plan_sweep(make_recipe(features, tmp_path / "sweep", values, **changes), origin="my.toml")


@pytest.mark.slow
def test_successive_halving_trains_the_best_for_all_epochs(features: Path, tmp_path: Path) -> None:
    values = {"training.learning_rate": [1e-6, 1e-5, 0.05, 0.1]}
    changes = {"training": {"epochs": 4}, "sweep": {"halving": 2}}
    assert sweep(features, tmp_path / "sweep", values, **changes) == (14, 0, 0)
    card = read_sweep(str(tmp_path / "sweep"))
    assert card is not None
    ranked = rank_settings(card)
    assert [setting.values["training.epochs"] for setting in ranked] == [4, 2, 2, 1, 1, 1, 1]
    assert ranked[0].values["training.learning_rate"] in (0.05, 0.1)
    assert {setting.values["training.learning_rate"] for setting in ranked[1:3]} == {0.05, 0.1}
    assert sweep(features, tmp_path / "sweep", values, **changes) == (0, 14, 0)


@pytest.mark.slow
def test_several_groups_at_a_time_give_the_models_of_one_after_another(features: Path, tmp_path: Path) -> None:
    values = RATES | {"model.name": ["softmax_head", "mlp_head"]}
    expected = run_sweep(plan_sweep(make_recipe(features, tmp_path / "one", values), origin="test")).card
    plan = plan_sweep(make_recipe(features, tmp_path / "many", values), origin="test")
    result = run_sweep(plan, runner=InProcess(at_once=3))
    assert (result.trained, result.reused, result.failed) == (16, 0, 0)
    assert_same_models(result.card, expected)


@pytest.mark.slow
def test_on_spark_the_models_are_those_of_one_process(features: Path, tmp_path: Path) -> None:
    values = RATES | {"model.name": ["softmax_head", "mlp_head"]}
    expected = run_sweep(plan_sweep(make_recipe(features, tmp_path / "here", values), origin="test")).card
    write_toml(tmp_path / "sweep.toml", document(features, tmp_path / "sweep", values))
    command = [sys.executable, "-m", "finetune", "sweep", "sweep.toml", "--tasks", "2", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["trained"], result["reused"]) == (16, 0)
    found = read_sweep(str(tmp_path / "sweep"))
    assert found is not None
    assert_same_models(found, expected)
    plan = plan_sweep(make_recipe(features, tmp_path / "sweep", values), origin="test")
    again = run_sweep(plan, runner=OnSpark(no_context, tasks=2))
    assert (again.trained, again.reused) == (0, 16)


def no_context() -> Any:
    pytest.fail("there is nothing to train, and Spark need not be started")


@pytest.mark.slow
def test_a_failed_task_ends_the_sweep_with_its_message(features: Path, tmp_path: Path) -> None:
    write_toml(tmp_path / "sweep.toml", document(features, tmp_path / "sweep", RATES))
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "models").write_text("no folder")
    command = [sys.executable, "-m", "finetune", "sweep", "sweep.toml", "--tasks", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "models" in done.stderr


@pytest.mark.slow
def test_a_sweep_is_logged_once(features: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    whole = document(features, tmp_path / "sweep", RATES) | {
        "registry": {"url": f"sqlite:///{tmp_path}/mlflow.db", "experiment": "rates", "backbone": False}
    }
    write_toml(tmp_path / "sweep.toml", whole)
    command = [sys.executable, "-m", "finetune", "sweep", "sweep.toml"]
    for words in ("logged: 8 models, 0 were logged before", "logged: 0 models, 8 were logged before"):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
        assert words in done.stderr
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("rates")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 8


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on(features: Path, tmp_path: Path) -> None:
    url, calls = tmp_path / "sweep", list[int]()
    plan = plan_sweep(make_recipe(features, url, RATES), origin="test")

    def interrupt(trials: Sequence[Trial]) -> None:
        calls.append(len(trials))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(plan, on_trials=interrupt)
    assert calls == [4]
    card = read_sweep(str(url))
    assert card is not None
    assert len(card.trials) == 4
    assert sweep(features, url, RATES) == (4, 4, 0)


@pytest.mark.slow
def test_what_failed_is_tried_again_and_harms_no_other(features: Path, tmp_path: Path) -> None:
    values = {"training.learning_rate": [0.1, 1e30]}
    assert sweep(features, tmp_path / "sweep", values) == (2, 0, 2)
    assert sweep(features, tmp_path / "sweep", values) == (0, 2, 2)
    card = read_sweep(str(tmp_path / "sweep"))
    assert card is not None
    best, worst = rank_settings(card)
    assert best.values == {"training.learning_rate": 0.1}
    assert worst.mean is None
    assert "Lower `training.learning_rate`" in str(worst.trials[0].error)


@pytest.mark.slow
def test_two_sweeps_at_once_share_the_work(features: Path, tmp_path: Path) -> None:
    values = {"training.learning_rate": [0.01, 0.02, 0.05, 0.1], "training.batch_size": [4, 8, 16]}
    changes = {"training": {"epochs": 20}}
    write_toml(tmp_path / "sweep.toml", document(features, tmp_path / "sweep", values, **changes))
    command = [sys.executable, "-m", "finetune", "sweep", "sweep.toml", "--json"]
    both = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    results = [json.loads(process.communicate(timeout=TIMEOUT_S)[0].splitlines()[-1]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum(result["trained"] for result in results) == 24
    assert all(result["trained"] + result["reused"] == 24 for result in results)
    for result in results:
        assert len(result["settings"]) == 12
        assert all(len(setting["models"]) == 2 for setting in result["settings"])


@pytest.mark.slow
def test_a_model_that_another_job_gives_up_is_trained_here(features: Path, tmp_path: Path) -> None:
    values = {"training.learning_rate": [0.1]}
    plan = plan_sweep(make_recipe(features, tmp_path / "sweep", values), origin="test")
    held = claim_output(trials_of(plan)[0].plan.recipe.model.url)
    held.__enter__()

    def give_up(trials: Sequence[Trial]) -> None:
        if trials[0].seed != trials_of(plan)[0].seed:
            held.__exit__(None, None, None)

    result = run_sweep(plan, on_trials=give_up)
    assert (result.trained, result.reused) == (2, 0)


@pytest.mark.slow
def test_the_command_ranks_and_says_what_failed(features: Path, tmp_path: Path) -> None:
    values = {"training.learning_rate": [0.0001, 0.1, 1e30]}
    write_toml(tmp_path / "sweep.toml", document(features, tmp_path / "sweep", values))
    command = [sys.executable, "-m", "finetune", "sweep", "sweep.toml", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 1
    result = json.loads(done.stdout.splitlines()[-1])
    assert [setting["values"]["training.learning_rate"] for setting in result["settings"]] == [0.1, 0.0001, 1e30]
    assert (result["trained"], result["reused"]) == (4, 0)
    assert "2 models could not be trained" in done.stderr
    assert "training.learning_rate = 1e+30, seed 5" in done.stderr


def test_interval_of_a_mean_is_students() -> None:
    low, high = confidence_interval([0.80, 0.82, 0.84])
    assert (low + high) / 2 == pytest.approx(0.82)
    assert high - low == pytest.approx(
        2 * 4.302653 * 0.02 / np.sqrt(3), rel=1e-6
    )  # t of 2 degrees of freedom, tabulated
