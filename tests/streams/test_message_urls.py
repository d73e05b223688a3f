"""URLs in messages: what may be read, what is connected to, and what becomes of a file whose storage does not answer."""

import errno
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers.services.processes import LOOPBACK, free_ports
from pyspark.sql import DataFrame, SparkSession

from featurize import storage
from featurize.sources.listing import ImageReadError, PlannedImage, planned_images
from featurize.sources.readers import MAX_FILE_BYTES
from finetune.streams import allowed_urls, message_urls, unread_urls
from finetune.streams.allowed_urls import LEADS_OUTSIDE, OUTSIDE, AllowedUrls
from finetune.streams.checkpoint import Checkpoint
from finetune.streams.folder import BatchImages
from finetune.streams.kafka import KafkaImages, open_topic
from finetune.streams.message_urls import NO_FILE, MessageFileReader, UnansweredError, look_up, read_url, size_and_stamp
from finetune.streams.unread_urls import DEAD_FOLDER, MOST_TRIES, WAITING_NAME, UnreadDocument


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An allowed folder, and beside it a file that nobody may name."""
    (tmp_path / "allowed" / "deep").mkdir(parents=True)
    (tmp_path / "allowed" / "image").write_bytes(b"12345")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "allowed-too").mkdir()
    (tmp_path / "allowed-too" / "image").write_bytes(b"1")
    return tmp_path


@pytest.fixture
def no_connections(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Connections that were tried; each is refused."""
    tried: list[object] = []

    def refuse(address: object, *_: object, **__: object) -> None:
        tried.append(address)
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    monkeypatch.setattr(socket, "create_connection", refuse)
    return tried


def faults(allowed: Sequence[str], messages: Sequence[str]) -> list[str | None]:
    """Why each message is refused."""
    places = AllowedUrls.of(allowed)
    urls = [read_url(message.encode()) for message in messages]
    return ["no URL" if url is None else places.fault(url) for url in urls]


def test_what_leads_out_of_an_allowed_folder_is_refused_however_it_is_written(place: Path) -> None:
    (place / "allowed" / "link").symlink_to(place / "secret")
    (place / "allowed" / "far").symlink_to("/etc")
    (place / "allowed" / "near").symlink_to(place / "allowed" / "deep")
    (place / "allowed" / "gone").symlink_to(place / "nothing")
    base = str(place)
    inside = ["allowed/image", "allowed", "allowed/none", "allowed/deep/../image", "allowed/near/x", "./allowed//image"]
    inside += ["x/../allowed/image", "allowed/100%25.png", "allowed/%2e%2e/allowed/image", "allowed/a%2Fb"]
    outside = ["allowed/../secret", "allowed/%2e%2e/secret", "allowed/%2E%2E%2Fsecret", "allowed/%252e%252e/secret"]
    outside += [
        "allowed-too/image",
        "secret",
        "",
        "allowed/../allowed-too/image",
        "allowed%2f..%2fsecret",
        "ALLOWED/image",
    ]
    linked = ["allowed/link", "allowed/far/passwd", "allowed/near/../../link/../far/hosts", "allowed/gone"]
    for form in ("{}/{}", "file://{}/{}", "file:{}/{}", "file:///{}/{}"):
        given = [f"file://{base}/allowed"]
        assert faults(given, [form.format(base, path) for path in inside]) == [None] * len(inside)
        assert faults(given, [form.format(base, path) for path in outside]) == [OUTSIDE] * len(outside)
        found = faults(given, [form.format(base, path) for path in linked])
        assert set(found) <= {LEADS_OUTSIDE, OUTSIDE}
        assert found[0] == found[1] == found[3] == LEADS_OUTSIDE
    assert faults([base + "/allowed"], ["/etc/passwd", "file:///etc/passwd", "hdfs://" + base]) == [OUTSIDE] * 3


def test_an_allowed_folder_may_be_a_link_itself_a_file_or_the_root(place: Path) -> None:
    (place / "alias").symlink_to(place / "allowed")
    for named in ("alias", "allowed", "allowed/", "allowed/image"):
        wanted = [None, None if named == "alias" else OUTSIDE]
        assert faults([str(place / named)], [f"{place}/allowed/image", f"{place}/alias/image"]) == wanted
    assert faults([str(place / "alias")], [f"{place}/alias/../secret", f"{place}/secret"]) == [OUTSIDE] * 2
    assert faults(["/"], ["/etc/passwd", "hdfs://name:1/etc"]) == [None, OUTSIDE]
    assert faults([str(place), "hdfs://name:1/"], ["/etc/x", "hdfs://name:1/etc", f"{place}/x"]) == [
        OUTSIDE,
        None,
        None,
    ]


