"""A training that was killed or asked to stop, and then resumed, gives the model of an undisturbed one, to the last bit.

FIRN_RESUME_ROUNDS=10 repeats every test that often, each time at another moment.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from helpers.services.processes import kill_processes, wait_until
from helpers.tables.feature_sets import make_clusters, write_feature_set
from helpers.toml_files import write_toml

from featurize.storage.claims import CLAIM_NAME
from finetune.models.folder import CARD_NAME, LAST_NETWORK_NAME, NETWORK_NAME
from finetune.training.checkpoints import CHECKPOINT_NAME

pytestmark = [pytest.mark.horovod, pytest.mark.slow]
EPOCHS = {"one_rank": 150, "horovodrun": 24, "spark": 24}  # some seconds: those of one rank are short
ROUNDS = range(int(os.environ.get("FIRN_RESUME_ROUNDS", "1")))
HOROVODRUN = [sys.executable, str(Path(sys.executable).with_name("horovodrun")), "-np", "2", "--gloo"]


@dataclass(frozen=True)
class Training:
    """A training of one rank or two, some seconds long, to be started as often as one likes.

    Attributes:
        launcher: one_rank, horovodrun or spark.
    """

    folder: Path
    launcher: str

    @property
    def ranks(self) -> int:
        return 1 if self.launcher == "one_rank" else 2

    @property
    def epochs(self) -> int:
        return EPOCHS[self.launcher]

    def command(self, model: str, *options: str) -> list[str]:
        fit = [sys.executable, "-m", "finetune", "fit", "recipe.toml", "--set", f"model.url={model}", *options]
        fit += ["--set", f"training.batch_size={128 // self.ranks}"]
        if self.launcher == "spark":
            return [*fit, "--num-proc", "2"]
        return [*HOROVODRUN, *fit] if self.launcher == "horovodrun" else fit

    def run(self, model: str, *options: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.command(model, *options), cwd=self.folder, capture_output=True, text=True, timeout=240, check=False
        )

    def start(self, model: str, *options: str) -> "subprocess.Popen[str]":
        with (self.folder / f"{model}.log").open("w") as log:
            return subprocess.Popen(self.command(model, *options), cwd=self.folder, stdout=log, stderr=log, text=True)

    def log(self, model: str) -> str:
        return (self.folder / f"{model}.log").read_text()

    def wait_for_epochs(self, model: str, process: "subprocess.Popen[str]") -> None:
        """Waits until `process` has done some epochs, and a random part of another one."""

        is_resumed = isinstance(process.args, list) and "--resume" in process.args

        def has_begun() -> bool:
            assert process.poll() is None, self.log(model)
            assert not is_resumed or "epoch 1/" not in self.log(model)
            return len(set(re.findall(rf"epoch \d+/{self.epochs}", self.log(model)))) >= 3

        wait_until(has_begun, "three epochs", timeout_s=120)
        time.sleep(np.random.default_rng().uniform(0, 0.5))

    def assert_equal_to_undisturbed(self, model: str) -> None:
        found, wanted = (json.loads((self.folder / name / CARD_NAME).read_text()) for name in (model, "undisturbed"))
        for key in ("model_id", "best_epoch", "metrics", "ranks"):
            assert found[key] == wanted[key], key
        for entry, other in zip(found["history"], wanted["history"], strict=True):
            assert without_seconds(entry) == without_seconds(other)
        for network in (NETWORK_NAME, LAST_NETWORK_NAME):
            pairs = (weights_of(self.folder / name / network) for name in (model, "undisturbed"))
            for weights, expected in zip(*pairs, strict=True):
                np.testing.assert_array_equal(weights, expected)
        left = {path.name for path in (self.folder / model).iterdir()}
        assert not {CHECKPOINT_NAME, CLAIM_NAME} & left


def without_seconds(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if "second" not in key}


def weights_of(path: Path) -> Sequence[Any]:
    from keras import saving

    weights: Sequence[Any] = saving.load_model(path, compile=False).get_weights()
    return weights


@pytest.fixture(scope="module", params=["one_rank", "horovodrun", "spark"])
def training(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """With dropout, a schedule and momentum: all that has a state, or seems to."""
    folder = tmp_path_factory.mktemp("resume")
    features, label_index = make_clusters(6000, dim=64, n_classes=5, spread=6.0)
    splits = ["train"] * 5001 + ["validation"] * 999
    write_feature_set(
        folder / "set",
        features,
        label_index,
        splits=splits,
        classes=[f"class {i}" for i in range(5)],
        rows_per_group=1024,
    )
    model = {"name": "mlp_head", "hidden": [128], "dropout": 0.4, "url": "model"}
    settings = {"epochs": EPOCHS[request.param], "learning_rate": 0.02, "schedule": "cosine"}
    write_toml(folder / "recipe.toml", {"features": {"url": "set"}, "model": model, "training": settings})
    training = Training(folder, request.param)
    done = training.run("undisturbed")
    assert done.returncode == 0, done.stdout + done.stderr
    return training


@pytest.mark.parametrize("number", ROUNDS)
def test_training_that_was_interrupted_resumes(training: Training, number: int) -> None:
    """First everything is killed, then it gets SIGTERM, then one rank is killed; and then it is let alone."""
    model = f"interrupted{number}"
    process = training.start(model)
    training.wait_for_epochs(model, process)
    kill_processes([psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)])
    process.wait()
    assert not (training.folder / model / CARD_NAME).exists()

    process = training.start(model, "--resume")
    training.wait_for_epochs(model, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) not in (0, None)
    if training.launcher != "horovodrun":  # which ends the ranks that have not said so within five seconds
        assert process.returncode == 1
        assert re.search(
            rf"error: stopped on request after epoch \d+ of {training.epochs}; train again with `resume=True` \(--resume\)\.",
            training.log(model),
        )
    assert (training.folder / model / CHECKPOINT_NAME).exists()

    if training.ranks > 1:
        process = training.start(model, "--resume")
        training.wait_for_epochs(model, process)
        next(child for child in psutil.Process(process.pid).children(recursive=True) if is_rank_1(child)).kill()
        assert process.wait(timeout=60) != 0
        assert "rank 1" in training.log(model)

    done = training.run(model, "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "epoch 1/" not in done.stdout + done.stderr
    training.assert_equal_to_undisturbed(model)


def is_rank_1(process: psutil.Process) -> bool:
    try:
        return bool(process.environ().get("HOROVOD_RANK") == "1" and process.name().startswith("python"))
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # it has ended since it was listed, or is about to
        return False


@pytest.mark.parametrize("training", ["one_rank"], indirect=True)
def test_without_resume_a_training_starts_afresh(training: Training) -> None:
    model = "afresh"
    process = training.start(model)
    training.wait_for_epochs(model, process)
    kill_processes([psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)])
    process.wait()
    done = training.run(model)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "epoch 1/" in done.stdout + done.stderr
    assert "--resume" in done.stdout + done.stderr
    training.assert_equal_to_undisturbed(model)
