"""The Python of docs/analysts.md, run as it stands: on a small feature set, and on real photographs where there are any."""

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import matplotlib.image
import numpy as np
import polars as pl
import pytest
from helpers.project import ROOT
from helpers.tables.feature_sets import make_clusters, write_feature_set
from helpers.tables.sql_sets import write_features
from pyspark.sql import SparkSession

from featurize import open_features
from featurize.similar.search import find_similar
from featurize.sql.ddl import make_ddl
from featurize.sql.query import register_views, write_answer
from featurize.sql.tables import find_tables
from featurize.tables.readable import read_features_manifest
from finetune.rows.petastorm_reader import open_petastorm_reader

DOCUMENT = (ROOT / "docs" / "analysts.md").read_text()
SECTIONS = dict(re.findall(r"^## ([A-Za-z]+)[^\n]*\n\n```python\n(.*?)```", DOCUMENT, re.MULTILINE | re.DOTALL))
FEATURES = Path("runs/flowers/features")
REAL_CLASSES = ("Faces", "airplanes", "Motorbikes", "watch")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small set of three classes, and files beside it that do not count."""
    folder = tmp_path_factory.mktemp("small")
    write_features(folder / FEATURES, rows=60)
    return folder


@pytest.fixture(scope="module")
def real(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the features of real photographs of four classes."""
    folder = tmp_path_factory.mktemp("real")
    for label in REAL_CLASSES:
        (folder / "photos" / label).mkdir(parents=True)
        for path in sorted((real_data / "objects" / label).iterdir())[:12]:
            shutil.copy(path, folder / "photos" / label)
    backbone = real_data.parent / "backbones" / "mobilenet_v1_imagenet.keras"
    (folder / "flowers.toml").write_text(
        f'[images]\nsource = "photos"\n[backbone]\nname = "{backbone}"\npreprocessing = "none"\n'
        f'[features]\nurl = "{FEATURES}"\n'
    )
    subprocess.run(
        [sys.executable, "-m", "featurize", "run", "flowers.toml"], cwd=folder, check=True, capture_output=True
    )
    return folder


