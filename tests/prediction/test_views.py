"""Tests of views on predictions: what they show, in the registry and without, in Spark and in DuckDB."""

import json
import shutil
from pathlib import Path

import duckdb
import pytest
from helpers.models.logged_models import client_of, registry_in, train_model, write_clusters
from helpers.tables.predictions import predicted, read_predictions
from pyspark.sql import SparkSession
from typer.testing import CliRunner

from featurize.errors import JobError, UsageError
from featurize.recipes.recipe import RegistrySettings
from featurize.sql.ddl import make_ddl
from featurize.sql.tables import find_tables
from featurize.tables.predictions import VIEWS_NAME, read_views
from finetune.__main__ import app
from finetune.models.folder import read_model_card
from finetune.prediction.predict import register_views
from finetune.prediction.views import publish_views
from finetune.registry.client import ENVIRONMENT
from finetune.registry.log_model import log_fit
from finetune.registry.versions import promote

pytestmark = [
    pytest.mark.spark,
    pytest.mark.slow,
]


class Place:
    """Two models on one feature set, and predictions of one's own."""

    def __init__(self, source: Path, folder: Path, spark: SparkSession) -> None:
        for name in ("old", "new"):
            shutil.copytree(source / name, folder / name)  # a registry leaves its record in the folder of a model
        self.source, self.folder, self.spark = source, folder, spark
        self.out = folder / "out's"  # a quote: names in SQL must bear it
        self.ids = {name: self._model_id(name) for name in ("old", "new")}

    def _model_id(self, name: str) -> str:
        card = read_model_card(str(self.folder / name))
        assert card is not None
        return card.model_id

    def predict(self, name: str, *, model: str | None = None) -> None:
        plan_of = model or str(self.folder / name)
        predicted(self.spark, plan_of, self.out, features=self.source / "set")  # type: ignore[arg-type]

    def views(self) -> dict[str, str]:
        """The name of the model that each view shows."""
        names = {model_id: name for name, model_id in self.ids.items()}
        return {view: names[model_id] for view, model_id in read_views(str(self.out)).views.by_name().items()}

    def call(self, *arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["views", *arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("views")
    write_clusters(folder / "set")
    for name, rate in (("old", 0.05), ("new", 0.2)):
        train_model(folder / "set", folder / name, learning_rate=rate)
    return folder


@pytest.fixture
def place(source: Path, tmp_path: Path, spark: SparkSession) -> Place:
    return Place(source, tmp_path, spark)


def test_without_a_registry_latest_is_the_last_until_a_champion_is_set(place: Place) -> None:
    place.predict("old")
    assert place.views() == {"latest": "old"}
    place.predict("new")
    assert place.views() == {"latest": "new"}
    status, said = place.call(str(place.out), "--set", f"champion={place.folder / 'old'}", "--json")
    assert status == 0, said
    answer = json.loads(said.strip().splitlines()[-1])
    assert answer["views"] == {"champion": place.ids["old"], "latest": place.ids["old"]}
    place.predict("new")
    assert place.views() == {"champion": "old", "latest": "old"}
    assert place.call(str(place.out), "--set", f"champion={place.folder / 'new'}")[0] == 0
    assert place.views() == {"champion": "new", "latest": "new"}


def test_what_is_wrong_with_a_call_is_said(place: Place) -> None:
    with pytest.raises(UsageError, match="holds no predictions"):
        read_views(str(place.out))
    place.predict("old")
    for text in ("champion", "=x", "latest=x", "predictions=x", "two words=x"):
        status, said = place.call(str(place.out), "--set", text)
        assert (status, "ALIAS=MODEL" in said) == (2, True), said
    status, said = place.call(str(place.out), "--set", f"champion={place.folder / 'new'}")
    assert (status, "holds no predictions of the model" in said) == (2, True), said
    (place.out / VIEWS_NAME).write_text("{")
    with pytest.raises(JobError, match="is damaged"):
        read_views(str(place.out))


@pytest.fixture
def registry(place: Place, monkeypatch: pytest.MonkeyPatch) -> RegistrySettings:
    """A registry in which both models are logged, and the old one is the champion of `letters`."""
    settings = registry_in(place.folder)
    monkeypatch.setenv(ENVIRONMENT, str(settings.url))
    promote_to(settings, place, "old")
    return settings


def promote_to(settings: RegistrySettings, place: Place, name: str, alias: str = "champion") -> None:
    logged = log_fit(str(place.folder / name), settings)
    assert logged is not None
    client = client_of(settings)
    promote(client, client.get_run(logged.run_id), alias, name="letters")


def test_the_views_follow_the_aliases_of_the_registry(place: Place, registry: RegistrySettings) -> None:
    place.predict("old", model="letters@champion")
    assert place.views() == {"champion": "old", "latest": "old"}
    place.predict("new")  # a challenger, by its folder: nothing moves
    assert place.views() == {"champion": "old", "latest": "old"}
    promote_to(registry, place, "new", "challenger")
    assert place.call(str(place.out))[0] == 0
    assert place.views() == {"champion": "old", "challenger": "new", "latest": "old"}
    promote_to(registry, place, "new")
    assert publish_views(str(place.out)).missing == {}
    assert place.views() == {"champion": "new", "challenger": "new", "latest": "new"}
    assert set(read_predictions(place.out)["model_id"]) == set(place.ids.values())
    client_of(registry).delete_registered_model_alias("letters", "challenger")
    publish_views(str(place.out))
    assert place.views() == {"champion": "new", "latest": "new"}
    with pytest.raises(UsageError, match="follow the registered model letters"):
        publish_views(str(place.out), set_aliases={"champion": place.ids["old"]})
    with pytest.raises(UsageError, match="no registered model none"):
        publish_views(str(place.out), registered_model="none")


def test_a_champion_that_has_predicted_nothing_here_is_told_and_the_view_stays(
    place: Place, registry: RegistrySettings
) -> None:
    place.predict("old", model="letters@champion")
    promote_to(registry, place, "new")
    status, said = place.call(str(place.out))
    assert status == 0
    assert f"champion is {place.ids['new'][:16]} now, which has predicted nothing here" in said
    assert place.views() == {"champion": "old", "latest": "old"}
    place.predict("new", model="letters@champion")
    assert place.views() == {"champion": "new", "latest": "new"}


def test_views_in_spark_show_what_is_published(place: Place) -> None:
    place.predict("old")
    place.predict("new")
    publish_views(str(place.out), set_aliases={"champion": place.ids["old"], "challenger": place.ids["new"]})
    names = register_views(place.spark, str(place.out))
    assert names == ["predictions", "rejects", "challenger", "champion", "latest"]
    assert counts(place, "predictions") == {place.ids["old"]: 200, place.ids["new"]: 200}
    for view, name in (("latest", "old"), ("champion", "old"), ("challenger", "new")):
        assert counts(place, view) == {place.ids[name]: 200}
    both = place.spark.sql(
        "SELECT count(*) FROM champion JOIN challenger USING (image_id) WHERE champion.label != challenger.label"
    )
    rows = read_predictions(place.out).reset_index().pivot(index="path", columns="model_id", values="label")
    assert both.first()[0] == (rows.iloc[:, 0] != rows.iloc[:, 1]).sum()  # type: ignore[index]


def counts(place: Place, view: str) -> dict[str, int]:
    rows = place.spark.sql(f"SELECT model_id, count(*) AS n FROM {view} GROUP BY model_id").collect()
    return {row["model_id"]: row["n"] for row in rows}


def test_other_engines_have_the_same_views(place: Place) -> None:
    place.predict("old")
    place.predict("new")
    publish_views(str(place.out), set_aliases={"champion": place.ids["old"]})
    register_views(place.spark, str(place.out))
    with duckdb.connect() as database:
        database.execute(make_ddl(find_tables(predictions=str(place.out)), "duckdb"))
        query = "SELECT model_id, label, count(*) FROM {} GROUP BY 1, 2 ORDER BY 1, 2"
        for view in ("predictions", "latest", "champion"):
            in_spark = [tuple(row) for row in place.spark.sql(query.format(view)).collect()]
            assert in_spark == database.execute(query.format(view)).fetchall()
            assert sum(row[2] for row in in_spark) == (400 if view == "predictions" else 200)
