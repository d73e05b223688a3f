"""A real HDFS and a real Spark cluster, started once for all tests that ask for them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.images.photos import make_photos
from helpers.project import ROOT
from helpers.services.fetching import fetched
from helpers.services.hdfs_cluster import MiniHdfs
from helpers.services.kafka_broker import KafkaBroker
from helpers.services.spark_cluster import SparkCluster, make_bare_python
from helpers.tables.stream_places import Models, train_two
from pyspark.sql import SparkSession

collect_ignore = [] if "FIRN_TEST_HOSTS" in os.environ else ["test_several_hosts.py"]
CONNECTOR_JARS = 4  # the first of those that kafka_jars.py prints


@pytest.fixture(scope="session")
def _hdfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MiniHdfs]:
    (jar,) = fetched("minicluster.py")
    hdfs = MiniHdfs(jar, tmp_path_factory.mktemp("hdfs"))
    yield hdfs
    hdfs.stop()


@pytest.fixture
def hdfs(_hdfs: MiniHdfs) -> MiniHdfs:
    """A NameNode and two DataNodes, whatever an earlier test has killed."""
    _hdfs.heal()
    return _hdfs


@pytest.fixture(scope="session")
def hdfs_photos(_hdfs: MiniHdfs, photos: Path) -> str:
    """The URL of `photos` on HDFS; do not change it."""
    url = f"{_hdfs.url}/photos"
    _hdfs.upload(photos, url)
    return url


@pytest.fixture(scope="session")
def _cluster(_hdfs: MiniHdfs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkCluster]:
    cluster = SparkCluster(tmp_path_factory.mktemp("cluster"), hadoop_conf_dir=_hdfs.conf_dir)
    yield cluster
    cluster.stop()


@pytest.fixture
def cluster(_cluster: SparkCluster) -> SparkCluster:
    """A Spark master and two workers, whatever an earlier test has killed."""
    _cluster.heal()
    return _cluster


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has everything installed but Firn."""
    return make_bare_python(tmp_path_factory.mktemp("bare") / "venv")


@pytest.fixture(scope="session")
def firn_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make dist` makes."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "dist.py"), str(folder)], capture_output=True, text=True, check=True
    )
    return Path(done.stdout.strip())


@pytest.fixture(scope="session")
def trained(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Two models for streams; do not change them."""
    folder = tmp_path_factory.mktemp("stream")
    make_photos(folder / "photos", per_class=100)  # enough in the validation split for drift
    return train_two(spark, folder / "photos", folder)


@pytest.fixture(scope="module")
def kafka(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """A Kafka broker; this thread's Spark has the connector as long as it runs."""
    jars = fetched("kafka_jars.py")
    broker = KafkaBroker(jars[:CONNECTOR_JARS], jars[CONNECTOR_JARS:], tmp_path_factory.mktemp("kafka"))
    thread = spark.sparkContext._jvm.java.lang.Thread.currentThread()  # type: ignore[union-attr]
    without = thread.getContextClassLoader()
    try:
        for jar in broker.connector:
            spark.sql(f"ADD JAR '{jar}'")
        yield broker
    finally:
        thread.setContextClassLoader(without)
        broker.stop()
