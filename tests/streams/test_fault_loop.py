"""Predictions and streams whose calls of the file system fail; see `helpers.faults`. Spark's part of a stream is played here."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.faults import Job, check_every_fault
from helpers.images.photos import make_photos
from helpers.local_builds import without_spark
from helpers.models.logged_models import train_model
from helpers.tables.building import recipe

from featurize.jobs.run import featurize
from featurize.storage.claims import claim_output
from featurize.tables import publication
from featurize.tables.predictions import find_views
from finetune.prediction.predict import plan_prediction, predict
from finetune.streams import folder as folder_streams
from finetune.streams.current_model import StreamModels
from finetune.streams.drift_windows import WindowSettings, windows_url
from finetune.streams.stream import Streamed, _Labeller, plan_stream

pytestmark = pytest.mark.faults
BATCHES, WINDOW = 3, WindowSettings(images=20)


@pytest.fixture
def spark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(folder_streams, "collect", lambda batch: batch.rows)
    return without_spark(monkeypatch)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model on pixels, with validation rows enough for a reference."""
    folder = tmp_path_factory.mktemp("model")
    make_photos(folder / "photos", per_class=40, seed=7)
    split = {"train": 0.3, "validation": 0.6, "test": 0.1, "seed": 1}
    with pytest.MonkeyPatch.context() as patch:
        spark = without_spark(patch)
        featurize(
            spark, recipe(folder / "photos", folder / "pixels", "pixels", height=8, width=8, split=split, batch_size=64)
        )
        train_model(folder / "pixels", folder / "model", learning_rate=0.1)
        yield folder / "model"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """42 pictures and a broken file, in as many folders as there are batches."""
    for batch in range(BATCHES):
        make_photos(tmp_path / "images" / f"step {batch}", per_class=5, seed=batch)
    (tmp_path / "images" / "step 1" / "red" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    return tmp_path / "images"


def predictions_in(output: Path) -> dict[str, Any]:
    """Labels and rejects by path; a path may be there once only."""
    publication._cached.clear()
    seen = dict[str, Any]()
    for model_id, manifest in published.manifests.items() if (published := find_views(str(output))) else ():
        for file in (*manifest.files, *manifest.reject_files):
            for row in pq.read_table(output / f"model_id={model_id}" / file.path).to_pylist():
                assert row["path"] not in seen
                seen[row["path"]] = (
                    (row["error"],)
                    if "error" in row
                    else (row["image_id"], row["label"], *np.round(row["top_probabilities"], 4).tolist())
                )
                assert "error" in row or row["projection"] is not None
    return seen


def is_on_the_way(state: dict[str, Any], before: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return before.items() <= state.items() <= wanted.items()


def test_predict(spark: Any, model: Path, images: Path, tmp_path: Path) -> None:
    def act(folder: Path) -> None:
        done = predict(
            spark, plan_prediction(str(model), str(folder), images=str(images / "step 1")), max_reject_fraction=1.0
        )
        if done.views_fault is not None:
            raise OSError(done.views_fault)

    def look(folder: Path) -> Any:
        published = find_views(str(folder))
        return predictions_in(folder), published.views.latest if published else None

    job = Job(lambda folder: None, act, look, lambda state, before, wanted: is_on_the_way(state[0], {}, wanted[0]))
    assert check_every_fault(job, tmp_path / "out", most_trials=40) > 20


def put_whole(path: Path, text: str, *, made_in: Path) -> None:
    """As Spark writes its own files: whole or not at all."""
    path.parent.mkdir(exist_ok=True, parents=True)
    (made := made_in / f"{path.name}.made").write_text(text)
    made.replace(path)


def stream(spark: Any, model: Path, images: Path, folder: Path) -> None:
    """What `run_stream` does with the batches that Spark gives it: one for each folder of images."""
    checkpoint, made_in = folder / "checkpoint", folder.parent.parent
    plan = plan_stream(str(model), str(images), str(folder / "out"), str(checkpoint), windows=WINDOW)
    with (
        claim_output(plan.checkpoint.own_url),
        closing(StreamModels(spark, plan.first, plan.checkpoint, plan.windows)) as models,
    ):
        plan.checkpoint.begin(plan.record)
        if not (checkpoint / "metadata").exists():
            put_whole(checkpoint / "metadata", '{"id": "5c0ffee5"}', made_in=made_in)
        labeller = _Labeller(plan, models, Streamed(), decode_timeout_s=60.0, on_batch=lambda labelled: None)
        for number in range(BATCHES):
            files = sorted(path for path in (images / f"step {number}").rglob("*.png"))
            rows = [(f"file:{path}", path.stat().st_size, path.stat().st_mtime_ns // 10**6) for path in files]
            put_whole(checkpoint / "offsets" / str(number), f'v1\n{{}}\n{{"logOffset": {number}}}', made_in=made_in)
            listed = [json.dumps({"path": path.as_uri(), "timestamp": 0, "batchId": number}) for path in files]
            put_whole(checkpoint / "sources" / "0" / str(number), "\n".join(["v1", *listed]), made_in=made_in)
            if not (checkpoint / "commits" / str(number)).exists():
                labeller(SimpleNamespace(rows=rows, sparkSession=spark), number)  # type: ignore[arg-type]
                put_whole(checkpoint / "commits" / str(number), "v1\n{}", made_in=made_in)


def has_windows(output: Path, rows: int) -> bool:
    """Windows are numbered one by one and have no image twice; one that could not be written leaves its images to the next."""
    folder = Path(windows_url(str(output)).removeprefix("file://"))
    files = sorted(folder.glob("*.parquet")) if folder.exists() else []
    windows = [row for path in files for row in pq.read_table(path).to_pylist()]
    assert [row["window"] for row in windows] == list(range(len(windows)))
    assert all(WINDOW.images <= row["images"] < 2 * WINDOW.images for row in windows)
    assert sum(row["images"] for row in windows) <= rows
    return bool(windows)


def test_stream(spark: Any, model: Path, images: Path, tmp_path: Path) -> None:
    def look(folder: Path) -> Any:
        seen = predictions_in(folder / "out")
        return seen, has_windows(folder / "out", len(seen))

    def prepare(folder: Path) -> None:
        (folder / "out").mkdir()

    def act(folder: Path) -> None:
        stream(spark, model, images, folder)

    job = Job(prepare, act, look, lambda state, before, wanted: is_on_the_way(state[0], {}, wanted[0]))
    assert check_every_fault(job, tmp_path / "stream", most_trials=40) > 20
