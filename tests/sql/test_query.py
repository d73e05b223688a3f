"""Tests of `featurize sql`: the right rows of the files that count, on the screen, as JSON and as files; and what is refused."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.project import Firn
from helpers.tables.building import Built, read_rows
from helpers.tables.feature_sets import make_clusters, write_feature_set
from helpers.tables.grown_predictions import Predictions
from helpers.tables.sql_sets import ODD_NAMES, write_features, write_plain_predictions, write_predictions
from pyspark.sql import SparkSession

from featurize.commands.sql import shown_value
from featurize.errors import JobError, UsageError
from featurize.jobs.ingest import ingest
from featurize.sources.cards import Card, read_card
from featurize.sql.query import fetch, plain_value, register_views, run_query, write_answer
from featurize.sql.tables import SqlTable, find_tables

pytestmark = pytest.mark.spark
MODELS: dict[str, list[str | None]] = {"0" * 64: ["ant"] * 20, "0" * 63 + "1": ["bee"] * 15 + [None] * 5}


def ask(spark: SparkSession, query: str, **urls: Any) -> list[dict[str, Any]]:
    """The rows of an answer, as dicts."""
    register_views(spark, find_tables(**urls))
    return [plain_value(row) for row in fetch(run_query(spark, query), limit=1000).rows]


@pytest.fixture(scope="module")
def images(spark: SparkSession, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The images table of `photos`."""
    folder = tmp_path_factory.mktemp("images")
    card = folder / "photos.toml"
    card.write_text(f'name = "mine"\ntitle = "Mine"\nlicence = "CC0-1.0"\nlayout = "folders"\nsource = "{photos}"\n')
    checked: Card = read_card(card)
    ingest(spark, checked, str(folder / "table"), max_reject_fraction=1.0)
    return str(folder / "table")


def test_images_features_and_rejects_are_joined(spark: SparkSession, built: Built, images: str) -> None:
    rows = read_rows(built.folder)
    found = ask(
        spark,
        "SELECT f.path, f.split, f.features, f.label, i.width, i.format, length(i.content) AS bytes, i.colour_mean "
        "FROM features f JOIN images i USING (image_id) ORDER BY f.path",
        features=str(built.folder),
        images=images,
    )
    assert [row["path"] for row in found] == list(rows.index)
    assert [row["split"] for row in found] == rows["split"].to_list()
    assert [row["label"] for row in found] == rows["label"].to_list()
    np.testing.assert_array_equal([row["features"] for row in found], np.stack(rows["features"].to_list()))
    assert {row["format"] for row in found} == {"PNG"}
    assert all(row["bytes"] == Path(row["path"].removeprefix("file://")).stat().st_size for row in found)
    rejects = ask(
        spark,
        "SELECT rejected_by, path, error FROM rejects ORDER BY rejected_by, path",
        features=str(built.folder),
        images=images,
    )
    assert [(row["rejected_by"], Path(row["path"]).name) for row in rejects] == [
        ("features", "notes.txt"),
        ("features", "empty.jpg"),
        ("images", "notes.txt"),
        ("images", "empty.jpg"),
    ]
    assert all(row["error"] for row in rejects)


def test_files_of_an_unfinished_run_are_not_seen(spark: SparkSession, tmp_path: Path) -> None:
    write_features(tmp_path / "set", rows=40)
    write_predictions(tmp_path / "predictions", MODELS)
    urls = {"features": str(tmp_path / "set"), "predictions": str(tmp_path / "predictions")}
    assert len(list((tmp_path / "set" / "data").rglob("*.parquet"))) == 6
    assert ask(spark, "SELECT count(*) AS n, count(DISTINCT image_id) AS ids FROM features", **urls) == [
        {"n": 40, "ids": 40}
    ]
    counted = ask(spark, "SELECT model_id, label, count(*) AS n FROM predictions GROUP BY 1, 2 ORDER BY 1, 2", **urls)
    assert [(row["model_id"][-1], row["label"], row["n"]) for row in counted] == [
        ("0", "ant", 20),
        ("1", None, 5),
        ("1", "bee", 15),
    ]
    assert ask(spark, "SELECT count(*) AS n FROM rejects", **urls) == [{"n": 0}]


def test_predictions_without_manifests_and_any_other_table_are_read(spark: SparkSession, tmp_path: Path) -> None:
    """A model id of nothing but digits stays the text that it is."""
    write_plain_predictions(tmp_path / "predictions", MODELS)
    write_features(tmp_path / "old", rows=30)
    found = ask(
        spark,
        "SELECT p.model_id, count(*) AS n FROM predictions p JOIN old USING (image_id) GROUP BY 1 ORDER BY 1",
        predictions=str(tmp_path / "predictions"),
        others={"old": str(tmp_path / "old")},
    )
    one = ask(spark, "SELECT count(*) AS n FROM predictions", predictions=f"{tmp_path}/predictions/data")
    assert [row["model_id"] for row in found] == list(MODELS)
    assert one == [{"n": 40}]


