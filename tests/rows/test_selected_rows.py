"""Tests of `where` in a recipe: a fit on selected rows is a fit on a set that has no others."""

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.project import ROOT
from helpers.services.launching import horovodrun
from helpers.tables.feature_sets import image_ids, make_clusters, write_feature_set
from helpers.tables.selected_rows import (
    CLASSES,
    IDS,
    KEPT,
    ROWS,
    SPLITS,
    WHERE,
    fit_alone,
    label_indices,
    recipe_of,
    select,
    selected_rows,
)
from helpers.toml_files import write_toml
from hypothesis import given, settings
from hypothesis import strategies as st

from featurize.recipes.recipe import read_recipe
from featurize.tables.readable import read_features_manifest
from finetune.evaluation.relabel import relabel
from finetune.models.folder import load_model, read_model_card
from finetune.ranks.communicator import SingleRank
from finetune.rows.disk_rows import StreamData
from finetune.rows.splits import read_split
from finetune.sweeps.plan import plan_sweep
from finetune.sweeps.run import run_sweep
from finetune.sweeps.trials import InProcess
from finetune.training.plan import plan_training
from finetune.training.train import train


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
    sections: dict[str, dict[str, Any]] = {
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
