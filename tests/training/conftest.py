"""A feature set that the tests of training share."""

from pathlib import Path

import pytest
from helpers.tables.feature_sets import make_clusters, write_feature_set


@pytest.fixture(scope="session")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A feature set of 200 rows in three classes; do not change it."""
    folder = tmp_path_factory.mktemp("features") / "set"
    values, label_index = make_clusters(200, spread=2.0)
    write_feature_set(folder, values, label_index)
    return folder


@pytest.fixture
def model_url(tmp_path: Path) -> Path:
    return tmp_path / "model"
