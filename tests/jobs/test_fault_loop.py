"""Jobs that make images tables and columns of features, whose calls of the file system fail; see `helpers.faults`."""

from pathlib import Path
from typing import Any

import pytest
from helpers.faults import Job, check_every_fault
from helpers.local_builds import look, without_spark
from helpers.tables.building import recipe
from helpers.tables.listings import card, put

from featurize.jobs.add_column import add_columns
from featurize.jobs.ingest import ingest
from featurize.jobs.run import featurize
from featurize.recipes.recipe import FeaturizeRecipe
from featurize.tables import publication
from featurize.tables.publication import read_manifest
from featurize.tables.row_groups import open_parquet

pytestmark = pytest.mark.faults


@pytest.fixture
def spark(monkeypatch: pytest.MonkeyPatch) -> Any:
    return without_spark(monkeypatch)


def put_images(folder: Path) -> None:
    put(folder.parent / "images", "a/1.png", "a/2.png", "b/1.png", "b/2.png")
    (folder.parent / "images" / "a" / "broken.png").write_bytes(b"broken")


def images_in(folder: Path) -> Any:
    publication._cached.clear()
    manifest = read_manifest(str(folder))
    if manifest is None:
        return None
    rows = list[Any]()
    for file in manifest.files:
        with open_parquet(f"file://{folder}/{file.path}") as stored:
            rows += stored.read().to_pylist()
    return sorted(rows, key=lambda row: row["path"]), manifest.content_digest, manifest.rejects


def test_ingest(spark: Any, tmp_path: Path) -> None:
    def act(folder: Path) -> None:
        ingest(spark, card(), str(folder), source=str(folder.parent / "images"), max_reject_fraction=1.0)

    assert check_every_fault(Job(put_images, act, images_in), tmp_path / "table") > 20


def columns_in(folder: Path) -> Any:
    """What is in the set, with the values of all columns."""
    seen = look(folder)
    if seen is None:
        return None
    for row in seen["rows"].values():
        for name in [name for name in row if name.startswith("features_")]:
            row[name] = [round(float(value), 4) for value in row[name]]
    return seen


def test_add_column(spark: Any, tmp_path: Path, small_backbone: Path) -> None:
    def columns(folder: Path, *layers: str) -> FeaturizeRecipe:
        return recipe(folder.parent / "images", folder, small_backbone, layers=list(layers))

    def prepare(folder: Path) -> None:
        put_images(folder)
        featurize(spark, columns(folder, "mean"))
        put(folder.parent / "images", "b/3.png")
        featurize(spark, columns(folder, "mean"))

    def act(folder: Path) -> None:
        add_columns(spark, columns(folder, "mean", "scores"))

    assert check_every_fault(Job(prepare, act, columns_in), tmp_path / "table", most_trials=20) > 20
