"""Tests of `where` in a recipe: what a query knows, what is refused, and what comes of it."""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.project import Firn
from helpers.tables.selected_rows import (
    CLASSES,
    IDS,
    ROWS,
    SPLITS,
    WHERE,
    fit_alone,
    label_indices,
    recipe_of,
    select,
    selected_rows,
)
from helpers.tables.sql_sets import write_predictions
from helpers.toml_files import write_toml
from hypothesis import given, settings
from hypothesis import strategies as st

from featurize.errors import UsageError
from featurize.recipes.recipe import FeaturesSettings, read_recipe, upper_half
from featurize.recipes.toml_settings import check_settings
from finetune.evaluation.evaluate import evaluate_model
from finetune.reports.context import report_context
from finetune.reports.judge import find_target, judge
from finetune.rows.row_query import ask
from finetune.training.plan import plan_training

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
    from featurize.sql.tables import Part, SqlTable
    from featurize.tables.schemas import IMAGES_SCHEMA
    from finetune.rows.joined_tables import read_parts

    rows = pa.table({name: [None] * 2 for name in IMAGES_SCHEMA.names if name not in ("image_id", "camera")})
    rows = rows.append_column("image_id", pa.array(IDS[:2])).append_column("camera", pa.array(["X", "X"]))
    pq.write_table(rows.select(IMAGES_SCHEMA.names).cast(IMAGES_SCHEMA), tmp_path / "part.parquet")
    table = SqlTable("images", IMAGES_SCHEMA, (), (Part((), str(tmp_path), (str(tmp_path / "part.parquet"),)),), ("x",))
    found = read_parts(table, table.parts)
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
    "no CSV": ("", "is empty"),
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
    with pytest.raises(
        UsageError,
        match=r"that the model's `where` selects; evaluate with `all_rows=True` \(--all-rows\) to use all 36",
    ):
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
