"""The main job with everything on HDFS: images, backbone, features and model."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.images.photos import make_photos
from helpers.services.hdfs_cluster import MiniHdfs
from helpers.tables.building import Built, assert_same_rows, recipe
from helpers.tables.rows import rows_at
from pyspark.sql import SparkSession

from featurize import storage
from featurize.jobs.run import featurize
from featurize.recipes.recipe import FinetuneRecipe
from featurize.recipes.toml_settings import check_settings
from featurize.tables.manifests import FeaturesManifest
from featurize.tables.readable import read_features_manifest
from finetune.evaluation.evaluate import evaluate_model
from finetune.ranks.communicator import SingleRank
from finetune.rows.petastorm_reader import open_petastorm_reader
from finetune.training.plan import plan_training
from finetune.training.train import train

pytestmark = [
    pytest.mark.hdfs,
    pytest.mark.spark,
    pytest.mark.slow,
]


@dataclass(frozen=True)
class Job:
    source: str
    backbone: str
    url: str

    @property
    def manifest(self) -> FeaturesManifest:
        return read_features_manifest(self.url)


@pytest.fixture(scope="module")
def job(spark: SparkSession, _hdfs: MiniHdfs, hdfs_photos: str, mean_backbone: Path) -> Job:
    """The feature set of `photos`, made of what is on HDFS; do not change it."""
    backbone = f"{_hdfs.url}/backbones/mean.keras"
    storage.upload(mean_backbone, backbone)
    job = Job(hdfs_photos, backbone, f"{_hdfs.url}/features")
    featurize(spark, recipe(job.source, job.url, job.backbone))
    return job


def test_features_on_hdfs_are_those_on_a_local_disk(job: Job, built: Built) -> None:
    rows = rows_at(job.url)
    assert len(rows) == 60
    assert_same_rows(rows, rows_at(str(built.folder)))
    assert job.manifest.rejects == built.manifest.rejects


def test_a_second_run_on_hdfs_finds_all_done(spark: SparkSession, job: Job) -> None:
    before = storage.list_files(job.url)
    result, _ = featurize(spark, recipe(job.source, job.url, job.backbone))
    assert (result.added, result.rejected, result.skipped) == (0, 0, 62)
    assert storage.list_files(job.url) == before


def test_new_images_on_hdfs_are_added_and_removed_ones_counted(
    spark: SparkSession, hdfs: MiniHdfs, job: Job, tmp_path: Path
) -> None:
    source, url = f"{hdfs.url}/growing", f"{hdfs.url}/growing-features"
    make_photos(tmp_path / "first", per_class=6)
    hdfs.upload(tmp_path / "first", source)
    featurize(spark, recipe(source, url, job.backbone))
    first = rows_at(url)
    make_photos(tmp_path / "second", per_class=4, seed=1)
    hdfs.upload(tmp_path / "second", f"{source}/red/second")  # <class>/** is the class
    storage.remove(f"{source}/blue/000.png")

    result, _ = featurize(spark, recipe(source, url, job.backbone))

    assert (result.added, result.skipped, result.removed) == (12, 17, 1)
    rows = rows_at(url)
    assert rows["label"].value_counts().to_dict() == {"red": 18, "blue": 6, "green": 6}
    assert_same_rows(rows.loc[first.index], first)


def test_spark_sql_reads_features_on_hdfs(spark: SparkSession, job: Job) -> None:
    frame = spark.read.parquet(f"{job.url}/data")
    assert {row["split"]: row["count"] for row in frame.groupBy("split").count().collect()} == {
        split: job.manifest.split_rows(split) for split in job.manifest.rows
    }
    wanted = rows_at(job.url)["features"]
    rows = frame.select("path", "features").collect()
    assert {row["path"].removeprefix(job.source + "/"): row["features"] for row in rows} == {
        path: features.tolist() for path, features in wanted.items()
    }


def test_petastorm_reads_features_on_hdfs(job: Job) -> None:
    wanted = rows_at(job.url).query("split == 'train'").set_index("image_id")["features"]
    found: dict[str, list[float]] = {}
    with open_petastorm_reader(job.url, job.manifest, "train", ("image_id", "features")) as reader:
        for _, batch in zip(range(100), reader, strict=False):  # endless: every row group comes again and again
            found.update(zip(batch.image_id, batch.features.tolist(), strict=True))
            if len(found) == len(wanted):
                break
    assert found == {image_id: features.tolist() for image_id, features in wanted.items()}


def test_a_head_on_hdfs_is_trained_and_evaluated(job: Job, hdfs: MiniHdfs) -> None:
    model = f"{hdfs.url}/models/head"
    settings = {
        "features": {"url": job.url},
        "model": {"name": "softmax_head", "url": model},
        "training": {"optimizer": "adam", "learning_rate": 0.01, "batch_size": 8, "epochs": 20, "seed": 1},
    }
    train(plan_training(check_settings(FinetuneRecipe, settings, origin="test"), ranks=1), SingleRank())
    scores = evaluate_model(model, None, "test", None)
    assert scores["rows"] == job.manifest.split_rows("test")
    assert scores["accuracy"] == 1.0
    assert all(storage.exists(path) and path.startswith(hdfs.url) for path in scores["files"].values())


def test_features_outlive_a_datanode(job: Job, hdfs: MiniHdfs, built: Built) -> None:
    hdfs.kill_datanode(0)
    assert_same_rows(rows_at(job.url), rows_at(str(built.folder)))
    hdfs.wait_for_datanodes(1)
    assert_same_rows(rows_at(job.url), rows_at(str(built.folder)))


def test_one_of_many_creates_a_file_on_hdfs(hdfs: MiniHdfs) -> None:
    url = f"{hdfs.url}/race/claim"
    contents = [str(number).encode() for number in range(16)]
    with ThreadPoolExecutor(len(contents)) as pool:
        created = list(pool.map(lambda content: storage.create_exclusively(url, content), contents))
    assert created.count(True) == 1
    assert storage.read_bytes(url) == contents[created.index(True)]
    assert storage.list_files(f"{hdfs.url}/race") == [url]


FORK = """
import os, sys
from featurize import storage
url = sys.argv[1]
storage.write_bytes(url, b"before")
child = os.fork()
if child == 0:
    storage.write_bytes(url, storage.read_bytes(url) + b" and in the child")
    sys.exit(0)  # an orderly end, with all that Python takes down
assert os.waitpid(child, 0)[1] == 0
print(storage.read_bytes(url).decode())
"""


def test_a_process_that_has_opened_hdfs_can_fork(hdfs: MiniHdfs) -> None:
    """PySpark forks to start its Java: a driver that has read a manifest on HDFS by then must not hang."""
    command = [sys.executable, "-c", FORK, f"{hdfs.url}/forked"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "before and in the child"


def test_a_name_service_leads_to_the_namenode_that_answers(hdfs: MiniHdfs, tmp_path: Path) -> None:
    """High availability: of two NameNodes one is gone. The settings are those of HADOOP_CONF_DIR."""
    storage.write_bytes(f"{hdfs.url}/service/file", b"found")
    hdfs.write_name_service(tmp_path / "conf", "glacier")
    urls = ["hdfs://glacier/service/file", "hdfs:///service/file"]
    program = f"from featurize import storage; print([storage.read_bytes(url) for url in {urls}])"
    environment = {**os.environ, "HADOOP_CONF_DIR": str(tmp_path / "conf")}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[b'found', b'found']"
