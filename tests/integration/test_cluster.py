"""The main job on a Spark standalone cluster, all data on HDFS. Its Python has no Firn but the zip of `make dist`."""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import pytest
from helpers.project import ROOT
from helpers.services.hdfs_cluster import MiniHdfs
from helpers.services.processes import java_environment
from helpers.services.spark_cluster import SparkCluster, Submission
from helpers.tables.building import Built, assert_same_rows, write_recipe
from helpers.tables.predictions import assert_same_predictions, read_predictions
from helpers.tables.rows import rows_at

from featurize import storage
from featurize.recipes.recipe import read_recipe
from finetune.evaluation.evaluate import evaluate_model

pytestmark = [pytest.mark.cluster, pytest.mark.hdfs, pytest.mark.spark, pytest.mark.slow]


@dataclass(frozen=True)
class Site:
    """What a user of the cluster has: a folder with the zip and the two programs out of it, and URLs."""

    folder: Path
    firn_zip: Path
    python: Path
    hdfs: MiniHdfs
    cluster: SparkCluster

    def on_hdfs(self, url: str) -> str:
        """A URL of the cluster's default file system, for a process that has no Hadoop settings."""
        return self.hdfs.url + url.removeprefix("hdfs://")

    def submit(self, package: str, *arguments: str) -> Submission:
        """Starts `spark-submit <package>/__main__.py`."""
        return self.submit_program(self.folder / package / "__main__.py", *arguments)

    def submit_program(self, program: Path, *arguments: str) -> Submission:
        """Starts `spark-submit <program>`, with Firn out of the zip."""
        return self.cluster.submit(program, *arguments, python=self.python, py_files=[self.firn_zip], cwd=self.folder)


@pytest.fixture
def site(
    cluster: SparkCluster,
    hdfs: MiniHdfs,
    firn_zip: Path,
    bare_python: Path,
    hdfs_photos: str,
    mean_backbone: Path,
    tmp_path: Path,
) -> Site:
    """With `recipe.toml`, which speaks of HDFS by the cluster's default file system."""
    with ZipFile(firn_zip) as archive:
        for package in ("featurize", "finetune"):
            archive.extract(f"{package}/__main__.py", tmp_path)
    base = f"hdfs:///cluster/{tmp_path.name}"
    storage.upload(mean_backbone, f"{hdfs.url}/cluster/{tmp_path.name}/mean.keras")
    write_recipe(
        tmp_path / "recipe.toml",
        source=f"hdfs://{hdfs_photos.removeprefix(hdfs.url)}",
        url=f"{base}/features",
        backbone=f"{base}/mean.keras",
        model={"name": "softmax_head", "url": f"{base}/model"},
        training={"optimizer": "adam", "learning_rate": 0.01, "batch_size": 4, "epochs": 20, "seed": 1},
    )
    return Site(tmp_path, firn_zip, bare_python, hdfs, cluster)


def test_the_bare_python_has_keras_and_no_firn(bare_python: Path, tmp_path: Path) -> None:
    program = "from importlib.util import find_spec as f; print([bool(f(name)) for name in ('keras', 'featurize', 'finetune')])"
    command = [str(bare_python), "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=java_environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[True, False, False]"


def test_the_main_job_on_a_cluster_gives_the_rows_of_a_local_one(site: Site, built: Built) -> None:
    result = site.submit("featurize", "run", "recipe.toml", "--json").result()
    assert (result["rows"], result["rejects"], result["skipped"]) == (60, 2, 0)
    assert_same_rows(rows_at(site.on_hdfs(result["features"])), rows_at(str(built.folder)))

    model = site.submit("finetune", "fit", "recipe.toml", "--num-proc", "2", "--json").result()
    assert model["ranks"] == 2
    scores = evaluate_model(site.on_hdfs(model["model"]), site.on_hdfs(result["features"]), "test", None)
    assert scores["accuracy"] == 1.0

    source = read_recipe(str(site.folder / "recipe.toml"), ()).images
    assert source is not None
    predictions = f"{model['model']}-predictions"
    arguments = ["--images", source.source, "--output", predictions, "--max-reject-fraction", "0.1"]
    made = site.submit("finetune", "predict", model["model"], *arguments, "--json").result()
    assert (made["rows"], made["rejects"]) == (60, 2)
    rows = read_predictions(site.on_hdfs(predictions))
    assert sum(str(path).split("/")[-2] == label for path, label in rows["label"].items()) >= 57

    program = ROOT / "tests" / "helpers" / "services" / "sql_program.py"
    asked = site.submit_program(program, model["model"], source.source, predictions).result()
    assert asked == {"images": 60, "same": 60}

    streamed, checkpoint = f"{model['model']}-streamed", f"{model['model']}-checkpoint"
    arguments = ["--images", source.source, "--output", streamed, "--checkpoint", checkpoint, "--once"]
    made = site.submit("finetune", "stream", model["model"], *arguments, "--json").result()
    assert (made["batches"], made["rejects"]) == (1, 2)  # the empty file too, which Spark passes over
    assert_same_predictions(read_predictions(site.on_hdfs(streamed)), rows)
