"""Tests of `featurize serve`: real clients, passwords, publication while it runs, a real Hive metastore, and a clean end."""

import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier
from typing import Any

import pyarrow as pa
import pytest
from helpers.project import ROOT
from helpers.services.processes import LOOPBACK, java_environment, wait_until
from helpers.services.sql_server import Metastore, ServedTables
from helpers.tables.feature_sets import image_ids, make_clusters
from helpers.tables.sql_sets import ODD_NAMES, write_features, write_predictions
from pyhive import hive
from thrift.transport.TTransport import TTransportException
from typer.testing import CliRunner

from featurize import storage
from featurize.__main__ import app
from featurize.sql.server import is_loopback
from featurize.tables.corrections import CORRECTIONS_SCHEMA, append_corrections
from featurize.tables.predictions import VIEWS_NAME, Views

pytestmark = [pytest.mark.spark, pytest.mark.slow]
MODELS: dict[str, list[str | None]] = {"0" * 64: ["ant"] * 20, "0" * 63 + "1": ["bee"] * 15 + [None] * 5}
ROWS, ODD_ROWS = 50, 10
ODD_NAME = " ".join(ODD_NAMES)
NAME, PASSWORD = "ann", "snowflake"
PAGE = (ROOT / "docs" / "systems" / "bi.md").read_text()
_SEEN_S = 90  # until a publication is seen, on a machine that does much else


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A feature set, predictions, and a small feature set in a folder with an odd name."""
    folder = tmp_path_factory.mktemp("tables")
    write_features(folder / "set", rows=ROWS)
    write_predictions(folder / "predictions", MODELS)
    write_features(folder / ODD_NAME, rows=ODD_ROWS)
    return folder


@pytest.fixture(scope="module")
def served(tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedTables]:
    """The server on `tables`, which ends with status 0 and leaves no files behind."""
    folder = tmp_path_factory.mktemp("served")
    passwords = folder / "passwords.txt"
    passwords.touch(mode=0o600)
    passwords.write_text(f"bob:other\n{NAME}:{PASSWORD}\n")
    urls = ["--features", str(tables / "set"), "--predictions", str(tables / "predictions")]
    urls += ["--table", f"odd={tables / ODD_NAME}"]
    server = ServedTables(folder, *urls, "--password-file", str(passwords))
    try:
        yield server
        assert server.end() == 0
        assert list(server.cwd.iterdir()) == []
        assert list(server.temporary.glob("firn-*")) == []
    finally:
        server.kill()


def connect(port: int, password: str = PASSWORD, **options: Any) -> Any:
    return closing(hive.connect(LOOPBACK, port=port, username=NAME, password=password, auth="CUSTOM", **options))


def ask(connection: Any, query: str) -> list[tuple[Any, ...]]:
    cursor = connection.cursor()
    cursor.execute(query)
    return list(cursor.fetchall())


def labels(rows: int) -> list[str]:
    """The labels of the rows of `write_features`, in their order."""
    return [("ant", "bee", "cat")[index] for index in make_clusters(rows)[1]]


def splits(rows: int) -> list[str]:
    return [("train", "train", "train", "validation", "test")[row % 5] for row in range(rows)]


def code(language: str, words: str) -> str:
    """The block of the documentation in that language which has these words."""
    (found,) = (block for block in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if words in block)
    return str(found)


def test_pyhive_as_documented_counts_labels_of_a_split(served: ServedTables) -> None:
    names: dict[str, Any] = {}
    exec(code("python", "pyhive").replace("10000", str(served.port)), names)
    names["connection"].close()
    pairs = zip(labels(ROWS), splits(ROWS), strict=True)
    assert names["rows"] == sorted(Counter(label for label, split in pairs if split == "train").items())


def test_impyla_as_documented_joins_features_and_predictions(served: ServedTables) -> None:
    names: dict[str, Any] = {}
    exec(code("python", "impala").replace("10000", str(served.port)), names)
    names["connection"].close()
    last = list(MODELS.values())[-1]
    counted = Counter(zip(labels(ROWS), last, strict=False))
    found = {(label, predicted): count for label, predicted, count in names["rows"]}
    assert found == counted


def test_beeline_as_documented_counts_splits(served: ServedTables, tmp_path: Path) -> None:
    environment = java_environment()
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    command = code("sh", "beeline").replace("10000", str(served.port))
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180, check=False
    )
    counted = [f"{split},{count}" for split, count in sorted(Counter(splits(ROWS)).items())]
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-len(counted) - 1 : -1] == counted
    assert "split,images" in done.stdout


def test_all_tables_are_listed_with_columns_of_the_right_types(served: ServedTables) -> None:
    expected = {"features", "predictions", "rejects", "latest", "odd"}
    assert expected <= set(served.ready["tables"])
    assert set(served.ready) == {"host", "port", "database", "tables"}
    with connect(served.port) as connection:
        assert expected <= {name for _, name, _ in ask(connection, "SHOW TABLES")}
        columns = {name: kind for name, kind, _ in ask(connection, "DESCRIBE features")}
        rejects = ask(connection, "SELECT count(*), max(error) FROM rejects")
    assert columns["features"] == "array<float>"
    assert columns["label_index"] == "int"
    assert columns["split"] == "string"
    assert rejects == [(0, None)]


def test_only_published_files_in_a_folder_of_any_name_are_read(served: ServedTables, tables: Path) -> None:
    assert len(list((tables / ODD_NAME / "data").rglob("*.parquet"))) == 6  # three of them of an unfinished run
    with connect(served.port) as connection:
        found = ask(connection, "SELECT count(*), count(DISTINCT image_id), min(split), max(label_index) FROM odd")
    assert found == [(ODD_ROWS, ODD_ROWS, "test", 2)]


def test_what_is_published_later_is_in_the_next_queries_of_open_connections(served: ServedTables, tables: Path) -> None:
    first, new = next(iter(MODELS)), "0" * 63 + "2"
    image_id, old = image_ids(ROWS)[7], labels(ROWS)[7]
    label = "cat" if old != "cat" else "ant"
    corrected = f"SELECT label, label_index, count(*) OVER () FROM features WHERE image_id = '{image_id}'"
    models = "SELECT count(*), count(DISTINCT model_id) FROM predictions"
    champions = "SELECT DISTINCT model_id FROM champion"
    views = str(tables / "predictions" / VIEWS_NAME)
    with connect(served.port) as connection:
        assert ask(connection, corrected) == [(old, ["ant", "bee", "cat"].index(old), 1)]
        assert ask(connection, models) == [(40, 2)]
        with pytest.raises(hive.OperationalError, match="champion"):
            ask(connection, champions)
        row = [image_id, old, label, "ann", datetime.now(UTC), "seen"]
        columns = [[value] for value in row]
        append_corrections(str(tables / "set"), lambda _: pa.table(columns, schema=CORRECTIONS_SCHEMA))
        write_predictions(tables / "predictions", {new: ["cat"] * 5})
        storage.write_json(views, Views(aliases={"champion": first}).model_dump(mode="json"))
        expected = [(label, ["ant", "bee", "cat"].index(label), 1)]
        wait_until(lambda: ask(connection, corrected) == expected, "the corrected label", timeout_s=_SEEN_S)
        wait_until(lambda: ask(connection, models) == [(45, 3)], "the new predictions", timeout_s=_SEEN_S)
        wait_until(lambda: "champion" in names_of(connection), "the new view", timeout_s=_SEEN_S)
        assert ask(connection, champions) == [(first,)]
        assert ask(connection, "SELECT count(*) FROM features") == [(ROWS,)]
        Path(views).unlink()
        wait_until(lambda: "champion" not in names_of(connection), "the view's end", timeout_s=_SEEN_S)
    assert "Published: " in served.log()


def names_of(connection: Any) -> set[str]:
    return {name for _, name, _ in ask(connection, "SHOW TABLES")}


def test_a_damaged_table_is_reported_once_and_all_are_shown_as_they_were(served: ServedTables, tables: Path) -> None:
    damaged = tables / ODD_NAME / "_delta_log" / f"{1:020d}.json"
    message = "shown as they were"
    damaged.write_text("{")
    try:
        wait_until(lambda: message in served.log(), "the message", timeout_s=_SEEN_S)
        with connect(served.port) as connection:
            assert ask(connection, "SELECT (SELECT count(*) FROM odd), count(*) FROM features") == [(ODD_ROWS, ROWS)]
    finally:
        damaged.unlink()
    assert served.log().count(message) == 1


@pytest.mark.parametrize(("name", "password"), [(NAME, "snow"), (NAME, "other"), ("eve", PASSWORD), (NAME, "")])
def test_a_wrong_name_or_password_is_refused(served: ServedTables, name: str, password: str) -> None:
    with pytest.raises(TTransportException, match="Error validating the login"):
        hive.connect(LOOPBACK, port=served.port, username=name, password=password, auth="CUSTOM")
    assert "Exception" not in served.log()


def test_one_connection_after_another_is_accepted(served: ServedTables) -> None:
    """More than the server has threads, so that later ones meet threads that have run queries."""
    for number in range(16):
        with connect(served.port) as connection:
            assert ask(connection, f"SELECT {number}") == [(number,)]


def test_two_clients_at_once_have_sessions_of_their_own(served: ServedTables) -> None:
    both = Barrier(2, timeout=60)

    def work(number: int) -> list[tuple[Any, ...]]:
        try:
            with connect(served.port) as connection:
                connection.cursor().execute(f"CREATE TEMPORARY VIEW mine AS SELECT {number} AS n")
                both.wait()
                return ask(connection, "SELECT n, (SELECT count(*) FROM features) FROM mine")
        except BaseException:
            both.abort()
            raise

    with ThreadPoolExecutor(2) as pool:
        works = [pool.submit(work, number) for number in (1, 2)]
    errors = [one.exception() for one in works]
    assert errors == [None, None]
    assert [one.result() for one in works] == [[(1, ROWS)], [(2, ROWS)]]


def test_tables_stay_in_a_hive_metastore_and_the_next_server_replaces_them(tables: Path, tmp_path: Path) -> None:
    """The second server finds the metastore's database as a folder; each ends by another signal."""
    place = tmp_path / "hive"
    below = "SHOW TABLES IN firn_files"
    urls = ["--features", str(tables / ODD_NAME), "--database", "firn", "--metastore"]
    metastore, found = Metastore(place), []
    try:
        for number, number_of_server in ((signal.SIGTERM, "first"), (signal.SIGINT, "second")):
            url = metastore.url if number_of_server == "first" else str(place)
            server = ServedTables(tmp_path / number_of_server, *urls, url)
            try:
                with closing(hive.connect(LOOPBACK, port=server.port, database="firn")) as connection:
                    assert ask(connection, "SELECT split, count(*) FROM features GROUP BY 1 ORDER BY 1") == [
                        ("test", 2),
                        ("train", 6),
                        ("validation", 2),
                    ]
                    found.append({name for _, name, _ in ask(connection, below)})
                assert server.end(number) == 0
                assert list(server.cwd.iterdir()) == []
            finally:
                server.kill()
            metastore.stop()
    finally:
        metastore.stop()
    assert len(found[0]) == len(found[1]) == 3
    assert not found[0] & found[1]


