"""Columns that are added later: the set is the one that would have been made with them, over kills, failures and reruns."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.images.photos import make_photos
from helpers.tables.building import SPLIT, files_of
from helpers.toml_files import write_toml
from pyspark.sql import SparkSession

import featurize
from featurize.errors import JobError, UsageError
from featurize.tables.row_groups import list_row_groups

pytestmark = pytest.mark.spark
FIRST, SECOND = "features_pool", "features_mean"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 pictures of three classes; do not change it."""
    folder = tmp_path_factory.mktemp("images")
    make_photos(folder, per_class=10)
    (folder / "red" / "empty.jpg").write_bytes(b"")
    return folder


def whole(images: Path, url: Path, backbone: Path, *layers: str) -> dict[str, Any]:
    network = {"name": str(backbone), "preprocessing": "none", "engine": "tensorflow", "precision": "float32"}
    return {
        "images": {"source": str(images), "split": SPLIT, "max_reject_fraction": 1.0},
        "backbone": {**network, "layers": list(layers), "batch_size": 8},
        "features": {"url": str(url), "rows_per_group": 4},
    }


def frame_of(features: featurize.Features) -> pd.DataFrame:
    return features.to_pandas().sort_values("path").reset_index(drop=True)


def assert_same_sets(one: featurize.Features, other: featurize.Features) -> None:
    assert_same_rows(frame_of(one), frame_of(other))
    assert one.manifest.identity == other.manifest.identity
    assert one.manifest.content_digest == other.manifest.content_digest
    assert one.manifest.column_names == other.manifest.column_names


def assert_same_rows(left: pd.DataFrame, right: pd.DataFrame) -> None:
    facts = ["image_id", "label", "label_index", "split", "width", "height"]
    assert left[facts].equals(right[facts])
    for column in (FIRST, SECOND):
        np.testing.assert_allclose(np.stack(list(left[column])), np.stack(list(right[column])), rtol=1e-5, atol=1e-6)


@pytest.fixture
def parts(spark: SparkSession, images: Path, tmp_path: Path, small_backbone: Path) -> dict[str, Any]:
    """The recipe of two columns; its set has the first, in three shards that later runs added."""
    recipe = whole(tmp_path / "images", tmp_path / "set", small_backbone, "pool", "mean")
    for number in range(3):
        for label in ("blue", "green", "red"):
            (tmp_path / "images" / label).mkdir(parents=True, exist_ok=True)
            for file in sorted((images / label).iterdir())[number::3]:
                shutil.copyfile(file, tmp_path / "images" / label / file.name)
        featurize.run(recipe, spark=spark, overrides={"backbone.layers": ["pool"]})
    return recipe


def together(spark: SparkSession, recipe: dict[str, Any], url: Path) -> featurize.Features:
    return featurize.run(recipe, spark=spark, overrides={"features.url": str(url)})


def test_the_set_becomes_the_one_that_is_made_with_both_columns(
    spark: SparkSession, parts: dict[str, Any], tmp_path: Path
) -> None:
    before = featurize.open_features(parts["features"]["url"])
    assert len(before.manifest.shards) == 3
    groups = {
        split: [group.rows for group in list_row_groups(before.url, before.manifest, split)] for split in before.splits
    }
    values = {split: before.to_numpy(split)[0] for split in before.splits}
    added = featurize.add_column(parts, spark=spark)
    assert added.build is not None
    assert (added.build.added, added.build.skipped) == (30, 0)
    assert_same_sets(added, together(spark, parts, tmp_path / "together"))
    assert added.manifest.rejects == before.manifest.rejects
    for split in before.splits:
        assert [group.rows for group in list_row_groups(added.url, added.manifest, split)] == groups[split]
        np.testing.assert_array_equal(added.to_numpy(split, FIRST)[0], values[split])
    files = files_of(tmp_path / "set")
    again = featurize.add_column(parts, spark=spark)
    assert again.build is not None
    assert (again.build.added, again.build.skipped) == (0, 30)
    assert files_of(tmp_path / "set") == files
    assert not (tmp_path / "set" / "_staging").exists()
    later = featurize.run(parts, spark=spark)
    assert later.build is not None
    assert later.build.added == 0


