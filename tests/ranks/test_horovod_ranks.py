"""Tests of finetune.ranks.horovod_ranks: N ranks with batches of B rows give the model of one rank with batches of N x B rows.

Run by path, this file is what a rank does: ``horovodrun -np 2 --gloo python tests/ranks/test_horovod_ranks.py FOLDER``. One
launch works through all cases, since starting ranks takes longer than training. With another argument the ranks share no memory.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from helpers.services.launching import horovodrun
from helpers.tables.feature_sets import make_clusters, uneven_shards, write_feature_set
from numpy.typing import NDArray

from featurize.errors import JobError
from featurize.recipes.model_section import ModelSettings
from featurize.recipes.training_section import TrainingSettings
from featurize.tables.readable import read_features_manifest
from finetune.networks.build import build_model
from finetune.ranks import horovod_ranks
from finetune.ranks.communicator import Communicator, SingleRank
from finetune.ranks.consensus import check_agreement
from finetune.ranks.horovod_ranks import HorovodRanks, launched_by_horovodrun, open_ranks
from finetune.ranks.shared_memory import Place, SharedMemory
from finetune.rows.loader import open_split
from finetune.training.loop import fit


@dataclass(frozen=True)
class Case:
    """A training; `training.batch_size` is the global one, which the ranks divide among them."""

    features: str
    training: dict[str, Any]
    model: dict[str, Any] = field(default_factory=dict)
    first_weights_differ: bool = False
    class_weights: tuple[float, ...] | None = None


CASES = {
    "sgd": Case("floats", {"batch_size": 64, "epochs": 4, "learning_rate": 0.05}),
    "adam": Case(
        "floats",
        {"batch_size": 64, "epochs": 4, "learning_rate": 0.01, "optimizer": "adam"},
        first_weights_differ=True,
    ),
    "adagrad": Case("floats", {"batch_size": 64, "epochs": 3, "learning_rate": 0.1, "optimizer": "adagrad"}),
    "rmsprop": Case("floats", {"batch_size": 64, "epochs": 3, "learning_rate": 0.01, "optimizer": "rmsprop"}),
    "penalty_and_schedule": Case(
        "floats", {"batch_size": 64, "epochs": 3, "learning_rate": 0.05, "l2": 0.01, "schedule": "cosine"}
    ),
    "one_row_left": Case("one_row_left", {"batch_size": 64, "epochs": 3, "learning_rate": 0.1}),
    "fewer_rows_than_ranks_in_every_step": Case("few", {"batch_size": 2, "epochs": 3, "learning_rate": 0.1}),
    "pixels": Case("pixels", {"batch_size": 32, "epochs": 2, "learning_rate": 0.002, "best_by": "loss"}),
    "augmented_convnet": Case(
        "pixels",
        {
            "batch_size": 32,
            "epochs": 2,
            "learning_rate": 0.01,
            "optimizer": "adagrad",
            "gradient_normalization": "layer",
            "best_by": "loss",
            "augmentation": {"flip": "both", "shift": 0.2, "rotation": 20.0, "brightness": 0.3},
        },
        {"name": "mnist_convnet"},
    ),
    "dropout_and_weighted_smoothed_loss": Case(
        "floats",
        {"batch_size": 64, "epochs": 3, "learning_rate": 0.05, "label_smoothing": 0.1},
        {"name": "mlp_head", "hidden": [16, 8], "dropout": 0.5, "l2_normalize": True},
        class_weights=(0.5, 1.0, 2.0, 1.5, 0.0),
    ),
    "stream": Case(
        "floats",
        {"batch_size": 64, "epochs": 3, "learning_rate": 0.05, "cache": "stream", "shuffle_rows": 200},
        {"name": "mlp_head", "hidden": [16], "dropout": 0.3},
    ),
}


BY_HOROVOD = ("sgd", "one_row_left", "augmented_convnet", "stream")
"""The cases that are trained without shared memory too."""


class ForgetfulRanks(HorovodRanks):
    """Ranks whose gradients stay where they are; weights are still shared at the start and compared at the end."""

    def sum(self, tensors: Sequence[Any]) -> list[Any]:
        import tensorflow as tf

        return list(tensors) if tf.inside_function() else super().sum(tensors)


class DeafRanks(HorovodRanks):
    """Ranks that never hear of each other, not even when they are compared."""

    def sum(self, tensors: Sequence[Any]) -> list[Any]:
        return list(tensors)


def run_case(folder: Path, case: Case, ranks: Communicator) -> dict[str, Any]:
    """Trains one case; weights and history as lists, the error where there was one."""
    url = str(folder / case.features)
    manifest = read_features_manifest(url)
    training = TrainingSettings.model_validate(
        case.training | {"batch_size": case.training["batch_size"] // ranks.size}
    )
    model = build_model(
        ModelSettings.model_validate({"url": "unused"} | case.model),
        feature_shape=manifest.feature_shape,
        feature_dtype=manifest.feature_dtype,
        n_classes=len(manifest.classes),
        seed=training.seed + (ranks.rank if case.first_weights_differ else 0),
    )
    train, validation = (open_split(url, manifest, split, training) for split in ("train", "validation"))
    history: list[dict[str, float]] = []
    error = None
    try:
        fit(
            model,
            train,
            validation,
            training,
            ranks=ranks,
            on_epoch=history.append,
            class_weights=case.class_weights,
        )
    except JobError as raised:
        error = str(raised)
    weights = [weight.astype(np.float64).tolist() for weight in model.get_weights()]
    return {"weights": weights, "history": history, "error": error}


def run_as_rank(folder: Path) -> None:
    """Works through all cases as a rank and writes what came out."""
    import tensorflow as tf

    with open_ranks(distributed=True) as ranks:
        results: dict[str, Any] = {name: run_case(folder, case, ranks) for name, case in CASES.items()}
        results["forgetful"] = run_case(folder, CASES["sgd"], ForgetfulRanks())
        results["deaf"] = run_case(folder, CASES["sgd"], DeafRanks())
        results["rank"], results["size"] = ranks.rank, ranks.size
        results["threads"] = tf.config.threading.get_intra_op_parallelism_threads()
        results["launched"] = launched_by_horovodrun()
        results |= run_collectives(ranks)
        (folder / f"rank-{ranks.rank}.json").write_text(json.dumps(results))


def run_as_rank_without_memory(folder: Path) -> None:
    """As where ranks of one host are in containers of their own: rank 0 has the memory, rank 1 does not find it."""

    def not_found(rank: int, size: int, place: Place | None = None) -> SharedMemory:
        return SharedMemory(rank, size, place and replace(place, pid=2**30))

    with mock.patch.object(horovod_ranks, "SharedMemory", not_found), open_ranks(distributed=True) as ranks:
        results: dict[str, Any] = {name: run_case(folder, CASES[name], ranks) for name in BY_HOROVOD}
        results |= run_collectives(ranks)
        (folder / f"horovods-{ranks.rank}.json").write_text(json.dumps(results))


def run_collectives(ranks: Communicator) -> dict[str, Any]:
    """Of tensors of several shapes, in a graph and outside."""
    import tensorflow as tf

    tensors = [tf.constant([[1.0, ranks.rank + 1.0]]), tf.constant(ranks.rank + 5.0), tf.zeros((0, 3))]
    ways = {
        "sum": ranks.sum,
        "sum_in_graph": tf.function(ranks.sum),
        "minimum": ranks.minimum,
        "minimum_in_graph": tf.function(ranks.minimum),
    }
    return {name: [part.numpy().tolist() for part in collective(tensors)] for name, collective in ways.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The feature sets of the cases: odd numbers of rows, shards of very different sizes."""
    folder = tmp_path_factory.mktemp("distributed")
    write = partial(_write, folder)
    features, label_index = make_clusters(1234, dim=24, n_classes=5, spread=3.0)
    write("floats", features, label_index, n_train=1003)
    write("one_row_left", features[:200], label_index[:200], n_train=129)
    write("few", features[:9], label_index[:9], n_train=7)
    pixels = np.random.default_rng(1).integers(0, 256, (150, 28, 28, 1)).astype(np.uint8)
    write("pixels", pixels, label_index[:150], n_train=101)
    return folder


