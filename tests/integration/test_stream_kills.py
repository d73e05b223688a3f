"""A stream is killed in mid-run while images come in and its model is exchanged: every image is labelled and tested once.

FIRN_STREAM_IMAGES=1000 makes it longer.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from helpers.services.hdfs_cluster import MiniHdfs
from helpers.services.processes import wait_until
from helpers.tables.predictions import read_predictions
from helpers.tables.stream_places import (
    HOSTILE,
    Models,
    Place,
    copy_models,
    listed_by_stream,
    promote_to,
    register_both,
    rows_of,
)
from pyspark.sql import SparkSession
from typer.testing import CliRunner

from featurize import storage
from featurize.sources.folders import open_files
from featurize.sql.query import read_sql_table
from featurize.sql.tables import SqlTable, find_tables
from featurize.storage.claims import CLAIM_NAME
from featurize.tables.predictions import find_views
from finetune.__main__ import app
from finetune.registry.client import ENVIRONMENT
from finetune.streams.drift_windows import WindowSettings
from finetune.streams.stream import plan_stream, run_stream

pytestmark = [
    pytest.mark.spark,
    pytest.mark.slow,
]
IMAGES = int(os.environ.get("FIRN_STREAM_IMAGES", "200"))
WINDOW = 30


class Driver:
    """`finetune stream` in a process of its own."""

    def __init__(self, place: Place, model: str, number: int) -> None:
        self._log, self._output = place.folder / f"log{number}", place.folder / f"output{number}"
        places = ["--images", place.images, "--output", place.out, "--checkpoint", place.checkpoint]
        options = ["--trigger-s", "0.2", "--max-images-per-batch", "20", "--drift-window", str(WINDOW), "--json"]
        with self._log.open("wb") as log, self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "finetune", "stream", model, *map(str, places), *options],
                cwd=place.folder,
                stdout=output,
                stderr=log,
                start_new_session=True,
                env={name: value for name, value in os.environ.items() if not name.startswith("PYSPARK_")},
            )

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def kill(self) -> None:
        time.sleep(np.random.default_rng().uniform(0, 1.5))  # at some moment of a batch
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self) -> None:
        if not self.has_ended():
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=120)

    def said(self) -> str:
        return self._log.read_text()

    def answer(self) -> dict[str, object]:
        return dict(json.loads(self._output.read_text().splitlines()[-1]))


def labelled(place: Place) -> dict[str, int]:
    """Images by model, those that could not be read too, as they are published."""
    published = find_views(str(place.out))
    manifests = published.manifests if published else {}
    return {model_id: manifest.row_count + manifest.reject_count for model_id, manifest in manifests.items()}


def test_a_stream_that_is_killed_twice_and_changes_its_model_labels_every_image_once(
    spark: SparkSession, trained: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(spark, tmp_path)
    place.images.mkdir()
    models = copy_models(trained, tmp_path / "models")
    registry = register_both(models, tmp_path)
    monkeypatch.setenv(ENVIRONMENT, str(registry.url))
    drivers: list[Driver] = []

    def start() -> Driver:
        drivers.append(Driver(place, "photos@champion", len(drivers)))
        return drivers[-1]

    def wait_for(model: str | None, images: int) -> None:
        def is_there() -> bool:
            assert not drivers[-1].has_ended(), drivers[-1].said()
            counts = labelled(place)
            return (sum(counts.values()) if model is None else counts.get(models.ids[model], 0)) >= images

        wait_until(is_there, f"{images} images by {model}: {labelled(place)}", timeout_s=400)

    per_class = IMAGES // 12  # a quarter at a time
    try:
        place.arrive(1, per_class=per_class, corrupt=2)
        start()
        wait_for("old", 20)
        place.arrive(2, per_class=per_class, corrupt=2)
        drivers[-1].kill()
        promote_to(registry, models["new"])
        place.arrive(3, per_class=per_class, corrupt=2)
        start()
        wait_for("new", 20)
        drivers[-1].kill()
        start()
        place.arrive(4, per_class=per_class, corrupt=2)
        wait_for(None, len(place.paths()))
        drivers[-1].end()
    finally:
        for driver in drivers:
            if not driver.has_ended():
                os.killpg(driver.process.pid, signal.SIGKILL)
                driver.process.wait()
    last = drivers[-1]
    assert last.process.returncode == 0, last.said()
    assert "Traceback" not in last.said()
    assert last.answer()["is_stopped"] is True
    assert place.done() == place.paths()
    assert len(place.paths()) == 12 * per_class + 8
    assert set(read_predictions(place.out)["model_id"]) == set(models.ids.values())
    assert_windows_follow_each_other(place)
    left = {path.name for path in place.out.glob("model_id=*/*")}
    assert left <= {
        "data",
        "_firn",
        "_delta_log",
        CLAIM_NAME,
    }  # that of the killed holder, who is known to be dead


def assert_windows_follow_each_other(place: Place) -> None:
    """Those of each model have all images that it has labelled, but for less than one window at the end."""
    rows, table = read_predictions(place.out), pq.read_table(place.out / "drift" / "stream").to_pandas()
    for model_id, labelled_by in rows.groupby("model_id"):
        times = labelled_by["predicted_at"].sort_values()
        windows = table[table["model_id"] == model_id].sort_values("window")
        assert windows["window"].tolist() == list(range(len(windows)))
        left = labelled_by["image_id"].nunique() - windows["images"].sum()
        assert 0 <= left < WINDOW
        ends = [pd.Timestamp(0, tz="UTC"), *windows["last_predicted_at"]]
        for window, before in zip(windows.itertuples(), ends, strict=False):
            assert window.images == len(times[(times > before) & (times <= window.last_predicted_at)])


@pytest.mark.hdfs
def test_a_stream_from_hdfs_to_hdfs(spark: SparkSession, trained: Models, hdfs: MiniHdfs, tmp_path: Path) -> None:
    url = f"{hdfs.url}/stream {tmp_path.name}"
    place = Place(spark, tmp_path)
    place.images.mkdir()
    for step in (1, 2):
        place.arrive(step, per_class=4)
        hdfs.upload(place.images / f"step #{step}?", f"{url}/in/step {step}")
        places = (f"{url}/in", f"{url}/out", f"{url}/checkpoint")
        plan = plan_stream(str(trained["old"]), *places, windows=WindowSettings(20))
        done = run_stream(spark, plan, once=True, most_per_batch=7)
        assert (done.batches, done.added, done.account.rejected) == (2, {trained.ids["old"]: 12}, 1)
        assert done.windows == step - 1
    assert run_stream(spark, plan, once=True).batches == 0
    place.run(trained["old"])
    answer = CliRunner().invoke(app, ["compact", f"{url}/out", "--json"])
    (compacted,) = json.loads(answer.stdout.splitlines()[-1])["models"]
    assert (compacted["rows"], compacted["shards_before"], compacted["shards"]) == (24, 4, 2)
    assert run_stream(spark, plan, once=True).batches == 0
    found, wanted = read_predictions(f"{url}/out"), read_predictions(place.out)
    assert sorted(found.index) == sorted(file for file in storage.list_files(f"{url}/in") if "torn" not in file)
    assert found.set_index("image_id")["label"].to_dict() == wanted.set_index("image_id")["label"].to_dict()
    assert len(found) == 24
    *_, windows = find_tables(predictions=f"{url}/out")
    assert isinstance(windows, SqlTable)
    rows = read_sql_table(spark, windows).collect()
    assert [(row["window"], row["images"], row["tested_by"]) for row in rows] == [(0, 24, "stream")]


@pytest.mark.hdfs
def test_a_stream_from_hdfs_lists_what_predict_lists_whatever_the_names_are(
    spark: SparkSession, hdfs: MiniHdfs, tmp_path: Path
) -> None:
    url = f"{hdfs.url}/names {tmp_path.name} [a]*{{b,c}}? 100%"
    names = [name for name in HOSTILE if ":" not in name]  # which HDFS forbids
    for number, name in enumerate(names):
        for folder in (f"{url}/in", f"{url}/in/{names[number - 1]}/deep"):
            storage.write_bytes(f"{folder}/{name}.png", name.encode())
    batches = listed_by_stream(spark, f"{url}/in", f"{url}/checkpoint")
    found = sorted(row for batch in batches for row in batch)
    assert found == rows_of(open_files(f"{url}/in"))
    assert len(found) == 2 * len(names)
