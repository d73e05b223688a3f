"""Tests of `where` in a recipe: a fit on selected rows is a fit on a set that has no others; and what is refused."""

import pickle
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.project import ROOT, Firn
from helpers.services.launching import horovodrun
from helpers.tables.feature_sets import image_ids, make_clusters, uneven_shards, write_feature_set
from helpers.tables.sql_sets import write_predictions
from helpers.toml_files import write_toml
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from featurize.errors import UsageError
from featurize.recipes.model_section import ModelSettings
from featurize.recipes.recipe import FeaturesSettings, FinetuneRecipe, read_recipe, upper_half
from featurize.recipes.toml_settings import check_settings
from featurize.recipes.training_section import TrainingSettings
from featurize.tables.manifests import FeaturesManifest, read_features_manifest
from finetune.evaluation.evaluate import evaluate_model
from finetune.evaluation.relabel import relabel
from finetune.models.folder import load_model, read_model_card
from finetune.ranks.communicator import SingleRank
from finetune.reports.context import report_context
from finetune.reports.judge import find_target, judge
from finetune.rows.disk_rows import StreamData
from finetune.rows.row_query import ask, read_selected
from finetune.rows.splits import read_split
from finetune.sweeps.plan import plan_sweep
from finetune.sweeps.run import run_sweep
from finetune.sweeps.trials import InProcess
from finetune.training.plan import plan_training
from finetune.training.train import train

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # Petastorm reads by the legacy interface of pyarrow
ROWS = 180
CLASSES = ("ant", "bee", "cat")
IDS = image_ids(ROWS)
SPLITS = [("train", "train", "train", "validation", "test")[row % 5] for row in range(ROWS)]
SHARDS = uneven_shards(ROWS, 3)
KEPT = [row for row in range(ROWS) if row % 4]
WHERE = f"path NOT IN ({', '.join(repr(f'photos/{row:05d}.png') for row in range(0, ROWS, 4))})"


def label_indices() -> NDArray[np.int32]:
    return make_clusters(ROWS, spread=2.0)[1]


def write_rows(folder: Path, kept: list[int]) -> Path:
    """The feature set of `folder` with these rows alone, in the same files and row groups as far as they last."""
    features, label_index = make_clusters(ROWS, spread=2.0)
    shards = [[row for row in shard if row in set(kept)] for shard in SHARDS]
    write_feature_set(folder, features, label_index, splits=SPLITS, shards=shards)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "set", list(range(ROWS)))


@pytest.fixture
def twin(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "twin", KEPT)


def recipe_of(features: dict[str, Any], model: Path, **training: Any) -> FinetuneRecipe:
    return FinetuneRecipe(
        features=FeaturesSettings.model_validate(features),
        model=ModelSettings(url=str(model)),
        training=TrainingSettings.model_validate({"epochs": 3, "class_weights": "balanced", **training}),
    )


def fit_alone(features: dict[str, Any], model: Path, **training: Any) -> list[NDArray[Any]]:
    train(plan_training(recipe_of(features, model, **training), ranks=1), SingleRank())
    weights: list[NDArray[Any]] = load_model(str(model))[0].get_weights()
    return weights


def select(folder: Path, where: str, **tables: Any) -> FeaturesManifest:
    return read_selected(FeaturesSettings(url=str(folder), where=where, **tables))


def selected_rows(folder: Path, where: str, **tables: Any) -> set[int]:
    """The numbers of the rows that a query selects."""
    manifest = select(folder, where, **tables)
    paths = [path for split in manifest.rows for path in read_split(str(folder), manifest, split).paths.to_pylist()]
    assert len(paths) == manifest.row_count
    return {int(path[7:12]) for path in paths}


# The law


def test_every_split_is_that_of_a_set_without_the_other_rows(folder: Path, twin: Path) -> None:
    found, wanted = select(folder, WHERE), read_features_manifest(str(twin))
    assert found.rows == wanted.rows
    assert found.edits is not None
    assert found.edits.left_out == {"test": 9, "train": 27, "validation": 9}
    for split in found.rows:
        one, other = read_split(str(folder), found, split), read_split(str(twin), wanted, split)
        for name in ("features", "label_index", "row_ids"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert one.paths.equals(other.paths)


def test_a_fit_on_selected_rows_is_a_fit_on_a_set_without_the_others(folder: Path, twin: Path, tmp_path: Path) -> None:
    found = fit_alone({"url": str(folder), "where": WHERE}, tmp_path / "selected")
    wanted = fit_alone({"url": str(twin)}, tmp_path / "without")
    every = fit_alone({"url": str(folder)}, tmp_path / "all")
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)
    assert any(np.abs(one - other).max() > 1e-3 for one, other in zip(every, found, strict=True))
    card = read_model_card(str(tmp_path / "selected"))
    assert card is not None
    assert card.rows == {"train": 81, "validation": 27}
    assert card.read_as["where"] == WHERE


