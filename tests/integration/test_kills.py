"""Things die in mid-run, on a real cluster and a real HDFS: the table that comes out is that of an undisturbed run, row for row.

FIRN_KILL_ROUNDS=20 repeats every test that often, each time at another moment. A network is in the first round of the test that
loses it; the others keep the pixels, so that they do not spend most of their time on importing TensorFlow.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.project import ROOT
from helpers.services.hdfs_cluster import MiniHdfs
from helpers.services.processes import kill_processes, wait_until
from helpers.services.spark_cluster import SparkCluster, Submission
from helpers.tables.building import assert_same_rows, recipe, write_recipe
from helpers.tables.rows import rows_at
from PIL import Image
from pyspark.sql import SparkSession

from featurize import storage
from featurize.building.staging import STAGING
from featurize.errors import JobError
from featurize.jobs.run import featurize
from featurize.storage.claims import CLAIM_NAME
from featurize.tables.manifests import FeaturesManifest, ShardRecord
from featurize.tables.publication import is_own_file
from featurize.tables.readable import read_features_manifest

pytestmark = [pytest.mark.cluster, pytest.mark.hdfs, pytest.mark.spark, pytest.mark.slow]
IMAGES, BROKEN = 520, 5
ROUNDS = range(int(os.environ.get("FIRN_KILL_ROUNDS", "1")))
PIXELS, NETWORK = "pixels", "network"
in_every_round = pytest.mark.parametrize("undisturbed", [PIXELS for _ in ROUNDS], indirect=True)
first_with_a_network = pytest.mark.parametrize(
    "undisturbed", [PIXELS if round else NETWORK for round in ROUNDS], indirect=True
)


@dataclass(frozen=True)
class Undisturbed:
    """The images on HDFS, and what an undisturbed run makes of them."""

    images: str
    backbone: str
    manifest: FeaturesManifest
    rows: pd.DataFrame


@pytest.fixture(scope="module")
def images(_hdfs: MiniHdfs, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pictures that take some 10 ms each to decode and no space, in shards of about 130 where two tasks run at a time."""
    url = f"{_hdfs.url}/kills/images"

    def put(number: int) -> None:
        path = folder / f"{number}.png"
        blocks = np.random.default_rng(number).integers(0, 256, (15, 15, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((1000, 1000), Image.Resampling.NEAREST).save(path, compress_level=1)
        if number % (IMAGES // BROKEN) == 7:
            path.write_bytes(path.read_bytes()[:2000])
        storage.upload(path, f"{url}/{'abc'[number % 3]}/{number:04d}.png")

    folder = tmp_path_factory.mktemp("kills")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(IMAGES)))
    return url


@pytest.fixture(scope="module")
def undisturbed_by_backbone() -> dict[str, Undisturbed]:
    """What has been made already."""
    return {}


@pytest.fixture
def undisturbed(
    request: pytest.FixtureRequest,
    hdfs: MiniHdfs,
    spark: SparkSession,
    images: str,
    mean_backbone: Path,
    undisturbed_by_backbone: dict[str, Undisturbed],
) -> Undisturbed:
    """Of pixels, or of the features of a network."""
    backbone = str(mean_backbone) if request.param == NETWORK else "pixels"
    if backbone not in undisturbed_by_backbone:
        url = f"{hdfs.url}/kills/undisturbed{len(undisturbed_by_backbone)}"
        result, _ = featurize(spark, recipe(images, url, backbone))
        assert (result.added, result.rejected) == (IMAGES - BROKEN, BROKEN)
        undisturbed_by_backbone[backbone] = Undisturbed(images, backbone, read_features_manifest(url), rows_at(url))
    return undisturbed_by_backbone[backbone]


@dataclass(frozen=True)
class Job:
    """The same job on the cluster, to be submitted as often as one likes."""

    cluster: SparkCluster
    url: str
    folder: Path

    def submit(self) -> Submission:
        """Starts it; its tasks fail and are repeated as often as Spark does it by itself."""
        program = ROOT / "featurize" / "__main__.py"
        return self.cluster.submit(program, "run", str(self.folder / "recipe.toml"), "--json", cwd=self.folder)

    def committed(self) -> list[ShardRecord]:
        """The shards that are finished and not published yet."""
        files = [file for file in storage.list_files(f"{self.url}/{STAGING}/commits") if file.endswith(".json")]
        return [ShardRecord.model_validate(storage.read_json(file)) for file in files]

    def wait_for_commits(self, count: int, submission: Submission) -> None:
        """Waits until so many shards are committed, and lets a random part of a second pass."""
        what = f"{count} committed shards"
        wait_until(lambda: len(self.committed()) >= count, what, needs=[submission.daemon], timeout_s=120)
        time.sleep(np.random.default_rng().uniform(0, 1))

    def assert_equal_to(self, undisturbed: Undisturbed) -> None:
        """Every readable image is one row and every other one reject; nothing else is left."""
        manifest = read_features_manifest(self.url)
        for key in ("identity", "content_digest", "rows", "rejects"):
            assert getattr(manifest, key) == getattr(undisturbed.manifest, key), key
        assert_same_rows(rows_at(self.url), undisturbed.rows)
        listed = {f"{self.url}/{file.path}" for shard in manifest.shards for file in shard.all_files}
        there = set(storage.list_files(self.url))
        assert {file for file in there if not is_own_file(file.removeprefix(f"{self.url}/"))} == listed


@pytest.fixture
def job(cluster: SparkCluster, hdfs: MiniHdfs, undisturbed: Undisturbed, tmp_path: Path) -> Job:
    url = f"{hdfs.url}/kills/{tmp_path.name}"
    write_recipe(tmp_path / "recipe.toml", source=undisturbed.images, url=url, backbone=undisturbed.backbone)
    return Job(cluster, url, tmp_path)


@in_every_round
def test_a_second_job_is_refused_and_after_the_first_was_killed_the_next_goes_on(
    job: Job, undisturbed: Undisturbed, spark: SparkSession
) -> None:
    first = job.submit()
    what = "the claim of the first job"
    wait_until(lambda: storage.exists(f"{job.url}/{CLAIM_NAME}"), what, needs=[first.daemon], timeout_s=120)
    with pytest.raises(JobError, match=r"is being written by process \d+ of .* since"):
        featurize(spark, recipe(undisturbed.images, job.url, undisturbed.backbone))
    job.wait_for_commits(1, first)
    first.kill()
    assert not storage.exists(f"{job.url}/_delta_log")
    finished = sum(record.row_count + record.reject_count for record in job.committed())
    result = job.submit().result()
    assert result["rows"] == IMAGES - BROKEN
    assert IMAGES > result["skipped"] >= finished > 0
    job.assert_equal_to(undisturbed)


@in_every_round
@pytest.mark.parametrize("kill", [SparkCluster.kill_worker, SparkCluster.kill_executor])
def test_a_job_survives_the_loss_of_a_worker(
    job: Job, undisturbed: Undisturbed, kill: Callable[[SparkCluster, int], None]
) -> None:
    submission = job.submit()
    job.wait_for_commits(1, submission)
    kill(job.cluster, 0)
    assert submission.result()["rows"] == IMAGES - BROKEN
    job.assert_equal_to(undisturbed)


@first_with_a_network
def test_a_job_survives_the_death_of_all_its_python(job: Job, undisturbed: Undisturbed) -> None:
    submission = job.submit()
    job.wait_for_commits(1, submission)
    kill_processes(job.cluster.python_workers())
    assert submission.result()["rows"] == IMAGES - BROKEN
    job.assert_equal_to(undisturbed)


@in_every_round
def test_a_job_survives_the_loss_of_a_datanode(job: Job, hdfs: MiniHdfs, undisturbed: Undisturbed) -> None:
    submission = job.submit()
    job.wait_for_commits(1, submission)
    hdfs.kill_datanode(0)
    assert submission.result()["rows"] == IMAGES - BROKEN
    job.assert_equal_to(undisturbed)
