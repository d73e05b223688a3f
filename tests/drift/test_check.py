"""Tests of `finetune drift`: which predictions it takes, the windows it makes, what it writes and says, and what it refuses."""

import hashlib
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.tables.drift_sets import CLASSES, Known, draw_many, grey, publish, train_on_shapes
from typer.testing import CliRunner

from featurize import storage
from featurize.errors import JobError, UsageError
from featurize.tables.predictions import read_views
from finetune.__main__ import app
from finetune.drift.check import check_predictions, reference_of
from finetune.drift.compare import compare_predictions
from finetune.drift.read import Selection, read_rows, window_of
from finetune.drift.reference import encode, find_reference, make_reference, read_reference, reference_url
from finetune.drift.window import check_window

pytestmark = [pytest.mark.slow]
BEGIN = datetime(2026, 11, 1, 8, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Known, Known]:
    """Two models of the same classes, trained on different images."""
    folder = tmp_path_factory.mktemp("drift")
    first = train_on_shapes(folder / "first", epochs=4)
    return first, train_on_shapes(folder / "second", seed=1, epochs=5)


@pytest.fixture(scope="module")
def known(two: tuple[Known, Known]) -> Known:
    return two[0]


@pytest.fixture(scope="module")
def output(known: Known, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,050 predictions, 100 a minute; the images from the 700th on are grey. Do not change it."""
    folder = tmp_path_factory.mktemp("drift") / "predictions"
    pixels = draw_many(1050, seed=1)
    pixels[700:] = grey(pixels[700:])
    publish(folder, known, pixels, at=BEGIN)
    return folder


@pytest.fixture
def copy(output: Path, tmp_path: Path) -> Path:
    """A copy of `output`."""
    shutil.copytree(output, tmp_path / "predictions")
    return tmp_path / "predictions"


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["drift", *map(str, arguments)])


def numbers_of(*arguments: str | Path) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def at(minutes: int) -> datetime:
    return BEGIN.replace(minute=minutes)


def test_each_window_is_tested_and_the_rest_is_left_over(copy: Path, known: Known) -> None:
    found = check_predictions(str(copy), window=350)
    assert [window.result.images for window in found.windows] == [350, 350, 350]
    assert [window.result.alarm for window in found.windows] == [False, False, True]
    assert (found.images, found.left_over, found.alarms) == (1050, 0, 1)
    assert [window.first for window in found.windows] == [at(0), at(3), at(7)]
    assert [window.last for window in found.windows] == [at(3), at(6), at(10)]
    assert found.windows[2].result.retrain
    assert check_predictions(str(copy), window=400).left_over == 250


def test_the_windows_are_those_of_check_window(copy: Path, known: Known) -> None:
    found = check_predictions(str(copy), selection=Selection(until=at(3)))
    published = read_views(str(copy))
    rows = read_rows(published.url, published.manifests[known.card.model_id], Selection(until=at(3)))
    seed = int(rows["image_id"][0].as_py()[:8], 16)
    assert found.windows[0].result == check_window(known.reference, window_of(rows), seed=seed)
    assert rows.num_rows == 300


def test_rows_come_in_order_whatever_file_they_lie_in(output: Path, known: Known) -> None:
    published = read_views(str(output))
    manifest = published.manifests[known.card.model_id]
    rows = read_rows(published.url, manifest, Selection(since=at(2), until=at(5), last=150))
    pixels = draw_many(1050, seed=1)[200:500]
    probabilities, projections = known.probabilities(pixels)
    by_id = {row["image_id"]: row for row in rows.to_pylist()}
    times = rows["predicted_at"].to_pylist()
    assert times == sorted(times)
    assert rows.num_rows == 150
    assert times[0] == at(3)
    for image, row, projection in zip(pixels, probabilities, projections, strict=True):
        found = by_id.get(hashlib.sha256(image.tobytes()).hexdigest())
        if found is not None:
            assert found["label"] == CLASSES[row.argmax()]
            assert found["probability"] == pytest.approx(row.max(), abs=1e-6)
            np.testing.assert_allclose(found["projection"], projection, atol=1e-6)


def test_equal_images_count_once(known: Known, tmp_path: Path) -> None:
    pixels = draw_many(60, seed=2)
    publish(tmp_path, known, np.concatenate([pixels, pixels[:40]]), at=BEGIN)
    assert check_predictions(str(tmp_path)).windows[0].result.images == 60


def test_every_run_adds_its_windows_to_the_table(copy: Path, known: Known) -> None:
    first = check_predictions(str(copy), window=350)
    second = check_predictions(str(copy), selection=Selection(last=200))
    assert first.table is not None
    assert second.table is not None
    table = pq.read_table(copy / "drift" / "windows")
    assert table.num_rows == 4
    row = pq.read_table(first.table.removeprefix("file://")).to_pylist()[2]
    result = first.windows[2].result
    assert (row["window"], row["images"], row["model_id"]) == (2, 350, known.card.model_id)
    assert (row["alarm"], row["retrain"], row["fired"]) == (True, True, list(result.fired))
    assert row["features_corrected"] == result.tests["features"].corrected
    assert row["stability_index"] == result.stability_index
    assert row["first_predicted_at"] == at(7)
    assert not [path for path in (copy / "drift").rglob("*") if path.name.endswith(".tmp")]


def test_the_command_says_which_window_drifts_and_returns_numbers(copy: Path) -> None:
    result = run(copy, "--window", "350", "--json")
    assert result.exit_code == 0
    numbers = json.loads(result.stdout.splitlines()[-1])
    assert numbers["alarms"] == 1
    assert [window["alarm"] for window in numbers["windows"]] == [False, False, True]
    assert numbers["windows"][2]["tests"]["labels"]["corrected"] < 0.01
    assert set(numbers["images_needed"]) == {"labels", "confidence", "features"}
    said = result.stderr
    assert "window 2: DRIFT of labels and confidence and features" in said
    assert "window 0: no drift" in said
    assert "Retraining is due" in said


def test_the_status_is_3_after_an_alarm_where_that_is_asked_for(copy: Path, tmp_path: Path) -> None:
    assert run(copy, "--last", "300", "--fail-on-drift").exit_code == 3
    assert run(copy, "--until", "2026-11-01T08:06", "--fail-on-drift").exit_code == 0
    assert run(copy, "--last", "300").exit_code == 0
    assert run(copy, "--last", "300", "--output", tmp_path / "elsewhere").exit_code == 0
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1


def test_too_few_images_are_no_window_and_no_error(copy: Path) -> None:
    numbers = numbers_of(copy, "--since", "2026-11-01T08:10", "--window", "200")
    assert (numbers["images"], numbers["left_over"], numbers["windows"], numbers["table"]) == (50, 50, [], None)
    assert numbers_of(copy, "--since", "2027-01-01")["images"] == 0
    assert numbers_of(copy, "--last", "5")["left_over"] == 5


def test_a_model_is_named_by_its_id_or_its_folder_too(copy: Path, known: Known) -> None:
    for name in (known.card.model_id, known.card.model_id[:10], str(known.folder)):
        assert numbers_of(copy, "--model", name, "--last", "100")["model_id"] == known.card.model_id


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--window", "5"], "`window` must be at least 20 images. Got 5."),
        (["--false-alarm-rate", "0.9"], "`false_alarm_rate` must be in [0.001, 0.2]"),
        (["--since", "yesterday"], "`since` must be a date or a time"),
        (["--until", "2026-13-01"], "`until` must be a date or a time"),
        (["--model", "nobody"], "no view 'nobody', and there is no model of that name. Views: latest."),
        (["--compare", "latest", "latest"], "are the same model"),
        (["--compare", "latest", "other", "--window", "50"], "`--compare` names both models"),
    ],
)
def test_wrong_calls_are_refused(output: Path, arguments: list[str], message: str) -> None:
    result = run(output, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr.replace("\n", " ")


def test_where_nothing_was_predicted_there_is_no_drift_to_see(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.exit_code == 2
    assert "holds no predictions" in result.stderr


def test_the_reference_is_kept_and_read_back_as_it_was(known: Known, tmp_path: Path) -> None:
    kept = find_reference(str(tmp_path), str(known.folder), known.card)
    url = reference_url(str(tmp_path), known.card.model_id)
    before = storage.read_bytes(url)
    assert encode(kept) == before == encode(known.reference)
    again = find_reference(str(tmp_path), "file:///nowhere", known.card)
    assert again.labels == known.reference.labels
    np.testing.assert_array_equal(again.projections, known.reference.projections)
    assert again.projection == known.reference.projection
    assert storage.read_bytes(url) == before


def test_a_large_validation_split_is_sampled_by_the_ids(known: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.drift.reference.MOST_IMAGES", 100)
    sample = make_reference(str(known.folder), known.card)
    assert 70 < sample.rows < 130
    assert sample.labels == known.reference.labels[: sample.rows]  # both are in the order of the ids


def test_a_damaged_reference_is_refused(copy: Path, known: Known) -> None:
    url = reference_url(str(copy), known.card.model_id)
    storage.write_bytes(url, b"nothing")
    with pytest.raises(JobError, match="is not a reference, or is damaged"):
        read_reference(str(copy), known.card.model_id)
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table({"label": ["ant"]}), buffer)
    storage.write_bytes(url, buffer.getvalue().to_pybytes())
    with pytest.raises(JobError, match="is not a reference, or is damaged"):
        check_predictions(str(copy))


def test_a_reference_of_another_network_is_refused(copy: Path, known: Known) -> None:
    published = read_views(str(copy))
    manifest = published.manifests[known.card.model_id]
    other = manifest.model_copy(update={"model": {**manifest.model, "network_sha256": "0" * 64}})
    with pytest.raises(UsageError, match="holds another model than the one that predicted"):
        reference_of(published.url, other)
    check_predictions(str(copy), selection=Selection(last=50))
    with pytest.raises(UsageError, match="belongs to another network than the predictions"):
        reference_of(published.url, other)


def test_predictions_without_projections_are_tested_by_the_rest_and_that_is_said(known: Known, tmp_path: Path) -> None:
    publish(tmp_path, known, grey(draw_many(300, seed=3)), at=BEGIN, has_projections=False)
    result = run(tmp_path)
    assert result.exit_code == 0
    assert "DRIFT of labels and confidence:" in result.stderr
    assert "some predictions have no projections" in result.stderr


def test_two_models_are_compared_on_the_images_of_both(two: tuple[Known, Known], tmp_path: Path) -> None:
    pixels = draw_many(400, seed=4, new=0.5)  # of the new class they have learned nothing, and say different things
    first, second = two
    publish(tmp_path, first, pixels[:350], at=BEGIN)
    publish(tmp_path, second, pixels[100:], at=BEGIN.replace(day=2))
    found = compare_predictions(str(tmp_path), first.card.model_id, second.card.model_id)
    labels = [np.array(one.window(pixels[100:350]).labels) for one in two]
    assert found.images == 250
    assert (found.first.images, found.second.images) == (350, 300)
    assert found.agreement == np.mean(labels[0] == labels[1]) < 1
    assert found.interval[0] < found.agreement < found.interval[1]
    assert sum(count for *_, count in found.differences) == round((1 - found.agreement) * 250)
    for one, other, count in found.differences:
        assert np.sum((labels[0] == one) & (labels[1] == other)) == count
    differ = labels[0] != labels[1]
    wanted = second.window(pixels[100:350]).probabilities[differ].mean()
    assert found.second.confidence_where_they_differ == pytest.approx(wanted, abs=1e-5)
    for side, known in ((found.first, first), (found.second, second)):
        wanted_result = check_window(known.reference, known.window(pixels[100:350]))
        assert side.result.fired == wanted_result.fired
        assert side.result.stability_index == pytest.approx(wanted_result.stability_index)
    numbers = numbers_of(tmp_path, "--compare", first.card.model_id, second.folder)
    assert numbers["agreement"] == found.agreement
    assert numbers["second"]["model_id"] == second.card.model_id


def test_models_with_too_few_images_in_common_are_not_compared(two: tuple[Known, Known], tmp_path: Path) -> None:
    pixels = draw_many(100, seed=5)
    publish(tmp_path, two[0], pixels[:50], at=BEGIN)
    publish(tmp_path, two[1], pixels[45:], at=BEGIN)
    with pytest.raises(UsageError, match="have labelled 5 images in common"):
        compare_predictions(str(tmp_path), two[0].card.model_id, two[1].card.model_id)
