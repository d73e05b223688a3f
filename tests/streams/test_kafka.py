"""Tests of what `finetune stream` says and reads of a topic before there is a broker; see integration/test_kafka_stream.py."""

from pathlib import Path
from typing import Any

import pytest
from helpers.project import ROOT
from pyspark.sql import SparkSession

from featurize.errors import UsageError
from finetune.streams.allowed_urls import AllowedUrls
from finetune.streams.kafka import CONNECTOR, KafkaImages, open_topic
from finetune.streams.message_urls import read_url
from finetune.streams.stream import plan_stream


def test_a_topic_and_its_options_are_read(tmp_path: Path) -> None:
    options = tmp_path / "client.properties"
    options.write_text("# for the brokers\n\nkafka.security.protocol = SSL\nstartingOffsets=latest\nkafka.a=b=c\n")
    topic = open_topic("kafka://one:9092,[::1]:9093/new.images_1-a", "urls", str(options), [str(tmp_path)])
    given = {"kafka.security.protocol": "SSL", "startingOffsets": "latest", "kafka.a": "b=c"}
    assert topic == KafkaImages(
        "one:9092,[::1]:9093", "new.images_1-a", "urls", given, AllowedUrls.of([f"file://{tmp_path}"])
    )
    assert topic.url == "kafka://one:9092,[::1]:9093/new.images_1-a"
    assert topic.place == "kafka:///new.images_1-a"  # brokers come and go
    assert "SSL" not in repr(topic)
    assert topic.source().images == 0


@pytest.mark.parametrize(
    "url", ["kafka://one/t", "kafka://one:1", "kafka://one:1/", "kafka://one:1,/t", "kafka:///t", "kafka://one:1/a/b"]
)
def test_what_names_no_topic_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"named as kafka://host:port,host:port/topic\. Got kafka://"):
        plan_stream(
            "model", url, str(tmp_path / "out"), str(tmp_path / "checkpoint"), messages="urls", allow_urls=["/a"]
        )


def test_what_a_message_is_must_be_said_and_only_of_a_topic(tmp_path: Path) -> None:
    places = [str(tmp_path / "out"), str(tmp_path / "checkpoint")]
    for messages, got in ((None, "none"), ("photos", "photos")):
        with pytest.raises(UsageError, match=rf"`messages` must .*: images, named-images, urls\. Got {got}\."):
            plan_stream("model", "kafka://one:9092/t", *places, messages=messages)
    wrong: list[dict[str, Any]] = [{"messages": "images"}, {"kafka_options": "file"}, {"allow_urls": ["/a"]}]
    for given in wrong:
        with pytest.raises(UsageError, match=rf"need a topic, kafka://host:port/topic\. Got {tmp_path}\."):
            plan_stream("model", str(tmp_path), *places, **given)


def test_urls_need_places_that_they_may_name_and_other_messages_take_none(tmp_path: Path) -> None:
    for messages, places in (("urls", None), ("urls", []), ("images", ["/a"]), ("named-images", ["/a"])):
        with pytest.raises(UsageError, match=r"`allow_urls` must name the folders.*, and only then"):
            open_topic("kafka://one:9092/t", messages, None, places)
    for places in ([""], ["s3://bucket/a"]):
        with pytest.raises(UsageError):
            open_topic("kafka://one:9092/t", "urls", None, places)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a=b\nsasl.password secret", "line 2 must be `name=value`"),
        ("=secret", "line 1 must be `name=value`"),
        ("Subscribe=other", "line 1: Subscribe is set by `finetune stream` itself"),
        (None, r"client.properties cannot be read: .*No such file"),
    ],
)
def test_wrong_options_are_refused_and_secrets_not_repeated(text: str | None, match: str, tmp_path: Path) -> None:
    options = tmp_path / "client.properties"
    if text is not None:
        options.write_text(text)
    with pytest.raises(UsageError, match=match) as refused:
        open_topic("kafka://one:9092/t", "images", str(options))
    assert "secret" not in str(refused.value)


@pytest.mark.spark
def test_a_missing_connector_is_named_by_its_coordinates(spark: SparkSession) -> None:
    with pytest.raises(UsageError, match=f"no connector for Kafka.*{CONNECTOR}") as refused:
        open_topic("kafka://localhost:1/t", "images", None).open(spark, most_per_batch=None)
    assert f"PYSPARK_SUBMIT_ARGS='--packages {CONNECTOR} pyspark-shell' finetune stream" in str(refused.value)


def test_the_connector_of_the_tests_is_the_one_that_is_recommended() -> None:
    for file in ("docs/streams.md", "scripts/kafka_jars.py"):
        assert CONNECTOR in (ROOT / file).read_text()


@pytest.mark.parametrize(
    ("value", "url"),
    [
        (b"/a b/%20#?.png", "file:///a b/%20#?.png"),
        (b"file:/a.png", "file:///a.png"),
        (b"file:///a/../b.png", "file:///b.png"),
        ("hdfs://name:1/ü.png".encode(), "hdfs://name:1/ü.png"),
        (b"a.png", None),
        (b"", None),
        (None, None),
        (b"https://host/a.png", None),
        (b"\xff\xd8\xff", None),
        (b"/a\0b", None),
        (b" /a.png", None),
        (b"hdfs://ada:secret@name:1/a.png", None),
    ],
)
def test_a_url_is_taken_as_it_is(value: bytes | None, url: str | None) -> None:
    assert read_url(value) == url
