"""Feature sets built by Spark from small pictures, and ways to look into them; for the tests."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from featurize.backbones import PreparedBackbone
from featurize.manifests import FeaturesManifest, read_features_manifest
from featurize.recipe import FeaturizeRecipe
from featurize.settings import check_settings
from featurize.tables import BuildResult

SPLIT = {"train": 0.6, "validation": 0.2, "test": 0.2, "seed": 7}


@dataclass(frozen=True)
class Built:
    folder: Path
    result: BuildResult
    backbone: PreparedBackbone
    manifest: FeaturesManifest


def recipe(source: Path, url: Path, backbone: Path, **changes: Any) -> FeaturizeRecipe:
    settings: dict[str, Any] = {
        "images": {
            "source": str(source),
            "split": changes.pop("split", SPLIT),
            "max_reject_fraction": changes.pop("max_reject_fraction", 1.0),
        },
        "backbone": {"name": str(backbone), "preprocessing": "none", "precision": "float32", "batch_size": 8},
        "features": {"url": str(url), "rows_per_group": 7},
    }
    for key, value in changes.items():
        settings["features" if key == "rows_per_group" else "backbone"][key] = value
    return check_settings(FeaturizeRecipe, settings, origin="test")


def files_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """When every file under `folder` was last changed, and what is in it."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def read_rows(folder: Path) -> pd.DataFrame:
    """All rows that the manifest lists, by path, with their split."""
    manifest = read_features_manifest(str(folder))
    parts = [pq.ParquetFile(folder / file.path).read().to_pandas().assign(split=file.split) for file in manifest.files]
    return pd.concat(parts).set_index("path").sort_index()


def stacked(rows: pd.DataFrame) -> NDArray[np.float32]:
    return np.stack(rows["features"].to_list())


def assert_same_rows(one: pd.DataFrame, other: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(one.drop(columns="features"), other.drop(columns="features"))
    np.testing.assert_allclose(stacked(one), stacked(other), rtol=1e-5, atol=1e-5)
