"""The rows of a feature set, wherever it lies, to be compared with those of another."""

import pandas as pd

from featurize.storage import absolute_url
from featurize.tables.readable import read_features_manifest
from featurize.tables.row_groups import read_table

_COLUMNS = ("image_id", "path", "label", "label_index", "width", "height", "features")


def rows_at(url: str) -> pd.DataFrame:
    """All rows that the manifest at `url` lists, by path below the source, with their split."""
    manifest = read_features_manifest(url)
    source = absolute_url(manifest.recipe["images"]["source"]) + "/"
    parts: list[pd.DataFrame] = [
        read_table(url, manifest, split, _COLUMNS).to_pandas().assign(split=split) for split in manifest.rows
    ]
    rows = pd.concat(parts)
    assert rows["path"].str.startswith(source).all()
    return rows.assign(path=rows["path"].str.removeprefix(source)).set_index("path").sort_index()
