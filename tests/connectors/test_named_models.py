"""Models that a node of a real ZooKeeper names, wherever a model may be named; and what such a node may not name."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.models.logged_models import client_of, registry_in, train_model, write_clusters
from helpers.project import ROOT
from helpers.services.zookeeper_server import ZooKeeperServer
from pyspark.sql import SparkSession
from typer.testing import CliRunner

import finetune
from featurize import storage
from featurize.connectors.zookeeper import DIGEST, read_node
from featurize.errors import JobError, UsageError
from finetune.__main__ import app
from finetune.drift.read import _named_elsewhere
from finetune.prediction.transformer import ImageClassifier
from finetune.registry.client import ENVIRONMENT
from finetune.registry.log_model import log_fit
from finetune.registry.resolve import find_model, is_folder, resolve_model
from finetune.registry.versions import promote

NODE = "/firn/champion"


@dataclass(frozen=True)
class Logged:
    """A model in a registry, as `letters@champion`."""

    folder: Path
    model_id: str
    run_id: str
    registry: str


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Logged:
    folder = tmp_path_factory.mktemp("named")
    write_clusters(folder / "set")
    card = train_model(folder / "set", folder / "model")
    settings = registry_in(folder)
    found = log_fit(str(folder / "model"), settings)
    assert found is not None
    client = client_of(settings)
    promote(client, client.get_run(found.run_id), "champion", name="letters")
    return Logged(folder / "model", card.model_id, found.run_id, str(settings.url))


@pytest.fixture(autouse=True)
def own_registry(logged: Logged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, logged.registry)


def test_a_node_names_a_folder_a_run_or_an_alias(zookeeper: ZooKeeperServer, logged: Logged) -> None:
    for name in (str(logged.folder), f"file://{logged.folder}", logged.run_id, "letters@champion\n"):
        node = zookeeper.set(NODE, name)
        assert resolve_model(node) == f"file://{logged.folder}"
        assert not is_folder(node)
        assert finetune.load_model(node).model_id == logged.model_id
        assert _named_elsewhere(node) == logged.model_id
        run = find_model(client_of(registry_in(logged.folder.parent)), node, logged.registry)
        assert run is not None
        assert run.info.run_id == logged.run_id


def test_commands_take_a_node(
    zookeeper: ZooKeeperServer, logged: Logged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DIGEST, "firn:hidden-word")
    node = zookeeper.set(NODE, str(logged.folder))
    zookeeper.shut_in(NODE, "firn", "hidden-word")
    try:
        commands = [
            ["evaluate", node, "--split", "validation", "--json"],
            ["models", "compare", node, "letters@champion", "--json"],
            ["models", "promote", node, "--alias", "second", "--json"],
        ]
        evaluated, compared, promoted = (CliRunner().invoke(app, command) for command in commands)
        monkeypatch.delenv(DIGEST)
        refused = CliRunner().invoke(app, commands[0])
    finally:
        with zookeeper.client() as client:
            client.add_auth("digest", "firn:hidden-word")
            client.delete(NODE)
    for done in (evaluated, compared, promoted):
        assert done.exit_code == 0, done.output
    assert json.loads(evaluated.stdout.splitlines()[-1])["model_id"] == logged.model_id
    assert json.loads(compared.stdout.splitlines()[-1])["models"] == [logged.model_id] * 2
    assert json.loads(promoted.stdout.splitlines()[-1])["run_id"] == logged.run_id
    assert refused.exit_code == 2
    assert f"the node {node} asks for a user who may read it: {DIGEST} is not set." in refused.stderr.replace("\n", "")


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("/no/such/model", "there is no model file:///no/such/model"),
        ("letters@nobody", "has a model letters without the alias nobody"),
        ("a" * 32, "has no run"),
        ("models/letters", "that is no absolute path or URL of a folder, no id of a run and no name@alias"),
        ("~/model", "that is no absolute path"),
        ("champion", "that is no absolute path"),
        ("zk://127.0.0.1:1/firn/other", "that is no absolute path"),
        ("https://example.org/model", "that is no absolute path"),
        ("hdfs://other.example:8020/model", "that is on a host that only the node names"),
        ("hdfs://firn:hidden-word@other.example:8020/model", "a URL of HDFS holds no password"),
    ],
)
def test_a_node_that_names_no_model_is_named_with_what_it_holds(
    zookeeper: ZooKeeperServer, name: str, fault: str
) -> None:
    node = zookeeper.set(NODE, name)
    with pytest.raises(UsageError, match=fault) as caught:
        resolve_model(node)
    assert str(caught.value).startswith(f"the node {node} holds {name.replace('hidden-word', '***')!r}: ")
    assert "hidden-word" not in str(caught.value)


def test_a_node_may_name_a_host_that_the_operator_allows(
    zookeeper: ZooKeeperServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRN_ALLOW_URLS", "hdfs://127.0.0.1:1/models")
    with pytest.raises(JobError, match=r"no HDFS NameNode answers at 127\.0\.0\.1:1"):
        resolve_model(zookeeper.set(NODE, "hdfs://127.0.0.1:1/models/letters"))
    with pytest.raises(UsageError, match="that is on a host that only the node names"):
        resolve_model(zookeeper.set(NODE, "hdfs://127.0.0.1:1/other/letters"))


@pytest.mark.spark
@pytest.mark.parametrize("model", ["zk://127.0.0.1:1/firn/champion", "hdfs://127.0.0.1:1/models/letters"])
def test_a_pipeline_of_others_names_no_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spark: SparkSession, model: str
) -> None:
    place = f"file://{tmp_path}/stage"
    ImageClassifier(model=model).write().save(place)
    with pytest.raises(UsageError, match="on a host that only the pipeline names"):
        ImageClassifier.load(place)
    assert not storage.may_be_named(model, place)
    monkeypatch.setenv("FIRN_ALLOW_URLS", model)
    assert ImageClassifier.load(place).getOrDefault("model") == model


def test_the_commands_of_the_documentation(
    zookeeper: ZooKeeperServer, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those for `zkCli.sh`, as they stand, and those of `finetune evaluate`; the registry's model is called `letters` here."""
    text = (ROOT / "docs" / "systems" / "zookeeper.md").read_text()
    text = re.sub(r"zk1:2181(,zk\d:2181)*", zookeeper.address, text).replace("objects@champion", "letters@champion")
    text = text.replace("/models/objects-2", str(logged.folder))
    blocks = re.findall(r"(?:^    \S.*\n)+", text, re.MULTILINE)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    made, moved, shut_in = (
        [line for line in lines if line.startswith(verbs)] for verbs in ("create", "set ", ("addauth", "setAcl"))
    )
    evaluations = [line.split()[1:] for line in lines if line.startswith("finetune evaluate")]
    (digest,) = (line.partition("=")[2] for line in lines if line.startswith(f"export {DIGEST}="))
    assert [len(made), len(moved), len(shut_in), len(evaluations)] == [2, 1, 2, 2]
    node = evaluations[-1][-1]
    with zookeeper.client() as client:
        client.delete("/firn", recursive=True)
    try:
        zookeeper.shell("\n".join(made) + "\n")
        assert read_node(node) == "letters@champion"
        assert CliRunner().invoke(app, evaluations[0]).exit_code == 0
        zookeeper.shell("\n".join([*moved, *shut_in]) + "\n")
        assert CliRunner().invoke(app, evaluations[1]).exit_code == 2
        monkeypatch.setenv(DIGEST, digest)
        assert read_node(node) == str(logged.folder)
        assert CliRunner().invoke(app, evaluations[1]).exit_code == 0
    finally:
        with zookeeper.client() as client:
            client.add_auth("digest", digest)
            client.delete("/firn", recursive=True)
