"""The Arrow schemas of the published tables. That of a feature set depends on its columns of features."""

from collections.abc import Mapping

import pyarrow as pa

IMAGES_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("path", pa.string()),
        ("label", pa.string()),
        ("label_index", pa.int32()),
        ("split", pa.string()),
        ("format", pa.string()),
        ("mode", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bytes_size", pa.int64()),
        ("content", pa.binary()),
        ("exif", pa.map_(pa.string(), pa.string())),
        ("camera", pa.string()),
        ("aperture", pa.float32()),
        ("exposure_s", pa.float32()),
        ("iso", pa.int32()),
        ("focal_length_mm", pa.float32()),
        ("taken_at", pa.string()),
        ("latitude", pa.float64()),
        ("longitude", pa.float64()),
        ("altitude_m", pa.float32()),
        ("colour_mean", pa.list_(pa.float32())),
        ("colour_std", pa.list_(pa.float32())),
        ("notes", pa.list_(pa.string())),
    ]
)
"""The images table: one row for each image that can be decoded."""
REJECTS_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("path", pa.string()),
        ("bytes_size", pa.int64()),
        ("stage", pa.string()),
        ("error", pa.string()),
    ]
)
"""Images that could not be read or decoded, of every kind of table."""
INDEX_SCHEMA = pa.schema([(name, pa.large_string()) for name in ("path", "image_id", "stamp")])
"""Facts about the images in a shard, rows and rejects, that a later run needs: one small file for each shard."""
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
        ("projection", pa.list_(pa.float32())),
    ]
)
"""The columns of predictions. `model_id` is in the name of their folder: ``model_id=<model_id>``.

`projection` serves `finetune drift`: random features of the model's view of the image, or null.
"""


def features_schema(columns: Mapping[str, bool]) -> pa.Schema:
    """The columns of a feature set. Features are ``list<float>``, or raw bytes where they are pixels.

    Args:
        columns: the names of the columns of features, and whether they are pixels.
    """
    return pa.schema(
        [
            ("image_id", pa.string()),
            ("path", pa.string()),
            ("label", pa.string()),
            ("label_index", pa.int32()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            *((name, pa.binary() if is_bytes else pa.list_(pa.float32())) for name, is_bytes in columns.items()),
        ]
    )