@pytest.fixture
def halves(tmp_path: Path) -> tuple[Path, Path]:
    """A set, and one with every other row of it: of each row group the half, so that both are streamed in one order."""
    features, label_index = make_clusters(192, spread=2.0)
    splits = ["train"] * 128 + ["validation"] * 64
    shards = [list(range(first, first + 64)) for first in range(0, 192, 64)]
    for name, step in (("whole", 1), ("half", 2)):
        write_feature_set(
            tmp_path / name,
            features,
            label_index,
            splits=splits,
            shards=[shard[::step] for shard in shards],
            rows_per_group=16 // step,
        )
    return tmp_path / "whole", tmp_path / "half"


EVEN = "regexp_extract(path, '(\\d+).png', 1)::INT % 2 = 0"


def test_a_streamed_fit_on_selected_rows_is_one_on_a_set_without_the_others(
    halves: tuple[Path, Path], tmp_path: Path
) -> None:
    whole, half = halves
    options = {"cache": "stream", "shuffle_rows": 32}
    found = fit_alone({"url": str(whole), "where": EVEN}, tmp_path / "selected", **options)
    wanted = fit_alone({"url": str(half)}, tmp_path / "without", **options)
    every = fit_alone({"url": str(whole)}, tmp_path / "all", **options)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)
    assert any(np.abs(one - other).max() > 1e-3 for one, other in zip(every, found, strict=True))


@pytest.mark.parametrize("size", [1, 2])
def test_each_rank_streams_the_batches_of_a_set_without_the_others(halves: tuple[Path, Path], size: int) -> None:
    whole, half = halves
    sets = (select(whole, EVEN), whole), (read_features_manifest(str(half)), half)
    for rank in range(size):
        one, other = (
            list(
                StreamData(str(url), manifest, "train", shuffle_rows=32).batches(
                    2, seed=5, global_batch_size=12, rank=rank, size=size
                )
            )
            for manifest, url in sets
        )
        assert len(one) == len(other) == 6
        for step, wanted in zip(one, other, strict=True):
            for part, same in zip(step, wanted, strict=True):
                np.testing.assert_array_equal(np.asarray(part), np.asarray(same))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_ranks_of_a_stream_see_each_selected_row_once(folder: Path, size: int) -> None:
    manifest = select(folder, WHERE)
    labels = dict(zip((int(text[:15], 16) for text in IDS), label_indices().tolist(), strict=True))
    stream = StreamData(str(folder), manifest, "train", shuffle_rows=40)
    assert stream.rows == manifest.split_rows("train") == 81
    seen = list[tuple[int, int]]()
    for rank in range(size):
        for _, label_index, row_ids, _ in stream.batches(1, seed=3, global_batch_size=16, rank=rank, size=size):
            there = np.asarray(label_index) >= 0
            seen += zip(np.asarray(row_ids)[there].tolist(), np.asarray(label_index)[there].tolist(), strict=True)
    wanted = [row for row in KEPT if SPLITS[row] == "train"]
    assert sorted(seen) == sorted((int(IDS[row][:15], 16), labels[int(IDS[row][:15], 16)]) for row in wanted)


def test_a_stream_leaves_out_whole_row_groups_and_files(tmp_path: Path) -> None:
    """Every row of a row group that counts goes the same way as in a set that has only those."""
    features, label_index = make_clusters(128)
    for name, shards in (("set", [range(64), range(64, 128)]), ("twin", [range(64, 128)])):
        write_feature_set(tmp_path / name, features, label_index, splits=["train"] * 128, shards=shards)
    manifest = select(tmp_path / "set", "path >= 'photos/00064'")
    one = StreamData(str(tmp_path / "set"), manifest, "train", shuffle_rows=1000)
    rows = np.concatenate([np.asarray(step[2]) for step in one.batches(1, seed=1, global_batch_size=64)])
    assert sorted(rows.tolist()) == sorted(int(text[:15], 16) for text in image_ids(128)[64:])
    assert one.rows == 64


