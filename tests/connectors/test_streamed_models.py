"""A stream whose model a node of a real ZooKeeper names: exchanged between two batches, kept while nobody answers."""

import shutil
from pathlib import Path

import pytest
from helpers.services.processes import wait_until
from helpers.services.zookeeper_server import ZooKeeperServer
from helpers.tables.predictions import read_predictions
from helpers.tables.stream_places import Models, Place, Running, copy_models, promote_to, register_both, train_two
from pyspark.sql import SparkSession

from featurize.connectors import zookeeper as connector
from featurize.errors import JobError, UsageError
from finetune.registry.client import ENVIRONMENT
from finetune.streams import current_model
from finetune.streams.checkpoint import Checkpoint, Pin
from finetune.streams.stream import run_stream

pytestmark = [
    pytest.mark.spark,
    pytest.mark.slow,
]
NODE = "/firn/champion"
SOON_S = 10  # within a second; a busy machine may take longer


@pytest.fixture(scope="module")
def trained(spark: SparkSession, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    return train_two(spark, photos, tmp_path_factory.mktemp("stream"))


@pytest.fixture
def models(trained: Models, tmp_path: Path) -> Models:
    return copy_models(trained, tmp_path / "models")


@pytest.fixture
def place(spark: SparkSession, tmp_path: Path) -> Place:
    place = Place(spark, tmp_path)
    place.images.mkdir()
    return place


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[connector.WatchedNode]:
    """The watches of the streams of a test."""
    made = list[connector.WatchedNode]()

    def make(url: str) -> connector.WatchedNode:
        made.append(connector.WatchedNode(url))
        return made[-1]

    monkeypatch.setattr(current_model, "WatchedNode", make)
    return made


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a stream says when it cannot follow its model's name."""
    said = list[str]()

    def keep(text: str) -> None:
        said.extend([text] if "continues to label" in text else [])

    monkeypatch.setattr(current_model, "warn", keep)
    return said


class Steps:
    """Images arrive in a running stream, six at a time, and each time one model labels them."""

    def __init__(self, place: Place, stream: Running) -> None:
        self._place, self._stream, self._number = place, stream, 0

    def arrive(self) -> str:
        """The model that has labelled the images that arrived."""
        self._number += 1
        before = len(self._stream.batches)
        self._place.arrive(self._number, per_class=2, corrupt=0)
        self._stream.wait_for(6 * self._number)
        (model_id,) = {batch.model_id for batch in self._stream.batches[before:]}
        return model_id


def wait_for(node: connector.WatchedNode, text: str) -> None:
    """Until the watch has seen a text, or the beginning of a fault."""

    def says() -> bool:
        try:
            return node.text() == text
        except (UsageError, JobError) as error:
            return str(error).startswith(text)

    wait_until(says, f"the watch to see {text!r}", timeout_s=SOON_S)


def test_a_changed_node_exchanges_the_model_between_two_batches(
    zookeeper: ZooKeeperServer,
    models: Models,
    place: Place,
    watched: list[connector.WatchedNode],
    warnings: list[str],
) -> None:
    url = zookeeper.set(NODE, str(models["old"]))
    with Running(place, url) as stream:
        steps = Steps(place, stream)
        assert steps.arrive() == models.ids["old"]
        (node,) = watched
        zookeeper.set(NODE, str(models["new"]))
        wait_for(node, str(models["new"]))
        assert steps.arrive() == models.ids["new"]
        assert not warnings

        zookeeper.set(NODE, "/no/such/model")  # the stream keeps its model, and says so
        wait_for(node, "/no/such/model")
        assert steps.arrive() == models.ids["new"]
        (said,) = warnings
        assert said.startswith(f"the model {models.ids['new'][:16]} continues to label: the node {url} holds")
        zookeeper.remove(NODE)
        wait_for(node, f"there is no node {url}")
        assert steps.arrive() == models.ids["new"]
        assert warnings[1:] == [f"the model {models.ids['new'][:16]} continues to label: there is no node {url}."]

        zookeeper.set(NODE, str(models["old"]))
        wait_for(node, str(models["old"]))
        assert steps.arrive() == models.ids["old"]
    assert stream.done is not None
    assert stream.done.added == {models.ids["old"]: 12, models.ids["new"]: 18}
    assert place.done() == place.paths()
    assert set(read_predictions(place.out)["model_id"]) == set(models.ids.values())


def test_a_stream_outlives_the_server_and_follows_it_when_it_is_back(
    zookeeper: ZooKeeperServer,
    models: Models,
    place: Place,
    watched: list[connector.WatchedNode],
    warnings: list[str],
) -> None:
    url = zookeeper.set(NODE, str(models["old"]))
    with Running(place, url) as stream:
        steps = Steps(place, stream)
        assert steps.arrive() == models.ids["old"]
        zookeeper.kill()
        (node,) = watched
        wait_for(node, "no ZooKeeper answers")
        assert steps.arrive() == models.ids["old"]
        assert steps.arrive() == models.ids["old"]
        assert warnings == [
            f"the model {models.ids['old'][:16]} continues to label: no ZooKeeper answers at {zookeeper.address}, for {url}."
        ]
        zookeeper.restart()
        zookeeper.set(NODE, str(models["new"]))
        wait_until(lambda: says(node) == str(models["new"]), "the session to be made again")
        assert steps.arrive() == models.ids["new"]
    assert place.done() == place.paths()


def says(node: connector.WatchedNode) -> str:
    try:
        return node.text()
    except JobError as error:
        return str(error)


def test_a_node_that_names_an_alias_follows_the_alias_too(
    zookeeper: ZooKeeperServer, models: Models, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = register_both(models, tmp_path)
    monkeypatch.setenv(ENVIRONMENT, str(registry.url))
    with Running(place, zookeeper.set(NODE, "photos@champion")) as stream:
        steps = Steps(place, stream)
        assert steps.arrive() == models.ids["old"]
        promote_to(registry, models["new"])
        assert steps.arrive() == models.ids["new"]


def test_a_batch_that_was_begun_keeps_its_model_though_the_node_has_changed(
    zookeeper: ZooKeeperServer, models: Models, place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(ENVIRONMENT, f"sqlite:///{tmp_path}/there-is-none.db")
    url = zookeeper.set(NODE, str(models["old"]))
    place.arrive(1, per_class=2, corrupt=0)

    def fail(_: object) -> None:
        raise RuntimeError("in mid-batch")

    with pytest.raises(RuntimeError, match="in mid-batch"):
        run_stream(place.spark, place.plan(url), once=True, on_batch=fail)
    checkpoint = Checkpoint(f"file://{place.checkpoint}")
    pin = checkpoint.read_pin(0, checkpoint.query_id())
    assert isinstance(pin, Pin)
    assert (pin.name, pin.model_id) == (url, models.ids["old"])
    zookeeper.set(NODE, str(models["new"]))
    shutil.move(models["old"], tmp_path / "aside")
    with pytest.raises(JobError, match=r"was begun with the model .* which is no longer in"):
        place.run(url)
    shutil.move(tmp_path / "aside", models["old"])
    assert place.run(url).account.labelled_before == 6
    place.arrive(2, per_class=2, corrupt=0)
    assert place.run(url).added == {models.ids["new"]: 6}


def test_at_the_start_a_node_must_name_a_model(zookeeper: ZooKeeperServer, place: Place) -> None:
    url = zookeeper.set(NODE, "/no/such/model")
    with pytest.raises(UsageError, match=f"the node {url} holds '/no/such/model': there is no model"):
        place.plan(url)
    assert not place.checkpoint.exists()
