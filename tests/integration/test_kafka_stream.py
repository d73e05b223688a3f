"""A stream from a real Kafka broker: images, named images and URLs as messages, each labelled once, also after kill -9."""

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.images.photos import make_photos
from helpers.services.hdfs_cluster import MiniHdfs
from helpers.services.kafka_broker import KafkaBroker, Message
from helpers.services.processes import LOOPBACK, Daemon, free_ports, wait_until
from helpers.tables.predictions import assert_same_predictions, predicted, read_predictions, read_rejects
from helpers.tables.stream_places import Models
from pyspark.sql import SparkSession

from featurize.errors import JobError, UsageError
from featurize.tables.predictions import read_views
from featurize.tables.publication import read_manifest
from finetune.streams import kafka as kafka_source
from finetune.streams.allowed_urls import OUTSIDE
from finetune.streams.kafka import CONNECTOR
from finetune.streams.stream import LabelledBatch, Streamed, plan_stream, run_stream
from finetune.streams.unread_urls import WAITING_NAME

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.spark,
    pytest.mark.slow,
]


@pytest.fixture
def place(spark: SparkSession, kafka: KafkaBroker, trained: Models, tmp_path: Path) -> "Place":
    return Place(spark, kafka, trained, tmp_path)


class Place:
    """A topic of one's own, photos to be sent there, and a stream that labels them."""

    def __init__(self, spark: SparkSession, kafka: KafkaBroker, trained: Models, folder: Path) -> None:
        self.spark, self.kafka, self.folder = spark, kafka, folder
        self.model, self.model_id = trained["old"], trained.ids["old"]
        self.out, self.photos = folder / "out", folder / "photos #1"
        self.checkpoint = str(folder / "checkpoint #1")
        self.topic = f"photos-{os.getpid()}-{time.monotonic_ns()}"

    def make(self, per_class: int) -> list[Path]:
        make_photos(self.photos, per_class=per_class)
        return sorted(self.photos.rglob("*.png"))

    def send(self, messages: Iterable[Message]) -> None:
        self.kafka.send(self.spark, self.topic, list(messages))

    def run(
        self, messages: str, *, options: Path | None = None, allow_urls: Sequence[str] | None = None, **given: Any
    ) -> Streamed:
        """Labels what is there."""
        url, file = self.kafka.url(self.topic), None if options is None else str(options)
        places = (url, str(self.out), self.checkpoint)
        plan = plan_stream(str(self.model), *places, messages=messages, kafka_options=file, allow_urls=allow_urls)
        return run_stream(self.spark, plan, once=True, **given)

    def rows(self) -> pd.DataFrame:
        return read_predictions(self.out)

    def rejects(self) -> dict[str, str]:
        """Why, by path."""
        rows = read_rejects(self.out / f"model_id={self.model_id}")
        return dict(zip(rows["path"], rows["error"], strict=True))

    def batch_rows(self) -> pd.DataFrame:
        """What `finetune predict` says of the photos."""
        predicted(self.spark, self.model, self.folder / "batch", images=self.photos)
        return read_predictions(self.folder / "batch")


