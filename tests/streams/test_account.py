"""Tests of finetune.streams.account: what a stream finds is labelled, rejected, gone or was labelled before, in every batch."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from helpers.project import Firn
from helpers.tables.stream_places import Models, Place, train_two
from pyspark.sql import SparkSession

from featurize.errors import JobError
from finetune.prediction import predict
from finetune.streams import stream
from finetune.streams.account import Account
from finetune.streams.spark_log import files_of_batch
from finetune.streams.stream import LabelledBatch


@pytest.fixture(scope="module")
def trained(spark: SparkSession, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    return train_two(spark, photos, tmp_path_factory.mktemp("account"))


@pytest.fixture
def place(spark: SparkSession, tmp_path: Path) -> Place:
    place = Place(spark, tmp_path)
    place.images.mkdir()
    return place


@pytest.mark.spark
@pytest.mark.slow
def test_every_image_is_accounted_for_in_every_batch(trained: Models, place: Place) -> None:
    place.arrive(1, corrupt=2)
    folder = place.images / "step #1?"
    (folder / "empty.png").touch()
    (folder / "Thumbs.db").write_bytes(b"no image")
    batches: list[LabelledBatch] = []

    def watch(batch: LabelledBatch) -> None:
        batches.append(batch)
        if batch.batch_id == 0:  # all have been listed
            done = set(place.done())
            left = [
                path for path in place.paths() if path not in done and "torn" not in path and path.endswith("0.png")
            ]
            Path(left[0].removeprefix("file://")).unlink()
        if batch.batch_id == 1:
            raise RuntimeError("in mid-batch")  # published, but Spark does not know

    with pytest.raises(RuntimeError, match="in mid-batch"):
        place.run(trained["old"], most_per_batch=4, on_batch=watch)
    place.arrive(2, corrupt=0)
    done = place.run(trained["old"], most_per_batch=4, on_batch=batches.append)
    for batch in batches:
        account = batch.account
        assert account.found == account.labelled + account.rejected + account.gone + account.labelled_before, batch
    killed, again = (batch.account for batch in batches if batch.batch_id == 1)
    assert again == Account(killed.found, gone=killed.gone, labelled_before=killed.found - killed.gone)
    total = batches[0].account
    for batch in batches[2:]:
        total = total.plus(batch.account)
    assert total.found == 12 + 9
    assert total.gone == 1
    assert total.labelled + killed.labelled == 8 + 9
    assert total.rejected + killed.rejected == 3
    assert place.done() == [path for path in place.paths() if not path.endswith("Thumbs.db")]
    assert done.account.found == sum(batch.account.found for batch in batches[2:])


@pytest.mark.spark
@pytest.mark.slow
def test_a_batch_that_does_not_add_up_is_not_done_and_loses_nothing(
    trained: Models, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.arrive(1)
    label = predict.label_planned

    def forget_one(*arguments: Any, **given: Any) -> Any:
        made = label(*arguments, **given)
        return replace(made, result=replace(made.result, added=made.result.added - 1))

    with monkeypatch.context() as patch:
        patch.setattr(stream, "label_planned", forget_one)
        numbers = "10 images were found, and 9 are accounted for: 8 labelled, 1 rejected, 0 gone"
        with pytest.raises(JobError, match=f"batch 0 does not add up: {numbers}"):
            place.run(trained["old"])
    done = place.run(trained["old"])
    assert done.account == Account(10, labelled_before=10)
    assert place.done() == place.paths()


@pytest.mark.spark
@pytest.mark.slow
def test_the_command_prints_the_account(firn: Firn, trained: Models, place: Place) -> None:
    place.arrive(1)
    places = ["--images", str(place.images), "--output", str(place.out), "--checkpoint", str(place.checkpoint)]
    ended = firn("finetune", "stream", str(trained["old"]), *places, "--once", "--json")
    assert ended.returncode == 0, ended.stderr
    answer = json.loads(ended.stdout.splitlines()[-1])
    assert answer["images"] == asdict(Account(10, labelled=9, rejected=1))
    said = ended.stderr.replace("\n", " ")
    assert f"batch 0: 10 images found, 9 labelled by {trained.ids['old'][:16]}, 1 rejected, 0 gone;" in said
    assert "10 images found in 1 batches, 9 labelled, 1 rejected, 0 gone;" in said


@pytest.mark.parametrize("missing", ["labelled", "rejected", "gone", "labelled_before"])
def test_numbers_add_up_or_are_an_error(missing: str) -> None:
    account = Account(10, labelled=1, rejected=2, gone=3, labelled_before=4, waiting=7)
    account.check(5)
    with pytest.raises(JobError, match="batch 5 does not add up: 10 images were found, and 9 are accounted for"):
        replace(account, **{missing: getattr(account, missing) - 1}).check(5)
    with pytest.raises(JobError, match="and 11 are accounted for"):
        replace(account, **{missing: getattr(account, missing) + 1}).check(5)


# What Spark records


def entry(name: str, number: int) -> str:
    return json.dumps({"path": f"file:///in/{name}", "timestamp": 1, "batchId": number})


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["v1", *lines]))


def test_a_batch_has_the_files_of_its_listings_also_of_those_put_together(tmp_path: Path) -> None:
    for batch, offset in enumerate((0, 2, 3, 4)):
        write(tmp_path / "offsets" / str(batch), "{}", json.dumps({"logOffset": offset}))
    sources = tmp_path / "sources" / "0"
    first = [entry("a%20%25b.png", 0), entry("b.png", 1), entry("c%0A.png", 2)]
    write(sources / "0", first[0])
    write(sources / "2.compact", *first)
    write(sources / "4.compact", *first, entry("%5Bé%5D.png", 3), entry("e.png", 4), entry("e.png", 4))
    found = [files_of_batch(str(tmp_path), batch) for batch in range(4)]
    names = ["a %b.png"], ["b.png", "c\n.png"], ["[é].png"], ["e.png"]
    assert found == [[f"file:///in/{name}" for name in listed] for listed in names]


@pytest.mark.parametrize("spoilt", ["offsets/0", "offsets/1", "sources/0/1"])
@pytest.mark.parametrize("content", [None, "", "v1\n{", "v1\n[]\n[]", "v2\n{}\n{}"])
def test_a_damaged_record_is_named(tmp_path: Path, spoilt: str, content: str | None) -> None:
    for number in (0, 1):
        write(tmp_path / "offsets" / str(number), "{}", json.dumps({"logOffset": number}))
        write(tmp_path / "sources" / "0" / str(number), entry("a.png", number))
    assert files_of_batch(str(tmp_path), 1) == ["file:///in/a.png"]
    if content is None:
        (tmp_path / spoilt).unlink()
    else:
        (tmp_path / spoilt).write_text(content)
    with pytest.raises(JobError, match=f"{spoilt}, in which Spark records what it has found, is missing or damaged"):
        files_of_batch(str(tmp_path), 1)
