"""Tests of finetune.streams.stream: what arrives is labelled once, by one model, whatever dies or moves meanwhile."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.project import Firn
from helpers.tables.predictions import assert_same_predictions, manifest_of, predicted, read_predictions, read_rejects
from helpers.tables.stream_places import Models, Place, Running, copy_models, promote_to, register_both, train_two
from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

from featurize.errors import JobError, UsageError
from featurize.recipes.recipe import RegistrySettings
from featurize.sql.tables import find_tables
from featurize.storage.claims import CLAIM_NAME, claim_output
from featurize.tables.predictions import read_views
from featurize.upkeep.compaction import compact_table
from finetune.registry.client import ENVIRONMENT
from finetune.streams.checkpoint import Checkpoint, Pin, StreamRecord
from finetune.streams.folder import stream_files
from finetune.streams.stream import LabelledBatch, plan_stream, run_stream

pytestmark = [
    pytest.mark.spark,
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def trained(spark: SparkSession, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    return train_two(spark, photos, tmp_path_factory.mktemp("stream"))


@pytest.fixture
def models(trained: Models, tmp_path: Path) -> Models:
    return copy_models(trained, tmp_path / "models")


@pytest.fixture
def registry(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RegistrySettings:
    settings = register_both(models, tmp_path)
    monkeypatch.setenv(ENVIRONMENT, str(settings.url))
    return settings


@pytest.fixture
def place(spark: SparkSession, tmp_path: Path) -> Place:
    place = Place(spark, tmp_path)
    place.images.mkdir()
    return place


def test_a_stream_fed_in_steps_equals_the_batch_job(trained: Models, place: Place) -> None:
    place.arrive(1)
    done = place.run(trained["old"])
    assert (done.batches, done.added, done.account.rejected) == (1, {trained.ids["old"]: 9}, 1)
    place.arrive(2, per_class=2, corrupt=0)
    place.arrive(3, per_class=2, corrupt=2)
    done = place.run(trained["old"], most_per_batch=5)
    assert (done.batches, done.added, done.account.rejected) == (3, {trained.ids["old"]: 12}, 2)
    assert place.done() == place.paths()
    with claim_output(f"file://{place.partition(trained.ids['old'])}") as claim:
        assert compact_table(f"file://{place.partition(trained.ids['old'])}", claim).after == 1
    again = place.run(trained["old"])
    assert (again.batches, again.added, again.account.labelled_before) == (0, {}, 0)

    predicted(place.spark, trained["old"], place.folder / "batch", images=place.images)
    assert_same_predictions(read_predictions(place.out), read_predictions(place.folder / "batch"))
    stream, batch = (folder / f"model_id={trained.ids['old']}" for folder in (place.out, place.folder / "batch"))
    for key in ("identity", "rows", "rejects", "content_digest", "classes", "model"):
        assert getattr(manifest_of(stream), key) == getattr(manifest_of(batch), key), key
    assert_same_rejects(stream, batch)
    then = predicted(place.spark, trained["old"], place.out, images=place.images)  # knows them, and by their stamps
    assert (then.added, then.skipped, then.changed) == (0, 24, 0)


def assert_same_rejects(one: Path, other: Path) -> None:
    columns = ["image_id", "path", "bytes_size", "stage", "error"]
    first, second = (read_rejects(folder).sort_values("path")[columns] for folder in (one, other))
    assert first.to_dict("list") == second.to_dict("list")


def test_spark_opens_no_file_and_passes_over_hidden_ones(trained: Models, place: Place) -> None:
    place.arrive(1, corrupt=0)
    for name in (".hidden.png", "_copying.png", "a.png._COPYING_"):
        (place.images / name).write_bytes(b"half of it")
    files = stream_files(place.spark, f"file://{place.images}", most_per_batch=None)
    files.sparkSession.conf.set("spark.sql.sources.binaryFile.maxLength", "0")  # Spark fails where it opens a file
    found: list[str] = []
    query = files.writeStream.foreachBatch(lambda batch, _: found.extend(row["path"] for row in batch.collect()))
    query.option("checkpointLocation", str(place.folder / "cp")).trigger(availableNow=True).start().awaitTermination()
    assert len(found) == 9
    with pytest.raises(Py4JJavaError, match="exceeds the max length allowed"):
        files.sparkSession.read.format("binaryFile").load(str(place.folder / "images*/step*/red")).collect()
    assert place.run(trained["old"]).account.rejected == 0
    (place.images / "a.png._COPYING_").rename(place.images / "a.png")
    assert place.run(trained["old"]).account.rejected == 1


def test_corrupt_files_alone_end_no_stream(trained: Models, place: Place) -> None:
    place.arrive(1, per_class=0, corrupt=0)
    (place.images / "step #1?" / "notes.txt").write_text("no image")
    done = place.run(trained["old"])
    assert (done.batches, done.added, done.account.rejected) == (1, {trained.ids["old"]: 0}, 1)
    assert {table.name for table in find_tables(predictions=str(place.out))} >= {"predictions", "rejects", "latest"}
    place.arrive(2, corrupt=0)
    assert place.run(trained["old"]).added == {trained.ids["old"]: 9}
    assert place.done() == place.paths()


def test_a_changed_image_costs_no_other_one_its_row(trained: Models, place: Place) -> None:
    place.arrive(1, corrupt=0)
    predicted(place.spark, trained["old"], place.out, images=place.images)  # one shard
    before = read_predictions(place.out)
    shutil.copy(place.images / "step #1?" / "red" / "000.png", place.images / "step #1?" / "blue" / "000.png")
    done = place.run(trained["old"], most_per_batch=4)
    assert (done.batches, done.added, done.account.labelled_before) == (3, {trained.ids["old"]: 0}, 9)
    assert_same_predictions(read_predictions(place.out), before)
    assert predicted(place.spark, trained["old"], place.out, images=place.images).changed == 1


def test_a_moved_alias_exchanges_the_model_between_two_batches(
    models: Models, registry: RegistrySettings, place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    with Running(place, "photos@champion") as stream:
        place.arrive(1)
        stream.wait_for(10)
        promote_to(registry, models["new"])
        place.arrive(2)
        stream.wait_for(20)
        registry_file = place.folder / "mlflow.db"
        registry_file.rename(place.folder / "away.db")
        place.arrive(3)
        stream.wait_for(30)
        (place.folder / "away.db").rename(registry_file)
    assert stream.done is not None
    assert stream.done.is_stopped
    assert place.done() == place.paths()
    rows = read_predictions(place.out)
    by_step = {step: set(rows[rows.index.str.contains(f"step #{step}")]["model_id"]) for step in (1, 2, 3)}
    assert by_step == {1: {models.ids["old"]}, 2: {models.ids["new"]}, 3: {models.ids["new"]}}
    views = read_views(str(place.out)).views
    assert views.by_name() == {"champion": models.ids["new"], "latest": models.ids["new"]}
    said = capfd.readouterr().err.replace("\n", " ")
    assert f"photos@champion is now the model {models.ids['new'][:16]}" in said
    assert f"the model {models.ids['new'][:16]} continues to label: there is no registry" in said
    for name, model_id in models.ids.items():
        one = rows[rows["model_id"] == model_id]
        alone = place.folder / f"alone-{name}"
        for path in one.index:
            target = alone / path.removeprefix(f"file://{place.images}/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path.removeprefix("file://"), target)
        predicted(place.spark, models[name], place.folder / f"batch-{name}", images=alone)
        wanted = read_predictions(place.folder / f"batch-{name}")
        wanted.index = wanted.index.str.replace(str(alone), str(place.images), regex=False)
        assert_same_predictions(one, wanted)


def test_all_places_may_be_relative(
    trained: Models, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_models(trained, tmp_path / "models")
    place.arrive(1, per_class=2)
    monkeypatch.chdir(tmp_path)
    names = (path.relative_to(tmp_path).as_posix() for path in (place.images, place.out, place.checkpoint))
    plan = plan_stream("models/old", *names)
    assert run_stream(place.spark, plan, once=True).added == {trained.ids["old"]: 6}
    assert place.done() == place.paths()


def test_a_batch_is_finished_by_the_model_that_began_it(
    models: Models, registry: RegistrySettings, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.arrive(1)
    with pytest.raises(RuntimeError, match="in mid-batch"):
        place.run("photos@champion", on_batch=fail)  # published, but Spark does not know
    promote_to(registry, models["new"])
    place.arrive(2)
    done = place.run("photos@champion")
    assert done.added == {models.ids["old"]: 0, models.ids["new"]: 9}
    assert done.account.labelled_before == 10
    assert place.done() == place.paths()
    pins = sorted(path.name for path in (place.checkpoint / "firn").iterdir())
    assert pins == ["batch-1.json", "stream.json"]


def fail(_: LabelledBatch) -> None:
    raise RuntimeError("in mid-batch")


def test_a_batch_whose_model_is_gone_is_refused_and_a_copy_in_the_registry_will_do(
    models: Models, registry: RegistrySettings, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(place.folder / "cache"))
    place.arrive(1)
    for model in ("photos@champion", models["old"]):
        with pytest.raises(RuntimeError, match="in mid-batch"):
            place.run(model, on_batch=fail)
        shutil.move(models["old"], place.folder / "gone")
        promote_to(registry, models["new"])
        if model == "photos@champion":
            assert place.run(model).added == {models.ids["old"]: 0}
            shutil.move(place.folder / "gone", models["old"])
            place.arrive(2)
        else:
            with pytest.raises(JobError, match=r"batch-1.json was begun with the model .*which is no longer in"):
                place.run(models["new"])
    assert place.done() == place.paths()


def test_a_second_stream_is_refused_by_the_name_of_the_first(trained: Models, place: Place) -> None:
    with (
        claim_output(str(place.checkpoint / "firn")),
        pytest.raises(JobError, match="checkpoint/firn is being written by"),
    ):
        place.run(trained["old"])
    with Running(place, trained["old"]) as stream:
        place.arrive(1)
        stream.wait_for(10)
        other = plan_stream(str(trained["old"]), str(place.images), str(place.out), str(place.folder / "other"))
        with pytest.raises(JobError, match=f"model_id={trained.ids['old']} is being written by process"):
            run_stream(place.spark, other, once=True)
        with pytest.raises(JobError, match="is being written by process"):
            predicted(place.spark, trained["old"], place.out, images=place.images)
        predicted(place.spark, trained["new"], place.out, images=place.images)
    assert not (place.folder / "other").exists()
    assert len(read_predictions(place.out)) == 18
    assert not list(place.folder.rglob(CLAIM_NAME))


def test_what_is_wrong_with_a_call_is_said(trained: Models, place: Place) -> None:
    def refused(match: str, model: Path | str = trained["old"], **given: Path) -> None:
        before = set(place.folder.rglob("*"))
        urls = {"images": place.images, "output": place.out, "checkpoint": place.checkpoint, **given}
        with pytest.raises(UsageError, match=match):
            plan_stream(str(model), *(str(urls[key]) for key in ("images", "output", "checkpoint")))
        assert set(place.folder.rglob("*")) == before

    refused("there is no model .*nowhere", place.folder / "nowhere")
    refused("there is no folder .*none", images=place.folder / "none")
    refused("is a feature set; a stream watches a folder", images=trained["pixels"])
    refused("its files would be taken for images", output=place.images / "out")
    refused("its files would be taken for images", checkpoint=place.images)
    refused("lie within each other", checkpoint=place.out / "checkpoint")
    refused("predictions need a folder of their own", output=trained["pixels"])
    refused("is not a checkpoint of `finetune stream`: it contains .*", checkpoint=trained["old"])
    place.arrive(1)
    place.run(trained["old"])
    (place.folder / "elsewhere").mkdir()
    refused(r"of a stream with `images` .*today.*\. Got .*elsewhere", images=place.folder / "elsewhere")
    refused(r"of a stream with `output` .*out\. Got .*out2", output=place.folder / "out2")
    (place.checkpoint / "firn" / "stream.json").write_text("{")
    with pytest.raises(JobError, match=r"stream\.json is damaged"):
        place.plan(trained["old"])


def test_predictions_of_another_precision_are_refused_before_the_first_batch(trained: Models, place: Place) -> None:
    place.arrive(1)
    place.run(trained["old"])
    with pytest.raises(UsageError, match=r"made with other settings.*\n.*threshold"):
        run_stream(place.spark, place.plan(trained["old"], target_precision=0.5), once=True)


def test_the_command_says_what_it_did(
    firn: Firn, trained: Models, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.arrive(1)
    first = min(place.images.rglob("*.png"))
    first.rename(first.with_name("café 😀.png"))
    monkeypatch.setenv("LC_ALL", "POSIX")
    places = ["--images", str(place.images), "--output", str(place.out), "--checkpoint", str(place.checkpoint)]
    wrong = firn("finetune", "stream", "nowhere", *places, timeout_s=120)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "there is no model nowhere" in wrong.stderr
    ended = firn("finetune", "stream", str(trained["old"]), *places, "--once", "--json")
    assert ended.returncode == 0, ended.stderr
    answer = json.loads(ended.stdout.splitlines()[-1])
    assert (answer["rows"], answer["rejects"], answer["batches"], answer["is_stopped"]) == (9, 1, 1, False)
    assert answer["rows_by_model"] == {trained.ids["old"]: 9}
    assert answer["views"] == {"latest": trained.ids["old"]}
    assert f"batch 0: 10 images found, 9 labelled by {trained.ids['old'][:16]}, 1 rejected" in ended.stderr
    assert "1 of 10 images of batch 0 could not be read, more than" in ended.stderr


@pytest.fixture
def pinned(tmp_path: Path) -> Iterator[Callable[[int, str], Pin]]:
    checkpoint = Checkpoint(f"file://{tmp_path}/checkpoint")
    checkpoint.begin(StreamRecord(images="file:///images", output="file:///out"))

    def pin(batch_id: int, query: str) -> Pin:
        written = Pin(query=query, model_id="m", name="n", url="file:///m", pinned_at="now")
        checkpoint.write_pin(batch_id, written)
        assert checkpoint.read_pin(batch_id, query) == written
        assert checkpoint.read_pin(batch_id, f"another than {query}") is None
        return written

    yield pin
    names = sorted(path.name for path in (tmp_path / "checkpoint" / "firn").iterdir())
    assert names == ["batch-10.json", "stream.json"]


def test_only_the_last_pin_is_kept(pinned: Callable[[int, str], Pin]) -> None:
    for batch_id in (1, 9, 10):
        pinned(batch_id, "q")
