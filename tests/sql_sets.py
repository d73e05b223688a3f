"""Small tables for the tests of SQL, with files beside them that are not theirs."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from feature_sets import image_ids, make_clusters, write_feature_set

from featurize.manifests import FeaturesManifest

ODD_NAMES = ["my photos", "50% off", "a+b", "été", "split=train", "c#1", "what?", "[a]*", "it's; {b}", "a\\b"]
PREDICTIONS_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("path", pa.string()),
        ("label", pa.string()),
        ("probability", pa.float32()),
        ("top_labels", pa.list_(pa.string())),
        ("top_probabilities", pa.list_(pa.float32())),
        ("predicted_at", pa.timestamp("us", tz="UTC")),
        ("reason", pa.string()),
    ]
)


def write_features(folder: Path, *, rows: int = 50) -> FeaturesManifest:
    """A feature set of `rows` rows, and in each folder of its data a file of a run that was never finished."""
    features, label_index = make_clusters(rows)
    manifest = write_feature_set(folder, features, label_index, shards=[range(rows)])
    for file in manifest.files:
        path = folder / file.path
        shutil.copy(path, path.with_name("part-deadbeef-00000-9.parquet"))
    return manifest


def write_predictions(output: Path, models: dict[str, list[str | None]]) -> None:
    """Predictions of some models for the images of `write_features`, a label or null each, and a file that does not count."""
    for model_id, labels in models.items():
        folder = output / f"model_id={model_id}"
        (folder / "data").mkdir(parents=True)
        path = folder / "data" / "part-00000001-00000-1.parquet"
        pq.write_table(pa.table(prediction_columns(labels), PREDICTIONS_SCHEMA), path)
        shutil.copy(path, path.with_name("part-deadbeef-00000-9.parquet"))
        file = {"path": f"data/{path.name}", "rows": len(labels), "bytes": path.stat().st_size, "split": None}
        manifest = {"kind": "predictions", "schema_version": 2, "shards": [{"files": [file], "reject_files": []}]}
        (folder / "manifest.json").write_text(json.dumps(manifest))


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
    }
