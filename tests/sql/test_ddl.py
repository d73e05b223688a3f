"""Tests of `featurize sql --print-ddl`: DuckDB runs it, Hive's own parser reads it, and Spark with a metastore runs it."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from helpers.project import ROOT
from helpers.tables.building import Built, read_rows
from helpers.tables.sql_sets import ODD_NAMES, write_features, write_plain_predictions, write_predictions
from pyspark.sql import SparkSession
from typer.testing import CliRunner

from featurize.__main__ import app
from featurize.errors import UsageError
from featurize.sql.ddl import DIALECTS, Dialect, make_ddl
from featurize.sql.tables import Part, SqlTable, find_tables

MODELS: dict[str, list[str | None]] = {"0" * 64: ["ant"] * 20, "0" * 63 + "1": ["bee"] * 15 + [None] * 5}
HIVE = """
import json, sys
from featurize.building.session import find_java
find_java()
from pyspark.sql import SparkSession
folder, statements, queries = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
spark = (
    SparkSession.builder.master("local[1]").enableHiveSupport().config("spark.ui.enabled", "false")
    .config("spark.sql.warehouse.dir", folder + "/warehouse")
    .config("spark.hadoop.javax.jdo.option.ConnectionURL", f"jdbc:derby:;databaseName={folder}/metastore;create=true")
    .config("spark.driver.extraJavaOptions", f"-Dderby.system.home={folder}").getOrCreate()
)
for statement in statements:
    spark.sql(statement)