@settings(max_examples=25, deadline=None)
@given(kept=st.sets(st.integers(0, 39), min_size=1), size=st.integers(1, 3), groups=st.sampled_from([3, 8, 64]))
def test_any_rows_can_be_selected(
    kept: set[int], size: int, groups: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any") / "set"
    features, label_index = make_clusters(40)
    write_feature_set(folder, features, label_index, splits=["test"] * 40, rows_per_group=groups)
    table = folder.parent / "labels.csv"
    table.write_text("image_id,good\n" + "".join(f"{IDS[row]},{'yes' if row in kept else 'no'}\n" for row in range(40)))
    manifest = select(folder, "good = 'yes'", labels=str(table))
    assert set(read_split(str(folder), manifest, "test").paths.to_pylist()) == {f"photos/{row:05d}.png" for row in kept}
    stream = StreamData(str(folder), manifest, "test", shuffle_rows=16)
    row_ids = list[int]()
    for rank in range(size):
        for _, labels, ids, _ in stream.batches(1, seed=2, global_batch_size=7, rank=rank, size=size):
            row_ids += np.asarray(ids)[np.asarray(labels) >= 0].tolist()
    assert sorted(row_ids) == sorted(int(IDS[row][:15], 16) for row in kept)


def test_what_was_corrected_is_selected_by_its_new_label(folder: Path, tmp_path: Path) -> None:
    labels = label_indices()
    bees = {row for row in range(ROWS) if CLASSES[labels[row]] == "bee"}
    changed = sorted(set(range(ROWS)) - bees)[:5]
    table = tmp_path / "labels.csv"
    table.write_text("image_id,label\n" + "".join(f"{IDS[row]},bee\n" for row in changed))
    relabel(str(table), str(folder), reason="seen")
    found = select(folder, "label != 'bee'")
    assert found.rows == select(folder, "label_index != 1 AND 'bee' = 'bee'").rows
    assert "bee" not in {label for counts in found.rows.values() for label in counts}
    both = "label = 'bee' AND 'ant' != 'cat'"
    assert selected_rows(folder, both) == bees | set(changed)
    edits = select(folder, both).edits
    assert edits is not None
    assert sum(edits.corrected.values()) == 5


def test_what_was_selected_goes_to_other_processes(folder: Path) -> None:
    manifest = select(folder, WHERE)
    there = pickle.loads(pickle.dumps(manifest))
    for split in manifest.rows:
        one, other = (read_split(str(folder), which, split) for which in (manifest, there))
        assert one.paths.equals(other.paths)
        np.testing.assert_array_equal(one.label_index, other.label_index)


def test_every_trial_of_a_sweep_is_trained_on_the_selected_rows(folder: Path, tmp_path: Path) -> None:
    sections = {
        "features": {"url": str(folder), "where": WHERE},
        "model": {"url": "unused"},
        "training": {"epochs": 1},
        "sweep": {"url": str(tmp_path / "sweep"), "values": {"training.l2": [0.0, 0.1]}, "seeds": 1},
    }
    plan = plan_sweep(read_recipe(write_toml(tmp_path / "recipe.toml", sections)), origin="test")
    trials = run_sweep(plan, runner=InProcess()).card.trials
    assert len(trials) == 2
    for trial in trials:
        model = read_model_card(trial.url)
        assert model is not None
        assert model.rows == {"train": 81, "validation": 27}
        assert model.read_as["where"] == WHERE


@pytest.mark.horovod
@pytest.mark.slow
@pytest.mark.parametrize("cache", ["memory", "stream"])
def test_two_ranks_give_the_model_of_one(folder: Path, tmp_path: Path, cache: str) -> None:
    settings = {"epochs": 3, "cache": cache, "shuffle_rows": 64}
    features = {"url": str(folder), "where": WHERE}
    recipe = write_toml(
        tmp_path / "recipe.toml",
        {"features": features, "model": {"url": str(tmp_path / "two")}, "training": {**settings, "batch_size": 16}},
    )
    done = horovodrun(sys.executable, "-m", "finetune", "fit", str(recipe), cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    one = recipe_of(features, tmp_path / "one", **settings, batch_size=32, class_weights=None)
    train(plan_training(one, ranks=1), SingleRank())
    pairs = zip(*(load_model(str(tmp_path / name))[0].get_weights() for name in ("one", "two")), strict=True)
    for alone, together in pairs:
        np.testing.assert_allclose(together, alone, atol=1e-5)


# What a query knows


def test_a_query_knows_predictions_images_and_labels(folder: Path, tmp_path: Path) -> None:
    labels = label_indices()
    said: list[str | None] = [CLASSES[(labels[row] + (row % 3 == 0)) % 3] for row in range(ROWS - 20)]
    write_predictions(tmp_path / "predictions", {"0" * 64: ["ant"] * 20, "1" * 64: said})
    table = tmp_path / "cameras.parquet"
    cameras = [("X", "Y")[row % 2] for row in range(ROWS)]
    pq.write_table(pa.table({"image_id": IDS, "camera": cameras, "label": cameras}), table)
    urls = {"predictions": str(tmp_path / "predictions"), "labels": str(table)}
    agreed = {row for row in range(ROWS - 20) if row % 3}
    assert selected_rows(folder, "predictions.label = features.label", **urls) == agreed
    assert selected_rows(folder, "predictions.label = label AND camera = 'X'", **urls) == {
        row for row in agreed if row % 2 == 0
    }
    assert selected_rows(folder, "labels.label = 'Y' OR split = 'test'", **urls) == {
        row for row in range(ROWS) if row % 2 or SPLITS[row] == "test"
    }
    assert selected_rows(
        folder, "probability IS NULL OR label = 'ant' OR split <> 'train' OR label IN ('bee', 'cat')", **urls
    )
    with pytest.raises(UsageError, match=r"predictions\.label, .*probability, .*camera, labels\.label"):
        select(folder, "nothing = 1", **urls)


def test_a_table_of_images_is_joined_without_the_files(tmp_path: Path, folder: Path) -> None:
    from featurize.tables.schemas import IMAGES_SCHEMA
    from finetune.rows import joined_tables

    rows = pa.table({name: [None] * 2 for name in IMAGES_SCHEMA.names if name not in ("image_id", "camera")})
    rows = rows.append_column("image_id", pa.array(IDS[:2])).append_column("camera", pa.array(["X", "X"]))
    pq.write_table(rows.select(IMAGES_SCHEMA.names).cast(IMAGES_SCHEMA), tmp_path / "part.parquet")
    table = joined_tables.SqlTable(
        "images", IMAGES_SCHEMA, (), (joined_tables.Part((), str(tmp_path), (str(tmp_path / "part.parquet"),)),), ("x",)
    )
    found = joined_tables._read_parts(table, table.parts)
    assert set(found.column_names) == set(IMAGES_SCHEMA.names) - {"content"}
    assert found["camera"].to_pylist() == ["X", "X"]


@given(
    values=st.lists(st.sampled_from([None, 0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=20),
    least=st.sampled_from([0.0, 0.3, 0.5]),
)
@settings(max_examples=20, deadline=None)
def test_null_is_not_selected(values: list[float | None], least: float) -> None:
    rows = pa.table({"image_id": [str(row) for row in range(len(values))], "score": pa.array(values, pa.float64())})
    found = ask(f"score > {least}", rows, [])
    assert found.tolist() == [value is not None and value > least for value in values]


WRONG = {
    "syntax": ("label ==", "syntax error"),
    "an unknown column": ("camera = 'X'", 'column "camera" not found'),
    "an unknown field": ("features.nope = 1", "nope"),
    "no condition": ("label", "must be a condition, true or false. Got VARCHAR"),
    "a number": ("1 + 1", "must be a condition, true or false. Got INTEGER"),
    "another type": ("label = 5", "Could not convert string"),
    "nothing": ("label = 'dog'", "selects none of the 180 rows"),
    "an emptied class": ("label_index > 0", "leaves no training rows of ant"),
    "a file": ("label IN (SELECT * FROM read_csv('/etc/hostname'))", "disabled by configuration"),
    "two statements": ("true; SELECT 1", "syntax error"),
    "an aggregate": ("count(*) > 1", "GROUP BY"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_query_is_refused(folder: Path, name: str) -> None:
    where, message = WRONG[name]
    with pytest.raises(UsageError, match=re.escape(message)) as raised:
        select(folder, where)
    if name not in ("no condition", "a number", "nothing", "an emptied class"):
        assert "Columns: image_id, path, label, label_index, width, height, split." in str(raised.value)


def test_a_class_that_the_query_names_may_be_left_out(folder: Path) -> None:
    manifest = select(folder, "label != 'ant'")
    assert set(manifest.rows["train"]) == {"bee", "cat"}
    assert manifest.classes == list(CLASSES)


TABLES = {
    "an image twice": (f"image_id,good\n{IDS[0]},1\n{IDS[0]},2\n", "more than once"),
    "no image_id": ("image,good\na,1\n", "must have the column image_id"),
    "nothing else": (f"image_id\n{IDS[0]}\n", "and others"),
    "no CSV": ("", "cannot be read"),
    "a column twice": (f"image_id,good,Good\n{IDS[0]},1,2\n", "column good more than once"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_wrong_table_of_labels_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    content, message = TABLES[name]
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(UsageError, match=message):
        select(folder, "good > 0", labels=str(tmp_path / "labels.csv"))
    with pytest.raises(UsageError, match="there is no table"):
        select(folder, "good > 0", labels=str(tmp_path / "none.csv"))


def test_tables_without_a_query_are_refused_and_a_run_takes_no_notice_of_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`labels` needs `where`"):
        check_settings(FeaturesSettings, {"url": "x", "labels": "y.csv"}, origin="test")
    path = write_toml(
        tmp_path / "recipe.toml",
        {
            "images": {"source": "photos"},
            "backbone": {"name": "VGG16"},
            "features": {"url": "x", "where": "label = 'a'", "labels": "y.csv"},
        },
    )
    half = upper_half(read_recipe(path), origin="test")
    assert half.features == FeaturesSettings(url="x")
    assert "where" not in half.model_dump(exclude_none=True)["features"]


# What comes of it


def test_the_identity_of_a_model_is_of_the_query_and_what_it_selects(folder: Path, tmp_path: Path) -> None:
    def model_id(**features: Any) -> str:
        return plan_training(recipe_of({"url": str(folder), **features}, tmp_path / "model"), ranks=1).model_id

    table = tmp_path / "labels.csv"
    table.write_text("image_id,good\n" + "".join(f"{image_id},1\n" for image_id in IDS))
    options = {"where": "good > 0", "labels": str(table)}
    first = model_id(**options)
    assert model_id(**options) == first
    assert len({model_id(), model_id(where="true"), model_id(where=WHERE), first}) == 4
    table.write_text("image_id,good\n" + "".join(f"{image_id},{row}\n" for row, image_id in enumerate(IDS)))
    assert model_id(**options) != first  # the row without the value is one of train


def test_evaluation_and_report_use_the_rows_that_the_model_was_selected_by(
    folder: Path, twin: Path, tmp_path: Path
) -> None:
    fit_alone({"url": str(folder), "where": WHERE}, tmp_path / "model")
    fit_alone({"url": str(twin)}, tmp_path / "twin-model")
    result = evaluate_model(str(tmp_path / "model"), None, "test", str(tmp_path / "scores"))
    wanted = evaluate_model(str(tmp_path / "twin-model"), None, "test", str(tmp_path / "scores"))
    assert (result["rows"], result["left_out"], wanted["left_out"]) == (27, 9, 0)
    assert result["confusion_matrix"] == wanted["confusion_matrix"]
    every = evaluate_model(str(tmp_path / "model"), None, "test", str(tmp_path / "scores"), all_rows=True)
    assert (every["rows"], every["left_out"]) == (36, 0)
    target = find_target(str(tmp_path / "model"))
    judged = judge(target, "test")
    assert len(judged.label_index) == 27
    context = report_context(target, judged, title=None, check_data=True)
    facts = dict(dict(context["lineage"])["Feature set"])
    assert facts["Left out by `where`"] == "test 9, train 27, validation 9"
    assert "108 labels of training and validation" in context["quality"][0]["text"]


def test_a_split_of_which_nothing_is_selected_cannot_be_judged_by(folder: Path, tmp_path: Path) -> None:
    fit_alone({"url": str(folder), "where": "split != 'test'"}, tmp_path / "model")
    with pytest.raises(UsageError, match="that the model's `where` selects; --all-rows judges by all 36"):
        evaluate_model(str(tmp_path / "model"), None, "test", None)


def test_the_command_says_what_is_selected(firn: Firn, folder: Path, tmp_path: Path) -> None:
    recipe = write_toml(
        tmp_path / "recipe.toml",
        {
            "features": {"url": "set", "where": WHERE},
            "model": {"url": "model"},
            "training": {"epochs": 1},
        },
    )
    done = firn("finetune", "fit", str(recipe), "--json")
    assert done.returncode == 0, done.stderr
    assert "selects test 27 of 36, train 81 of 108, validation 27 of 36 rows" in done.stderr
    evaluated = firn("finetune", "evaluate", "model")
    assert "27 of split test, 9 left out by `where`" in evaluated.stdout
    refused = firn("finetune", "fit", str(recipe), "--set", "features.where=camera = 1")
    assert refused.returncode == 2
    assert 'column "camera" not found' in refused.stderr