def test_spark_is_given_no_file_that_is_a_link(spark: SparkSession, built: Built, tmp_path: Path) -> None:
    shutil.copytree(built.folder, tmp_path / "set")
    last = tmp_path / "set" / built.manifest.files[-1].path
    (tmp_path / "outside.parquet").write_bytes(last.read_bytes())
    last.unlink()
    last.symlink_to(tmp_path / "outside.parquet")
    tables = find_tables(features=str(tmp_path / "set"))
    with pytest.raises(JobError, match=f"{re.escape(last.name)} is a link"):
        register_views(spark, tables)


def test_a_folder_of_parquet_files_is_read_with_links_inside_it_and_none_that_leads_out(tmp_path: Path) -> None:
    (tmp_path / "any").mkdir()
    pq.write_table(pa.table({"x": [1]}), tmp_path / "any" / "a.parquet")
    (tmp_path / "any" / "b.parquet").symlink_to("a.parquet")
    (table,) = find_tables(others={"any": str(tmp_path / "any")})
    assert isinstance(table, SqlTable)
    assert [len(part.files) for part in table.parts] == [2]
    pq.write_table(pa.table({"x": [1]}), tmp_path / "outside.parquet")
    (tmp_path / "any" / "c.parquet").symlink_to("../outside.parquet")
    with pytest.raises(UsageError, match=r"c\.parquet is a link that leads out of"):
        find_tables(others={"any": str(tmp_path / "any")})