print(json.dumps([[list(row) for row in spark.sql(query).collect()] for query in queries]))
"""


def duckdb_with(ddl: str) -> Any:
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute(ddl)
    return connection


def statements_of(ddl: str) -> list[str]:
    """The statements, without comments and semicolons."""
    text = "\n".join(line for line in ddl.splitlines() if not line.startswith("--"))
    return [statement.strip() for statement in re.split(r";\n|;$", text) if statement.strip()]


def test_duckdb_sees_the_rows_that_count(tmp_path: Path) -> None:
    write_features(tmp_path / "set", rows=40)
    write_predictions(tmp_path / "predictions", MODELS)
    tables = find_tables(features=str(tmp_path / "set"), predictions=str(tmp_path / "predictions"))
    connection = duckdb_with(make_ddl(tables, "duckdb"))
    counted = connection.execute("SELECT split, count(*) FROM features GROUP BY 1 ORDER BY 1").fetchall()
    assert counted == [("test", 8), ("train", 24), ("validation", 8)]
    assert connection.execute("SELECT count(*), count(model_id) FROM predictions").fetchall() == [(40, 40)]
    agreed = connection.execute(
        "SELECT p.model_id, count(*) FROM features f JOIN predictions p USING (image_id) "
        "WHERE p.label = f.label GROUP BY 1 ORDER BY 1"
    ).fetchall()
    assert [model for model, _ in agreed] == list(MODELS)
    assert connection.execute("SELECT count(*) FROM rejects").fetchall() == [(0,)]
    assert connection.execute("SELECT list_sum(top_probabilities) FROM predictions LIMIT 1").fetchone()[
        0
    ] == pytest.approx(1)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_duckdb_reads_folders_of_any_name(tmp_path: Path, name: str) -> None:
    write_features(tmp_path / name, rows=20)
    connection = duckdb_with(make_ddl(find_tables(features=str(tmp_path / name)), "duckdb"))
    assert connection.execute("SELECT count(*), count(DISTINCT split) FROM features").fetchall() == [(20, 3)]


@pytest.mark.spark
def test_duckdb_has_every_value_of_a_set_that_spark_made(built: Built) -> None:
    rows = read_rows(built.folder)
    connection = duckdb_with(make_ddl(find_tables(features=str(built.folder)), "duckdb"))
    found = connection.execute("SELECT * FROM features ORDER BY path").df().set_index("path")
    assert list(found.index) == list(rows.index)
    assert found["split"].to_list() == rows["split"].to_list()
    assert [list(value) for value in found["features"]] == [list(value) for value in rows["features"]]
    rejected = connection.execute("SELECT DISTINCT rejected_by, count(*) FROM rejects GROUP BY 1").fetchall()
    assert rejected == [("features", 2)]


@pytest.mark.spark
@pytest.mark.parametrize("dialect", ["hive", "impala"])
def test_hives_own_parser_reads_the_statements(spark: SparkSession, tmp_path: Path, dialect: Dialect) -> None:
    """Its grammar is in the jars of Spark."""
    write_features(tmp_path / "it's", rows=20)
    write_predictions(tmp_path / "predictions", MODELS)
    tables = find_tables(features=str(tmp_path / "it's"), predictions=str(tmp_path / "predictions"))
    statements = statements_of(make_ddl([*tables, of_every_type()], dialect))
    assert len(statements) == 4 * 4 + 3 + 2 + 2
    parser = spark._jvm.org.apache.hadoop.hive.ql.parse.ParseDriver()  # type: ignore[union-attr]
    for statement in statements:
        assert "TOK_" in parser.parse(statement).dump()
    with pytest.raises(Exception, match="ParseException"):
        parser.parse("CREATE EXTERNAL TABEL t (a INT)")


@pytest.mark.slow
@pytest.mark.spark
def test_a_metastore_has_tables_whose_views_show_the_rows_that_count(tmp_path: Path) -> None:
    """Spark with a metastore of Hive runs them; it calls the virtual column of the file's name otherwise."""
    import json

    write_features(tmp_path / "set; of 'mine'", rows=40)
    write_predictions(tmp_path / "predictions", MODELS)
    tables = find_tables(features=str(tmp_path / "set; of 'mine'"), predictions=str(tmp_path / "predictions"))
    ddl = make_ddl(tables, "hive")
    assert ddl.count("INPUT__FILE__NAME") == 2
    statements = [text.replace("INPUT__FILE__NAME", "input_file_name()") for text in statements_of(ddl)]
    queries = [
        "SELECT split, count(*) FROM features GROUP BY 1 ORDER BY 1",
        "SELECT count(*) FROM features_files",
        "SELECT model_id, count(*), sum(size(top_labels)) FROM predictions GROUP BY 1 ORDER BY 1",
        "SELECT count(*) FROM rejects",
        "SELECT DISTINCT model_id FROM latest",
    ]
    done = subprocess.run(
        [sys.executable, "-c", HIVE, str(tmp_path), json.dumps(statements * 2), json.dumps(queries)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "SPARK_LOCAL_IP": "127.0.0.1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    splits, files, models, rejects, latest = json.loads(done.stdout.splitlines()[-1])
    assert splits == [["test", 8], ["train", 24], ["validation", 8]]
    assert files == [[80]]  # the files that do not count are in the folders, and in no view
    assert models == [[model, 20, 60] for model in MODELS]
    assert rejects == [[0]]
    assert latest == [[list(MODELS)[-1]]]


def test_every_type_has_a_name_or_is_refused() -> None:
    for dialect in DIALECTS:
        make_ddl([of_every_type()], dialect)
        with pytest.raises(UsageError, match="does not have the type time64"):
            make_ddl([SqlTable("t", pa.schema([("a", pa.time64("us"))]), (), (), ("file:///t",))], dialect)


def test_an_empty_table_of_every_type_is_one_in_duckdb() -> None:
    connection = duckdb_with(make_ddl([of_every_type()], "duckdb"))
    kinds = {row[0]: row[1] for row in connection.execute("DESCRIBE every").fetchall()}
    assert connection.execute("SELECT count(*) FROM every").fetchall() == [(0,)]
    assert kinds["l"] == "FLOAT[]"
    assert kinds["m"] == "MAP(VARCHAR, VARCHAR)"
    assert kinds["s"].startswith("STRUCT(")
    assert (kinds["b"], kinds["i"], kinds["key"]) == ("BLOB", "INTEGER", "VARCHAR")


def test_one_partition_in_two_folders_is_refused_for_hive() -> None:
    parts = (
        Part(("a",), "file:///t/1", ("file:///t/1/x.parquet",)),
        Part(("a",), "file:///t/2", ("file:///t/2/x.parquet",)),
    )
    table = SqlTable("t", pa.schema([("i", pa.int32())]), ("key",), parts, ("file:///t",))
    with pytest.raises(UsageError, match="in several folders for one partition"):
        make_ddl([table], "hive")


def test_the_command_prints_statements_for_each_engine(tmp_path: Path) -> None:
    write_plain_predictions(tmp_path / "predictions", MODELS)
    write_features(tmp_path / "set", rows=20)
    for dialect in DIALECTS:
        arguments = ["--features", str(tmp_path / "set"), "--predictions", str(tmp_path / "predictions")]
        done = CliRunner().invoke(app, ["sql", "--print-ddl", dialect, *arguments])
        assert done.exit_code == 0, done.output
        assert done.stdout.startswith("-- Firn's tables for")
        assert "deadbeef" not in done.stdout
        if dialect == "duckdb":
            assert duckdb_with(done.stdout).execute("SELECT count(*) FROM predictions").fetchall() == [(40,)]


def of_every_type() -> SqlTable:
    """A table without rows."""
    columns = pa.schema(
        [
            ("t", pa.string()),
            ("b", pa.binary()),
            ("i", pa.int32()),
            ("n", pa.int64()),
            ("f", pa.float32()),
            ("d", pa.float64()),
            ("yes", pa.bool_()),
            ("day", pa.date32()),
            ("at", pa.timestamp("us")),
            ("c", pa.dictionary(pa.int32(), pa.string())),
            ("l", pa.list_(pa.float32())),
            ("m", pa.map_(pa.string(), pa.string())),
            ("s", pa.list_(pa.struct([("label", pa.string()), ("probability", pa.float32())]))),
        ]
    )
    return SqlTable("every", columns, ("key",), (), ("file:///every",))