def test_a_host_and_a_port_are_the_same_to_the_letter_and_paths_by_whole_parts() -> None:
    allowed = ["hdfs://name:9000/photos", "hdfs:///own"]
    inside = ["hdfs://name:9000/photos/a", "hdfs://name:9000//photos/./b/../a", "hdfs:///own/a"]
    outside = ["hdfs://name:9001/photos/a", "hdfs://name/photos/a", "hdfs://evil:9000/photos/a", "hdfs:///photos/a"]
    outside += ["hdfs://evil@name:9000/photos/a", "hdfs://evil#@name:9000/photos/a", "hdfs://name:9000/own/a"]
    outside += [
        "hdfs://name:9000/photos/../etc/a",
        "hdfs://name:9000/photos/%2e%2e/etc/a",
        "hdfs://name:9000/photos2/a",
    ]
    outside += ["hdfs://name\\@evil/photos/a", "hdfs://name:90000/photos/a", "hdfs://name:9000.evil/photos/a"]
    outside += ["hdfs://na%6de:9000/photos/a", "hdfs://name:9000/", "hdfs://x@name:9000/photos/a", "/photos/a"]
    assert faults(allowed, inside) == [None] * len(inside)
    assert faults(allowed, ["hdfs://name:9000@evil:9000/photos/a"]) == ["no URL"]
    assert faults(allowed, outside) == [OUTSIDE] * len(outside)