def run_section(name: str, folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that a section of the document has defined at its end."""
    patch.chdir(folder)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(SECTIONS[name], f"docs/analysts.md: {name}", "exec"), names)
    return names


def check_nearest(nearest: Any, folder: Path) -> None:
    """Whether a section has found what `featurize similar` finds."""
    url = str(folder / FEATURES)
    manifest = read_features_manifest(url)
    paths = [path for split in manifest.rows for path in paths_of(url, split)]
    found = find_similar(url, min(paths), k=5)
    assert list(nearest["path"]) == [image.path for image in found.images]
    assert list(nearest["label"]) == [image.label for image in found.images]
    np.testing.assert_allclose(list(nearest["cosine"]), [1 - image.distance for image in found.images], atol=1e-5)


def paths_of(url: str, split: str) -> list[str]:
    from featurize.tables.row_groups import read_table

    found: list[str] = read_table(url, read_features_manifest(url), split, ("path",))["path"].to_pylist()
    return found


def check_own_columns(counted: dict[tuple[str, str], int], folder: Path) -> None:
    """Whether rows are counted by the splits and labels of the set itself."""
    manifest = read_features_manifest(str(folder / FEATURES))
    own = {(split, label): n for split, by_label in manifest.rows.items() for label, n in by_label.items()}
    assert counted == own


def folder_of(request: pytest.FixtureRequest) -> Path:
    folder = request.getfixturevalue(request.param)
    assert isinstance(folder, Path)
    return folder


@pytest.fixture(scope="module")
def below(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose name and those above it look like partitions, which are columns of the set too, with a small set in it."""
    folder = tmp_path_factory.mktemp("below") / "label=abc" / "split=602020" / "label_index=7" / "features=x"
    write_features(folder / FEATURES, rows=60)
    return folder


@pytest.fixture(params=["small", "below", pytest.param("real", marks=[pytest.mark.realdata, pytest.mark.slow])])
def folder(request: pytest.FixtureRequest) -> Path:
    return folder_of(request)


def test_every_section_of_code_is_run() -> None:
    assert sorted(SECTIONS) == ["DuckDB", "Polars", "Spark", "pandas"]
    assert DOCUMENT.count("```python") == len(SECTIONS)


def test_pandas(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_section("pandas", folder, monkeypatch)
    check_nearest(names["nearest"], folder)
    check_own_columns(names["frame"].groupby(["split", "label"]).size().to_dict(), folder)
    clusters = names["clusters"]
    assert clusters.to_numpy().sum() == read_features_manifest(str(folder / FEATURES)).row_count
    assert (clusters.max(axis=1) / clusters.sum(axis=1)).mean() > 0.85  # the classes are what lies together
    assert len(names["outliers"]) == 5
    picture = matplotlib.image.imread(folder / "map.png")
    colours = {tuple(pixel) for pixel in picture.reshape(-1, picture.shape[-1]).round(2).tolist()}
    assert len(colours) > 2 * clusters.shape[1]


def test_duckdb(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_section("DuckDB", folder, monkeypatch)
    check_nearest(names["nearest"], folder)
    counted = names["connection"].sql("SELECT split, label, count(*) FROM features GROUP BY ALL").fetchall()
    check_own_columns({(split, label): n for split, label, n in counted}, folder)
    outliers = names["outliers"]
    assert len(outliers) < 5
    assert all(outliers["label"] != outliers["nearer"])


def test_duckdb_finds_a_wrong_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features, label_index = make_clusters(60)
    label_index[17] = (label_index[17] + 1) % 3
    write_feature_set(tmp_path / FEATURES, features, label_index)
    outliers = run_section("DuckDB", tmp_path, monkeypatch)["outliers"]
    assert list(outliers["path"]) == ["photos/00017.png"]


def test_polars(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_section("Polars", folder, monkeypatch)
    check_nearest(names["nearest"], folder)
    counted = names["frame"].group_by("split", "label").len().rows()
    check_own_columns({(split, label): n for split, label, n in counted}, folder)
    rows = read_features_manifest(str(folder / FEATURES)).row_count
    assert names["spread"]["images"].sum() == rows == len(names["frame"])


@pytest.mark.spark
def test_firns_own_readers_know_no_folders_above_a_set(spark: SparkSession, below: Path) -> None:
    """The lines of docs/features.md."""
    url, manifest = str(below / FEATURES), read_features_manifest(str(below / FEATURES))
    own = {(split, label): n for split, by_label in manifest.rows.items() for label, n in by_label.items()}
    features = open_features(url)
    frames = (
        features.to_pandas(),
        features.to_spark(spark).toPandas(),
        pl.read_parquet(_answer_of_sql(spark, below), hive_partitioning=False),
    )
    for frame in (frames[0], frames[1], frames[2].to_pandas()):
        assert frame.groupby(["split", "label"]).size().to_dict() == own
    for split, by_label in manifest.rows.items():
        with open_petastorm_reader(url, manifest, split, ("label",)) as reader:
            read = Counter[str]()
            while sum(read.values()) < sum(by_label.values()):
                read.update(str(label) for label in next(reader).label)
        assert read == by_label
    views = make_ddl(find_tables(features=url), "duckdb")
    connection = duckdb.connect()
    connection.execute(views)
    counted = connection.sql("SELECT split, label, count(*) FROM features GROUP BY ALL").fetchall()
    check_own_columns({(split, label): n for split, label, n in counted}, below)


def _answer_of_sql(spark: SparkSession, folder: Path) -> str:
    register_views(spark, find_tables(features=str(folder / FEATURES)))
    write_answer(spark.sql("SELECT split, label FROM features"), f"file://{folder}/answer.parquet")
    return str(folder / "answer.parquet")


@pytest.mark.spark
def test_spark(spark: SparkSession, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_section("Spark", folder, monkeypatch)
    check_nearest(names["nearest"], folder)
    by_label = spark.sql("SELECT split, label, count(*) AS n FROM features GROUP BY split, label").collect()
    check_own_columns({(row["split"], row["label"]): row["n"] for row in by_label}, folder)
    counted = names["clusters"].toPandas()
    assert counted["n"].sum() == read_features_manifest(str(folder / FEATURES)).row_count
    assert counted.groupby("cluster")["n"].max().sum() / counted["n"].sum() > 0.85
