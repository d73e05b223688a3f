"""A sweep as tasks of a Spark standalone cluster, on HDFS: its driver is killed, and the next call goes on."""

from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from helpers.services.hdfs_cluster import MiniHdfs
from helpers.services.processes import wait_until
from helpers.services.spark_cluster import SparkCluster, Submission
from helpers.tables.feature_sets import make_clusters, write_feature_set
from helpers.toml_files import write_toml

from featurize import storage
from finetune.sweeps.folder import Trial, read_sweep

pytestmark = [pytest.mark.cluster, pytest.mark.hdfs, pytest.mark.spark, pytest.mark.slow]
N_MODELS = 16


@pytest.fixture
def recipe(hdfs: MiniHdfs, tmp_path: Path) -> Path:
    write_feature_set(tmp_path / "set", *make_clusters(400, spread=2.5))
    base = f"/sweep/{tmp_path.name}"
    hdfs.upload(tmp_path / "set", f"{hdfs.url}{base}/features")
    sections: dict[str, dict[str, Any]] = {
        "features": {"url": f"{hdfs.url}{base}/features"},
        "model": {"url": f"{hdfs.url}{base}/unused"},
        "training": {"epochs": 20, "batch_size": 4, "seed": 5},
        "sweep": {
            "url": f"{hdfs.url}{base}/sweep",
            "seeds": 2,
            "values": {
                "training.learning_rate": [0.01, 0.1],
                "training.l2": [0.0, 0.01],
                "model.name": ["softmax_head", "mlp_head"],
            },
        },
    }
    write_toml(tmp_path / "sweep.toml", sections)
    return tmp_path / "sweep.toml"


def trials_of(url: str) -> dict[str, Trial]:
    card = read_sweep(url)
    return {} if card is None else {trial.model_id: trial for trial in card.trials}


def test_a_sweep_whose_driver_is_killed_resumes(
    recipe: Path, cluster: SparkCluster, hdfs: MiniHdfs, firn_zip: Path, bare_python: Path
) -> None:
    with ZipFile(firn_zip) as archive:
        archive.extract("finetune/__main__.py", recipe.parent)
    url = f"{hdfs.url}/sweep/{recipe.parent.name}/sweep"

    def submit() -> Submission:
        program = recipe.parent / "finetune" / "__main__.py"
        arguments = ("sweep", recipe.name, "--tasks", "2", "--json")
        return cluster.submit(program, *arguments, python=bare_python, py_files=[firn_zip], cwd=recipe.parent)

    submission = submit()
    wait_until(lambda: trials_of(url), "the first models", timeout_s=120, needs=[submission.daemon])
    submission.daemon.kill()
    before = trials_of(url)
    written = {trial.url: storage.read_json(f"{trial.url}/model.json") for trial in before.values()}

    result = submit().result()
    assert result["reused"] >= len(before)
    assert result["trained"] + result["reused"] == N_MODELS
    assert {model: storage.read_json(f"{model}/model.json") for model in written} == written
    after = trials_of(url)
    assert len(after) == N_MODELS
    assert {trial.state for trial in after.values()} == {"done"}

    again = submit().result()
    assert (again["trained"], again["reused"]) == (0, N_MODELS)
