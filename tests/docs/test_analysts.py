"""The Python of docs/analysts.md, run as it stands: on a small feature set, and on real photographs where there are any."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from helpers.project import ROOT
from helpers.tables.feature_sets import make_clusters, write_feature_set
from helpers.tables.sql_sets import write_features
from pyspark.sql import SparkSession

from featurize.similar.search import find_similar
from featurize.tables.readable import read_features_manifest

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


def folder_of(request: pytest.FixtureRequest) -> Path:
    folder = request.getfixturevalue(request.param)
    assert isinstance(folder, Path)
    return folder


@pytest.fixture(params=["small", pytest.param("real", marks=[pytest.mark.realdata, pytest.mark.slow])])
def folder(request: pytest.FixtureRequest) -> Path:
    return folder_of(request)


def test_every_section_of_code_is_run() -> None:
    assert sorted(SECTIONS) == ["DuckDB", "Polars", "Spark", "pandas"]
    assert DOCUMENT.count("```python") == len(SECTIONS)


def test_pandas(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_section("pandas", folder, monkeypatch)
    check_nearest(names["nearest"], folder)
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
    rows = read_features_manifest(str(folder / FEATURES)).row_count
    assert names["spread"]["images"].sum() == rows == len(names["frame"])


@pytest.mark.spark
def test_spark(spark: SparkSession, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_section("Spark", folder, monkeypatch)
    check_nearest(names["nearest"], folder)
    counted = names["clusters"].toPandas()
    assert counted["n"].sum() == read_features_manifest(str(folder / FEATURES)).row_count
    assert counted.groupby("cluster")["n"].max().sum() / counted["n"].sum() > 0.85
