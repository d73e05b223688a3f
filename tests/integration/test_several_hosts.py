"""Ranks of horovodrun on two hosts, where FIRN_TEST_HOSTS names two (a comma between) that ssh reaches without a password.

They must share this folder and that of the tests. `scripts/two_hosts.sh` makes two out of this machine.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from helpers.services.processes import wait_until
from helpers.tables.feature_sets import make_clusters, write_feature_set
from helpers.toml_files import write_toml
from numpy.typing import NDArray

from finetune.models.folder import LAST_NETWORK_NAME

HOSTS = os.environ["FIRN_TEST_HOSTS"].split(",")
EPOCHS, BATCH, RANKS = 60, 32, 3
ON_OTHER_HOST = RANKS - 1  # two ranks are on the first host, one on the second
LIMIT_S = 60  # from a fault to the end of the job


@dataclass(frozen=True)
class Training:
    """A training on both hosts, to be started as often as one likes."""

    folder: Path

    def start(self, model: str, *options: str) -> "subprocess.Popen[str]":
        launcher = [sys.executable, str(Path(sys.executable).with_name("horovodrun")), "-np", str(RANKS), "--gloo"]
        launcher += ["-H", f"{HOSTS[0]}:{RANKS - 1},{HOSTS[1]}:1"]
        with self.log_path(model).open("w") as log:
            command = [*launcher, *fit_command(model, BATCH), *options]
            return subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, text=True)

    def log_path(self, model: str) -> Path:
        return self.folder / f"{model}.log"

    def log(self, model: str) -> str:
        return self.log_path(model).read_text()

    def kill_on_other_host(self) -> None:
        """Kills the rank there, and no other process that may be a rank of that number."""
        found = f"grep -lxzs HOROVOD_RANK={ON_OTHER_HOST} /proc/[0-9]*/environ"
        own = f'for file in $({found}); do [ "${{file%/*}}/cwd" -ef {self.folder} ] && echo "$file" | cut -d/ -f3; done'
        on_host(HOSTS[1], f"kill -9 $({own})")

    def weights(self, model: str) -> NDArray[np.float64]:
        from keras import saving

        network = saving.load_model(self.folder / model / LAST_NETWORK_NAME, compile=False)
        return np.concatenate([np.ravel(weights).astype(np.float64) for weights in network.get_weights()])


def fit_command(model: str, batch_size: int) -> list[str]:
    sets = (f"model.url={model}", f"training.batch_size={batch_size}")
    return [sys.executable, "-m", "finetune", "fit", "recipe.toml", *(part for key in sets for part in ("--set", key))]


def on_host(host: str, command: str) -> str:
    ssh = ["ssh", "-o", "StrictHostKeyChecking=no", host, command]
    return subprocess.run(ssh, capture_output=True, text=True, timeout=30, check=True).stdout


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Training:
    folder = tmp_path_factory.mktemp("hosts")
    features, label_index = make_clusters(3000, dim=64, n_classes=5, spread=6.0)
    splits = ["train"] * 2501 + ["validation"] * 499
    classes = [f"class {i}" for i in range(5)]
    write_feature_set(folder / "set", features, label_index, splits=splits, classes=classes, rows_per_group=512)
    head = {"name": "mlp_head", "hidden": [32], "dropout": 0.3, "url": "unused"}
    write_toml(
        folder / "recipe.toml",
        {"features": {"url": "set"}, "model": head, "training": {"epochs": EPOCHS, "learning_rate": 0.01}},
    )
    return Training(folder)


@pytest.fixture(scope="module")
def undisturbed(training: Training) -> NDArray[np.float64]:
    assert training.start("undisturbed").wait(timeout=300) == 0, training.log("undisturbed")
    return training.weights("undisturbed")


@pytest.mark.horovod
@pytest.mark.slow
def test_ranks_of_two_hosts_give_the_model_of_one_rank(training: Training, undisturbed: NDArray[np.float64]) -> None:
    subprocess.run(fit_command("one_rank", RANKS * BATCH), cwd=training.folder, check=True, timeout=120)
    np.testing.assert_allclose(undisturbed, training.weights("one_rank"), atol=1e-4, rtol=0)


@pytest.mark.horovod
@pytest.mark.slow
def test_a_rank_that_is_killed_on_the_other_host_is_named_and_the_training_goes_on(
    training: Training, undisturbed: NDArray[np.float64]
) -> None:
    process = training.start("killed")
    wait_until(lambda: f"epoch 5/{EPOCHS}" in training.log("killed"), "five epochs", timeout_s=200)
    training.kill_on_other_host()
    assert process.wait(timeout=LIMIT_S) == 1
    (message,) = re.findall(r"error: (.*)", training.log("killed"))
    name = re.escape(on_host(HOSTS[1], "hostname").strip())
    assert re.fullmatch(rf"rank {ON_OTHER_HOST} \(process \d+ on {name}\), .* is gone: killed or crashed\.", message)
    assert training.start("killed", "--resume").wait(timeout=300) == 0, training.log("killed")
    assert f"epoch 1/{EPOCHS}" not in training.log("killed")
    np.testing.assert_array_equal(training.weights("killed"), undisturbed)