def test_nothing_is_connected_to_and_no_file_looked_at_that_is_not_allowed(
    place: Path, no_connections: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed, seen = AllowedUrls.of([f"{place}/allowed"]), list[str]()
    assert allowed.fault(f"file://{place}/allowed/image") is None  # what the place leads to is known
    for look in (message_urls._ask, storage.find_file, storage.open_filesystem, allowed_urls._resolved):
        module = {"_ask": message_urls, "_resolved": allowed_urls}.get(look.__name__, storage)
        monkeypatch.setattr(module, look.__name__, seen.append)
    found = look_up([f"file://{place}/secret", "file:///etc/passwd", "hdfs://evil:9000/a", "t/0/1"], allowed)
    assert [answer.stamp for answer in found.values()] == ["not allowed"] * 3 + ["no URL"]  # type: ignore[union-attr]
    assert (seen, no_connections) == ([], [])


def planned(url: str, size: int | None, stamp: str = "") -> PlannedImage:
    return PlannedImage(url, None, None, size, stamp, None, None)


def read(allowed: AllowedUrls, image: PlannedImage) -> bytes:
    (fetch,) = MessageFileReader(allowed=allowed).open([image])
    return fetch()


def test_a_worker_reads_no_file_that_a_link_has_moved_outside_since(place: Path) -> None:
    allowed = AllowedUrls.of([f"{place}/allowed"])
    image = place / "allowed" / "image"
    url = f"file://{image}"
    assert allowed.fault(url) is None
    assert read(allowed, planned(url, 5)) == b"12345"
    image.unlink()
    with pytest.raises(ImageReadError, match="cannot be read: No such file"):
        read(allowed, planned(url, 5))
    image.symlink_to(place / "secret")
    with pytest.raises(ImageReadError, match=LEADS_OUTSIDE):
        read(allowed, planned(url, 5))
    image.unlink()
    image.symlink_to(place / "allowed-too" / "image")
    with pytest.raises(ImageReadError, match=LEADS_OUTSIDE):
        read(allowed, planned(url, 5))
    image.unlink()
    os.mkfifo(image)
    with pytest.raises(ImageReadError, match="no file any more"):
        read(allowed, planned(url, 5))
    with pytest.raises(ImageReadError, match="more than the limit"):
        read(AllowedUrls.of([str(place)]), planned(f"file://{place}/secret", MAX_FILE_BYTES + 1))


def test_what_is_no_file_is_not_touched(place: Path) -> None:
    folder = place / "allowed"
    os.mkfifo(folder / "pipe")
    status = (folder / "image").stat()
    assert size_and_stamp(f"file://{folder}/image") == (5, f"5:{status.st_mtime_ns}")
    gone = [f"file://{folder}/{name}" for name in ("pipe", "none", "image/below", ".", 300 * "x")]
    assert {size_and_stamp(url) for url in (*gone, "hdfs://host:port/a.png")} == {NO_FILE}
    allowed = AllowedUrls.of([str(folder)])
    found = look_up([gone[0], "topic/0/1", "file:///etc/passwd"], allowed)
    reasons = ("no such file, or this user may not read it", "neither an absolute path nor a URL", OUTSIDE)
    for (url, facts), reason in zip(found.items(), reasons, strict=True):
        assert not isinstance(facts, UnansweredError)
        with pytest.raises(ImageReadError, match=reason):
            read(allowed, planned(url, *facts))


def test_a_local_storage_that_fails_is_not_taken_for_a_missing_file(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: object, **_: object) -> None:
        raise OSError(errno.EIO, "Input/output error", path)

    monkeypatch.setattr(message_urls, "_ask", fail)
    with pytest.raises(UnansweredError, match="Input/output error"):
        size_and_stamp(f"file://{place}/allowed/image")


def test_a_dead_host_is_asked_once_whatever_the_number_of_its_files(no_connections: list[object]) -> None:
    urls = [f"hdfs://dead:{port}/{number}" for port in (1, 2) for number in range(50)]
    found = look_up(urls, AllowedUrls.of(["hdfs://dead:1", "hdfs://dead:2"]))
    assert list(found) != []
    assert {str(answer) for answer in found.values()} == {"no HDFS NameNode answers: Connection refused"}
    assert sorted(map(str, no_connections)) == ["('dead', 1)", "('dead', 2)"]


# Batch after batch


class Stream:
    """The batches of a topic of URLs, whose listings are read as those of a stream are."""

    def __init__(self, spark: SparkSession, folder: Path, allowed: Sequence[str]) -> None:
        self.spark, self.checkpoint = spark, Checkpoint(storage.absolute_url(str(folder / "checkpoint")))
        self.own_url = str(self.checkpoint.own_url)
        topic = open_topic("kafka://one:9092/t", "urls", None, allowed)
        assert isinstance(topic, KafkaImages)
        self.topic = topic

    def rows(self, urls: Sequence[str]) -> DataFrame:
        rows = [(f"t/0/{number}", 0, number, bytearray(url.encode())) for number, url in enumerate(urls)]
        return self.spark.createDataFrame(rows, "path string, partition int, offset long, value binary")

    def batch(self, *urls: str, is_killed: bool = False) -> dict[str, int | None]:
        """The sizes of the images of a batch."""
        try:
            with self.topic.of_batch(self.rows(urls), 0, self.checkpoint) as images:
                self.images: BatchImages = images
                if is_killed:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
        return {image.path: image.bytes_size for image in planned_images(images.source.listing)}

    def document(self, *parts: str) -> UnreadDocument:
        return UnreadDocument.model_validate(storage.read_json(storage.join_url(self.own_url, *parts)))


def numbers(images: BatchImages) -> tuple[int, int, int, int]:
    assert images.found == images.source.images + images.repeated + images.gone
    return images.found, images.repeated, images.gone, images.waiting


@pytest.fixture
def dead() -> str:
    """A host at which nothing listens."""
    return f"hdfs://{LOOPBACK}:{free_ports(1)[0]}"


@pytest.fixture
def stream(spark: SparkSession, place: Path, dead: str) -> Stream:
    return Stream(spark, place, [f"{place}/allowed", f"{dead}/photos"])


@pytest.mark.spark
def test_a_dead_host_ends_no_batch_and_its_files_are_tried_until_they_are_given_up(
    stream: Stream, place: Path, dead: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(unread_urls, "FIRST_PAUSE_S", 0.0)
    image, lost = f"file://{place}/allowed/image", f"{dead}/photos/a.png"
    with socket.create_server((LOOPBACK, 0)) as listener, caplog.at_level("WARNING", "finetune.streams"):
        listener.setblocking(False)
        evil = f"hdfs://{LOOPBACK}:{listener.getsockname()[1]}/photos/a.png"
        assert stream.batch(image, lost, evil, image) == {image: 5, evil: None}
        with pytest.raises(BlockingIOError):  # nobody has connected
            listener.accept()
    assert numbers(stream.images) == (3, 1, 0, 1)  # one of them twice
    assert f"1 URLs cannot be read now and are tried again with later batches, such as {lost}" in caplog.text
    assert stream.batch(image, lost, is_killed=True) == {image: 5}  # changes nothing
    for tries in range(1, MOST_TRIES):
        (waiting,) = stream.document(WAITING_NAME).urls
        assert (waiting.url, waiting.tries) == (lost, tries)
        assert waiting.reason == "no HDFS NameNode answers: Connection refused"
        assert stream.batch(image) == {image: 5}
        assert numbers(stream.images) == ((2, 0, 1, 0) if tries == MOST_TRIES - 1 else (1, 0, 0, 1))  # given up is gone
    assert stream.document(WAITING_NAME).urls == ()
    (letters,) = storage.list_files(storage.join_url(stream.own_url, DEAD_FOLDER))
    (letter,) = stream.document(DEAD_FOLDER, letters.rpartition("/")[2]).urls
    assert (letter.url, letter.tries, letter.reason) == (lost, MOST_TRIES, waiting.reason)
    assert stream.batch(image) == {image: 5}
    assert stream.document(WAITING_NAME).urls == ()
    stream.batch(lost)  # sent again: begins anew
    assert [one.tries for one in stream.document(WAITING_NAME).urls] == [1]


@pytest.mark.spark
def test_a_file_that_is_there_again_is_in_the_next_batch_after_its_pause(
    stream: Stream, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = f"file://{place}/allowed/image"

    def fail(path: object, **_: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle", path)

    with monkeypatch.context() as patch:
        patch.setattr(message_urls, "_ask", fail)
        assert stream.batch(image) == {}
        assert numbers(stream.images) == (0, 0, 0, 1)
    assert stream.batch("x", image) == {"t/0/0": None}  # a minute has not passed
    assert numbers(stream.images) == (1, 0, 0, 1)
    monkeypatch.setattr(unread_urls, "is_due", lambda _: True)
    monkeypatch.setattr("finetune.streams.kafka.is_due", lambda _: True)
    assert stream.batch() == {image: 5}
    assert numbers(stream.images) == (1, 0, 0, 0)
    assert stream.document(WAITING_NAME).urls == ()
    assert not storage.exists(storage.join_url(stream.own_url, DEAD_FOLDER))
