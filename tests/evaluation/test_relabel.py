"""Tests of evaluation.relabel and tables.corrections: what was corrected is read as if it had been written so."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.tables.building import recipe as upper_recipe
from helpers.tables.feature_sets import image_ids, make_clusters, write_feature_set
from helpers.tables.publishing import write_manifest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyspark.sql import SparkSession
from typer.testing import CliRunner

from featurize.__main__ import app as featurize_app
from featurize.errors import JobError, UsageError
from featurize.jobs.run import featurize
from featurize.recipes.model_section import ModelSettings
from featurize.recipes.recipe import FeaturesSettings, FinetuneRecipe
from featurize.recipes.training_section import TrainingSettings
from featurize.sql.ddl import make_ddl
from featurize.sql.query import fetch, register_views, run_query
from featurize.sql.tables import find_tables
from featurize.tables.corrections import read_corrections
from featurize.tables.layout import CORRECTIONS
from featurize.tables.manifests import FeaturesManifest
from featurize.tables.publication import read_published_features
from featurize.tables.readable import read_features_manifest
from featurize.tables.row_groups import read_table
from finetune.__main__ import app
from finetune.evaluation.data_quality import check_data
from finetune.evaluation.evaluate import evaluate_model
from finetune.evaluation.relabel import relabel
from finetune.models.folder import load_model
from finetune.ranks.communicator import SingleRank
from finetune.rows.disk_rows import StreamData
from finetune.rows.splits import iterate_split, read_split
from finetune.training.plan import plan_training
from finetune.training.train import train

ROWS = 150
CLASSES = ("ant", "bee", "cat")
IDS = image_ids(ROWS)
SPLITS = ("train", "validation", "test")


def write_table(path: Path, labels: dict[str, str]) -> str:
    path.write_text("image_id,label\n" + "".join(f"{image_id},{label}\n" for image_id, label in labels.items()))
    return str(path)


def correct(folder: Path, labels: dict[int, str], **options: Any) -> Any:
    """Relabels rows of a feature set by their number."""
    table = write_table(folder.parent / "labels.csv", {IDS[row]: label for row, label in labels.items()})
    return relabel(table, str(folder), reason="looked at it", **options)


def corrected_index(label_index: NDArray[np.int32], labels: dict[int, str]) -> NDArray[np.int32]:
    changed = label_index.copy()
    for row, label in labels.items():
        changed[row] = CLASSES.index(label)
    return changed


def recipe_of(features: Path, model: Path, **training: Any) -> FinetuneRecipe:
    return FinetuneRecipe(
        features=FeaturesSettings(url=str(features)),
        model=ModelSettings(url=str(model)),
        training=TrainingSettings.model_validate({"epochs": 3, "class_weights": "balanced", **training}),
    )


def fit_alone(features: Path, model: Path, **training: Any) -> list[NDArray[Any]]:
    train(plan_training(recipe_of(features, model, **training), ranks=1), SingleRank())
    weights: list[NDArray[Any]] = load_model(str(model))[0].get_weights()
    return weights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    features, label_index = make_clusters(ROWS, spread=2.0)
    write_feature_set(tmp_path / "set", features, label_index)
    return tmp_path / "set"


@pytest.fixture
def labels() -> dict[int, str]:
    """Another label for some rows of all splits."""
    _, label_index = make_clusters(ROWS, spread=2.0)
    return {row: CLASSES[(label_index[row] + 1) % 3] for row in range(0, ROWS, 4)}


@pytest.fixture
def twin(tmp_path: Path, labels: dict[int, str]) -> Path:
    """The feature set of `folder` as it would be if it had been written with `labels`."""
    features, label_index = make_clusters(ROWS, spread=2.0)
    write_feature_set(tmp_path / "twin", features, corrected_index(label_index, labels))
    return tmp_path / "twin"


def test_every_reader_sees_the_labels_as_if_they_had_been_written(
    folder: Path, twin: Path, labels: dict[int, str]
) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = correct(folder, labels)
    assert (done.number, done.corrected, done.unchanged) == (1, len(labels), 0)
    assert all(path.read_bytes() == content for path, content in before.items())
    found, wanted = read_features_manifest(str(folder)), read_features_manifest(str(twin))
    assert found.rows == wanted.rows
    assert found.edits is not None
    assert sum(found.edits.corrected.values()) == len(labels)
    for split in SPLITS:
        one, other = read_split(str(folder), found, split), read_split(str(twin), wanted, split)
        for name in ("features", "label_index", "row_ids"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        columns = ("path", "label", "label_index")
        assert read_table(str(folder), found, split, columns).equals(read_table(str(twin), wanted, split, columns))
        for one, other in zip(
            iterate_split(str(folder), found, split), iterate_split(str(twin), wanted, split), strict=True
        ):
            np.testing.assert_array_equal(one.label_index, other.label_index)


@pytest.mark.parametrize("size", [1, 2])
def test_a_stream_gives_each_rank_the_batches_of_a_set_that_was_written_so(
    folder: Path, twin: Path, labels: dict[int, str], size: int
) -> None:
    correct(folder, labels)
    for rank in range(size):
        one, other = (
            [
                [np.asarray(part) for part in step]
                for step in StreamData(
                    str(where), read_features_manifest(str(where)), "train", shuffle_rows=40
                ).batches(1, seed=3, global_batch_size=16, rank=rank, size=size)
            ]
            for where in (folder, twin)
        )
        for step, wanted in zip(one, other, strict=True):
            for part, same in zip(step, wanted, strict=True):
                np.testing.assert_array_equal(part, same)


@pytest.mark.parametrize("cache", ["memory", "stream"])
def test_a_fit_after_relabelling_is_a_fit_on_a_set_that_was_written_so(
    folder: Path, twin: Path, labels: dict[int, str], tmp_path: Path, cache: str
) -> None:
    before = fit_alone(folder, tmp_path / "before", cache=cache)
    correct(folder, labels)
    found = fit_alone(folder, tmp_path / "corrected", cache=cache)
    wanted = fit_alone(twin, tmp_path / "written", cache=cache)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)
    assert any(np.abs(one - other).max() > 1e-3 for one, other in zip(before, found, strict=True))
    results = [
        evaluate_model(str(tmp_path / name), None, "test", str(tmp_path / f"{name}-scores"))
        for name in ("corrected", "written")
    ]
    assert results[0]["confusion_matrix"] == results[1]["confusion_matrix"]
    quality = [check_data(str(where)) for where in (folder, twin)]
    assert quality[0].label_errors == quality[1].label_errors


def test_the_identity_of_a_model_follows_what_is_trained_on(folder: Path, tmp_path: Path) -> None:
    def model_id() -> str:
        return plan_training(recipe_of(folder, tmp_path / "model"), ranks=1).model_id

    first, old = model_id(), read_table_of(folder)
    correct(folder, {0: "cat" if old[IDS[0]] != "cat" else "ant"})
    corrected = model_id()
    correct(folder, {4: "ant" if old[IDS[4]] != "ant" else "bee"})  # row 4 is of test
    assert model_id() == corrected != first
    correct(folder, {0: old[IDS[0]]})
    assert model_id() == first
    assert len(read_corrections(str(folder)).entries) == 3


def read_table_of(folder: Path) -> dict[str, str]:
    """The label of every image, as it is read."""
    manifest = read_features_manifest(str(folder))
    tables = [read_table(str(folder), manifest, split, ("image_id", "label")).to_pylist() for split in SPLITS]
    return {row["image_id"]: row["label"] for table in tables for row in table}


@settings(max_examples=15, deadline=None)
@given(calls=st.lists(st.dictionaries(st.integers(0, 19), st.sampled_from(CLASSES), min_size=1), max_size=5))
def test_the_last_correction_counts(calls: list[dict[int, str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("calls") / "set"
    features, label_index = make_clusters(20)
    write_feature_set(folder, features, label_index)
    expected = {IDS[row]: CLASSES[label_index[row]] for row in range(20)}
    for labels in calls:
        changed = {IDS[row] for row, label in labels.items() if expected[IDS[row]] != label}
        done = correct(folder, labels)
        assert (done.corrected, done.unchanged) == (len(changed), len(labels) - len(changed))
        expected |= {IDS[row]: label for row, label in labels.items()}
    assert read_table_of(folder) == expected


def test_an_image_that_lies_there_twice_is_corrected_in_both_places(tmp_path: Path) -> None:
    features, label_index = make_clusters(20)
    manifest = write_feature_set(tmp_path / "set", features, label_index, shards=[range(20), range(20)])
    done = correct(tmp_path / "set", {1: CLASSES[(label_index[1] + 1) % 3]})
    edited = read_features_manifest(str(tmp_path / "set"))
    assert edited.edits is not None
    assert (done.corrected, sum(edited.edits.corrected.values())) == (1, 2)
    assert edited.row_count == manifest.row_count


def test_calls_at_once_all_land_and_each_knows_what_was_before(folder: Path, tmp_path: Path) -> None:
    def call(number: int) -> None:
        shared, own = IDS[0], IDS[number + 1]
        table = write_table(tmp_path / f"{number}.csv", {shared: CLASSES[number % 3], own: "cat"})
        relabel(table, str(folder), reason=f"call {number}", by=f"user {number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(call, range(8)))
    log = read_corrections(str(folder))
    entries = log.entries.to_pylist()
    assert [entry["number"] for entry in entries] == sorted(entry["number"] for entry in entries)
    labels = read_table_of(folder)
    assert all(labels[IDS[number + 1]] == "cat" for number in range(8))
    chain = [entry for entry in entries if entry["image_id"] == IDS[0]]
    assert len(chain) > 1
    for one, following in pairwise(chain):
        assert following["old_label"] == one["new_label"] != following["new_label"]
    assert labels[IDS[0]] == chain[-1]["new_label"]
    assert [path.name for path in sorted((folder / CORRECTIONS).iterdir())] == [
        f"{number:08d}.parquet" for number in range(1, log.count + 1)
    ]


REFUSED: dict[str, tuple[str | bytes, str]] = {
    "a label that is no class": (f"image_id,label\n{IDS[0]},dog\n", "'dog' is not a class"),
    "a twin of a class": (
        f"image_id,label\n{IDS[0]},Ant \n",
        "'Ant ' and 'ant' differ only in case, blanks or the form",
    ),
    "an image that is not there": (f"image_id,label\n{'f' * 64},ant\n{IDS[0]},bee\n", "has no image ffff"),
    "an image twice": (f"image_id,label\n{IDS[0]},ant\n{IDS[0]},ant\n", f"more than once: {IDS[0]}"),
    "no rows": ("image_id,label\n", "has no rows"),
    "nothing": ("", "is empty"),
    "another column": (f"image_id,class\n{IDS[0]},ant\n", "has no column label"),
    "a missing value": (f"image_id,label\n{IDS[0]},\n", "line 2 lacks"),
    "a missing cell": (f"image_id,label\n{IDS[0]}\n", "line 2 has 1 cells"),
    "no text": (b"image_id,label\n\xff\xfe,ant\n", "text neither in UTF-8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_table_is_refused_whole(folder: Path, tmp_path: Path, name: str) -> None:
    content, message = REFUSED[name]
    table = tmp_path / "table.csv"
    table.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=message):
        relabel(str(table), str(folder), reason="why not")
    assert not (folder / CORRECTIONS).exists()


def test_what_cannot_be_corrected_is_refused(folder: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "labels.csv", {IDS[0]: "ant"})
    for features, reason, message in ((folder, " ", "`reason`"), (tmp_path, "why", "is not a feature set")):
        with pytest.raises(UsageError, match=message):
            relabel(table, str(features), reason=reason)
    with pytest.raises(UsageError, match="there is no table"):
        relabel(str(tmp_path / "none.csv"), str(folder), reason="why")


def test_labels_that_are_so_already_write_nothing(folder: Path) -> None:
    labels = read_table_of(folder)
    done = correct(folder, {row: labels[IDS[row]] for row in range(5)})
    assert (done.number, done.corrected, done.unchanged) == (None, 0, 5)
    assert not (folder / CORRECTIONS).exists()


def test_a_log_with_a_gap_or_a_damaged_file_is_refused(folder: Path) -> None:
    for label in ("ant", "bee", "cat"):
        correct(folder, {0: label})
    first = folder / CORRECTIONS / "00000001.parquet"
    content = first.read_bytes()
    first.unlink()
    with pytest.raises(JobError, match="number 1 are missing"):
        read_features_manifest(str(folder))
    first.write_bytes(content[:-9])
    with pytest.raises(JobError, match=r"00000001\.parquet is damaged"):
        read_features_manifest(str(folder))


def test_a_manifest_with_edits_is_not_published(folder: Path, labels: dict[int, str]) -> None:
    correct(folder, labels)
    with pytest.raises(ValueError, match="must not be published"):
        write_manifest(str(folder), read_features_manifest(str(folder)))


def test_the_commands(folder: Path, labels: dict[int, str], tmp_path: Path) -> None:
    table = write_table(tmp_path / "labels.csv", {IDS[row]: label for row, label in labels.items()})
    run = CliRunner().invoke
    done = run(app, ["relabel", table, "--features", str(folder), "--reason", "typo", "--by", "Ada", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["corrected"] == len(labels)
    listed = run(app, ["relabel", "--list", "--features", str(folder), "--json"])
    entries = json.loads(listed.stdout.splitlines()[-1])["corrections"]
    assert {entry["image_id"]: entry["new_label"] for entry in entries} == {IDS[r]: to for r, to in labels.items()}
    assert {(entry["corrected_by"], entry["reason"], entry["number"]) for entry in entries} == {("Ada", "typo", 1)}
    assert IDS[0][:12] in run(app, ["relabel", "--list", "--features", str(folder)]).stdout
    described = json.loads(run(featurize_app, ["describe", str(folder), "--json"]).stdout.splitlines()[-1])
    assert described["corrected_labels"] == len(labels)
    assert described["rows_per_split_and_class"] == read_features_manifest(str(folder)).rows
    for arguments in (["relabel", "--features", str(folder)], ["relabel", table, "--list", "--features", str(folder)]):
        assert run(app, arguments).exit_code == 2


def test_duckdb_is_told_the_corrected_labels(folder: Path, labels: dict[int, str]) -> None:
    correct(folder, labels)
    connection = duckdb.connect()
    connection.execute(make_ddl(find_tables(features=str(folder)), "duckdb"))
    rows = connection.execute("SELECT image_id, label, label_index FROM features").fetchall()
    assert {row[0]: row[1] for row in rows} == read_table_of(folder)
    assert all(CLASSES[index] == label for _, label, index in rows)


@pytest.mark.spark
def test_sql_shows_the_corrected_labels(spark: SparkSession, folder: Path, labels: dict[int, str]) -> None:
    columns = "image_id, path, label, label_index, width, height, features, split"
    register_views(spark, find_tables(features=str(folder)))
    before = run_query(spark, "SELECT * FROM features").columns
    correct(folder, labels)
    register_views(spark, find_tables(features=str(folder)))
    frame = run_query(spark, "SELECT * FROM features")
    assert frame.columns == before == columns.split(", ")
    rows = fetch(frame, limit=1000).rows
    assert {row["image_id"]: row["label"] for row in rows} == read_table_of(folder)
    assert all(CLASSES[row["label_index"]] == row["label"] for row in rows)
    assert len(rows) == ROWS


@pytest.mark.spark
def test_corrections_outlive_a_run_that_adds_images(
    spark: SparkSession, photos: Path, mean_backbone: Path, tmp_path: Path
) -> None:
    source, url = tmp_path / "photos", tmp_path / "set"
    shutil.copytree(photos, source)
    held_back = sorted(source.rglob("*.png"))[::10]
    for path in held_back:
        path.rename(tmp_path / f"{path.parent.name}-{path.name}")
    featurize(spark, upper_recipe(source, url, mean_backbone))
    first = read_published_features(str(url))
    image_id = next(iter(read_table_of(url)))
    old = read_table_of(url)[image_id]
    new = next(label for label in first.classes if label != old)
    relabel(write_table(tmp_path / "labels.csv", {image_id: new}), str(url), reason="wrong")
    for path in held_back:
        (tmp_path / f"{path.parent.name}-{path.name}").rename(path)
    result, _ = featurize(spark, upper_recipe(source, url, mean_backbone))
    assert result.added == len(held_back)
    assert read_table_of(url)[image_id] == new
    assert isinstance(result.manifest, FeaturesManifest)
    assert len(read_table_of(url)) == sum(pq.read_metadata(url / file.path).num_rows for file in result.manifest.files)
