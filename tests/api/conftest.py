"""What the tests of the face share: a feature set and a model on it; do not change them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.models.report_folders import HOSTILE
from helpers.tables.feature_sets import make_clusters, write_feature_set

import finetune
from finetune.api.model import Model


@pytest.fixture(scope="session")
def feature_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 training rows of three classes that overlap, one with a name that is HTML; validation and test rows too."""
    folder = tmp_path_factory.mktemp("face") / "set"
    features, label_index = make_clusters(400, dim=6, spread=3.0)
    write_feature_set(folder, features, label_index, classes=[HOSTILE, "dog", "owl"])
    return folder


@pytest.fixture(scope="session")
def make_document(feature_set: Path) -> Callable[..., dict[str, Any]]:
    """A recipe as a mapping: a softmax head on `feature_set`, at the given folder."""

    def make(folder: Path, **training: Any) -> dict[str, Any]:
        return {
            "features": {"url": str(feature_set)},
            "model": {"url": str(folder)},
            "training": {"epochs": 3, "batch_size": 32, "learning_rate": 0.1, **training},
        }

    return make


@pytest.fixture(scope="session")
def model(make_document: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A trained model."""
    return finetune.fit(make_document(tmp_path_factory.mktemp("face") / "model"))