def test_a_plain_set_keeps_its_column_and_its_models(
    spark: SparkSession, images: Path, tmp_path: Path, small_backbone: Path
) -> None:
    recipe = whole(images, tmp_path / "set", small_backbone, "pool")
    network = {key: value for key, value in recipe.pop("backbone").items() if key != "layers"}
    plain = featurize.run({**recipe, "backbone": {**network, "layer": "pool"}}, spark=spark)
    values, _ = plain.to_numpy("train")
    sections = [{**network, "layer": "pool", "column": "features"}, {**network, "layer": "mean", "column": SECOND}]
    with pytest.raises(UsageError, match=r"`featurize add-column` computes it"):
        featurize.run({**recipe, "backbones": sections}, spark=spark)
    with pytest.raises(UsageError, match=r"the recipe does not name"):
        featurize.add_column({**recipe, "backbones": [sections[1]]}, spark=spark)
    with pytest.raises(UsageError, match=r"made with other settings:\n  - layer: existing 'pool', requested 'mean'"):
        featurize.add_column(
            {**recipe, "backbones": [{**sections[0], "layer": "mean"}, {**sections[1], "layer": "pool"}]}, spark=spark
        )
    added = featurize.add_column({**recipe, "backbones": sections}, spark=spark)
    assert added.manifest.column_names == ["features", SECOND]
    own = added.manifest.of_column("features", added.url)
    assert own.identity_of_features == plain.manifest.identity
    assert own.preparation_id == plain.manifest.preparation_id
    np.testing.assert_array_equal(values, added.to_numpy("train", "features")[0])


@pytest.mark.parametrize("moment", ["place_files", "publish", "remove_staging"])
def test_a_killed_job_is_taken_up_again(
    spark: SparkSession, parts: dict[str, Any], tmp_path: Path, moment: str
) -> None:
    recipe = write_toml(tmp_path / "recipe.toml", parts)
    program = f"""
import os, signal
import featurize
from featurize.jobs import add_column

target = add_column.staging if {moment != "publish"} else add_column
setattr(target, {moment!r}, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
featurize.add_column({str(recipe)!r})
"""
    killed = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    there = featurize.open_features(parts["features"]["url"])
    assert there.rows == 30
    if moment != "remove_staging":
        assert there.manifest.column_names == [FIRST]
    added = featurize.add_column(parts, spark=spark)
    assert added.build is not None
    assert added.build.added == 0  # all shards were finished
    assert_same_sets(added, together(spark, parts, tmp_path / "together"))
    featurize.run(parts, spark=spark)
    assert not (tmp_path / "set" / "_staging").exists()


def test_an_image_that_changed_or_is_gone_is_named_and_nothing_is_lost(
    spark: SparkSession, parts: dict[str, Any], tmp_path: Path
) -> None:
    changed, other = sorted((tmp_path / "images" / "blue").iterdir())[:2]
    original = changed.read_bytes()
    changed.write_bytes(other.read_bytes())
    with pytest.raises(JobError, match=rf"{changed.name} has changed since its row was made"):
        featurize.add_column(parts, spark=spark)
    changed.write_bytes(b"no picture")
    with pytest.raises(JobError, match=rf"{changed.name} has a row, but its image cannot be used any more"):
        featurize.add_column(parts, spark=spark)
    with pytest.raises(UsageError, match="unfinished run with other settings"):
        featurize.run(parts, spark=spark, overrides={"backbone.layers": ["pool"]})
    changed.unlink()
    with pytest.raises(UsageError, match=rf"1 images that have a row in .*\n  - .*{changed.name}"):
        featurize.add_column(parts, spark=spark)
    assert featurize.open_features(parts["features"]["url"]).manifest.column_names == [FIRST]
    changed.write_bytes(original)
    added = featurize.add_column(parts, spark=spark)
    assert added.build is not None
    assert 0 < added.build.added < 30  # the shards of the other images were finished by then
    assert_same_sets(added, together(spark, parts, tmp_path / "together"))


def test_rows_that_a_condition_selects_are_computed_anew(
    spark: SparkSession, parts: dict[str, Any], tmp_path: Path
) -> None:
    before = featurize.add_column(parts, spark=spark)
    rows = frame_of(before)
    anew = featurize.add_column(parts, where="label = 'red' AND split != 'test'", columns=[SECOND], spark=spark)
    selected = int(((rows["label"] == "red") & (rows["split"] != "test")).sum())
    assert anew.build is not None
    assert (anew.build.added, anew.build.skipped) == (selected, 30 - selected)
    assert_same_rows(frame_of(anew), rows)
    assert anew.manifest.identity == before.manifest.identity
    with pytest.raises(UsageError, match="selects none of the 30 rows"):
        featurize.add_column(parts, where="label = 'violet'", spark=spark)
    with pytest.raises(UsageError, match="`where` cannot be run"):
        featurize.add_column(parts, where="labl = 'red'", spark=spark)
    with pytest.raises(UsageError, match="`columns` needs `where`"):
        featurize.add_column(parts, columns=[SECOND], spark=spark)
    with pytest.raises(UsageError, match="by the same backbone:\n  - precision"):
        featurize.add_column(
            parts, where="true", columns=[SECOND], spark=spark, overrides={"backbone.precision": "bfloat16"}
        )