@pytest.mark.parametrize("name", ODD_NAMES)
def test_folders_may_have_any_name(spark: SparkSession, tmp_path: Path, name: str) -> None:
    write_features(tmp_path / name, rows=20)
    found = ask(spark, "SELECT split, count(*) AS n FROM features GROUP BY 1 ORDER BY 1", features=str(tmp_path / name))
    assert found == [{"split": "test", "n": 4}, {"split": "train", "n": 12}, {"split": "validation", "n": 4}]


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "America/New_York"])
def test_time_is_utc_whatever_the_machine_says(tmp_path: Path, zone: str) -> None:
    predictions = Predictions(tmp_path)
    predictions.label(range(6), parts=3)  # at midnight of the first of November, and one and two seconds later
    query = (
        "SELECT count(*) AS rows, min(predicted_at) AS first, date_format(max(predicted_at), 'yyyy-MM-dd HH:mm:ss') AS last "
        "FROM predictions WHERE predicted_at >= '2026-11-01 00:00:00' AND predicted_at < '2026-11-01 00:00:02'"
    )
    answers = []
    for output in ((), ("--output", str(tmp_path / "answer.csv"))):
        command = [sys.executable, "-m", "featurize", "sql", query, "--predictions", str(tmp_path), "--json", *output]
        done = subprocess.run(command, env={**os.environ, "TZ": zone}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        answers.append(done.stdout)
    (row,) = json.loads(answers[0])["rows"]
    assert row == {"rows": 4, "first": "2026-11-01T00:00:00+00:00", "last": "2026-11-01 00:00:01"}
    (written,) = csv.DictReader((tmp_path / "answer.csv").open(newline=""))
    assert written == {"rows": "4", "first": "2026-11-01T00:00:00+00:00", "last": "2026-11-01 00:00:01"}


def test_answers_are_written_whole(spark: SparkSession, tmp_path: Path) -> None:
    write_features(tmp_path / "set", rows=40)
    register_views(spark, find_tables(features=str(tmp_path / "set")))
    frame = run_query(spark, "SELECT path, features, width > 10 AS wide, CAST(NULL AS string) AS none FROM features")
    ordered = frame.orderBy("path")
    assert write_answer(ordered, str(tmp_path / "a.csv")) == 40
    assert write_answer(ordered, str(tmp_path / "a.parquet")) == 40
    table = pq.read_table(tmp_path / "a.parquet")
    assert table["path"].to_pylist() == [f"photos/{row:05d}.png" for row in range(40)]
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == table["path"].to_pylist()
    np.testing.assert_allclose([json.loads(row["features"]) for row in rows], table["features"].to_pylist(), rtol=1e-6)
    assert {(row["wide"], row["none"]) for row in rows} == {("true", "")}
    nothing = run_query(spark, "SELECT * FROM rejects")
    assert write_answer(nothing, str(tmp_path / "n.parquet")) == 0
    assert pq.read_schema(tmp_path / "n.parquet").names == [*nothing.columns]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.parquet", "n.parquet", "set"]


def test_a_query_that_fails_while_it_runs_is_a_failed_job(spark: SparkSession, tmp_path: Path) -> None:
    write_features(tmp_path / "set", rows=20)
    register_views(spark, find_tables(features=str(tmp_path / "set")))
    frame = run_query(spark, "SELECT concat(path, CAST(raise_error('too ' || label) AS string)) AS x FROM features")
    with pytest.raises(JobError, match=r"the query failed: too (ant|bee|cat)$"):
        fetch(frame, limit=5)
    with pytest.raises(JobError, match="the query failed: too"):
        write_answer(frame, str(tmp_path / "a.parquet"))
    assert not list(tmp_path.glob("a.parquet*"))


@pytest.mark.parametrize(
    ("query", "message"),
    [("SELEC 1", "Syntax error at or near 'SELEC'"), ("SELECT a FROM features", "cannot be resolved")],
)
def test_a_wrong_query_is_told_in_a_line(spark: SparkSession, tmp_path: Path, query: str, message: str) -> None:
    write_features(tmp_path / "set", rows=20)
    register_views(spark, find_tables(features=str(tmp_path / "set")))
    with pytest.raises(UsageError, match=message) as caught:
        run_query(spark, query)
    assert "\n" not in str(caught.value)


def test_tables_that_are_none_are_refused(tmp_path: Path) -> None:
    features, label_index = make_clusters(20)
    write_feature_set(tmp_path / "set", features, label_index)
    url = str(tmp_path / "set")
    with pytest.raises(UsageError, match="is not an images table"):
        find_tables(images=url)
    with pytest.raises(UsageError, match="not a feature set"):
        find_tables(features=str(tmp_path))
    with pytest.raises(UsageError, match="holds no predictions"):
        find_tables(predictions=str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match="the name of a table must be new"):
        find_tables(features=url, others={"features": url})
    with pytest.raises(UsageError, match="the name of a table must be new"):
        find_tables(others={"my table": url})
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no table"):
        find_tables(others={"e": str(tmp_path / "empty")})
    write_plain_predictions(tmp_path / "predictions", MODELS)
    (tmp_path / "predictions" / "data" / "model_id=1" / "_staging").mkdir(parents=True)
    (tmp_path / "predictions" / "data" / "model_id=1" / "_staging" / "state.json").write_text("{}")
    with pytest.raises(UsageError, match="nothing is published there yet"):
        find_tables(predictions=str(tmp_path / "predictions"))
    shutil.rmtree(tmp_path / "set" / "data")
    with pytest.raises(JobError, match="listed in the manifest but cannot be read"):
        find_tables(features=url)


def test_long_values_are_cut_on_the_screen() -> None:
    assert shown_value([0.25] * 40) == "[" + "0.25, " * 9 + "0.25,... (40 values)"
    assert shown_value([1, 2]) == "[1, 2]"
    assert (shown_value(b"abc"), shown_value(None), shown_value(1 / 3)) == ("3 bytes", "", "0.333333")


@pytest.mark.slow
def test_the_command(firn: Firn, tmp_path: Path) -> None:
    write_features(tmp_path / "set", rows=40)
    (tmp_path / "recipe.toml").write_text(
        '[images]\nsource = "photos"\n[backbone]\nname = "pixels"\nheight = 4\nwidth = 4\n[features]\nurl = "set"\n'
    )
    query = "SELECT label, count(*) AS n FROM features GROUP BY label ORDER BY label"
    said = firn("featurize", "sql", query, "--recipe", "recipe.toml", "--limit", "2", "--json")
    assert said.returncode == 0, said.stderr
    document = json.loads(said.stdout)
    assert document["rows"] == [{"label": "ant", "n": 14}, {"label": "bee", "n": 13}]
    assert document["columns"] == [{"name": "label", "type": "string"}, {"name": "n", "type": "bigint"}]
    assert document["is_cut"]
    table = firn("featurize", "sql", "SELECT path, label FROM features ORDER BY path", "--features", "set")
    assert len(table.stdout.splitlines()) == 41
    assert "photos/00039.png" in table.stdout
    written = firn("featurize", "sql", query, "--features", "set", "--output", "deep/a.csv", "--json")
    assert json.loads(written.stdout)["written"] == 3
    assert (tmp_path / "deep" / "a.csv").read_text() == "label,n\nant,14\nbee,13\ncat,13\n"
    for arguments, message in (
        (["SELECT 1"], "no table is named"),
        (["--features", "set"], "`QUERY` is required"),
        ([query, "--features", "set", "--print-ddl", "hive"], "`QUERY` is required"),
        ([query, "--features", "set", "--output", "a.xls"], "must end in .csv or .parquet"),
        ([query, "--table", "set"], "must be NAME=URL"),
    ):
        refused = firn("featurize", "sql", *arguments)
        assert refused.returncode == 2
        assert message in refused.stderr
        assert "Traceback" not in refused.stderr
