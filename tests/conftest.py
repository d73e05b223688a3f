"""What the tests share: one Spark session, small folders of drawn pictures, a backbone that only averages."""

import atexit
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from helpers.images.photos import make_photos
from helpers.project import ROOT, SHORT_LIVED_JAVA, Firn
from pyspark.sql import SparkSession
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from helpers.tables.building import Built
    from helpers.tables.predictions import Trained

os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(ROOT / "tests"), os.environ.get("PYTHONPATH")])
)  # for their processes
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("SPARK_SUBMIT_OPTS", SHORT_LIVED_JAVA)
if "FIRN_CACHE" not in os.environ:  # one folder for all processes of the tests
    os.environ["FIRN_CACHE"] = tempfile.mkdtemp(prefix="firn-cache-")
    atexit.register(shutil.rmtree, os.environ["FIRN_CACHE"], ignore_errors=True)
_skipped: list[str] = []
hypothesis.settings.register_profile("untimed", deadline=None)  # speed is measured in benchmarks/
hypothesis.settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def own_logs() -> Iterator[None]:
    """A command that a test calls in this process shows its logs; afterwards they go where those of a library go."""
    yield
    for name in ("featurize", "finetune"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    """The Spark session that the command makes when nobody has made one."""
    from featurize.building.session import make_session

    session = make_session("firn tests")
    yield session
    session.stop()


@pytest.fixture(scope="session")
def mean_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .keras file whose features are the mean red, green and blue of a 32 x 32 image, layer `mean`."""
    import keras

    inputs = keras.Input((32, 32, 3), name="image")
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D(name="mean")(inputs))
    path = tmp_path_factory.mktemp("backbone") / "mean.keras"
    model.save(path)
    return path


@pytest.fixture(scope="session")
def small_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .keras file of a ConvNet for 12 x 12 images, layers `conv`, `pool`, `mean` and `scores`; do not change it."""
    from helpers.models.networks import small_network

    return small_network(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 readable PNG pictures in the folders blue, green and red, and 2 unreadable files; do not change it."""
    folder = tmp_path_factory.mktemp("photos")
    make_photos(folder, per_class=20)
    (folder / "red" / "empty.jpg").write_bytes(b"")
    (folder / "blue" / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="session")
def built(spark: SparkSession, photos: Path, mean_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> "Built":
    """The feature set of `photos`; do not change it."""
    from helpers.tables.building import Built, recipe

    from featurize.jobs.run import featurize
    from featurize.tables.readable import read_features_manifest

    folder = tmp_path_factory.mktemp("built") / "mean"
    result, prepared = featurize(spark, recipe(photos, folder, mean_backbone))
    return Built(folder, result, prepared.backbones[0], read_features_manifest(str(folder)))


@pytest.fixture(scope="session")
def trained(
    spark: SparkSession, photos: Path, small_backbone: Path, tmp_path_factory: pytest.TempPathFactory
) -> "dict[str, Trained]":
    """Models on `photos`; do not change what is in their folders."""
    from helpers.tables.predictions import train_on_photos

    return train_on_photos(spark, photos, small_backbone, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def own_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What MLflow looks up by itself goes to a registry of the tests, not to one in the working directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path_factory.mktemp('default')}/mlflow.db")
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images that FIRN_TEST_DATA names."""
    folder = os.environ.get("FIRN_TEST_DATA")
    if not folder:
        pytest.skip("FIRN_TEST_DATA is not set: it names a folder of real images")
    path = Path(folder).resolve()
    if not path.is_dir():
        pytest.fail(f"FIRN_TEST_DATA names no folder: {folder}")
    return path


@pytest.fixture
def firn(tmp_path: Path) -> Firn:
    """Runs `featurize` or `finetune` as a user does, in a process of its own, in a fresh folder."""

    def run(
        package: str, *arguments: str, cwd: Path | None = None, timeout_s: float = 300
    ) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", package, *arguments]
        return subprocess.run(
            command, cwd=cwd or tmp_path, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    return run


class FilesTogether(LoadScopeScheduling):  # type: ignore[misc]
    """Where several processes share the tests, those of a file stay together, as what they share is made once.

    Those of `integration`, which start clusters and launch ranks, all go to one process: each of them needs both cores.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return "integration" if "/integration/" in file else file


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The integration tests come first: they take longest."""
    items.sort(key=lambda item: "/integration/" not in item.nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesTogether:
    """Files in the order in which they were sorted."""
    config.option.loadscopereorder = False
    return FilesTogether(config, log)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remembers what was skipped."""
    if report.skipped and not hasattr(report, "wasxfail"):
        _skipped.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """With FIRN_NO_SKIPS=1 a skipped test fails the run: where everything must run, nothing may be passed over."""
    is_worker = hasattr(session.config, "workerinput")  # of several processes; the first one hears of all
    if os.environ.get("FIRN_NO_SKIPS") == "1" and _skipped and exitstatus == 0 and not is_worker:
        session.exitstatus = 1
        sys.stderr.write("FIRN_NO_SKIPS=1 and these tests were skipped:\n" + "\n".join(_skipped) + "\n")