def _write(folder: Path, name: str, features: NDArray[Any], label_index: NDArray[Any], *, n_train: int) -> None:
    rows = len(features)
    splits = ["train"] * n_train + ["validation"] * (rows - n_train)
    classes = [f"class {index}" for index in range(5)]
    shards = uneven_shards(rows, 5, seed=3)
    write_feature_set(folder / name, features, label_index, splits=splits, classes=classes, shards=shards)


@pytest.fixture(scope="module")
def two_ranks(folder: Path) -> list[dict[str, Any]]:
    """What both ranks of one launch wrote."""
    done = horovodrun(sys.executable, __file__, str(folder), cwd=folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "cannot share memory" not in done.stderr
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def one_rank(folder: Path) -> dict[str, dict[str, Any]]:
    """The same cases in this process, without Horovod."""
    return {name: run_case(folder, case, SingleRank()) for name, case in CASES.items()}


def flat(result: dict[str, Any]) -> NDArray[np.float64]:
    """All weights of a result as one vector."""
    return np.concatenate([np.ravel(weight) for weight in result["weights"]])


@pytest.mark.horovod
@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_give_the_model_of_one_rank_with_twice_the_batch(
    name: str, two_ranks: list[dict[str, Any]], one_rank: dict[str, dict[str, Any]]
) -> None:
    alone = one_rank[name]
    assert alone["error"] is None
    for rank in two_ranks:
        assert rank[name]["error"] is None
        np.testing.assert_allclose(flat(rank[name]), flat(alone), atol=1e-4, rtol=0)
        for found, wanted in zip(rank[name]["history"], alone["history"], strict=True):
            assert set(found) == set(wanted)
            for key in (key for key in wanted if "second" not in key):
                assert found[key] == pytest.approx(wanted[key], abs=1e-5), (key, wanted["epoch"])
    np.testing.assert_array_equal(flat(two_ranks[0][name]), flat(two_ranks[1][name]))


@pytest.mark.horovod
@pytest.mark.slow
def test_training_moves_the_weights_by_far_more_than_the_tolerance(
    folder: Path, one_rank: dict[str, dict[str, Any]]
) -> None:
    for name, case in CASES.items():
        shorter = replace(case, training=case.training | {"epochs": 1})
        assert np.abs(flat(run_case(folder, shorter, SingleRank())) - flat(one_rank[name])).max() > 1e-3, name


@pytest.mark.horovod
@pytest.mark.slow
def test_ranks_that_stop_averaging_are_found_out(
    two_ranks: list[dict[str, Any]], one_rank: dict[str, dict[str, Any]]
) -> None:
    assert "the ranks hold different weights" in two_ranks[0]["deaf"]["error"]
    for rank in two_ranks:
        assert "the ranks hold different weights" in rank["forgetful"]["error"]
        for broken in ("forgetful", "deaf"):
            assert np.abs(flat(rank[broken]) - flat(one_rank["sgd"])).max() > 1e-2
    assert np.abs(flat(two_ranks[0]["forgetful"]) - flat(two_ranks[1]["forgetful"])).max() > 1e-2


@pytest.mark.horovod
@pytest.mark.slow
def test_ranks_know_each_other(two_ranks: list[dict[str, Any]]) -> None:
    for number, rank in enumerate(two_ranks):
        assert (rank["rank"], rank["size"], rank["launched"]) == (number, 2, True)
        assert rank["sum"] == rank["sum_in_graph"] == [[[2.0, 3.0]], 11.0, []]
        assert rank["minimum"] == rank["minimum_in_graph"] == [[[1.0, 1.0]], 5.0, []]
        assert rank["threads"] == max(1, len(os.sched_getaffinity(0)) // 2)


@pytest.mark.horovod
@pytest.mark.slow
def test_ranks_that_cannot_share_memory_say_so_and_give_the_same(folder: Path, two_ranks: list[dict[str, Any]]) -> None:
    """To the last bit, through Horovod's collectives, which are also those of several hosts."""
    done = horovodrun(sys.executable, __file__, str(folder), "without memory", cwd=folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    notes = [line for line in done.stderr.splitlines() if "cannot share memory with the other ranks" in line]
    assert len(notes) == 1
    assert "note: rank 1 (" in notes[0]
    for number, shared in enumerate(two_ranks):
        found = json.loads((folder / f"horovods-{number}.json").read_text())
        for name in BY_HOROVOD:
            assert found[name]["error"] is None
            np.testing.assert_array_equal(flat(found[name]), flat(shared[name]))
        for collective in ("sum", "sum_in_graph", "minimum", "minimum_in_graph"):
            assert found[collective] == shared[collective]


def test_this_process_is_no_rank_unless_horovodrun_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOROVOD_RANK", raising=False)
    assert not launched_by_horovodrun()
    monkeypatch.setenv("HOROVOD_RANK", "1")
    assert not launched_by_horovodrun()
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    assert launched_by_horovodrun()


def test_importing_the_package_imports_neither_horovod_nor_tensorflow() -> None:
    code = (
        "import sys; import finetune.ranks.horovod_ranks, finetune.ranks.spark_ranks, finetune.training.launch, "
        "finetune.evaluation.evaluate, finetune.__main__;"
        "sys.exit(any(name.startswith(('horovod', 'tensorflow', 'keras')) for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_agreement_is_checked_on_every_weight() -> None:
    """A difference in the bias alone, far smaller than the kernel, is found."""
    model = build_model(ModelSettings(url="unused"), feature_shape=[50], feature_dtype="float32", n_classes=4, seed=1)

    class SecondHasAnotherBias(SingleRank):
        rank, size = 0, 2

        def sum(self, tensors: Sequence[Any]) -> list[Any]:
            (tensor,) = tensors
            other = np.zeros(tensor.shape, np.float32)
            if other.ndim:
                other[-1] = 1e-3
            return [2 * tensor + other]

    with pytest.raises(JobError, match="different weights"):
        check_agreement(model, SecondHasAnotherBias())


if __name__ == "__main__":
    (run_as_rank_without_memory if sys.argv[2:] else run_as_rank)(Path(sys.argv[1]))
