"""Streams of images for the tests: two models, a folder into which images come, what became of each of them."""

import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from featurize.jobs.run import featurize
from featurize.recipes.recipe import RegistrySettings
from featurize.sources.listing import ImageSource, planned_images
from featurize.tables.predictions import read_views
from finetune.registry.log_model import log_fit
from finetune.registry.versions import promote
from finetune.streams.checkpoint import Checkpoint
from finetune.streams.drift_windows import WindowSettings
from finetune.streams.folder import FolderImages
from finetune.streams.stream import LabelledBatch, Streamed, StreamPlan, plan_stream, run_stream
from helpers.images.photos import make_photos
from helpers.models.logged_models import client_of, registry_in, train_model
from helpers.services.processes import wait_until
from helpers.tables.building import recipe
from helpers.tables.predictions import read_predictions, read_rejects

Row = tuple[str, int | None, str]
HOSTILE = [
    *(
        "a:b",
        "[a]",
        "{a,b}",
        "a{1..2}",
        "100%",
        "%41",
        "%2F",
        "a%20b",
        "#1",
        "a b",
        " a",
        "a+b",
        "a&b=c;d",
        "a?b",
        "a*b",
    ),
    *(
        "a\\b",
        "a\\x41",
        "caf\\xe9",
        "line\nbreak",
        "tab\t",
        "\x01",
        "'a'",
        '"a"',
        "$HOME",
        "~",
        "@a",
        "^",
        "a|b",
        "<a>",
    ),
    *(
        "été",
        "e\u0301te\u0301",
        "日本",
        "😀",
        "\u202ea",
        "\u00a0",
        "label=abc",
        "file:",
        "hdfs:a",
        "a:b [1] {2}",
        "C:\\a",
        "-a",
    ),
]
"""Names of files and folders to which shells, URLs, patterns and encodings give a meaning."""


@dataclass(frozen=True)
class Models:
    """Two models on the pixels of the photos."""

    folder: Path
    ids: dict[str, str]

    def __getitem__(self, name: str) -> Path:
        return self.folder / name


def train_two(spark: SparkSession, photos: Path, folder: Path) -> Models:
    featurize(spark, recipe(photos, folder / "pixels", "pixels", height=12, width=12))
    rates = {"old": 0.1, "new": 0.3}
    cards = {name: train_model(folder / "pixels", folder / name, learning_rate=rate) for name, rate in rates.items()}
    return Models(folder, {name: card.model_id for name, card in cards.items()})


def copy_models(trained: Models, folder: Path) -> Models:
    """A registry leaves its record in the folder of a model."""
    for name in trained.ids:
        shutil.copytree(trained[name], folder / name)
    return Models(folder, trained.ids)


def register_both(models: Models, folder: Path) -> RegistrySettings:
    """A registry in `folder` in which both models are logged, and the old one is `photos@champion`."""
    settings = registry_in(folder)
    for name in ("new", "old"):
        promote_to(settings, models[name])
    return settings


def promote_to(settings: RegistrySettings, model: Path) -> None:
    logged = log_fit(str(model), settings)
    assert logged is not None
    client = client_of(settings)
    promote(client, client.get_run(logged.run_id), "champion", name="photos")


@dataclass(frozen=True)
class Place:
    """A folder into which images come, and a stream of one's own."""

    spark: SparkSession
    folder: Path

    @property
    def images(self) -> Path:
        return self.folder / "images [today] 100% {new}"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    def arrive(self, step: int, *, per_class: int = 3, corrupt: int = 1) -> None:
        """Images are moved in, into a folder of their own, and corrupt files among them."""
        made = self.folder / "made"
        make_photos(made, per_class=per_class, seed=step)
        for number in range(corrupt):
            (made / "red" / f"torn {number}.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
        made.rename(self.images / f"step #{step}?")

    def plan(self, model: Path | str, **given: Any) -> StreamPlan:
        return plan_stream(str(model), str(self.images), str(self.out), str(self.checkpoint), **given)

    def run(self, model: Path | str, *, windows: WindowSettings | None = None, **given: Any) -> Streamed:
        """Labels what is there."""
        return run_stream(self.spark, self.plan(model, windows=windows), once=True, **given)

    def partition(self, model_id: str) -> Path:
        return self.out / f"model_id={model_id}"

    def paths(self) -> list[str]:
        """The files that are there, as the predictions name them."""
        return sorted(f"file://{path}" for path in self.images.rglob("*") if path.is_file())

    def done(self) -> list[str]:
        """The images in all tables, rejects too: an image that is in two of them is there twice."""
        published = read_views(str(self.out))
        rejects = [read_rejects(self.partition(model_id)) for model_id, m in published.manifests.items() if m.rejects]
        return sorted([*read_predictions(self.out).index, *(path for rows in rejects for path in rows["path"])])


class Running:
    """A stream that watches, in a thread; it is asked to stop at the end."""

    def __init__(self, place: Place, model: Path | str) -> None:
        self._asked, self.batches = threading.Event(), list[LabelledBatch]()
        self.done: Streamed | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(place, model))

    def _run(self, place: Place, model: Path | str) -> None:
        try:
            self.done = run_stream(
                place.spark,
                place.plan(model),
                trigger_s=0.2,
                is_asked_to_stop=self._asked.is_set,
                on_batch=self.batches.append,
            )
        except BaseException as error:
            self._error = error

    def __enter__(self) -> "Running":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._asked.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def wait_for(self, images: int) -> None:
        """Until so many images are done, or the stream has ended."""
        wait_until(
            lambda: self._error or sum(b.account.found for b in self.batches) >= images,
            f"{images} images",
            timeout_s=120,
        )


def rows_of(source: ImageSource) -> list[Row]:
    """Path, size and stamp of the images of a source, sorted."""
    return sorted((image.path, image.bytes_size, image.stamp) for image in planned_images(source.listing))


def listed_by_stream(spark: SparkSession, url: str, checkpoint: str) -> list[list[Row]]:
    """The images of each batch of a stream from the folder at `url`, none of which is labelled."""
    images, kept = FolderImages(url), Checkpoint(checkpoint)
    batches: list[list[Row]] = []

    def keep(batch: DataFrame, batch_id: int) -> None:
        with images.of_batch(batch, batch_id, kept) as found:
            assert (found.found, found.gone) == (found.source.images, 0)
            batches.append(rows_of(found.source))

    frame = images.open(spark, most_per_batch=60)
    query = frame.writeStream.foreachBatch(keep).option("checkpointLocation", checkpoint)
    query.trigger(availableNow=True).start().awaitTermination()
    return batches
