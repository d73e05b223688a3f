"""Small tables for the tests of SQL, with files beside them that are not theirs."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from featurize.building.shard_files import ShardWriter
from featurize.digests import settings_digest
from featurize.tables.manifests import PREDICTED, FeaturesManifest, PredictionsManifest, library_versions, utc_now
from featurize.tables.schemas import PREDICTIONS_SCHEMA
from featurize.timings import Timings
from helpers.tables.feature_sets import image_ids, make_clusters, write_feature_set
from helpers.tables.publishing import write_manifest

ODD_NAMES = [
    "my photos",
    "50% off",
    "a+b",
    "été",
    "split=train",
    "label=abc",
    "c#1",
    "what?",
    "[a]*",
    "it's; {b}",
    "a\\b",
    "2026-11-27T10:15 [v1]",
]


def write_features(folder: Path, *, rows: int = 50) -> FeaturesManifest:
    """A feature set of `rows` rows, and in each folder of its data a file of a run that was never finished."""
    features, label_index = make_clusters(rows)
    manifest = write_feature_set(folder, features, label_index, shards=[range(rows)])
    for file in manifest.files:
        path = folder / file.path
        shutil.copy(path, path.with_name("part-deadbeef-00000-9.parquet"))
    return manifest


def write_predictions(output: Path, models: dict[str, list[str | None]]) -> None:
    """Predictions of some models for the images of `write_features`, a label or null each, and a file that does not count.

    There are no `views.json`: the view `latest` shows the last of the models.
    """
    for number, (model_id, labels) in enumerate(models.items()):
        folder = output / f"model_id={model_id}"
        writer = ShardWriter(
            str(folder),
            "00000001-00000-1",
            PREDICTIONS_SCHEMA,
            rows_per_group=16,
            by_split=False,
            plain_columns=("image_id", "path", "probability"),
        )
        writer.write([PREDICTED] * len(labels), ["1:1"] * len(labels), prediction_columns(labels))
        record = writer.close()
        path = folder / record.files[0].path
        shutil.copy(path, path.with_name("part-deadbeef-00000-9.parquet"))
        settings = {"table": "predictions", "model_id": model_id}
        manifest = PredictionsManifest(
            identity=settings_digest(settings),
            settings=settings,
            classes=["ant", "bee", "cat"],
            rows=record.rows,
            rejects={},
            content_digest=record.content_digest,
            shards=[record],
            created_at=utc_now(),
            updated_at=f"2026-01-01T00:00:{number:02d}Z",
            seconds=1.0,
            timings=Timings(),
            versions=library_versions(),
            model_id=model_id,
            preparation_id="0" * 64,
            model={"model_id": model_id},
            threshold=None,
            source={"kind": "features"},
        )
        write_manifest(str(folder), manifest)


def write_plain_predictions(output: Path, models: dict[str, list[str | None]]) -> None:
    """The same as folders of Parquet without manifests, as any program may write them."""
    for model_id, labels in models.items():
        folder = output / "data" / f"model_id={model_id}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table(prediction_columns(labels), PREDICTIONS_SCHEMA), folder / "part-0.parquet")
        (folder / "_SUCCESS").touch()


def prediction_columns(labels: list[str | None]) -> dict[str, list[object]]:
    rows = range(len(labels))
    return {
        "image_id": list(image_ids(len(labels))),
        "path": [f"photos/{row:05d}.png" for row in rows],
        "label": list(labels),
        "probability": [0.5 + row / (2 * len(labels)) for row in rows],
        "top_labels": [["ant", "bee", "cat"] for _ in rows],
        "top_probabilities": [[0.5, 0.3, 0.2] for _ in rows],
        "predicted_at": [1_700_000_000_000_000 + row for row in rows],
        "reason": [None if label is not None else "below the threshold" for label in labels],
        "projection": [[0.6, 0.8] for _ in rows],
    }