def assert_same_answers(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    """Equal rows, whatever their paths."""
    one, other = (rows.sort_values("image_id").reset_index(drop=True) for rows in (found, wanted))
    assert_same_predictions(one, other)


def fail(_: LabelledBatch) -> None:
    raise RuntimeError("in mid-batch")


def test_images_as_messages_are_labelled_as_in_a_folder(
    place: Place, kafka: KafkaBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(kafka_source.STAGED_OPTIONS, "parquet.block.size", 4096)  # several row groups
    files = [file.read_bytes() for file in place.make(per_class=4)]
    camera = b"camera 1"  # a key is no name here
    place.send(Message(content, camera, number % 2) for number, content in enumerate(files[:8]))
    place.send([Message(b"\x89PNG torn"), Message(None, camera), Message(b"", partition=1)])
    with pytest.raises(RuntimeError, match="in mid-batch"):
        place.run("images", most_per_batch=6, on_batch=fail)  # published, but Spark does not know
    before = len(place.rows())
    done = place.run("images", most_per_batch=6)
    assert 0 < before < 8
    assert (done.added, done.account.rejected, done.account.labelled_before) == (
        {place.model_id: 8 - before},
        2,
        before,
    )
    place.send(Message(content, camera) for content in files[8:])
    assert place.run("images").added == {place.model_id: 4}
    assert place.run("images").batches == 0

    rows = place.rows()
    own = [f"{partition}/{offset}" for partition in (0, 1) for offset in range(4)]
    own += [f"0/{offset}" for offset in range(6, 10)]  # after the torn one and the tombstone
    assert list(rows.index) == sorted(f"{place.topic}/{at}" for at in own)
    assert set(place.rejects()) == {f"{place.topic}/0/4", f"{place.topic}/1/4"}
    assert_same_answers(rows, place.batch_rows())
    assert sorted(path.name for path in Path(place.checkpoint, "firn").iterdir()) == ["batch-2.json", "stream.json"]
    source = read_views(str(place.out)).manifests[place.model_id].source
    assert source == {"kind": "images", "source": kafka.url(place.topic), "layout": "messages", "messages": "images"}


@pytest.mark.hdfs
def test_a_name_is_labelled_once_whatever_comes_under_it_later(place: Place, hdfs: MiniHdfs) -> None:
    place.checkpoint = f"{hdfs.url}/{place.topic} #1/checkpoint"  # where the executors write the messages
    place.send([Message(None, b"one.png")])  # alone in its batch, and no name is taken by it
    done = place.run("named-images")
    assert (done.batches, done.added, done.account.rejected, done.account.labelled_before) == (
        1,
        {place.model_id: 0},
        0,
        0,
    )
    files = [file.read_bytes() for file in place.make(per_class=2)]
    first = [Message(files[0], b"one.png"), Message(files[1], b"one.png"), Message(files[2], "zwei/ü.png".encode())]
    place.send([*first, Message(files[3]), Message(files[4], b"\xff\xfe"), Message(None, b"three.png")])
    done = place.run("named-images")
    assert (done.added, done.account.labelled_before) == ({place.model_id: 4}, 1)
    place.send([Message(files[5], b"one.png"), Message(None, b"one.png"), Message(files[5], b"three.png")])
    done = place.run("named-images")
    assert (done.added, done.account.labelled_before) == ({place.model_id: 1}, 1)
    rows, by_path = place.rows(), place.batch_rows()
    wanted = {"one.png": 0, "zwei/ü.png": 2, f"{place.topic}/0/4": 3, f"{place.topic}/0/5": 4, "three.png": 5}
    assert rows["image_id"].to_dict() == {name: by_path["image_id"].iloc[number] for name, number in wanted.items()}
    with pytest.raises(UsageError, match=r"a stream with `messages` named-images\. Got images"):
        place.run("images")


def test_urls_as_messages_are_labelled_as_in_a_folder(place: Place) -> None:
    files = place.make(per_class=2)
    (place.photos / "red" / "torn.png").write_bytes(b"\x89PNG torn")
    os.mkfifo(place.folder / "pipe")
    sent = [
        f"file://{files[0]}",
        str(files[1]),
        f"file:{files[2]}",
        f"{files[3].parent}/../blue/../{files[3].parent.name}",
    ]
    sent[3] += f"/{files[3].name}"
    odd = [f"{place.photos}/gone.png", "relative.png", "s3://bucket/a.png", f"{place.folder}/pipe", "/" + 5000 * "x"]
    dead = f"hdfs://{LOOPBACK}:{free_ports(1)[0]}"
    odd += ["/" + 1000 * "x", "hdfs://nowhere/a.png", "hdfs://host:port/a.png", str(place.photos)]
    (place.photos / "link.png").symlink_to("/etc/hostname")
    foreign = ["file:///etc/hostname", f"{place.folder}/../secret.png", f"{place.photos}/link.png"]
    foreign += ["hdfs://evil:9000/a.png", f"{dead}1/a.png"]
    allowed = [str(place.folder), "hdfs://nowhere", "hdfs://host:port/", "/" + 1000 * "x", f"{dead}/photos"]
    options = place.folder / "options"
    options.write_text(f"startingOffsets={json.dumps({place.topic: {'0': 1, '1': 0}})}")
    place.send(Message(text.encode()) for text in ["passed over", *sent, *odd, sent[0], f"{place.photos}/red/torn.png"])
    place.send([Message(b"\xff\xfe", partition=1), Message(None, partition=1)])
    place.send(Message(text.encode(), partition=1) for text in [f"{dead}/photos/a.png", *foreign])
    done = place.run("urls", most_per_batch=50, options=options, allow_urls=allowed)
    assert (done.batches, done.added, done.account.rejected, done.account.labelled_before) == (
        1,
        {place.model_id: 4},
        16,
        1,
    )
    assert list(place.rows().index) == sorted(f"file://{file}" for file in files[:4])
    reasons = place.rejects()
    named = {path for path, reason in reasons.items() if "no such file" in reason}
    paths = {f"file://{path}" for path in (odd[0], odd[3], odd[5], odd[8])} | {odd[6], odd[7]}
    assert named == paths
    unnamed = {path for path, reason in reasons.items() if "neither an absolute path nor a URL" in reason}
    assert unnamed == {f"{place.topic}/{at}" for at in ("0/6", "0/7", "0/9", "1/0")}
    outside = {path for path, reason in reasons.items() if OUTSIDE in reason}
    assert outside == {
        *("file:///etc/hostname", f"file://{place.folder.parent}/secret.png", f"file://{place.photos}/link.png"),
        *foreign[3:],
    }
    assert set(reasons) - named - unnamed - outside == {f"file://{place.photos}/red/torn.png"}
    waiting = json.loads(Path(place.checkpoint, "firn", WAITING_NAME).read_text())["urls"]
    assert [(one["url"], one["tries"]) for one in waiting] == [(f"{dead}/photos/a.png", 1)]
    place.send([Message(str(files[4]).encode())])
    assert place.run("urls", allow_urls=allowed).added == {place.model_id: 1}  # the dead host ends no start either
    (place.photos / "link.png").unlink()
    then = predicted(place.spark, place.model, place.out, images=place.photos)  # knows them by their stamps
    assert (then.added, then.skipped, then.changed) == (1, 6, 0)


def test_what_kafka_does_not_have_is_named(place: Place) -> None:
    with pytest.raises(JobError, match=f"there is no topic {place.topic} at {place.kafka.address}"):
        place.run("images")
    address = f"{LOOPBACK}:{free_ports(1)[0]}"
    plan = plan_stream(
        str(place.model), f"kafka://{address}/a", str(place.out), f"{place.checkpoint}2", messages="images"
    )
    with pytest.raises(JobError, match=f"no Kafka broker answers: {address}: .*refused"):
        run_stream(place.spark, plan, once=True)
    assert not place.out.exists()


def test_a_stream_that_is_killed_labels_every_message_once(place: Place) -> None:
    """It is started as a user does it: the command, and the connector given to Spark."""
    jars = place.kafka.connector
    assert jars[0].name == "{}-{}.jar".format(*CONNECTOR.split(":")[1:])
    files = [file.read_bytes() for file in place.make(per_class=20)]
    place.send(Message(content, partition=number % 2) for number, content in enumerate(files))
    places = ["--images", place.kafka.url(place.topic), "--output", place.out, "--checkpoint", place.checkpoint]
    options = ["--messages", "images", "--trigger-s", "0.2", "--max-images-per-batch", "10"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SPARK_", "PYSPARK_"))}
    driver = Daemon(
        "finetune stream",
        [sys.executable, "-m", "finetune", "stream", str(place.model), *map(str, places), *options],
        place.folder / "log",
        clean | {"PYSPARK_SUBMIT_ARGS": f"--jars {','.join(map(str, jars))} pyspark-shell"},
        cwd=place.folder,
    )
    try:
        url = str(place.out / f"model_id={place.model_id}")
        wait_until(
            lambda: (found := read_manifest(url)) is not None and found.rows, "rows", timeout_s=200, needs=[driver]
        )
        time.sleep(np.random.default_rng().uniform(0, 1))  # at some moment of a batch
    finally:
        driver.kill()
    before = len(place.rows())
    assert 0 < before < 60, driver.last_words()
    assert place.run("images").added[place.model_id] <= 60 - before
    rows = place.rows()
    assert list(rows.index) == sorted(f"{place.topic}/{number % 2}/{number // 2}" for number in range(60))
    assert_same_answers(rows, place.batch_rows())
