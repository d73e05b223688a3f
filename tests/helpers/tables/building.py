"""Feature sets built by Spark from small pictures, and ways to look into them; for the tests."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from featurize import storage
from featurize.backbones.spec import PreparedBackbone
from featurize.building.build import BuildResult
from featurize.recipes.recipe import FeaturizeRecipe
from featurize.recipes.toml_settings import check_settings
from featurize.tables.manifests import FeaturesManifest
from featurize.tables.readable import read_features_manifest
from helpers.toml_files import write_toml

SPLIT = {"train": 0.6, "validation": 0.2, "test": 0.2, "seed": 7}


@dataclass(frozen=True)
class Built:
    folder: Path
    result: BuildResult
    backbone: PreparedBackbone
    manifest: FeaturesManifest


def recipe(source: str | Path, url: str | Path, backbone: str | Path, **changes: Any) -> FeaturizeRecipe:
    """The recipe of a small feature set, which may have any number of rejects. `changes` are single settings, by name."""
    settings = _settings(source, url, backbone)
    sections = {
        "split": "images",
        "max_reject_fraction": "images",
        "rows_per_group": "features",
        "follow_links": "images",
        "color": "images",
        "white": "images",
        "resize": "images",
        "interpolation": "images",
        "antialias": "images",
    }
    for key, value in {"max_reject_fraction": 1.0, **changes}.items():
        settings[sections.get(key, "backbone")][key] = value
    return check_settings(FeaturizeRecipe, settings, origin="test")


def write_recipe(
    path: Path, *, source: str | Path, url: str | Path, backbone: str | Path, **lower: Mapping[str, Any]
) -> Path:
    """Writes the recipe of a small feature set, with the default `max_reject_fraction`; returns `path`.

    Args:
        lower: the sections of the recipe's lower half, by name.
    """
    return write_toml(path, {**_settings(source, url, backbone), **lower})


def _settings(source: str | Path, url: str | Path, backbone: str | Path) -> dict[str, dict[str, Any]]:
    network = {"preprocessing": "none", "precision": "float32", "batch_size": 8}
    return {
        "images": {"source": str(source), "split": SPLIT},
        "backbone": {
            "name": str(backbone),
            "engine": "tensorflow",
            **({"height": 16, "width": 16} if backbone == "pixels" else network),
        },
        "features": {"url": str(url), "rows_per_group": 7},
    }


def files_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """When every file under `folder` was last changed, and what is in it."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def read_rows(folder: Path | str, version: int | None = None) -> pd.DataFrame:
    """All rows that the manifest lists, by path, with their split."""
    manifest, parts = read_features_manifest(str(folder), version), list[pd.DataFrame]()
    for file in manifest.files:
        with storage.open_input(storage.join_url(storage.absolute_url(str(folder)), file.path)) as opened:
            parts.append(pq.ParquetFile(opened).read().to_pandas().assign(split=file.split))
    return pd.concat(parts).set_index("path").sort_index()


def stacked(rows: pd.DataFrame) -> NDArray[np.float32]:
    """The features of all rows: float32 (n_images, feature_dim), of pixels too."""
    values = rows["features"].to_list()
    arrays = [np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value for value in values]
    return np.asarray(np.stack(arrays), np.float32)


def assert_same_rows(one: pd.DataFrame, other: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(one.drop(columns="features"), other.drop(columns="features"))
    np.testing.assert_allclose(stacked(one), stacked(other), rtol=1e-5, atol=1e-5)