def refused(tmp_path: Path, *arguments: str) -> str:
    done = CliRunner().invoke(app, ["serve", "--features", str(tmp_path / "set"), *arguments])
    assert done.exit_code == 2
    return " ".join(done.output.split())


def test_other_hosts_are_refused_without_a_password(tmp_path: Path) -> None:
    assert "a password is required (--password-file)" in refused(tmp_path, "--host", "0.0.0.0")
    assert "must be a name or an address of this machine" in refused(tmp_path, "--host", "no-such-host.invalid")
    assert [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "::", "10.1.2.3")] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        ("ann:a\n", 0o640, "may be read or written by others"),
        ("ann\n", 0o600, "line 1: must be NAME:PASSWORD"),
        ("ann:a\n\nann:b\n", 0o600, "line 3: must be NAME:PASSWORD, each name once"),
        ("\n", 0o600, "names nobody"),
    ],
)
def test_a_file_of_passwords_that_cannot_be_used_is_refused(tmp_path: Path, text: str, mode: int, message: str) -> None:
    path = tmp_path / "passwords.txt"
    path.write_text(text)
    path.chmod(mode)
    assert message in refused(tmp_path, "--password-file", str(path))
    assert "cannot be read" in refused(tmp_path, "--password-file", str(tmp_path / "none"))


def test_a_port_in_use_and_other_wrong_options_are_refused_before_spark_starts(tmp_path: Path) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        assert f"`port` (--port) {port} of 127.0.0.1 cannot be used" in refused(tmp_path, "--port", str(port))
    free = ("--port", "0")
    assert "`database` (--database)" in refused(tmp_path, *free, "--database", "My Data")
    for metastore in ("hdfs://host/folder", "my;folder"):
        assert "`metastore` (--metastore) must be thrift://" in refused(tmp_path, *free, "--metastore", metastore)
    assert "`--table` must be NAME=URL" in refused(tmp_path, *free, "--table", "old")
