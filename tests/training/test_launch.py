"""Tests of finetune.training.launch in one process; on Spark and under horovodrun the command's tests go through it."""

from pathlib import Path

import pytest
from helpers.tables.feature_sets import make_clusters, write_feature_set

from featurize.errors import UsageError
from featurize.recipes.recipe import FinetuneRecipe
from finetune.training.launch import launched_ranks, train_on_ranks
from finetune.training.plan import TrainingPlan, plan_training

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # Petastorm reads by the legacy interface of pyarrow


@pytest.fixture
def plan(tmp_path: Path) -> TrainingPlan:
    features, label_index = make_clusters(150)
    write_feature_set(tmp_path / "set", features, label_index)
    training = {"epochs": 2, "batch_size": 16, "learning_rate": 0.1}
    sections = {"features": {"url": str(tmp_path / "set")}, "model": {"url": str(tmp_path / "m")}, "training": training}
    return plan_training(FinetuneRecipe.model_validate(sections), ranks=1)


def test_one_rank_trains_in_a_process_whose_tensorflow_works_already(plan: TrainingPlan) -> None:
    import tensorflow as tf

    assert float(tf.reduce_sum(tf.ones(3))) == 3.0
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    epochs: list[float] = []
    card = train_on_ranks(plan, on_epoch=lambda entry: epochs.append(entry["epoch"]))
    assert card is not None
    assert (card.ranks, card.model_id) == (1, plan.model_id)
    assert epochs == [1.0, 2.0]
    assert tf.config.threading.get_intra_op_parallelism_threads() == threads


def test_another_number_of_ranks_than_horovodrun_has_started_is_refused(
    plan: TrainingPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert launched_ranks() is None
    monkeypatch.setenv("HOROVOD_RANK", "0")
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    assert launched_ranks() == 2
    with pytest.raises(UsageError, match=r"`ranks` must be 2, .*\. Got 1\."):
        train_on_ranks(plan)
